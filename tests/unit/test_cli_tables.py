"""Tables fit the terminal, and lose nothing on the way."""

from __future__ import annotations

import io
import os
import pty
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secretsvc.cli.output import OutputFormat, Terminal
from secretsvc.cli.tables import Item, Table, aligned, clean, moment, wrapped

WORD = st.text("abcdefgh", min_size=1, max_size=12)
CELL = st.lists(WORD, min_size=1, max_size=6).flatmap(
    lambda words: st.sampled_from([" ", "/", ","]).map(lambda joint: joint.join(words))
)
ROWS = st.lists(st.tuples(CELL, CELL, CELL), min_size=1, max_size=6)
HEADER = ("FIRST", "SECOND", "THIRD")


def letters(text: str) -> str:
    """Return what a text says, whatever stands around it and in whichever order."""
    return "".join(sorted(re.sub(r"[^a-h]", "", text)))


@given(ROWS, st.integers(24, 140))
def test_a_table_is_never_wider_than_its_terminal_and_loses_nothing(
    rows: list[tuple[str, str, str]], width: int
) -> None:
    text = Table.of(HEADER, rows).text(width)
    for line in text.splitlines():
        assert len(line) <= width or " " not in line.strip()
    assert letters(text) == letters("".join(map("".join, rows)))


@given(ROWS, st.integers(24, 140))
def test_no_word_and_no_header_is_split(rows: list[tuple[str, str, str]], width: int) -> None:
    text = Table.of(HEADER, rows).text(width)
    words = set(re.findall("[a-h]+", text))
    assert words == {word for row in rows for cell in row for word in re.findall("[a-h]+", cell)}
    assert not set(re.findall("[A-Z]+", text)) - set(HEADER)


@given(ROWS)
def test_what_goes_into_a_pipe_is_not_folded(rows: list[tuple[str, str, str]]) -> None:
    assert len(Table.of(HEADER, rows).text().splitlines()) == len(rows) + 1
    assert Table.of(HEADER, rows).text() == aligned(HEADER, rows)


def test_a_column_without_room_goes_below_its_item() -> None:
    table = Table.of(("NAME", "OTHER", "LAST"), [("n" * 30, "o" * 30, "l" * 30), ("m" * 30, "o" * 10, None)])
    assert table.text(64).splitlines() == [
        f"{'NAME':30}  OTHER",
        f"{'n' * 30}  {'o' * 30}",
        f"    LAST {'l' * 30}",
        f"{'m' * 30}  {'o' * 10}",
    ]


def test_what_is_said_of_an_item_stands_below_it_and_below_no_other() -> None:
    table = Table(("NAME",), [Item(("good",)), Item(("bad",), ("it broke", "do: mend it"))])
    assert table.text(80).splitlines() == ["NAME", "good", "bad", "    it broke", "    do: mend it"]


def test_an_empty_table_says_so() -> None:
    assert Table.of(("NAME",), [], empty="no things").text(80) == "no things"


@given(st.lists(WORD, max_size=20), st.integers(20, 100))
def test_a_command_is_never_folded(words: list[str], width: int) -> None:
    command = "`secretsvc credential rotate prod --manual`"
    lines = wrapped(f"{' '.join(words)} do: {command}; or not", width, "  ")
    assert any(command in line for line in lines)


@pytest.mark.parametrize(
    ("time", "shown"),
    [
        ("2026-01-02T03:04:05.678901Z", "2026-01-02T03:04:05Z"),
        ("2026-01-02T03:04:05Z", "2026-01-02T03:04:05Z"),
        (None, None),
    ],
)
def test_times_are_shown_to_the_second(time: str | None, shown: str | None) -> None:
    assert moment(time) == shown


def test_a_time_is_folded_between_day_and_hour_only() -> None:
    text = Table.of(("EXPIRES",), [("2026-01-02T03:04:05Z",)]).text(12)
    assert text.splitlines() == ["EXPIRES", "2026-01-02T", "03:04:05Z"]


def test_what_holds_a_blank_back_is_no_text_of_others() -> None:
    assert clean("\N{WORD JOINER}") == "?"


@pytest.mark.parametrize("columns", [80, 110, 140])
def test_a_terminals_own_width_is_used(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    reader, writer = pty.openpty()
    with os.fdopen(writer, "w") as out:
        terminal = Terminal(out, io.StringIO(), OutputFormat.TABLE)
        terminal.show({}, lambda: [Table.of(("A", "B"), [("x/" * 90, "y")]), "end"])
        said = os.read(reader, 10_000).decode().replace("\r", "")
    os.close(reader)
    lines = said.splitlines()
    assert columns - 3 <= max(map(len, lines)) <= columns
    assert lines[-2:] == ["", "end"]
