"""``secretsvc credential``: register, replace, roll back. Values come from standard input or a prompt."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import click

from secretsvc.cli.client import Answer, segment
from secretsvc.cli.exits import BadAnswer
from secretsvc.cli.imports import import_
from secretsvc.cli.output import aligned, verdict_lines
from secretsvc.cli.session import Group, Session, pass_session, raise_failure, timeout_option
from secretsvc.cli.values import no_value_arguments, read_value
from secretsvc.core.model import (
    CredentialType,
    Outcome,
)

_TYPES = [known.value for known in CredentialType]


@click.group(cls=Group)
def credential() -> None:
    """Credentials: register, replace, roll back."""


credential.add_command(import_)


@credential.command("add")
@click.argument("name")
@click.option("--registry", required=True, help="A registry's name, or its host (with a dot or a port).")
@click.option("--username", required=True)
@click.option("--type", "kind", type=click.Choice(_TYPES), required=True, help="What kind of login it is.")
@click.option(
    "--allow-unverified",
    is_flag=True,
    help="Keep it although the registry could not be asked; never although it refused it.",
)
@click.option("--expires-at", metavar="TIME", help="When it ends, such as 2027-01-31T00:00:00Z.")
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE")
@timeout_option()
@no_value_arguments
@pass_session
def add(session: Session, /, name: str, timeout: float, **given: Any) -> None:  # noqa: ANN401
    """Register a credential: its value is proved at the registry, then stored.

    The value comes from standard input, without its line end, or from a hidden prompt.

    \b
    secretsvc credential add prod --registry registry.example.com --username 'robot$ci' --type token
    pass show registry/prod | secretsvc credential add prod --registry reg1 --username ci --type token
    """
    body = {
        "name": name,
        "registry": given["registry"],
        "username": given["username"],
        "type": given["kind"],
        "secret": read_value(f"Value ({given['kind']}) of {given['username']}"),
        "allow_unverified": given["allow_unverified"],
    }
    if given["expires_at"]:
        body["expires_at"] = _time(given["expires_at"])
    if given["labels"]:
        body["labels"] = _labels(given["labels"])
    with session.terminal.waiting(f"proving {given['username']} at {given['registry']}"):
        answer = session.api.call("POST", "/credentials", body)
    tell_registered(session, answer.body)
    if _goes_on(session, answer.body):
        raise_failure(session.follow(answer, f"storing {name}", timeout))
    current = session.api.get(_path(name)).body
    session.terminal.show(current, lambda: table([current]))


@credential.command("list")
@click.option("--state", help="Only those in this state: active, unverified, invalid, expired or stale.")
@click.option("--registry", help="Only those at this registry.")
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="Only those with this label.")
@pass_session
def list_(session: Session, state: str | None, registry: str | None, labels: tuple[str, ...]) -> None:
    """List credentials."""
    query = {"state": state, "registry": registry, "label": labels}
    items = list(session.api.items("/credentials", {key: value for key, value in query.items() if value}))
    session.terminal.show({"items": items}, lambda: table(items))


@credential.command("get")
@click.argument("name")
@pass_session
def get(session: Session, name: str) -> None:
    """Show one credential, and every target it reaches."""
    body = session.api.get(_path(name)).body
    deliveries = list(session.api.items(f"{_path(name)}/deliveries"))
    session.terminal.show(
        {**body, "targets": deliveries},
        lambda: "\n\n".join([table([body]), *_verdict_text(body), deliveries_table(deliveries)]),
    )


@credential.command("rotate")
@click.argument("name")
@click.option("--manual", is_flag=True, help="You give the new value (standard input or prompt).")
@click.option("--username", help="The new value's username, when it is another one.")
@click.option(
    "--type", "kind", type=click.Choice(_TYPES), help="The new value's type, when it is another one."
)
@click.option("--allow-unverified", is_flag=True, help="Take it although the registry could not be asked.")
@click.option("--expires-at", metavar="TIME", help="When the new value ends.")
@timeout_option(300)
@no_value_arguments
@pass_session
def rotate(session: Session, /, name: str, timeout: float, **given: Any) -> None:  # noqa: ANN401
    """Replace a credential's value everywhere.

    The new value is proved, becomes the next generation, and reaches every target. A value that the
    registry refuses changes nothing.

    \b
    secretsvc credential rotate prod --manual < new-token
    """
    if not given["manual"]:
        raise click.UsageError(
            "no issuer is set up for it: make the new value at the registry and give it with --manual"
        )
    found = session.api.get(_path(name))
    body = {
        "username": given["username"] or found.body["username"],
        "type": given["kind"] or found.body["type"],
        "secret": read_value(f"New value of {found.body['username']} at {found.body['registry']}"),
        "allow_unverified": given["allow_unverified"],
    }
    if given["expires_at"]:
        body["expires_at"] = _time(given["expires_at"])
    with session.terminal.waiting(f"proving the new value of {name}"):
        answer = session.api.call("PUT", f"{_path(name)}/secret", body, etag=found.etag)
    tell_registered(session, answer.body)
    if _goes_on(session, answer.body):
        _distribute(session, name, answer, f"replacing {name}", timeout)


@credential.command("rollback")
@click.argument("name")
@click.option("--force", is_flag=True, help="Although the previous value is no longer accepted.")
@click.option("--reason", default="", help="Why; needed with --force, and recorded.")
@timeout_option(300)
@pass_session
def rollback(session: Session, name: str, force: bool, reason: str, timeout: float) -> None:
    """Publish the previous generation again, after proving it."""
    body: dict[str, Any] = {"force": force}
    if reason:
        body["reason"] = reason
    answer = session.api.call("POST", f"{_path(name)}/rollback", body)
    _distribute(session, name, answer, f"rolling {name} back", timeout)


@credential.command("validate")
@click.argument("name")
@timeout_option()
@pass_session
def validate(session: Session, name: str, timeout: float) -> None:
    """Prove the current value at the registry again."""
    answer = session.api.call("POST", f"{_path(name)}/validate")
    raise_failure(session.follow(answer, f"proving {name}", timeout))
    body = session.api.get(_path(name)).body
    session.terminal.show(body, lambda: "\n\n".join([table([body]), *_verdict_text(body)]))
    if body["state"] != "active":
        raise BadAnswer(f"credential {name} is {body['state']}")


@credential.command("delete")
@click.argument("name")
@pass_session
def delete(session: Session, name: str) -> None:
    """Forget a credential that no rule uses. Nothing at the registry is touched."""
    session.api.call("DELETE", _path(name), etag=session.api.get(_path(name)).etag)
    session.terminal.note(f"credential {name} is deleted; it still exists at the registry")


@credential.command("history")
@click.argument("name")
@pass_session
def history(session: Session, name: str) -> None:
    """Show a credential's generations and its finished operations."""
    generations = list(session.api.items(f"{_path(name)}/generations"))
    operations = list(session.api.items(f"{_path(name)}/history"))
    data = {"generations": generations, "operations": operations}
    session.terminal.show(data, lambda: _history_table(generations, operations))


