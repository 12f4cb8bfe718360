"""Bodies are strict JSON; what is refused is refused without being quoted."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secretsvc.web.reading import DEEPEST, Unreadable, read_object
from secretsvc.web.waiting import wished_wait

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=12,
)


@given(st.dictionaries(TEXTS, VALUES, max_size=4))
def test_what_is_written_is_read(value: dict[str, Any]) -> None:
    assert read_object(json.dumps(value).encode()) == value
    assert read_object(json.dumps(value, ensure_ascii=False).encode()) == value


def described(data: bytes) -> str:
    """Return why the data can not be read, or an empty text."""
    try:
        read_object(data)
    except Unreadable as exc:
        return str(exc.description)
    return ""


@given(st.binary(max_size=60))
def test_any_bytes_are_an_object_or_unreadable(data: bytes) -> None:
    problem = described(data)
    assert problem or isinstance(json.loads(data), dict)
    assert "<" not in problem


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b'"hunter2"',
        b"null",
        b"{",
        b"{} {}",
        b'{"secret": "hunter2"',
        b'{"secret": "hunter2", "secret": "hunter2"}',
        b'{"a": {"b": 1, "b": "hunter2"}}',
        b'{"a": NaN, "b": "hunter2"}',
        b'{"a": -Infinity}',
        b'{"a": "hunter2\\ud800"}',
        b'{"hunter2\\udfff": 1}',
        b'{"a": "\xff hunter2"}',
        b'{"a": ' + b"1" * 5000 + b"}",
        b'{"a": 1e' + b"9" * 100 + b"}",
        b'{"a": ' + b"[" * 30_000,
        b'{"a": ' + b"[" * 25 + b"]" * 25 + b"}",
        b"\xef\xbb\xbf{}",
    ],
)
def test_bad_bodies_are_refused_unquoted(text: bytes) -> None:
    with pytest.raises(Unreadable) as caught:
        read_object(text)
    assert "hunter2" not in str(caught.value.description)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or not hasattr(caught.value.__context__, "doc")


def test_the_depth_limit_is_where_it_says() -> None:
    def nested(levels: int) -> bytes:
        return b'{"a":' * (levels - 1) + b"{}" + b"}" * (levels - 1)

    assert read_object(nested(DEEPEST))
    with pytest.raises(Unreadable):
        read_object(nested(DEEPEST + 1))


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("", 0),
        ("wait=5", 5),
        ("wait = 5", 5),
        ('Wait="7"', 7),
        ("respond-async, wait=10", 10),
        ("wait=10; foo=bar", 10),
        ("wait=999", 60),
        ("wait=0", 0),
        ("wait=-1", 0),
        ("wait=x", 0),
        ("wait=99999", 0),
        ("await=5", 0),
    ],
)
def test_a_wish_to_wait_is_understood_or_ignored(header: str, seconds: int) -> None:
    assert wished_wait(header) == seconds
