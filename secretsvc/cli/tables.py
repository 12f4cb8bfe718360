"""Tables that fit the terminal.

Rules:

- Where the width is not known (a pipe, a file) nothing is folded: one line per item, for ``grep``.
- Else a cell is folded between its words, after ``/`` or ``,``, and nowhere else; a header never is.
- Columns for which there is no room go below their item, as ``HEADER value``. Nothing is cut off.
- What is to be said of one item (why it is not well, what to do) stands below it, indented.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

Row = Sequence[object]

_GAP = "  "
_INDENT = "    "
_FOLDS = re.compile(r"(?<=[ ,/])|(?<=[0-9]{4}-[0-9]{2}-[0-9]{2}T)")
"""Where a cell may be folded: after a blank, a comma, a slash, and between a date and its time."""
_FRACTION = re.compile(r"(?<=:[0-9]{2})\.[0-9]+")
_NONE = "-"
_COMMAND = re.compile("`[^`]+`")
_HELD = "\N{WORD JOINER}"
"""Stands for a blank that is not folded at; `clean` lets no such character through."""
_NARROWEST = 20


@dataclass(frozen=True, slots=True)
class Item:
    """One row, with what stands below it."""

    cells: Row
    below: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Table:
    """A header and its items; ``empty`` is said when there are none."""

    header: tuple[str, ...]
    items: Sequence[Item]
    empty: str = ""

    @classmethod
    def of(cls, header: tuple[str, ...], rows: Sequence[Row], empty: str = "") -> Table:
        """Return a table of rows that need no words below them."""
        return cls(header, [Item(row) for row in rows], empty)

    def text(self, width: int | None = None) -> str:
        """Return the table as text for a terminal of ``width`` columns, None for as wide as it gets."""
        if not self.items and self.empty:
            return self.empty
        cells = [[clean(cell) for cell in item.cells] for item in self.items]
        widths = _widths([list(self.header), *cells], width)
        lines = list(_folded(list(self.header)[: len(widths)], widths))
        for row, item in zip(cells, self.items, strict=True):
            lines += _folded(row[: len(widths)], widths)
            left = zip(self.header[len(widths) :], row[len(widths) :], strict=True)
            rest = ", ".join(f"{name} {cell}" for name, cell in left if cell != _NONE)
            for said in (rest, *item.below):
                lines += wrapped(said, width, _INDENT)
        return "\n".join(line.rstrip() for line in lines)


def clean(value: object) -> str:
    """Return a cell's or message's text without control characters; None is a dash."""
    if value is None or value == "":
        return _NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ",".join(clean(item) for item in value) or _NONE
    return "".join(character if character.isprintable() else "?" for character in str(value))


def moment(time: object) -> object:
    """Return an RFC 3339 time without fractions of its seconds; None stays None."""
    return _FRACTION.sub("", time) if isinstance(time, str) else time


def aligned(header: Row, rows: Sequence[Row]) -> str:
    """Return rows as columns that are as wide as their widest cell."""
    return Table.of(tuple(str(name) for name in header), rows).text()


def _widths(rows: Sequence[Sequence[str]], width: int | None) -> list[int]:
    """Return how wide each column is; columns that have no room at all are left out, from the last."""
    natural = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    if width is None:
        return natural
    least = [
        max(len(rows[0][column]), *(_longest(row[column]) for row in rows[1:]), 0)
        for column in range(len(natural))
    ]
    shown = next(
        (count for count in range(len(least), 1, -1) if _total(least[:count]) <= width),
        1,
    )
    widths, least = natural[:shown], least[:shown]
    while _total(widths) > width:
        slack = [column for column in range(shown) if widths[column] > least[column]]
        if not slack:
            break
        widths[max(slack, key=lambda column: widths[column])] -= 1
    return widths


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + len(_GAP) * (len(widths) - 1)


def _longest(cell: str) -> int:
    return max(len(piece.rstrip()) for piece in _FOLDS.split(cell))


def _folded(cells: Sequence[str], widths: Sequence[int]) -> Iterator[str]:
    folded = [list(_fold(cell, width)) for cell, width in zip(cells, widths, strict=True)]
    for parts in zip_longest(*folded, fillvalue=""):
        yield _GAP.join(part.ljust(width) for part, width in zip(parts, widths, strict=True))


def _fold(cell: str, width: int) -> Iterator[str]:
    line = ""
    for piece in _FOLDS.split(cell) if len(cell) > width else [cell]:
        if line and len((line + piece).rstrip()) > width:
            yield line.rstrip()
            line = ""
        line += piece
    yield line


def wrapped(text: str, width: int | None, indent: str = "") -> list[str]:
    """Return a sentence as lines that end between words; what stands in backticks stays on one line.

    A command that is folded could not be copied: the shell would run its first half.
    """
    text = clean(text) if text else ""
    if width is None or not text:
        return [indent + text] if text else []
    lines = textwrap.wrap(
        _COMMAND.sub(lambda found: found.group().replace(" ", _HELD), text),
        max(width, _NARROWEST),
        initial_indent=indent,
        subsequent_indent=indent + "  ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [line.replace(_HELD, " ") for line in lines]
