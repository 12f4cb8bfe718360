"""Reading and writing wishes: what register and assign have in common.

A wish with a tombstone (``deleted_at``) is gone for its callers; its name is free again when work has
cleaned up and swept it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from threading import RLock
from typing import TypeVar

from secretsvc.core.errors import Conflict, NotFound, PreconditionFailed, RecordDamaged, StoreConflict
from secretsvc.core.ident import ulid
from secretsvc.core.model import (
    CredentialSpec,
    InboxItem,
    RegistrySpec,
    Verb,
)
from secretsvc.core.ports import Clock, CredentialStore, Entropy, Stored
from secretsvc.core.rules import (
    AuthFileRule,
    PullSecretRule,
)
from secretsvc.telemetry.logs import get_logger

_log = get_logger(__name__)

Wish = RegistrySpec | CredentialSpec | PullSecretRule | AuthFileRule
W = TypeVar("W", RegistrySpec, CredentialSpec, PullSecretRule, AuthFileRule)

WORDS = {
    RegistrySpec: "registry",
    CredentialSpec: "credential",
    PullSecretRule: "pull secret",
    AuthFileRule: "auth file",
}


@dataclass(frozen=True, slots=True)
class Desk:
    """The store with a clock, randomness and the doorbell: what every write of a wish needs."""

    store: CredentialStore
    clock: Clock
    entropy: Entropy
    ring: Callable[[], None]
    """Wakes work; may do nothing, since work polls too."""
    deciding: RLock = field(default_factory=RLock)
    """Held while something is written because of what other records say, so that two requests of this process
    can not both find a name free, or a record unused."""

    def new_id(self) -> str:
        """Return a fresh id."""
        return ulid(self.clock(), self.entropy(10))

    def find(self, kind: type[W], name: str) -> Stored[W]:
        """Return a wish that is not deleted, or raise `NotFound`."""
        stored = self.store.get(kind, name)
        if stored is None or stored.record.deleted_at is not None:
            word = WORDS[kind]
            raise NotFound(f"there is no {word} {name!r}", hint=f"see `secretsvc {_noun(word)} list`")
        return stored

    def all(self, kind: type[W], *, strict: bool = False) -> Iterator[Stored[W]]:
        """Yield every wish of a kind that is not deleted, by name.

        One damaged record does not stop what concerns the others, unless ``strict``: who deletes because
        nothing uses a record must be able to read everything that might.
        """
        for name in self.store.names(kind):
            try:
                stored = self.store.get(kind, name)
            except RecordDamaged as exc:
                if strict:
                    raise
                _log.error("record.damaged", message=exc.message, hint=exc.hint)
                continue
            if stored is not None and stored.record.deleted_at is None:
                yield stored

    def ensure_free(self, kind: type[W], name: str) -> None:
        """Raise `Conflict` when the name is taken, or was deleted and is not cleaned up yet."""
        stored = self.store.get(kind, name)
        if stored is None:
            return
        word = WORDS[kind]
        if stored.record.deleted_at is None:
            raise Conflict(f"there is a {word} {name!r} already", code="NameTaken")
        raise Conflict(
            f"the {word} {name!r} was deleted and is still being cleaned up",
            hint="try again in a moment; `secretsvc status` shows what is in the way",
            code="BeingRemoved",
        )

    def create(self, wish: W) -> Stored[W]:
        """Store a new wish under its name."""
        try:
            return Stored(wish, self.store.put(wish.name, wish, 0))
        except StoreConflict:
            word = WORDS[type(wish)]
            raise Conflict(f"there is a {word} {wish.name!r} already", code="NameTaken") from None

    def unchanged(self, stored: Stored[W], expected: int | None) -> Stored[W]:
        """Return the wish unless the caller's If-Match, ``expected``, names another version of it."""
        if expected is not None and expected != stored.version:
            raise _changed(stored.record)
        return stored

    def replace(self, wish: W, read: int, expected: int | None) -> Stored[W]:
        """Store a changed wish that was read at version ``read``; ``expected`` is the caller's If-Match."""
        self.unchanged(Stored(wish, read), expected)
        try:
            return Stored(wish, self.store.put(wish.name, wish, read))
        except StoreConflict:
            raise _changed(wish) from None

    def bury(self, stored: Stored[W], expected: int | None) -> Stored[W]:
        """Give a wish its tombstone; work removes what it made, then the record."""
        return self.replace(replace(stored.record, deleted_at=self.clock()), stored.version, expected)

    def tell(self, verb: Verb, wish: Wish, actor: str, *, force: bool = False, reason: str = "") -> InboxItem:
        """Put an item into work's inbox and ring; its id with the subject's uid is the operation's id."""
        item = InboxItem(
            id=self.new_id(),
            verb=verb,
            subject_kind=wish.KIND,
            subject=wish.name,
            subject_uid=wish.uid,
            created_at=self.clock(),
            created_by=actor,
            force=force,
            reason=reason,
        )
        self.store.put(item.id, item, 0)
        self.ring()
        return item


def _changed(wish: Wish) -> PreconditionFailed:
    word = WORDS[type(wish)]
    return PreconditionFailed(
        f"the {word} {wish.name!r} has changed since it was read", hint="read it again, then repeat"
    )


def operation_id(request_id: str, subject_uid: str) -> str:
    """Return the id of an operation as callers see it: the request's id, then its subject's uid."""
    return f"{request_id}-{subject_uid}"


def _noun(word: str) -> str:
    return {"pull secret": "pull-secret", "auth file": "authfile"}.get(word, word)
