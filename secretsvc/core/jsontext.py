"""JSON text edited in place: a member is set or dropped, every other character stays as it was.

Rules:

- Strict: one object, no equal keys, no NaN. Go's decoder takes the last of two equal keys and others the
  first, so a text with both has no one meaning.
- `NotJsonError` tells where and why, never what stands there.
- What is added looks like its neighbours: their indentation, white space and colons.

It knows nothing of dockerconfigjson and does no I/O.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


class NotJsonError(Exception):
    """Where a text is not what it must be, and why; never what stands there.

    Args:
        at: index of the offending character.
        problem: half a sentence.
    """

    def __init__(self, at: int, problem: str) -> None:
        super().__init__(problem)
        self.at = at
        self.problem = problem


class _TwiceError(ValueError):
    pass


@dataclass(frozen=True, slots=True)
class Member:
    """One ``name: value`` of an object and where it stands."""

    name: str
    value: Any = field(repr=False)
    start: int
    name_end: int
    value_start: int
    value_end: int


@dataclass(frozen=True, slots=True)
class Object:
    """An object of the text, with its members in order."""

    start: int
    end: int
    """Behind the closing brace."""
    members: tuple[Member, ...]

    def find(self, name: str) -> Member | None:
        """Return the member of that name."""
        return next((member for member in self.members if member.name == name), None)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise _TwiceError
    return members


def _no_constant(_name: str) -> float:
    raise ValueError  # NaN and Infinity are Python's, not JSON's


# Numbers are never used: as float even an absurdly long one costs nothing.
_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant, parse_int=float)
_WHITESPACE = re.compile(r"[ \t\n\r]*")


def _skip(text: str, at: int) -> int:
    match = _WHITESPACE.match(text, at)
    return match.end() if match else at


def _value(text: str, at: int) -> tuple[Any, int]:
    """Decode the value at ``at``; return it and where it ends."""
    try:
        return _DECODER.raw_decode(text, at)
    except _TwiceError:
        problem = "one object in this value has two equal keys"
    except json.JSONDecodeError as exc:
        at, problem = exc.pos, "this is not JSON"
    except (ValueError, RecursionError):
        problem = "this is not JSON, or nested too deep"
    # Raised out here so that the decoder's exception, which holds the whole text, is not its context.
    raise NotJsonError(at, problem)


def _expect(text: str, at: int, character: str) -> int:
    if text[at : at + 1] != character:
        raise NotJsonError(at, f"this is not JSON: {character!r} is missing")
    return at + 1


def read(text: str) -> Object:
    """Return the one object that the text consists of.

    Raises:
        NotJsonError: it is not JSON, or not one object without equal keys.
    """
    root = scan(text, _skip(text, 0))
    rest = _skip(text, root.end)
    if rest != len(text):
        raise NotJsonError(rest, "something follows the object")
    return root


def scan(text: str, start: int) -> Object:
    """Return the object that begins at ``start``; raise `NotJsonError` when it is none."""
    if text[start : start + 1] != "{":
        raise NotJsonError(start, "an object must stand here")
    members: list[Member] = []
    names: set[str] = set()
    at = _skip(text, start + 1)
    while text[at : at + 1] != "}" or members:
        member = _member(text, at)
        if member.name in names:
            raise NotJsonError(member.start, "this key stands in its object twice")
        names.add(member.name)
        members.append(member)
        at = _skip(text, member.value_end)
        if text[at : at + 1] == "}":
            break
        at = _skip(text, _expect(text, at, ","))
    return Object(start, at + 1, tuple(members))


def _member(text: str, start: int) -> Member:
    _expect(text, start, '"')
    name, name_end = _value(text, start)
    value_start = _skip(text, _expect(text, _skip(text, name_end), ":"))
    value, value_end = _value(text, value_start)
    return Member(name, value, start, name_end, value_start, value_end)


def locate(text: str, path: Sequence[str]) -> Object:
    """Return the object at ``path``; raise `KeyError` when a step of it is not there."""
    found = scan(text, _skip(text, 0))
    for name in path:
        member = found.find(name)
        if member is None:
            raise KeyError(name)
        found = scan(text, member.value_start)
    return found


def put(text: str, path: Sequence[str], name: str, value: str) -> str:
    """Return the text with a member of the object at ``path`` set to ``value`` (JSON).

    A new member goes behind the others, in the style of its neighbours.
    """
    target = locate(text, path)
    if (old := target.find(name)) is not None:
        return text[: old.value_start] + value + text[old.value_end :]
    if not target.members:
        lead, tail, colon = _layout(text, path)
        inside = f"{lead}{json.dumps(name)}{colon}{value}{tail}"
        return text[: target.start + 1] + inside + text[target.end - 1 :]
    last = target.members[-1]
    lead, colon = _lead(text, last), _colon(text, last)
    if not lead and colon.endswith(" "):
        lead = " "
    addition = f",{lead}{json.dumps(name)}{colon}{value}"
    return text[: last.value_end] + addition + text[last.value_end :]


def drop(text: str, path: Sequence[str], name: str) -> str:
    """Return the text without that member of the object at ``path`` and its comma."""
    target = locate(text, path)
    names = [member.name for member in target.members]
    if name not in names:
        return text
    at = names.index(name)
    if at:
        return text[: target.members[at - 1].value_end] + text[target.members[at].value_end :]
    if len(names) > 1:
        return text[: target.members[0].start] + text[target.members[1].start :]
    return text[: target.start + 1] + text[target.end - 1 :]


def _lead(text: str, member: Member) -> str:
    """Return the white space before a member's name."""
    before = text[: member.start]
    return before[len(before.rstrip(" \t\r\n")) :]


def _colon(text: str, member: Member) -> str:
    return text[member.name_end : member.value_start]


def _layout(text: str, path: Sequence[str]) -> tuple[str, str, str]:
    """Return what goes before the first member of an empty object, behind it, and between name and value."""
    root = locate(text, ())
    if not path:
        return "\n\t", "\n", ": "
    parent = locate(text, path[:-1])
    for sibling in parent.members if len(path) > 1 else ():
        if isinstance(sibling.value, dict) and sibling.value:
            model = scan(text, sibling.value_start)
            tail = text[model.members[-1].value_end : model.end - 1]
            return _lead(text, model.members[0]), tail, _colon(text, model.members[0])
    own = parent.find(path[-1])
    if own is None:
        raise KeyError(path[-1])
    lead, colon = _lead(text, own), _colon(text, own)
    if "\n" not in lead:
        return "", "", colon
    unit = _lead(text, root.members[0]).rpartition("\n")[2] or "\t"
    return lead + unit, lead, colon
