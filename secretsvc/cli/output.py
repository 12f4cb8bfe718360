"""What the user sees: data on standard output, everything else on standard error.

Rules:

- ``-o json`` and ``-o yaml`` print the API's objects unchanged; a table is aligned text, one line per item.
- Text that came from elsewhere is printed without control characters, so that it can not drive a terminal.
- Whatever takes longer than a second says what it waits for: a spinner on a terminal, else a line when it
  changes.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self, TextIO

import yaml
from rich.console import Console

from secretsvc.cli.exits import ApiProblem
from secretsvc.core.errors import InvalidInput, NotProved, SecretsvcError

PATIENCE_S = 1.0
"""How long something may take before it says what it waits for."""

Row = Sequence[object]


class OutputFormat(StrEnum):
    """How data is printed."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


def clean(value: object) -> str:
    """Return a cell's or message's text without control characters; None is a dash."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ",".join(clean(item) for item in value) or "-"
    return "".join(character if character.isprintable() else "?" for character in str(value))


def aligned(header: Row, rows: Sequence[Row]) -> str:
    """Return rows as columns that are as wide as their widest cell."""
    cells = [[clean(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = ("   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)
    return "\n".join(line.rstrip() for line in lines)


@dataclass(slots=True)
class Terminal:
    """Standard output and standard error of one command."""

    out: TextIO
    err: TextIO
    format: OutputFormat = OutputFormat.TABLE
    quiet: bool = False
    _console: Console = field(init=False)

    def __post_init__(self) -> None:
        self._console = Console(file=self.err, markup=False, highlight=False, emoji=False, soft_wrap=True)

    def show(self, data: Any, table: Callable[[], str]) -> None:  # noqa: ANN401  # JSON
        """Print data in the chosen format; ``table`` is only asked when it is the table."""
        if self.format is OutputFormat.JSON:
            text = json.dumps(data, indent=2, ensure_ascii=False)
        elif self.format is OutputFormat.YAML:
            text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True).rstrip("\n")
        else:
            text = table()
        print(text, file=self.out, flush=True)

    def note(self, text: str) -> None:
        """Say what was done, on standard error, unless quiet."""
        if not self.quiet:
            self._console.out(_printable(text), highlight=False)

    def warn(self, text: str) -> None:
        """Say what the user should know even when quiet."""
        self._console.out(_printable(f"warning: {text}"), highlight=False)

    @contextmanager
    def waiting(self, text: str) -> Iterator[Callable[[str], None]]:
        """Show that something is under way; what is yielded changes the text."""
        if self.quiet:
            yield lambda _text: None
        elif self._console.is_terminal:
            with self._console.status(clean(text)) as status:
                yield lambda changed: status.update(clean(changed))
        else:
            with _Lines(self, text) as lines:
                yield lines.change

    def problem(self, error: SecretsvcError) -> None:
        """Print what went wrong, where, and what to do."""
        if self.format is not OutputFormat.TABLE:
            print(json.dumps(_document(error), ensure_ascii=False), file=self.err, flush=True)
            return
        lines = [f"error: {error.message}"]
        if isinstance(error, ApiProblem):
            lines += _details(error.document)
        if isinstance(error, InvalidInput):
            lines += [f"  {fault.pointer}: {fault.detail}" for fault in error.fields]
        if error.hint:
            lines.append(f"hint: {error.hint}")
        if isinstance(error, ApiProblem) and error.status >= 500:  # noqa: PLR2004  # HTTP's class
            lines.append(f"request id: {error.document.get('request_id', '-')}")
        self._console.out(_printable("\n".join(lines)), highlight=False)


class _Lines:
    """Progress where there is no terminal: the text once it took a while, then whenever it changes."""

    def __init__(self, terminal: Terminal, text: str) -> None:
        self._terminal = terminal
        self._text = text
        self._lock = threading.Lock()
        self._late = False
        self._timer = threading.Timer(PATIENCE_S, self._speak)
        self._timer.daemon = True

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._timer.cancel()

    def change(self, text: str) -> None:
        """Replace the text."""
        with self._lock:
            changed, self._text = text != self._text, text
            if changed and self._late:
                self._terminal.note(f"{text} ...")

    def _speak(self) -> None:
        with self._lock:
            self._late = True
            self._terminal.note(f"{self._text} ...")


def verdict_lines(verdict: Mapping[str, Any]) -> list[str]:
    """Return a verdict as text: each request that was made, then what came out."""
    lines = []
    for number, step in enumerate(verdict.get("steps") or (), 1):
        status = step.get("status") or "no answer"
        note = f"  ({step['note']})" if step.get("note") else ""
        lines.append(f"  {number}. {step.get('method')} {step.get('host')}{step.get('path')}: {status}{note}")
    lines.append(f"  {verdict.get('outcome')} ({verdict.get('reason')}): {verdict.get('message')}")
    return lines


def _details(document: Mapping[str, Any]) -> list[str]:
    lines = []
    for fault in document.get("errors") or ():
        where = fault.get("pointer") or fault.get("location") or ""
        lines.append(f"  {where}: {fault.get('detail', '')}")
    if isinstance(document.get("verdict"), Mapping):
        lines += verdict_lines(document["verdict"])
    if document.get("users"):
        lines.append(f"  used by: {clean(document['users'])}")
    return lines


def _document(error: SecretsvcError) -> Mapping[str, Any]:
    if isinstance(error, ApiProblem) and error.document:
        return error.document
    document: dict[str, Any] = {"title": error.message, "code": error.code, "hint": error.hint}
    if isinstance(error, InvalidInput):
        document["errors"] = [{"pointer": fault.pointer, "detail": fault.detail} for fault in error.fields]
    if isinstance(error, NotProved):
        document["verdict"] = {"outcome": error.verdict.outcome, "reason": error.verdict.reason}
    return document


def _printable(text: str) -> str:
    return "\n".join(clean(line) if line else "" for line in text.split("\n"))
