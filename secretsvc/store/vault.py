"""The Vault store: documents in a KV v2 mount of HashiCorp Vault or OpenBao.

A document is the secret ``<mount>/<kind>/<name>`` with two fields: ``document`` (the text of
`secretsvc.store.codec`) and ``base``. Vault keeps it sealed, audits every access, and enforces who may do
what (``policies/vault``). Every write carries ``cas``.

**Versions.** KV v2 counts from 1 again once a secret and its metadata are deleted, so a number alone could
mean two documents. The version we show is ``base`` + KV's own number; ``base`` is chosen when the document
is made: milliseconds of the clock, and more than any version this process has seen under the name. So
versions rise across removal, an ETag of the old document never fits the new one, and a document that is older
than one seen before is known to be stale (`StoreUnavailable`: a standby that lags). What a compare-and-set
sends to Vault is KV's number, worked out from what was seen at most `FRESH_SECONDS` ago, so a writer can only
hit a namesake by accident if within that time the document was removed, made again, and written exactly as
often as the old one.

**Removal.** Deleting metadata has no compare-and-set. A document that can change is therefore first
overwritten with a removal mark by compare-and-set (a concurrent writer then loses, and is told so), and only
then deleted. Nobody writes over a fresh mark, so the deletion can not hit a successor; a remover that was
held up for `REMOVE_SECONDS` leaves its mark instead of deleting. A mark reads as absent everywhere, though
`names` may list it, and after `MARK_SECONDS` a new document may be written over it. Kinds that are written
once need no mark: nobody can change them, and their names are never used again.

**Absence.** Only Vault's own empty 404 means absent. A missing mount, a soft-deleted version (nobody here
does that) and a proxy's 404 are errors. A document seen less than `SETTLE_SECONDS` ago that seems absent is
asked for again until then, because an OpenBao standby may not have it yet.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Any, Final

from secretsvc.core.errors import RecordDamaged, StoreConflict, StoreDenied, StoreError, StoreUnavailable
from secretsvc.core.ident import is_document_name
from secretsvc.core.model import Secret
from secretsvc.core.ports import Clock, R, Record, Stored
from secretsvc.store import codec
from secretsvc.store.vaultlink import ANSWER_SECONDS, BOOTSTRAP, Answer, Door, VaultAddress, VaultLink
from secretsvc.store.vaultlogin import LoginMethod, Ticks, VaultLogin

FRESH_SECONDS: Final = 30.0
REMOVE_SECONDS: Final = 30.0
MARK_SECONDS: Final = 600.0
SETTLE_SECONDS: Final = 1.0

_CAS_LOST = "did not match the current version"
_SETTLE_STEP = 0.05


@dataclass(frozen=True, slots=True)
class _Found:
    """One document as Vault holds it."""

    base: int
    number: int
    """KV's own version."""
    text: Secret | None
    """None for a removal mark."""
    removed_at: datetime | None = None

    @property
    def version(self) -> int:
        return self.base + self.number


@dataclass(frozen=True, slots=True)
class _Seen:
    """The newest that this process knows of a document."""

    found: _Found
    at: float
    gone: bool = False
    """We removed it ourselves."""


