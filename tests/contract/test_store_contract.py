"""What `CredentialStore` promises, asked of the local store and of the Vault store on a real OpenBao."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from secretsvc.core.access import (
    Principal,
    Role,
)
from secretsvc.core.errors import RecordDamaged, StoreConflict, StoreDenied, StoreError
from secretsvc.core.model import (
    Binding,
    CredentialSpec,
    CredentialState,
    CredentialType,
    Generation,
    Head,
    History,
    InboxItem,
    Login,
    RegistryKind,
    RegistrySpec,
    Secret,
    Verb,
)
from secretsvc.core.ports import CredentialStore, Record
from secretsvc.core.rules import AuthFileRule
from secretsvc.store.envelope import KeyEncryptionKey, Place, create_key_file, load_key_file
from secretsvc.store.local import FILE_NAME, LocalStore
from tests.rig.openbao import OpenBao, bootstrapped, vault_store

pytestmark = pytest.mark.rig

NOW = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)
THREADS = 16


@dataclass
class Subject:
    """One kind of store: ``open`` gives another client of the same data."""

    open: Callable[[], CredentialStore]
    plant: Callable[[str, str, str], None]
    """Put this text where the document of that kind and name is, underneath the store."""


@pytest.fixture(scope="module", params=["local", "vault"])
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    folder: Path = tmp_path_factory.mktemp(request.param)
    with contextlib.ExitStack() as opened:

        def kept(store: CredentialStore) -> CredentialStore:
            opened.callback(store.close)
            return store

        if request.param == "local":
            create_key_file(folder / "kek", folder / "data")
            kek = load_key_file(folder / "kek", folder / "data")
            yield Subject(
                lambda: kept(LocalStore(folder / "data", kek)),
                lambda *what: plant_row(folder / "data", kek, *what),
            )
            return
        bao = opened.enter_context(OpenBao.dev(folder))
        grant = bootstrapped(bao, folder)
        yield Subject(lambda: kept(vault_store(bao, grant)), lambda *what: plant_secret(bao, *what))


def plant_row(data_dir: Path, kek: KeyEncryptionKey, kind: str, name: str, text: str) -> None:
    """Seal a text properly into the row: what a newer or mad secretsvc would have left."""
    with contextlib.closing(sqlite3.connect(data_dir / FILE_NAME)) as db, db:
        store_id = db.execute("SELECT id FROM store").fetchone()[0]
        key_id, sealed = db.execute("SELECT id, sealed FROM data_key ORDER BY id DESC LIMIT 1").fetchone()
        row = db.execute("SELECT version FROM document WHERE kind = ? AND name = ?", (kind, name)).fetchone()
        body = kek.open_data_key(store_id, key_id, sealed).seal(Place(store_id, kind, name, row[0]), text)
        db.execute("UPDATE document SET body = ? WHERE kind = ? AND name = ?", (body, kind, name))


def plant_secret(bao: OpenBao, kind: str, name: str, text: str) -> None:
    path = f"secretsvc/data/{kind}/{name}"
    found = bao.must("GET", path)["data"]
    fields = {"document": text, "base": found["data"]["base"]}
    bao.must("POST", path, {"data": fields, "options": {"cas": found["metadata"]["version"]}})


@pytest.fixture
def store(subject: Subject) -> Iterator[CredentialStore]:
    opened = subject.open()
    yield opened
    opened.close()


def state(name: str, epoch: int = 0) -> CredentialState:
    return CredentialState(f"uid-{name}", name, epoch=epoch)


def inbox(name: str) -> InboxItem:
    return InboxItem(name, Verb.SYNC, "pullsecret", "web", "u", NOW, "ann")


# --- Reading and writing ---


def test_what_is_not_there_is_none(store: CredentialStore) -> None:
    assert store.get(CredentialState, "never-made") is None


@pytest.mark.parametrize(
    ("name", "record"),
    [
        ("reg", RegistrySpec("u", "reg", "r:5000", RegistryKind.QUAY, NOW, "ann", realms=("a", "b"))),
        ("cred", CredentialSpec("u", "c", "reg", CredentialType.TOKEN, "r$x", NOW, "ann", labels={"a": "é"})),
        ("id", Principal("id", "ann", Role.ADMIN, "digest", NOW, "system", expires_at=NOW)),
        ("u-1", Generation("u", 1, Login(CredentialType.PASSWORD, "ü", Secret(" p:\u2028'\"\\ß")),
                           Binding("h", ("r",), insecure=True, ca_digest="d"), NOW, "f", "op")),
        ("i-1", inbox("i-1")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_record_comes_back_as_it_was(
    subject: Subject, store: CredentialStore, name: str, record: Record
) -> None:
    version = store.put(name, record, 0)
    assert version > 0
    other = subject.open()
    for reader in (store, other):
        found = reader.get(type(record), name)
        assert found is not None
        assert found.record == record
        assert found.version == version
    other.close()


def test_kinds_do_not_mix(store: CredentialStore) -> None:
    store.put("same", state("same"), 0)
    assert store.get(History, "same") is None
    store.put("same", History("same"), 0)
    store.remove(History, "same", found_version(store, History, "same"))
    assert store.get(CredentialState, "same") is not None


def found_version(store: CredentialStore, kind: type[Record], name: str) -> int:
    found = store.get(kind, name)
    assert found is not None
    return found.version


# --- Compare and set ---


def test_create_only(subject: Subject, store: CredentialStore) -> None:
    store.put("create-only", state("a"), 0)
    for writer in (store, subject.open()):
        with pytest.raises(StoreConflict):
            writer.put("create-only", state("b"), 0)
    found = store.get(CredentialState, "create-only")
    assert found is not None
    assert found.record == state("a")


def test_a_write_needs_the_newest_version(subject: Subject, store: CredentialStore) -> None:
    first = store.put("cas", state("cas", 1), 0)
    second = store.put("cas", state("cas", 2), first)
    assert second > first
    other = subject.open()
    for writer in (store, other):
        for wrong in (first, second + 1, 1):
            with pytest.raises(StoreConflict):
                writer.put("cas", state("cas", 3), wrong)
    third = other.put("cas", state("cas", 4), second)
    with pytest.raises(StoreConflict):
        store.put("cas", state("cas", 5), second)
    found = store.get(CredentialState, "cas")
    assert found is not None
    assert (found.record.epoch, found.version) == (4, third)
    other.close()


def test_updating_what_is_not_there_is_a_conflict(store: CredentialStore) -> None:
    with pytest.raises(StoreConflict):
        store.put("nobody", state("nobody"), 7)
    assert store.get(CredentialState, "nobody") is None


@pytest.mark.parametrize("clients", [1, 4])
@pytest.mark.parametrize("exists", [False, True])
def test_a_race_has_one_winner(subject: Subject, clients: int, *, exists: bool) -> None:
    stores = [subject.open() for _ in range(clients)]
    for attempt in range(4):
        name = f"race-{clients}-{exists}-{attempt}".lower()
        expected = stores[0].put(name, state(name), 0) if exists else 0
        ready = threading.Barrier(THREADS)

        def write(
            number: int, name: str = name, expected: int = expected, ready: threading.Barrier = ready
        ) -> int:
            ready.wait()
            try:
                return stores[number % clients].put(name, state(name, number + 1), expected)
            except StoreConflict:
                return 0

        with ThreadPoolExecutor(THREADS) as pool:
            versions = list(pool.map(write, range(THREADS)))
        assert sum(1 for version in versions if version) == 1
        found = stores[-1].get(CredentialState, name)
        assert found is not None
        assert versions[found.record.epoch - 1] == found.version
    for opened in stores:
        opened.close()


def test_counting_together_loses_nothing(subject: Subject) -> None:
    stores = [subject.open() for _ in range(2)]
    stores[0].put("counter", state("counter"), 0)

    def count(number: int) -> int:
        done = 0
        while done < 5:
            found = stores[number % 2].get(CredentialState, "counter")
            assert found is not None
            try:
                more = replace(found.record, epoch=found.record.epoch + 1)
                stores[number % 2].put("counter", more, found.version)
            except StoreConflict:
                continue
            done += 1
        return done

    with ThreadPoolExecutor(6) as pool:
        total = sum(pool.map(count, range(6)))
    found = stores[0].get(CredentialState, "counter")
    assert found is not None
    assert found.record.epoch == total == 30
    for opened in stores:
        opened.close()


def test_what_is_written_once_stays(store: CredentialStore) -> None:
    version = store.put("once", inbox("once"), 0)
    with pytest.raises(StoreDenied):
        store.put("once", replace(inbox("once"), reason="other"), version)
    with pytest.raises(StoreConflict):
        store.put("once", inbox("once"), 0)
    found = store.get(InboxItem, "once")
    assert found is not None
    assert found.record == inbox("once")


# --- Listing and removing ---


def test_lists_are_sorted_and_of_one_kind(store: CredentialStore) -> None:
    assert store.names(Generation) == [] or all("u-1" in name for name in store.names(Generation))
    for name in ("b", "a", "c-1", "c"):
        store.put(name, History(name), 0)
    assert [name for name in store.names(History) if name in "abc c-1"] == ["a", "b", "c", "c-1"]


def test_an_empty_folder_is_an_empty_list(store: CredentialStore) -> None:
    assert store.names(AuthFileRule) == []


@pytest.mark.parametrize("record", [History("gone"), inbox("gone")], ids=["changeable", "written once"])
def test_removed_is_gone_for_everyone(subject: Subject, store: CredentialStore, record: Record) -> None:
    version = store.put("gone", record, 0)
    other = subject.open()
    found = other.get(type(record), "gone")
    assert found is not None
    with pytest.raises(StoreConflict):
        store.remove(type(record), "gone", version + 1)
    assert store.get(type(record), "gone") is not None
    store.remove(type(record), "gone", version)
    for reader in (store, other):
        assert reader.get(type(record), "gone") is None
        assert "gone" not in reader.names(type(record))
        reader.remove(type(record), "gone", version)  # absent is success
    other.close()


def test_a_removed_name_never_shows_an_old_version(subject: Subject, store: CredentialStore) -> None:
    """The reader of the old document, however late, can not write over the new one of that name."""
    late = subject.open()
    versions = []
    for epoch in range(4):
        versions.append(store.put("phoenix", state("phoenix", epoch), 0))
        versions.append(store.put("phoenix", state("phoenix", epoch), versions[-1]))
        found = late.get(CredentialState, "phoenix")
        assert found is not None
        store.remove(CredentialState, "phoenix", versions[-1])
        maker = subject.open() if epoch > 1 else store  # one that never saw the old document
        again = maker.put("phoenix", state("phoenix", 99), 0)
        if epoch % 2:
            again = store.put("phoenix", state("phoenix", 99), again)
        other = subject.open()
        assert other.get(CredentialState, "phoenix") is not None
        with pytest.raises(StoreConflict):
            other.put("phoenix", state("phoenix", 666), found.version)
        with pytest.raises(StoreConflict):
            other.remove(CredentialState, "phoenix", found.version)
        other.close()
        versions.append(again)
        store.remove(CredentialState, "phoenix", again)
    assert versions == sorted(set(versions))
    late.close()


def test_a_writer_and_a_remover_never_both_win(subject: Subject) -> None:
    """What is acknowledged is there: a write that succeeded is not swept away by an older removal."""
    stores = [subject.open(), subject.open()]
    for attempt in range(12):
        name = f"sweep-{attempt}"
        version = stores[0].put(name, state(name), 0)
        ready = threading.Barrier(2)

        def write(name: str = name, version: int = version, ready: threading.Barrier = ready) -> bool:
            ready.wait()
            try:
                stores[0].put(name, state(name, 1), version)
            except StoreConflict:
                return False
            return True

        def remove(name: str = name, version: int = version, ready: threading.Barrier = ready) -> bool:
            ready.wait()
            try:
                stores[1].remove(CredentialState, name, version)
            except StoreConflict:
                return False
            return True

        with ThreadPoolExecutor(2) as pool:
            wrote, removed = (task.result() for task in (pool.submit(write), pool.submit(remove)))
        assert wrote != removed
        reader = subject.open()
        assert (reader.get(CredentialState, name) is not None) == wrote
        reader.close()
    for opened in stores:
        opened.close()


# --- Damage ---


@pytest.mark.parametrize(
    "text",
    [
        "", "garbage", "{}", '{"format":1}', '{"format":1,"uid":"u","operations":[],"new":1}',
        '{"format":2,"uid":"u","operations":[]}', '{"format":1,"uid":7,"operations":[]}',
    ],
)  # fmt: skip
def test_a_damaged_document_is_an_error_and_stays(
    subject: Subject, store: CredentialStore, text: str
) -> None:
    name = f"damaged-{abs(hash(text))}"
    version = store.put(name, History("u"), 0)
    subject.plant("history", name, text)
    reader = subject.open()
    with pytest.raises(RecordDamaged, match=f"history/{name}") as caught:
        reader.get(History, name)
    assert caught.value.hint
    assert name in reader.names(History)
    with pytest.raises(StoreConflict):
        reader.put(name, History("new"), version + 1000)
    with pytest.raises(RecordDamaged):
        reader.get(History, name)
    reader.close()


@pytest.mark.parametrize("name", ["", "..", "a/b", "../config", "a//b", "A", "ä", "a" * 81, "a\n", "%2e%2e"])
def test_bad_names_never_reach_the_store(store: CredentialStore, name: str) -> None:
    for act in (
        lambda: store.get(History, name),
        lambda: store.put(name, History("u"), 0),
        lambda: store.remove(History, name, 1),
    ):
        with pytest.raises(StoreError) as caught:
            act()
        assert caught.value.code == "BadDocumentName"


def test_a_document_that_is_too_large_is_refused(store: CredentialStore) -> None:
    large = RegistrySpec("u", "large", "r.test", RegistryKind.GENERIC, NOW, "ann", ca="x" * 300_000)
    with pytest.raises(StoreError) as caught:
        store.put("large", large, 0)
    assert caught.value.code == "DocumentTooLarge"
    assert store.get(RegistrySpec, "large") is None


def test_a_large_document_is_kept(store: CredentialStore) -> None:
    large = RegistrySpec("u", "big", "r.test", RegistryKind.GENERIC, NOW, "ann", ca="x" * 200_000)
    store.put("big", large, 0)
    found = store.get(RegistrySpec, "big")
    assert found is not None
    assert found.record == large


# --- Health ---


def test_a_probe_says_one_line(store: CredentialStore) -> None:
    line = store.probe()
    assert line
    assert "\n" not in line


def test_a_closed_store_of_others_does_not_matter(subject: Subject, store: CredentialStore) -> None:
    other = subject.open()
    version = other.put("shared", state("shared"), 0)
    other.close()
    store.put("shared", replace(state("shared"), head=Head(1, 1, 0)), version)
    found = store.get(CredentialState, "shared")
    assert found is not None
    assert found.record.head.pub == 1
