"""Whose an auth file's entries are: the plan, over any file and any wish."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secretsvc.core.authfile import Plan, plan
from secretsvc.core.dockerconfig import Document, entries, key_scope, parse
from secretsvc.core.errors import InvalidInput
from secretsvc.core.model import Secret
from secretsvc.core.ports import AuthEntry, AuthFileWish
from secretsvc.core.rules import Dialect

KEYS = ["a.example", "b.example", "b.example:5000", "b.example/team"]
SPELLINGS = [*KEYS, "https://a.example", "B.example", "b.example/v2/"]
VALUES = ["one", "two", "three"]


def digest(entry: AuthEntry) -> str:
    return f"{entry.username}:{entry.secret.reveal()}"


def auth(login: str) -> dict[str, str]:
    return {"auth": base64.b64encode(login.encode()).decode()}


def logins(document: Document) -> dict[str, str]:
    return {entry.key: digest(entry) for entry in entries(document)[0]}


wanted_entries = st.lists(
    st.builds(
        lambda key, value: AuthEntry(key, "u", Secret(value)), st.sampled_from(KEYS), st.sampled_from(VALUES)
    ),
    max_size=3,
    unique_by=lambda entry: entry.key,
)
wishes = st.builds(
    lambda wanted, accepted, remove, dialect: AuthFileWish(
        "/x", dialect, tuple(wanted), accepted, digest, frozenset(remove)
    ),
    wanted_entries,
    st.dictionaries(
        st.sampled_from(KEYS), st.frozensets(st.sampled_from([f"u:{value}" for value in VALUES])), max_size=4
    ),
    st.sets(st.sampled_from(KEYS)),
    st.sampled_from([Dialect.CONTAINERS_AUTH, Dialect.KUBELET_CONFIG]),
)
stored = st.one_of(
    st.sampled_from([auth(f"u:{value}") for value in [*VALUES, "foreign"]]),
    st.sampled_from([{}, {"auth": "broken"}, {**auth("u:one"), "identitytoken": "t"}, auth("v:one")]),
)
documents = st.none() | st.dictionaries(st.sampled_from(SPELLINGS), stored, max_size=4).map(
    lambda auths: parse(json.dumps({"auths": auths, "other": 1}))
)


def ours(wish: AuthFileWish, key: str, login: str) -> bool:
    wanted = {entry.key: digest(entry) for entry in wish.entries}
    return login in {*wish.accepted.get(key, ()), wanted.get(key)}


@given(documents, wishes)
def test_somebody_elses_entry_is_never_changed(document: Document | None, wish: AuthFileWish) -> None:
    after = parse(plan(document, wish).text).auths
    for key, value in (document.auths if document else {}).items():
        login = logins(parse(json.dumps({"auths": {key: value}}))).get(key)
        if login is None or not ours(wish, key, login):
            assert after[key] == value


@given(documents, wishes)
def test_every_wanted_login_is_there_or_its_key_is_foreign(
    document: Document | None, wish: AuthFileWish
) -> None:
    done = plan(document, wish)
    there = logins(parse(done.text))
    for entry in wish.entries:
        assert (entry.key in done.foreign) != (
            there.get(entry.key) == digest(entry) == done.marks.get(entry.key)
        )


@given(documents, wishes)
def test_marks_are_what_is_ours_in_the_text(document: Document | None, wish: AuthFileWish) -> None:
    done = plan(document, wish)
    there = logins(parse(done.text))
    assert done.marks == {key: login for key, login in there.items() if ours(wish, key, login)}
    assert not any(key in done.marks and key not in {e.key for e in wish.entries} for key in wish.remove)


@given(documents, wishes)
def test_planning_twice_changes_nothing(document: Document | None, wish: AuthFileWish) -> None:
    done = plan(document, wish)
    again = plan(parse(done.text), wish)
    assert (again.changed, again.text, again.marks, again.foreign) == (
        False,
        done.text,
        done.marks,
        done.foreign,
    )


@given(documents, wishes)
def test_no_second_spelling_of_a_key_is_added(document: Document | None, wish: AuthFileWish) -> None:
    before = set(document.auths) if document else set()
    added = set(parse(plan(document, wish).text).auths) - before
    assert not {key_scope(key) for key in added} & {key_scope(key) for key in before}


def test_two_logins_for_one_key_are_refused() -> None:
    two = tuple(AuthEntry("a.example", "u", Secret(value)) for value in ("hunter1", "hunter2"))
    with pytest.raises(InvalidInput, match="two different logins") as caught:
        plan(None, AuthFileWish("/x", Dialect.CONTAINERS_AUTH, two, {}, digest))
    assert "hunter" not in repr(caught.value)


def test_a_plan_does_not_show_what_it_writes() -> None:
    wish = AuthFileWish(
        "/x", Dialect.CONTAINERS_AUTH, (AuthEntry("a.example", "u", Secret("p")),), {}, lambda _: "mark"
    )
    done: Plan = plan(None, wish)
    assert "dTpw" in done.text
    assert "dTpw" not in repr(done)
