"""The Protocols through which workflows reach the world. Docstrings are the contract suites' headings.

Everything here may be called from any thread. The store, the prover and the auth files block; clusters
are asynchronous, because one worker talks to thousands of namespaces at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import ClassVar, Generic, Protocol, TypeVar

from secretsvc.core.model import (
    Login,
    RegistrySpec,
    Secret,
    Verdict,
)
from secretsvc.core.rules import Dialect

Clock = Callable[[], datetime]
"""Returns the present as an aware UTC time."""

Entropy = Callable[[int], bytes]
"""Returns that many random bytes."""


class Record(Protocol):
    """Any class of `core.model` that names its document kind."""

    KIND: ClassVar[str]


R = TypeVar("R", bound=Record)


@dataclass(frozen=True, slots=True)
class Stored(Generic[R]):
    """A record with the version it was read at. Versions of one document only rise."""

    record: R
    version: int


class CredentialStore(Protocol):
    """Documents with compare-and-set; durable once acknowledged.

    A document is found by its record's class (whose ``KIND`` is the folder) and a flat name.
    Every method raises `StoreUnavailable` when there is no usable answer and `StoreDenied` when our login
    is refused; neither ever looks like an absent document. `RecordDamaged` is raised for what can not be
    trusted or understood, and the document stays as it is.
    """

    def get(self, kind: type[R], name: str) -> Stored[R] | None:
        """Return the document, or None when there is none. Never an older version than one seen before."""
        ...

    def put(self, name: str, record: Record, expected: int) -> int:
        """Write if the document is still at version ``expected`` (0: there is none); return the new version.

        Raises `StoreConflict` when it is not, and writes nothing.
        """
        ...

    def remove(self, kind: type[Record], name: str, expected: int) -> None:
        """Remove the document with all its versions if it is still at ``expected``; absent is success."""
        ...

    def names(self, kind: type[Record]) -> list[str]:
        """Return the sorted names of all documents of the kind; an empty folder is an empty list."""
        ...

    def probe(self) -> str:
        """Return one line about the store's health, or raise; cheap enough for a readiness check."""
        ...

    def close(self) -> None:
        """Let go of connections and, for Vault, revoke our own token."""
        ...


class RegistryProver(Protocol):
    """Asks registries about logins. Answers are verdicts; nothing that happens out there raises."""

    def prove(self, registry: RegistrySpec, login: Login) -> Verdict:
        """Find out whether ``login`` is right, within 10 s and three requests that carry it."""
        ...

    def ping(self, registry: RegistrySpec) -> Verdict:
        """Ask without a login: `VALID` when it answers like a registry that wants authentication."""
        ...


# --- Namespaces -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SecretMetadata:
    """What can be known of a Secret without reading its data."""

    namespace: str
    name: str
    uid: str
    resource_version: str
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LiveSecret:
    """A Secret as the API server returned it."""

    metadata: SecretMetadata
    type: str
    dockerconfigjson: Secret | None
    """The decoded value of the data key ``.dockerconfigjson``; None when there is none."""


@dataclass(frozen=True, slots=True)
class WantedSecret:
    """A Secret to be applied: one per namespace and rule."""

    namespace: str
    name: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    dockerconfigjson: Secret


class Cluster(Protocol):
    """One Kubernetes API server, for pull secrets.

    Raises `TargetUnreachable`, `TargetForbidden`, `TargetMissing` (no such namespace, or terminating),
    `TargetChanged` (resourceVersion or another field manager), `TargetRefused` (its access leads to another
    cluster by now) and nothing else.
    """

    name: str

    async def identity(self) -> str:
        """Return the cluster's uid (that of the namespace kube-system)."""
        ...

    async def secrets_named(self, name: str) -> dict[str, SecretMetadata]:
        """Return the metadata of every Secret called ``name``, by namespace: one request."""
        ...

    async def read_secret(self, namespace: str, name: str) -> LiveSecret | None:
        """Return one Secret, or None when it or its namespace does not exist."""
        ...

    async def apply_secret(self, wanted: WantedSecret, found: SecretMetadata | None) -> LiveSecret:
        """Server-side apply; return what the server then holds.

        With ``found`` None it only creates: a Secret that somebody made meanwhile is `TargetChanged`.
        Otherwise it updates that very object at that very version, by force over other field managers; one
        that was changed, deleted or made anew since is `TargetChanged`.
        """
        ...

    async def delete_secret(self, metadata: SecretMetadata) -> None:
        """Delete that very object (uid and resourceVersion); absent is success."""
        ...

    async def version(self) -> str:
        """Return the server's version, such as ``v1.36.3``."""
        ...

    async def close(self) -> None:
        """Close connections."""
        ...


# --- Auth files -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AuthEntry:
    """One login under one auth key."""

    key: str
    username: str
    secret: Secret


@dataclass(frozen=True, slots=True)
class AuthFileWish:
    """What one auth file should hold of ours.

    ``accepted`` gives, per auth key, the digests (`digest` of username and value) of everything we may have
    put there; an entry that is neither wanted nor accepted is somebody else's and stays.
    """

    path: str
    dialect: Dialect
    entries: tuple[AuthEntry, ...]
    accepted: Mapping[str, frozenset[str]]
    digest: Callable[[AuthEntry], str]
    remove: frozenset[str] = frozenset()
    """Auth keys to take out, if what is there is ours."""


@dataclass(frozen=True, slots=True)
class AuthFileResult:
    """What a write found and did."""

    changed: bool
    marks: Mapping[str, str]
    """Auth key to digest of what the file now holds of ours."""
    foreign: tuple[str, ...] = ()
    """Wanted keys that hold somebody else's entry and were left alone."""
    notes: tuple[str, ...] = ()
    """What the file's consumers should know, such as an entry that shadows ours."""


class AuthFiles(Protocol):
    """Auth files on this machine.

    Raises `TargetRefused` (unparseable, not a regular file, owned by another tool), `TargetForbidden`,
    `TargetMissing` (no such directory), `TargetUnreachable` (disk full or failing), `TargetChanged`
    (somebody keeps rewriting it); whatever it raises, the file is as it was.
    """

    def write(self, wish: AuthFileWish) -> AuthFileResult:
        """Bring the file to ``wish`` by merging, atomically, mode 0600; no write when nothing changes."""
        ...


# --- Telemetry ------------------------------------------------------------------------------------


class AuditLog(Protocol):
    """Who did what, one line each. Values never go in."""

    def record(self, action: str, subject: str, *, actor: str, outcome: str, **facts: str | int) -> None:
        """Record one act, such as ``credential.register``, after its outcome is known."""
        ...
