"""What to do next: why a credential or a target is not well, and what an answer of the API means here.

The API speaks to programs, of fields and ``/openapi.json``. At a terminal the same is said of options, files
and commands.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from secretsvc.cli.exits import ApiProblem
from secretsvc.cli.tables import moment
from secretsvc.core.errors import InvalidInput
from secretsvc.core.model import Outcome

_DONE = ("synced", "removed")
_UNAUTHENTICATED = 401
_FOR_PROGRAMS = "/openapi.json"
_FIELDS = {"ca": "--ca-file", "secret": "the value", "namespaces": "--namespace"}
"""Fields of a body that are given by something of another name."""


def lacking(deliveries: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the targets that do not have what they should."""
    return [row for row in deliveries if row["state"] not in _DONE]


def shortfall(deliveries: Sequence[Mapping[str, Any]]) -> str:
    """Say how many targets do not have what they should; empty when all have."""
    bad = len(lacking(deliveries))
    return f"{bad} of {len(deliveries)} targets {'does' if bad == 1 else 'do'} not have it" if bad else ""


def target_notes(delivery: Mapping[str, Any]) -> tuple[str, ...]:
    """Return why a target does not have what it should; nothing when it has."""
    if delivery["state"] in _DONE:
        return ()
    said = [text for text in (delivery.get("reason"), delivery.get("message")) if text]
    return (": ".join(said),) if said else ("it was not looked at yet",)


def credential_notes(item: Mapping[str, Any]) -> tuple[str, ...]:
    """Return why a credential is not active and what to do; nothing when it is active."""
    name, registry = item["name"], item["registry"]
    replace = f"do: put a new value: `secretsvc credential rotate {name} --manual`"
    verdict = item.get("verdict") or {}
    if item["state"] == "unverified":
        return _unverified(item, verdict)
    if item["state"] == "invalid":
        return (f"refused by its registry{_said(verdict)}", replace)
    if item["state"] == "expired":
        ended = moment(item.get("expires_at"))
        return (
            f"it ended at {ended}" if ended else f"its registry says that it ended{_said(verdict)}",
            replace,
        )
    if item["state"] == "stale":
        changed = (
            f"registry {registry} (its host, realms, CA or --insecure) changed after the value was proved"
        )
        return (
            f"{changed}; until there is a new value, targets keep what they have and get nothing new",
            f"{replace}; or set {registry} back to what it was",
        )
    return ()


def _unverified(item: Mapping[str, Any], verdict: Mapping[str, Any]) -> tuple[str, ...]:
    name, registry = item["name"], item["registry"]
    if not verdict:
        if item.get("operation"):
            return (
                "its value is being stored",
                f"do: `secretsvc credential history {name}` shows how far it is",
            )
        return ("no value of it was proved yet", f"do: `secretsvc credential rotate {name} --manual`")
    if verdict.get("outcome") == Outcome.UNVERIFIABLE:
        again = f"do: ask again: `secretsvc credential validate {name}`"
        return (f"its registry can not tell whether the value is right{_said(verdict)}", again)
    ask = f"do: `secretsvc registry ping {registry}`; the value is used as soon as its registry confirms it"
    return (f"the value is kept but not proved{_said(verdict)}", ask)


def _said(verdict: Mapping[str, Any]) -> str:
    return f" ({verdict.get('reason')}): {verdict.get('message')}" if verdict else ""


# --- Answers of the API ---------------------------------------------------------------------------


def for_a_terminal(error: ApiProblem, token_file: Path | None) -> ApiProblem:
    """Replace the hints that are for programs, or add the one that only the command line knows."""
    if _FOR_PROGRAMS in error.hint:
        error.hint = ""
    if error.status == _UNAUTHENTICATED:
        error.hint = (
            f"the token was read from {token_file}; name another file with --token-file, or make a new "
            "admin token on the service's machine: `secretsvc token reset --local`"
        )
    return error


def of_usage(error: click.ClickException) -> InvalidInput:
    """Return what is wrong with a command line as an error like any other."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    return InvalidInput(
        error.format_message(), hint=f"see `{context.command_path} --help`" if context else ""
    )


def name_options(error: ApiProblem, command: click.Command, context: click.Context) -> None:
    """Write down, for every wrong field of a body, which option or argument of the command it came from."""
    for fault in error.document.get("errors") or ():
        pointer = str(fault.get("pointer") or "")
        given = _given_as(pointer.lstrip("/?").partition("/")[0], command, context)
        if given:
            error.given_as[pointer] = given


def _given_as(field: str, command: click.Command, context: click.Context) -> str:
    option = _FIELDS.get(field) or f"--{field.replace('_', '-')}"
    for parameter in command.params:
        if isinstance(parameter, click.Argument) and parameter.name == field:
            return parameter.make_metavar(context)
        visible = isinstance(parameter, click.Option) and not parameter.hidden
        if visible and {option, option.removesuffix("s")} & {*parameter.opts, *parameter.secondary_opts}:
            metavar = "" if getattr(parameter, "is_flag", False) else f" {parameter.make_metavar(context)}"
            return max(parameter.opts, key=len) + metavar
    return option if field == "secret" else ""
