"""How a secret value comes in: from standard input or a hidden prompt, never as an argument.

An argument can be read by everyone who may list processes, and stays in the shell's history.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, BinaryIO, TypeVar

import click

from secretsvc.core.model import Secret

F = TypeVar("F", bound=Callable[..., Any])

LIMIT = 64 * 1024
"""No registry's value is longer; the API takes no larger body."""

_WHY = (
    "a value is never an argument: whoever may list processes sees it, and the shell keeps it. "
    "Pipe it instead (`... < file`, or from a password manager), or leave it out to be asked for it. "
    "If what you typed was real, remove it from the shell's history and replace it."
)


def read_value(prompt: str, stream: BinaryIO | None = None) -> Secret:
    """Return a value from standard input without its one line end, or ask for it on a terminal.

    Only one line end is taken off: whatever else is there belongs to the value, and the service refuses
    blanks at its ends instead of guessing.
    """
    source = stream or sys.stdin.buffer
    if source.isatty():
        return Secret(click.prompt(prompt, hide_input=True, err=True, type=str))
    data = source.read(LIMIT + 1)
    if len(data) > LIMIT:
        raise click.UsageError(f"the value on standard input is longer than {LIMIT // 1024} KiB")
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise click.UsageError("the value on standard input is not UTF-8 text") from None
    text = text.removesuffix("\n").removesuffix("\r") if text.endswith("\n") else text
    if not text:
        raise click.UsageError("there is no value on standard input")
    return Secret(text)


def no_value_arguments(function: F) -> F:
    """Add options that only say why a value is not given as an argument."""
    for name in ("--password", "--secret", "--token", "--value"):
        function = click.option(
            name,
            hidden=True,
            expose_value=False,
            is_flag=False,
            flag_value="",
            default=None,
            callback=_refuse,
        )(function)
    return function


def _refuse(_context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    if value is not None:
        raise click.UsageError(f"there is no {parameter.opts[0]}: {_WHY}")
