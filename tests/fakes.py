"""Fakes of the ports of `core.ports`, for tests that need no real server.

`MemoryStore` keeps the contract of `CredentialStore` (compare-and-set, versions that only rise, flat names,
no record of the wrong class), so that what passes on it passes on the real stores.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from secretsvc.core.errors import RecordDamaged, SecretsvcError, StoreConflict, StoreUnavailable
from secretsvc.core.ident import is_document_name
from secretsvc.core.model import (
    Login,
    Outcome,
    RegistrySpec,
    Verdict,
)
from secretsvc.core.ports import R, Record, Stored

NOON = datetime(2026, 1, 2, 12, 0, 0, tzinfo=UTC)


class SettableClock:
    """A clock that stands still until it is told otherwise."""

    def __init__(self, now: datetime = NOON) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now

    def advance(self, **amount: float) -> None:
        """Go forward by a `timedelta` given in its keywords: ``advance(minutes=5)``."""
        self.now += timedelta(**amount)


class CountingEntropy:
    """Bytes that differ at every call and repeat from run to run."""

    def __init__(self) -> None:
        self._calls = 0
        self._lock = threading.Lock()

    def __call__(self, count: int) -> bytes:
        with self._lock:
            self._calls += 1
            return self._calls.to_bytes(count, "big")


class MemoryStore:
    """A `CredentialStore` in memory; `failure` makes every call raise it, as an outage would."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._documents: dict[tuple[str, str], Stored[Any]] = {}
        self._version = 0
        self.failure: SecretsvcError | None = None
        self.reads: list[tuple[str, str]] = []
        self.writes: list[tuple[str, str]] = []

    def get(self, kind: type[R], name: str) -> Stored[R] | None:
        key = self._key(kind, name)
        self.reads.append(key)
        with self._lock:
            stored = self._documents.get(key)
        if stored is not None and not isinstance(stored.record, kind):
            raise RecordDamaged(f"{kind.KIND}/{name} is not a {kind.__name__}")
        return stored

    def put(self, name: str, record: Record, expected: int) -> int:
        key = self._key(type(record), name)
        with self._lock:
            stored = self._documents.get(key)
            if (stored.version if stored else 0) != expected:
                raise StoreConflict(f"{key[0]}/{name} is at another version")
            self._version += 1
            self._documents[key] = Stored(record, self._version)
            self.writes.append(key)
            return self._version

    def remove(self, kind: type[Record], name: str, expected: int) -> None:
        key = self._key(kind, name)
        with self._lock:
            stored = self._documents.get(key)
            if stored is None:
                return
            if stored.version != expected:
                raise StoreConflict(f"{key[0]}/{name} is at another version")
            del self._documents[key]
            self.writes.append(key)

    def names(self, kind: type[Record]) -> list[str]:
        self._check()
        with self._lock:
            return sorted(name for folder, name in self._documents if folder == kind.KIND)

    def probe(self) -> str:
        self._check()
        return "memory store answers"

    def close(self) -> None:
        self.failure = StoreUnavailable("the store is closed")

    def documents(self) -> dict[tuple[str, str], Stored[Any]]:
        """Return everything that is stored, to be put back with `reset`."""
        with self._lock:
            return dict(self._documents)

    def reset(self, documents: dict[tuple[str, str], Stored[Any]]) -> None:
        """Go back to what was stored, and forget what was read and written since."""
        with self._lock:
            self._documents = dict(documents)
        self.failure = None
        self.reads.clear()
        self.writes.clear()

    def _key(self, kind: type[Record], name: str) -> tuple[str, str]:
        self._check()
        if not is_document_name(name):
            raise ValueError(f"{name!r} is not a document's name")
        return kind.KIND, name

    def _check(self) -> None:
        if self.failure is not None:
            raise self.failure


def verdict_of(outcome: Outcome, now: datetime = NOON, **fields: Any) -> Verdict:
    """Return a verdict with a message that is only good for tests."""
    reason = "".join(part.capitalize() for part in outcome.split("_"))
    fields = {"reason": reason, "message": f"The registry's answer was {outcome}.", **fields}
    return Verdict(outcome=outcome, checked_at=now, **fields)


class FakeProver:
    """A `RegistryProver` whose answers are set: one for all, or one computed from the question."""

    def __init__(self, answer: Outcome | Verdict = Outcome.VALID) -> None:
        self.answer: Outcome | Verdict | Callable[[RegistrySpec, Login], Outcome | Verdict] = answer
        self.ping_answer: Outcome | Verdict = Outcome.VALID
        self.asked: list[tuple[RegistrySpec, Login]] = []

    def prove(self, registry: RegistrySpec, login: Login) -> Verdict:
        self.asked.append((registry, login))
        answer = self.answer(registry, login) if callable(self.answer) else self.answer
        return answer if isinstance(answer, Verdict) else verdict_of(answer)

    def ping(self, registry: RegistrySpec) -> Verdict:
        del registry
        answer = self.ping_answer
        return answer if isinstance(answer, Verdict) else verdict_of(answer)


@dataclass(frozen=True)
class Act:
    """One line of the audit log."""

    action: str
    subject: str
    actor: str
    outcome: str
    facts: dict[str, str | int] = field(default_factory=dict)


class ListAudit:
    """An `AuditLog` that keeps its lines in a list."""

    def __init__(self) -> None:
        self.acts: list[Act] = []

    def record(self, action: str, subject: str, *, actor: str, outcome: str, **facts: str | int) -> None:
        self.acts.append(Act(action, subject, actor, outcome, facts))
