"""What the user sees: data on standard output, everything else on standard error.

Rules:

- ``-o json`` and ``-o yaml`` print the API's objects unchanged; a table is text that fits the terminal.
- Text that came from elsewhere is printed without control characters, so that it can not drive a terminal.
- Whatever takes longer than a second says what it waits for: a spinner on a terminal, else a line when it
  changes.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self, TextIO

import yaml
from rich.console import Console

from secretsvc.cli.exits import ApiProblem
from secretsvc.cli.tables import Table, clean, wrapped
from secretsvc.core.errors import InvalidInput, NotProved, SecretsvcError

PATIENCE_S = 1.0
"""How long something may take before it says what it waits for."""

Part = str | Table
"""What a screen is made of."""


class OutputFormat(StrEnum):
    """How data is printed."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


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

    @property
    def width(self) -> int | None:
        """How many columns standard output has; None when it is no terminal, and nothing is folded."""
        return shutil.get_terminal_size().columns if self.out.isatty() else None

    def show(self, data: Any, screen: Callable[[], Part | Sequence[Part]]) -> None:  # noqa: ANN401  # JSON
        """Print data in the chosen format; ``screen`` is only asked when it is the table."""
        if self.format is OutputFormat.JSON:
            text = json.dumps(data, indent=2, ensure_ascii=False)
        elif self.format is OutputFormat.YAML:
            text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True).rstrip("\n")
        else:
            text = self._text(screen())
        if text:
            print(text, file=self.out, flush=True)

    def _text(self, screen: Part | Sequence[Part]) -> str:
        parts = [screen] if isinstance(screen, str | Table) else screen
        texts = [part if isinstance(part, str) else part.text(self.width) for part in parts]
        return "\n\n".join(text for text in texts if text)

    def note(self, text: str) -> None:
        """Say what was done, on standard error, unless quiet."""
        if not self.quiet:
            self._console.out(_printable(text), highlight=False)

    def warn(self, text: str) -> None:
        """Say what the user should know even when quiet."""
        self._say([f"warning: {text}"])

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
            lines += _details(error)
        if isinstance(error, InvalidInput):
            unsaid = [fault for fault in error.fields if fault.detail not in error.message]
            lines += [f"  {fault.pointer}: {fault.detail}" for fault in unsaid]
        if error.hint:
            lines.append(f"hint: {error.hint}")
        if isinstance(error, ApiProblem) and error.status >= 500:  # noqa: PLR2004  # HTTP's class
            lines.append(f"request id: {error.document.get('request_id', '-')}")
        self._say("\n".join(lines).split("\n"))

    def _say(self, lines: Sequence[str]) -> None:
        """Print sentences, folded between words where standard error is a terminal."""
        width = self._console.width if self._console.is_terminal else None
        for line in lines:
            indent = line[: len(line) - len(line.lstrip())]
            for folded in wrapped(line.strip(), width, indent):
                self._console.out(folded, highlight=False)


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


def verdict_lines(verdict: Mapping[str, Any], said: str = "") -> list[str]:
    """Return a verdict as text: each request that was made, then what came out, unless it was ``said``."""
    lines = []
    for number, step in enumerate(verdict.get("steps") or (), 1):
        status = step.get("status") or "no answer"
        note = f"  ({step['note']})" if step.get("note") else ""
        lines.append(f"  {number}. {step.get('method')} {step.get('host')}{step.get('path')}: {status}{note}")
    message = "" if verdict.get("message") == said else f": {verdict.get('message')}"
    lines.append(f"  {verdict.get('outcome')} ({verdict.get('reason')}){message}")
    return lines


def _details(error: ApiProblem) -> list[str]:
    document = error.document
    lines = []
    for fault in document.get("errors") or ():
        where = fault.get("pointer") or fault.get("location") or ""
        lines.append(f"  {error.given_as.get(where, where)}: {fault.get('detail', '')}")
    if isinstance(document.get("verdict"), Mapping):
        lines += verdict_lines(document["verdict"], error.message)
    unsaid = [user for user in document.get("users") or () if str(user) not in error.message]
    if unsaid:
        lines.append(f"  used by: {clean(unsaid)}")
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