def tell_registered(session: Session, body: Mapping[str, Any]) -> None:
    """Say on standard error how the registry answered, step by step."""
    if body.get("registry_created"):
        session.terminal.note(f"registry {body['registry_created']} was unknown and is registered now")
    if isinstance(body.get("verdict"), Mapping):
        session.terminal.note("\n".join(verdict_lines(body["verdict"])))


def table(items: list[dict[str, Any]]) -> str:
    """Return credentials as a table."""
    header = ("NAME", "REGISTRY", "USERNAME", "TYPE", "STATE", "GENERATION", "VERDICT", "EXPIRES", "TARGETS")
    return aligned(header, [_row(item) for item in items])


def deliveries_table(rows: list[dict[str, Any]]) -> str:
    """Return targets as a table, with the reason of each."""
    header = ("RULE", "TARGET", "STATE", "GENERATION", "REASON", "MESSAGE")
    return aligned(header, [_delivery_row(row) for row in rows]) if rows else "no targets"


def _row(item: Mapping[str, Any]) -> tuple[object, ...]:
    counts = item.get("deliveries") or {}
    verdict = item.get("verdict") or {}
    return (
        item["name"],
        item["registry"],
        item["username"],
        item["type"],
        item["state"],
        item.get("generation") or None,
        verdict.get("outcome"),
        item.get("expires_at"),
        f"{counts.get('synced', 0)}/{counts.get('total', 0)}",
    )


def _delivery_row(row: Mapping[str, Any]) -> tuple[object, ...]:
    target = row["target"]
    where = target.get("path") or f"{target.get('cluster')}/{target.get('namespace')}"
    return (
        row["rule"],
        where,
        row["state"],
        row.get("generation") or None,
        row.get("reason"),
        row.get("message"),
    )


def _history_table(generations: list[dict[str, Any]], operations: list[dict[str, Any]]) -> str:
    parts = [aligned(("GENERATION", "STAGE"), [(row["number"], row["stage"] or "-") for row in generations])]
    rows = [
        (
            row["updated_at"],
            row["kind"],
            row["state"],
            row.get("requested_by"),
            (row.get("error") or {}).get("message"),
        )
        for row in operations
    ]
    parts.append(aligned(("ENDED", "OPERATION", "STATE", "BY", "ERROR"), rows))
    return "\n\n".join(parts)


def _verdict_text(body: Mapping[str, Any]) -> list[str]:
    verdict = body.get("verdict")
    return ["\n".join(verdict_lines(verdict))] if verdict else []


def _goes_on(session: Session, body: Mapping[str, Any]) -> bool:
    """Whether the value is put to use now; one that was only kept waits for its registry, and so would we."""
    outcome = str((body.get("verdict") or {}).get("outcome", ""))
    if outcome == Outcome.UNVERIFIABLE:
        session.terminal.warn("the registry can not tell whether the value is right; it is used on your word")
        return True
    if not outcome.startswith(Outcome.VALID):
        session.terminal.warn("the value is kept but not proved; it is used when its registry confirms it")
        return False
    return True


def _distribute(session: Session, name: str, answer: Answer, what: str, timeout: float) -> None:
    operation = session.follow(answer, what, timeout)
    rows = list(session.api.items(f"{_path(name)}/deliveries"))
    body = session.api.get(_path(name)).body
    stragglers = [row for row in rows if row["state"] != "synced"]
    session.terminal.show(
        {"credential": body, "operation": operation, "stragglers": stragglers},
        lambda: "\n\n".join([table([body]), *([deliveries_table(stragglers)] if stragglers else [])]),
    )
    raise_failure(operation)


def _labels(given: tuple[str, ...]) -> dict[str, str]:
    labels = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not (key and equals):
            raise click.UsageError(f"--label {text!r}: a label is KEY=VALUE")
        labels[key] = value
    return labels


def _time(text: str) -> str:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise click.UsageError("--expires-at: give a time such as 2027-01-31T00:00:00Z") from None
    if moment.tzinfo is None:
        raise click.UsageError("--expires-at: say the time zone, such as Z for UTC")
    return moment.isoformat()


def _path(name: str) -> str:
    return f"/credentials/{segment(name)}"
