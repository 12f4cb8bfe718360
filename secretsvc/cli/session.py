"""What every command has at hand: the terminal, the settings' source, and the API.

A command that starts an operation waits for it here, with progress, and says how to go on waiting when the
wait ended or was interrupted: the operation does not stop with the command.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from secretsvc import settings
from secretsvc.cli.client import Answer, ApiClient, segment
from secretsvc.cli.exits import ApiProblem, BadAnswer, PartlyDone, TimedOut
from secretsvc.cli.explain import for_a_terminal, lacking, name_options, shortfall
from secretsvc.cli.output import OutputFormat, Terminal

SETTLED = frozenset({"succeeded", "failed", "cancelled"})
_POLL_S = 0.3
"""Between two looks at an operation that the service did not hold: it lets only some callers wait."""
_HOLD_S = 2
"""How long the service may hold one look, so that progress is seen too."""


@dataclass(slots=True)
class Session:
    """One run of the command line."""

    terminal: Terminal
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    flags: dict[str, str] = field(default_factory=dict)
    """What was given on the command line, by setting."""
    allow_http: bool = False
    _client: ApiClient | None = None

    @property
    def api(self) -> ApiClient:
        """The API, connected to at the first call."""
        if self._client is None:
            found = settings.load_client(self.environ, self.flags)
            self._client = ApiClient(found.url, found.token_file, found.cacert, allow_http=self.allow_http)
        return self._client

    @property
    def token_file(self) -> Path | None:
        """Where the API token comes from."""
        return self.api.token_file

    def settings(self, flags: Mapping[str, str] | None = None) -> settings.Settings:
        """Return the service's settings, with what a command was given besides."""
        return settings.load(self.environ, self.flags | dict(flags or {}))

    def follow(self, answer: Answer, what: str, timeout: float, see: str = "") -> dict[str, Any]:
        """Wait until the operation that ``answer`` is about has settled; return it.

        Raises `TimedOut` after ``timeout`` seconds, which names ``see``, the command that says why.
        """
        return self.wait(operation_of(answer), what, timeout, see)

    def wait(self, identifier: str, what: str, timeout: float, see: str = "") -> dict[str, Any]:
        """Wait for an operation by its id, showing its progress."""
        ends = time.monotonic() + timeout
        hint = f"it goes on; `secretsvc operation wait {identifier}` waits for it"
        try:
            with self.terminal.waiting(what) as say:
                while True:
                    operation = self._look(identifier, ends)
                    if operation["state"] in SETTLED:
                        return operation
                    say(f"{what} ({progress(operation)})")
                    if time.monotonic() >= ends:
                        why = f"`{see}` says why; " if see else ""
                        raise TimedOut(f"{what}: {progress(operation)} after {timeout:g} s", hint=why + hint)
        except KeyboardInterrupt:
            self.terminal.note(hint)
            raise

    def _look(self, identifier: str, ends: float) -> dict[str, Any]:
        """Return an operation once it has settled, after a while, or when the time is over."""
        started = time.monotonic()
        hold = min(_HOLD_S, max(1, math.ceil(ends - started)))
        operation: dict[str, Any] = self.api.get(f"/operations/{segment(identifier)}", wait=hold).body
        rest = _POLL_S - (time.monotonic() - started)
        if operation["state"] not in SETTLED and rest > 0:
            time.sleep(rest)
        return operation


def operation_of(answer: Answer) -> str:
    """Return the id of the operation that an answer is about: its Location, or the ``operation`` it names."""
    body = answer.body if isinstance(answer.body, dict) else {}
    named = body.get("operation")
    if isinstance(named, str):
        return named
    if isinstance(named, dict):
        return str(named["id"])
    if "/operations/" in answer.location:
        return answer.location.rpartition("/")[2]
    return str(body["id"])


def raise_failure(operation: Mapping[str, Any]) -> None:
    """Raise what an operation failed of: `PartlyDone` when it got to some targets."""
    if operation["state"] == "succeeded":
        return
    error = operation.get("error") or {}
    done = (operation.get("progress") or {}).get("done") or 0
    message = str(error.get("message") or f"the operation {operation['state']}")
    kind = PartlyDone if done else BadAnswer
    raise kind(message, hint=str(error.get("hint") or ""), code=str(error.get("code") or ""))


def raise_undelivered(deliveries: list[dict[str, Any]]) -> None:
    """Raise unless every target has what it should: `PartlyDone` when some have."""
    message = shortfall(deliveries)
    if message:
        kind = PartlyDone if len(lacking(deliveries)) < len(deliveries) else BadAnswer
        raise kind(message, hint="the reason stands below each; secretsvc keeps trying")


def progress(operation: Mapping[str, Any]) -> str:
    """Say how far an operation got."""
    counts = operation.get("progress") or {}
    if not counts.get("total"):
        return str(operation["state"])
    return f"{counts['done']} of {counts['total']} targets have it"


pass_session = click.make_pass_decorator(Session)


def timeout_option(default: float = 120) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return the option ``--timeout``: how long a command waits."""
    return click.option(
        "--timeout",
        type=click.FloatRange(min=0, min_open=True),
        default=default,
        show_default=True,
        metavar="SECONDS",
        help="How long to wait; what was asked for goes on after that.",
    )


def _set_format(context: click.Context, _parameter: click.Parameter, value: str | None) -> None:
    if value is not None:
        context.ensure_object(Session).terminal.format = OutputFormat(value)


def _set_quiet(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value:
        context.ensure_object(Session).terminal.quiet = True


def output_options() -> list[click.Parameter]:
    """Return ``-o`` and ``-q``, which may stand before or after a command's name."""
    return [
        click.Option(
            ["-o", "--output"],
            type=click.Choice([known.value for known in OutputFormat]),
            expose_value=False,
            callback=_set_format,
            help="How data is printed.",
        ),
        click.Option(
            ["-q", "--quiet"],
            is_flag=True,
            expose_value=False,
            callback=_set_quiet,
            help="No progress and no remarks.",
        ),
    ]


class Command(click.Command):
    """A command that takes ``-o`` and ``-q``, and says what the API refused in words of the command line."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401  # click's own signature
        super().__init__(*args, **kwargs)
        self.params += output_options()

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401  # click's own signature
        """Run the command."""
        try:
            return super().invoke(ctx)
        except ApiProblem as exc:
            name_options(exc, self, ctx)
            raise for_a_terminal(exc, ctx.ensure_object(Session).token_file) from exc.__cause__


class Group(click.Group):
    """A group whose commands take ``-o`` and ``-q``."""

    command_class = Command
