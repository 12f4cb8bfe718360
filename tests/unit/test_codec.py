from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secretsvc.core import model
from secretsvc.core.access import Principal, Role
from secretsvc.core.errors import RecordDamaged, StoreConflict, StoreDenied, StoreError
from secretsvc.core.model import (
    CredentialState,
    History,
    InboxItem,
    Login,
    RegistrySpec,
    Secret,
    Verb,
)
from secretsvc.store import codec
from tests.records import STORED

CANARY = "canary-5f1d"
NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)

st.register_type_strategy(Secret, st.builds(Secret, st.text()))
st.register_type_strategy(datetime, st.datetimes(timezones=st.just(UTC)).map(lambda at: at.replace(fold=0)))


def text_of(record: object, **changes: object) -> Secret:
    fields = json.loads(codec.encode("n", record).reveal())
    fields.update(changes)
    return Secret(json.dumps(fields))


def test_every_kind_of_document_is_covered() -> None:
    assert {kind.KIND for kind in STORED} >= {
        "registry", "credential", "pullsecret", "authfile", "principal", "candidate", "inbox",
        "state", "generation", "observed", "view", "history", "key",
    }  # fmt: skip


@pytest.mark.parametrize("kind", STORED, ids=lambda kind: kind.__name__)
def test_any_record_round_trips(kind: type) -> None:
    @settings(max_examples=60, deadline=None)
    @given(st.from_type(kind))
    def check(record: object) -> None:
        text = codec.encode("n", record)
        back = codec.decode(kind, "n", text)
        assert back == record
        assert repr(back) == repr(record)  # a StrEnum equals its text, so equality alone misses a lost type
        assert json.loads(text.reveal())["format"] == 1

    check()


def test_times_are_utc_and_rfc3339() -> None:
    elsewhere = NOW.astimezone(timezone(timedelta(hours=5, minutes=30)))
    item = InboxItem("i", Verb.SYNC, "pullsecret", "web", "u", elsewhere, "ann")
    text = codec.encode("i", item)
    assert json.loads(text.reveal())["created_at"] == "2026-03-01T12:00:00Z"
    assert codec.decode(InboxItem, "i", text).created_at == NOW


def test_a_time_without_a_zone_is_a_mistake() -> None:
    item = InboxItem("i", Verb.SYNC, "pullsecret", "web", "u", datetime(2026, 3, 1), "ann")  # noqa: DTZ001
    with pytest.raises(TypeError):
        codec.encode("i", item)


def test_the_text_does_not_show_itself() -> None:
    login = Login(model.CredentialType.TOKEN, "robot", Secret(CANARY))
    record = model.Generation("u", 1, login, model.Binding("r", (), False, ""), NOW, "f", "o")
    text = codec.encode("u-1", record)
    assert CANARY in text.reveal()
    assert CANARY not in repr(text)


@pytest.mark.parametrize(
    "changes",
    [
        {"extra": CANARY},
        {"uid": 5},
        {"uid": None},
        {"epoch": "1"},
        {"epoch": 1.0},
        {"epoch": True},
        {"head": [CANARY]},
        {"head": {"pub": 1, "cur": 1, "prev": 0, "more": CANARY}},
        {"retiring": "ab"},
        {"retiring": {"a": CANARY}},
        {"op": {"id": CANARY}},
        {"verdict": CANARY},
        {"format": None},
        {"format": "1"},
        {"format": True},
        {"format": 0},
    ],
    ids=json.dumps,
)
def test_what_does_not_fit_is_damaged_and_not_repeated(changes: dict[str, object]) -> None:
    with pytest.raises(RecordDamaged) as caught:
        codec.decode(CredentialState, "u", text_of(CredentialState("u", "prod"), **changes))
    assert "state/u" in str(caught.value)
    assert caught.value.hint
    assert caught.value.__context__ is None or caught.value.__suppress_context__
    assert CANARY not in f"{caught.value} {caught.value.hint}"


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "null", '"x"', "{}", '{"format":1}', '{"format":1,"format":1,"uid":"u"}',
        '{"format":1,"uid":"u","operations":[],"uid":"v"}', '{"format":NaN}', "[" * 100_000, CANARY,
    ],
)  # fmt: skip
def test_what_is_no_document_is_damaged(text: str) -> None:
    with pytest.raises(RecordDamaged) as caught:
        codec.decode(History, "u", Secret(text))
    assert CANARY not in str(caught.value)


@given(st.text())
def test_no_text_gives_anything_but_a_record_or_damaged(text: str) -> None:
    with pytest.raises(RecordDamaged):
        codec.decode(History, "u", Secret(text))


def test_a_newer_format_says_upgrade() -> None:
    with pytest.raises(RecordDamaged, match="format 2") as caught:
        codec.decode(History, "u", text_of(History("u"), format=2, new_field=1))
    assert caught.value.code == "NewerFormat"
    assert "upgrade" in caught.value.hint


def test_fields_added_later_have_defaults() -> None:
    fields = json.loads(codec.encode("u", CredentialState("u", "prod")).reveal())
    del fields["username"]
    assert codec.decode(CredentialState, "u", Secret(json.dumps(fields))) == CredentialState("u", "prod")


def test_a_document_has_a_limit() -> None:
    def registry(size: int) -> RegistrySpec:
        return RegistrySpec("u", "r", "r.test", model.RegistryKind.GENERIC, NOW, "ann", ca="x" * size)

    empty = len(codec.encode("r", registry(0)).reveal())
    codec.encode("r", registry(codec.MAX_DOCUMENT_BYTES - empty))
    with pytest.raises(StoreError, match="registry/r would be") as caught:
        codec.encode("r", registry(codec.MAX_DOCUMENT_BYTES - empty + 1))
    assert caught.value.code == "DocumentTooLarge"


@given(st.text())
def test_only_flat_names_pass(name: str) -> None:
    flat = 0 < len(name) <= 80 and all(letter in "abcdefghijklmnopqrstuvwxyz0123456789-" for letter in name)
    if flat:
        codec.check_name(History, name)
    else:
        with pytest.raises(StoreError):
            codec.check_name(History, name)


def test_what_is_written_once_is_never_changed() -> None:
    item = InboxItem("i", Verb.SYNC, "pullsecret", "web", "u", NOW, "ann")
    codec.check_write("i", item, 0)
    with pytest.raises(StoreDenied):
        codec.check_write("i", item, 1)
    with pytest.raises(StoreConflict):
        codec.check_write("u", History("u"), -1)


def test_an_unknown_word_is_damaged() -> None:
    principal = Principal("id", "ann", Role.ADMIN, "digest", NOW, "system")
    assert codec.decode(Principal, "id", text_of(principal)).role is Role.ADMIN
    for word in ("root", "ADMIN", "", 1, None, ["admin"]):
        with pytest.raises(RecordDamaged):
            codec.decode(Principal, "id", text_of(principal, role=word))
