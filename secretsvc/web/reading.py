"""Request bodies: strict JSON, or a `Unreadable` that says where it stops being so.

Rules: UTF-8, one object, no duplicate names, no NaN, at most 20 levels deep, no lone surrogates (they could
not be stored), no numbers of absurd length. Messages name the place, never the content: a body may hold a
secret. Exceptions of the JSON library hold the whole text, so they are never chained.
"""

from __future__ import annotations

import json
from typing import NoReturn

from werkzeug.exceptions import BadRequest

DEEPEST = 20
_LONGEST_NUMBER = 40
_MISSHAPEN = range(0xD800, 0xE000)


class Unreadable(BadRequest):
    """The body is not what it must be; ``description`` may be shown."""


def read_object(data: bytes) -> dict[str, object]:
    """Return the JSON object that ``data`` consists of, or raise `Unreadable`."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise Unreadable(f"The body is not UTF-8 (byte {exc.start}).") from None
    value = _parsed(text)
    if not isinstance(value, dict):
        raise Unreadable("The body must be a JSON object.")
    _check(value, 1)
    return value


def _parsed(text: str) -> object:
    try:
        return json.loads(
            text,
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
            parse_int=_integer,
            parse_float=_number,
        )
    except json.JSONDecodeError as exc:
        problem = f"The body is not JSON (line {exc.lineno}, column {exc.colno})."
    except RecursionError:
        problem = f"The body is nested deeper than {DEEPEST} levels."
    raise Unreadable(problem)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise Unreadable("An object of the body has the same name twice.")
    return members


def _no_constant(_name: str) -> NoReturn:
    raise Unreadable("The body holds NaN or Infinity, which JSON does not have.")


def _integer(text: str) -> int:
    return int(_short(text))


def _number(text: str) -> float:
    return float(_short(text))


def _short(text: str) -> str:
    if len(text) > _LONGEST_NUMBER:
        raise Unreadable("The body holds a number of absurd length.")
    return text


def _check(value: object, depth: int) -> None:
    if depth > DEEPEST:
        raise Unreadable(f"The body is nested deeper than {DEEPEST} levels.")
    if isinstance(value, str) and any(ord(character) in _MISSHAPEN for character in value):
        raise Unreadable("A text of the body holds half of a surrogate pair, which is no character.")
    if isinstance(value, dict):
        for name, inner in value.items():
            _check(name, depth + 1)
            _check(inner, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            _check(inner, depth + 1)