class VaultStore:
    """`CredentialStore` over KV v2.

    Makes no request before the first call. Any number of threads may use one store.

    Args:
        where: address, mount, namespace and CA.
        method: how to log in.
        clock: the present, for new documents' versions and removal marks.
        ticks: seconds that only rise, for the life of tokens and of what was seen.
        sleep: waits that many seconds.
        answer_seconds: how long Vault may be silent before it counts as away.
    """

    def __init__(
        self,
        where: VaultAddress,
        method: LoginMethod,
        clock: Clock,
        *,
        ticks: Ticks = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        answer_seconds: float = ANSWER_SECONDS,
    ) -> None:
        self._where = where
        self._clock = clock
        self._ticks = ticks
        self._sleep = sleep
        self._link = VaultLink(where, answer_seconds=answer_seconds)
        self._login = VaultLogin(self._link, method, ticks)
        self._lock = threading.Lock()
        self._seen: dict[tuple[str, str], _Seen] = {}
        self._mount_checked = False

    def get(self, kind: type[R], name: str) -> Stored[R] | None:
        """Return the document, or None when there is none."""
        codec.check_name(kind, name)
        found = self._settled(kind, name)
        if found is None or found.text is None:
            return None
        return Stored(codec.decode(kind, name, found.text), found.version)

    def put(self, name: str, record: Record, expected: int) -> int:
        """Write if the document is still at version ``expected`` (0: none); return the new version."""
        codec.check_write(name, record, expected)
        text = codec.encode(name, record)
        base, number = self._basis(type(record), name, expected)
        fields = {"document": text.reveal(), "base": base}
        try:
            written = self._write(type(record), name, fields, number)
        except StoreDenied:  # Vault asks for the right to update before it looks at cas
            if expected == 0 and self._is_listed(type(record), name):
                raise _conflict(type(record), name) from None
            raise
        self._remember(type(record), name, _Found(base, written, text=text))
        return base + written

    def remove(self, kind: type[Record], name: str, expected: int) -> None:
        """Remove the document with all its versions if it is still at ``expected``; absent is success."""
        codec.check_name(kind, name)
        found = self._settled(kind, name)
        if found is None or found.removed_at is not None:
            return
        if found.version != expected:
            raise _conflict(kind, name)
        if kind.KIND not in codec.WRITE_ONCE:
            began = self._ticks()
            now = self._clock().astimezone(UTC)
            fields = {"removed_at": now.isoformat(), "base": found.base}
            number = self._write(kind, name, fields, found.number)
            self._remember(kind, name, _Found(found.base, number, text=None, removed_at=now))
            if self._ticks() - began > REMOVE_SECONDS:
                return
        self._delete(kind, name)
        self._mark_gone(kind, name)

    def names(self, kind: type[Record]) -> list[str]:
        """Return the sorted names of all documents of the kind. Folders and foreign names are not ours."""
        answer = self._ask(
            lambda door: door.kv.list_secrets(path=kind.KIND, mount_point=self._where.mount),
            f"the list of {kind.KIND}",
        )
        if answer.absent:
            return []
        keys = answer.data.get("keys")
        if not answer.ok or not isinstance(keys, list):
            raise self._link.refusal(answer, f"the list of {kind.KIND}")
        return sorted(key for key in keys if isinstance(key, str) and is_document_name(key))

    def probe(self) -> str:
        """Return one line about Vault's health, our login and the mount, or raise."""
        health = self._link.health()
        self._check_mount()
        return f"Vault at {self._where.address} answers ({health}), mount {self._where.mount}"

    def close(self) -> None:
        """Revoke our own token, and close connections."""
        self._login.close()
        self._link.close()

    # --- Reading ---

    def _settled(self, kind: type[Record], name: str) -> _Found | None:
        """Read a document; give a lagging standby a moment before believing that it is gone."""
        found = self._read(kind, name)
        seen = self._seen_of(kind, name)
        while found is None and seen is not None and not seen.gone and seen.found.text is not None:
            if self._ticks() - seen.at >= SETTLE_SECONDS:
                break
            self._sleep(_SETTLE_STEP)
            found = self._read(kind, name)
        return found

    def _read(self, kind: type[Record], name: str) -> _Found | None:
        """Return what Vault holds, marks included, or None; `StoreUnavailable` if it is older than seen."""
        before = self._seen_of(kind, name)
        answer = self._ask(
            lambda door: door.kv.read_secret_version(
                path=f"{kind.KIND}/{name}", mount_point=self._where.mount, raise_on_deleted_version=True
            ),
            f"{kind.KIND}/{name}",
        )
        if answer.absent:
            if before is not None and before.found.removed_at is not None:
                self._mark_gone(kind, name)
            return None
        if answer.status == HTTPStatus.NOT_FOUND and isinstance(answer.data.get("metadata"), dict):
            raise self._deleted_by_hand(kind, name)
        if not answer.ok:
            raise self._link.refusal(answer, f"{kind.KIND}/{name}")
        found = _understood(kind, name, answer)
        if before is not None and found.version < before.found.version:
            raise StoreUnavailable(
                f"Vault answers {kind.KIND}/{name} from before what was seen already",
                hint="A standby lags; or Vault was put back to an older state: then restart secretsvc.",
                code="StaleAnswer",
            )
        self._remember(kind, name, found)
        return found

    def _deleted_by_hand(self, kind: type[Record], name: str) -> RecordDamaged:
        return RecordDamaged(
            f"{kind.KIND}/{name} was deleted by hand in Vault",
            hint="Bring it back with `vault kv undelete`, or remove it for good with `vault kv metadata "
            f"delete`, at {self._where.mount}/{kind.KIND}/{name}.",
            code="DeletedByHand",
        )

    def _seen_of(self, kind: type[Record], name: str) -> _Seen | None:
        with self._lock:
            return self._seen.get((kind.KIND, name))

    def _remember(self, kind: type[Record], name: str, found: _Found) -> None:
        """Keep the newest of a document, without its text; what is written once can not fall behind."""
        if kind.KIND in codec.WRITE_ONCE:
            return
        slim = replace(found, text=None if found.text is None else Secret(""))
        with self._lock:
            seen = self._seen.get((kind.KIND, name))
            if seen is None or slim.version >= seen.found.version:
                self._seen[kind.KIND, name] = _Seen(slim, self._ticks())

    def _mark_gone(self, kind: type[Record], name: str) -> None:
        with self._lock:
            seen = self._seen.get((kind.KIND, name))
            if seen is not None:
                self._seen[kind.KIND, name] = replace(seen, gone=True)

    # --- Writing ---

    def _basis(self, kind: type[Record], name: str, expected: int) -> tuple[int, int]:
        """Return the base to write with, and the KV number that Vault must still be at."""
        seen = self._seen_of(kind, name)
        if expected == 0:
            return self._new_basis(seen)
        if seen is None or seen.gone or self._ticks() - seen.at > FRESH_SECONDS:
            found = self._read(kind, name)
        else:
            found = seen.found
        if found is None or found.text is None or found.version != expected:
            raise _conflict(kind, name)
        return found.base, found.number

    def _new_basis(self, seen: _Seen | None) -> tuple[int, int]:
        """Return the basis of a new document: none before it, or a mark so old that its author gave up."""
        now = self._clock()
        if seen is None:
            return _milliseconds(now), 0
        removed_at = seen.found.removed_at
        if not seen.gone and removed_at is not None and now - removed_at > timedelta(seconds=MARK_SECONDS):
            return seen.found.base, seen.found.number
        return max(_milliseconds(now), seen.found.version + 1), 0

    def _write(self, kind: type[Record], name: str, fields: Mapping[str, Any], number: int) -> int:
        """Compare and set; return KV's new number."""
        answer = self._ask(
            lambda door: door.kv.create_or_update_secret(
                path=f"{kind.KIND}/{name}", secret=fields, cas=number, mount_point=self._where.mount
            ),
            f"writing {kind.KIND}/{name}",
        )
        written = answer.data.get("version")
        if answer.ok and isinstance(written, int):
            return written
        if answer.status == HTTPStatus.BAD_REQUEST and answer.says(_CAS_LOST):
            raise _conflict(kind, name)
        raise self._link.refusal(answer, f"writing {kind.KIND}/{name}")

    def _is_listed(self, kind: type[Record], name: str) -> bool:
        try:
            return name in self.names(kind)
        except StoreDenied:
            return False

    def _delete(self, kind: type[Record], name: str) -> None:
        answer = self._ask(
            lambda door: door.kv.delete_metadata_and_all_versions(
                path=f"{kind.KIND}/{name}", mount_point=self._where.mount
            ),
            f"removing {kind.KIND}/{name}",
        )
        if not answer.ok:
            raise self._link.refusal(answer, f"removing {kind.KIND}/{name}")

    # --- Asking ---

    def _ask(self, call: Callable[[Door], Any], what: str) -> Answer:
        """Ask with our token, once it is known that the mount is what it should be."""
        if not self._mount_checked:
            self._check_mount()
        answer = self._with_token(call)
        if answer.denied:
            raise self._link.refusal(answer, what)
        return answer

    def _with_token(self, call: Callable[[Door], Any]) -> Answer:
        """Ask; when that is refused, ask once more with a new token if a new one can help."""
        login = self._login.current()
        answer = self._link.ask(lambda: call(login.door))
        if not answer.denied:
            return answer
        renewed = self._login.refused(login)
        return answer if renewed is None else self._link.ask(lambda: call(renewed.door))

    def _check_mount(self) -> None:
        """Make sure that the mount is KV v2: a KV v1 answers reads as if every document were absent.

        Vault shows a mount to any token that has some right in it, and hides missing ones from all.
        """
        mount = self._where.mount
        answer = self._with_token(lambda door: door.adapter.get(f"/v1/sys/internal/ui/mounts/{mount}"))
        if answer.denied or answer.status == HTTPStatus.NOT_FOUND:
            raise StoreDenied(
                f"Vault at {self._where.address} shows us no mount {mount}: it, or our policy, is missing",
                hint=BOOTSTRAP,
                code="MountMissing",
            )
        if not answer.ok or not answer.data:
            raise self._link.refusal(answer, f"the mount {mount}")
        options = answer.data.get("options") or {}
        if answer.data.get("type") != "kv" or options.get("version") != "2":
            raise StoreError(
                f"the mount {mount} is not a KV engine of version 2",
                hint="Set SECRETSVC_VAULT_MOUNT to a path of its own. " + BOOTSTRAP,
                code="MountMissing",
            )
        self._mount_checked = True


def _understood(kind: type[Record], name: str, answer: Answer) -> _Found:
    """Return what a read answered, or raise `RecordDamaged` if it is not something that we wrote."""
    fields, metadata = answer.data.get("data"), answer.data.get("metadata")
    if not isinstance(fields, dict) or not isinstance(metadata, dict):
        raise StoreUnavailable(f"Vault answers {kind.KIND}/{name} as Vault never would")
    base, number, text = fields.get("base"), metadata.get("version"), fields.get("document")
    if type(base) is not int or type(number) is not int or base < 0:
        raise codec.damaged(kind, name, "was not written by secretsvc")
    if isinstance(text, str) and fields.keys() == {"base", "document"}:
        return _Found(base, number, Secret(text))
    try:
        removed_at = datetime.fromisoformat(str(fields.get("removed_at")))
    except ValueError:
        raise codec.damaged(kind, name, "was not written by secretsvc") from None
    return _Found(base, number, None, removed_at.astimezone(UTC))


def _conflict(kind: type[Record], name: str) -> StoreConflict:
    return StoreConflict(f"{kind.KIND}/{name} was written by somebody else first", hint="Read it again.")


def _milliseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)
