"""`MemoryStore` keeps what `CredentialStore` promises, or tests that stand on it would prove nothing."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from secretsvc.core.access import (
    Principal,
    Role,
)
from secretsvc.core.errors import RecordDamaged, StoreConflict, StoreUnavailable
from secretsvc.core.model import History
from secretsvc.core.rules import (
    CredentialsView,
    DeliveryView,
)
from tests.fakes import NOON, MemoryStore

THREADS = 16


def history(number: int = 0) -> History:
    return History(f"uid-{number}")


def test_writes_compare_and_set() -> None:
    store = MemoryStore()
    assert store.get(History, "a") is None
    version = store.put("a", history(), 0)
    for stale in (0, version + 1):
        with pytest.raises(StoreConflict):
            store.put("a", history(1), stale)
    stored = store.get(History, "a")
    assert stored is not None
    assert (stored.record, stored.version) == (history(), version)
    assert store.put("a", history(1), version) > version


def test_a_version_is_never_used_twice_even_after_a_removal() -> None:
    store = MemoryStore()
    first = store.put("a", history(), 0)
    with pytest.raises(StoreConflict):
        store.remove(History, "a", first + 1)
    store.remove(History, "a", first)
    store.remove(History, "a", first)
    assert store.put("a", history(), 0) > first
    with pytest.raises(StoreConflict):
        store.put("a", history(), first)


def test_one_of_many_writers_wins() -> None:
    store = MemoryStore()
    barrier = threading.Barrier(THREADS)

    def write(number: int) -> bool:
        barrier.wait()
        try:
            return bool(store.put("a", history(number), 0))
        except StoreConflict:
            return False

    with ThreadPoolExecutor(THREADS) as pool:
        assert sum(pool.map(write, range(THREADS))) == 1


def test_names_are_sorted_and_of_one_kind() -> None:
    store = MemoryStore()
    assert store.names(History) == []
    for name in "cab":
        store.put(name, history(), 0)
    principal = Principal("x", "x", Role.VIEWER, "d", NOON, "test")
    store.put("x", principal, 0)
    assert store.names(History) == ["a", "b", "c"]


def test_two_classes_of_one_folder_are_told_apart() -> None:
    store = MemoryStore()
    store.put("credentials-0", CredentialsView(0, 1, (), NOON), 0)
    assert store.get(CredentialsView, "credentials-0") is not None
    with pytest.raises(RecordDamaged):
        store.get(DeliveryView, "credentials-0")


@pytest.mark.parametrize("name", ["", "..", "a/b", "A", "a" * 81])
def test_a_name_that_could_leave_its_folder_is_refused(name: str) -> None:
    store = MemoryStore()
    with pytest.raises(ValueError, match="document"):
        store.put(name, history(), 0)
    with pytest.raises(ValueError, match="document"):
        store.get(History, name)


def test_an_outage_is_never_an_absent_document() -> None:
    store = MemoryStore()
    store.failure = StoreUnavailable("down")
    for call in (lambda: store.get(History, "a"), lambda: store.names(History), store.probe):
        with pytest.raises(StoreUnavailable):
            call()
