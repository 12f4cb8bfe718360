"""Names, ids, digests, API tokens and the Secret type."""

from __future__ import annotations

import copy
import json
import pickle
import string
from dataclasses import asdict
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secretsvc.core.ident import is_document_name, is_name, is_ulid, keyed_digest, ulid
from secretsvc.core.model import (
    CredentialType,
    Login,
    Secret,
)
from secretsvc.core.tokens import PREFIX, is_well_formed, make_token, token_digest, token_id
from tests.fakes import NOON

CANARY = "c4nary-Value"


@given(st.text(max_size=60))
def test_a_name_never_leaves_its_folder(text: str) -> None:
    if is_name(text):
        assert 1 <= len(text) <= 40
        assert set(text) <= set(string.ascii_lowercase + string.digits + "-")
        assert is_document_name(text)


@pytest.mark.parametrize("text", ["", "A", "a/b", "..", "a.b", "a\n", "ü", "a" * 41, "a b", "%2e"])
def test_what_is_not_a_name(text: str) -> None:
    assert not is_name(text)


@given(st.binary(min_size=10, max_size=10), st.integers(1, 10**9))
def test_ulids_are_names_that_sort_by_time(entropy: bytes, later_ms: int) -> None:
    first = ulid(NOON, entropy)
    second = ulid(NOON + timedelta(milliseconds=later_ms), b"\0" * 10)
    assert is_ulid(first)
    assert is_name(first)
    assert first < second


@given(st.lists(st.text(), max_size=4), st.lists(st.text(), max_size=4))
def test_digests_of_different_parts_differ(one: list[str], other: list[str]) -> None:
    key = Secret("k")
    assert (keyed_digest(key, *one) == keyed_digest(key, *other)) == (one == other)


@given(st.binary(min_size=32, max_size=32))
def test_a_token_is_well_formed_and_found_by_its_digest(entropy: bytes) -> None:
    token = make_token(entropy)
    assert is_well_formed(token)
    assert token.reveal().startswith(PREFIX)
    assert len(token.reveal()) == len(PREFIX) + 49
    assert is_name(token_id(token_digest(token)))


@given(st.binary(min_size=32, max_size=32), st.integers(0, 53), st.sampled_from(string.ascii_letters))
def test_a_mistyped_token_is_refused(entropy: bytes, at: int, letter: str) -> None:
    text = make_token(entropy).reveal()
    typo = text[:at] + letter + text[at + 1 :]
    assert is_well_formed(Secret(typo)) == (typo == text)


def test_a_secret_shows_itself_to_nobody() -> None:
    secret = Secret(CANARY)
    login = Login(CredentialType.TOKEN, "robot", secret)
    shown = [
        repr(secret),
        str(secret),
        f"{secret}",
        f"{secret:>30}",
        f"{secret!r}",
        repr(login),
        repr([secret]),
    ]
    assert not any(CANARY in text for text in shown)
    for leak in (json.dumps, pickle.dumps, copy.deepcopy, copy.copy, asdict, hash):
        with pytest.raises(TypeError):
            leak(login if leak is asdict else secret)


def test_secrets_compare_by_value() -> None:
    assert Secret("a") == Secret("a")
    assert Secret("a") != Secret("b")
    assert Secret("a") != "a"
    assert not Secret("")
