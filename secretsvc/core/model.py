"""The nouns around a credential: registries, verdicts, values, and the facts about them.

Wishes (``registry``, ``credential``, ``pullsecret``, ``authfile``, ``principal``) are written by serve;
facts (``state``, ``generation``, ``observed``, ``view``, ``history``, ``key``) by work alone; ``candidate``
and ``inbox`` are handed from one to the other. Each class that is stored names its document kind in ``KIND``.

All records are frozen. Times are aware and in UTC. A secret value is a `Secret`, never a ``str``.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import ClassVar, NoReturn

FORMAT = 1
"""The version every stored document carries. A reader refuses a newer one and leaves it as it is."""


class Secret:
    """A secret value that shows itself to nobody who does not call `reveal`.

    No ``repr``, ``str``, ``format``, pickle, copy or hash gives it away; comparison takes constant time.
    """

    __slots__ = ("_value",)
    __hash__ = None  # type: ignore[assignment]  # a hash of a short password could be guessed

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """Return the value. Only adapters that hand it to its target, or seal it, call this."""
        return self._value

    def __repr__(self) -> str:
        return "Secret(***)"

    __str__ = __repr__

    def __format__(self, _spec: str) -> str:
        return repr(self)

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._value.encode(), other._value.encode())

    def __reduce__(self) -> NoReturn:
        msg = "a Secret is not pickled or copied"
        raise TypeError(msg)


# --- Registries -----------------------------------------------------------------------------------


class RegistryKind(StrEnum):
    """Which product serves a registry."""

    GENERIC = "generic"
    REDHAT = "redhat"
    QUAY = "quay"
    HARBOR = "harbor"
    GITLAB = "gitlab"
    GITEA = "gitea"
    DOCKERHUB = "dockerhub"
    GHCR = "ghcr"
    ECR = "ecr"
    GAR = "gar"
    ACR = "acr"
    ARTIFACTORY = "artifactory"
    NEXUS = "nexus"
    OPENSHIFT = "openshift"
    ZOT = "zot"


@dataclass(frozen=True, slots=True)
class Binding:
    """What a value was proved against. It is never sent or delivered for anything else."""

    host: str
    realms: tuple[str, ...]
    insecure: bool
    ca_digest: str
    """Hex SHA-256 of the CA bundle, empty for the system's."""


@dataclass(frozen=True, slots=True)
class RegistrySpec:
    """One registry, as an admin described it."""

    KIND: ClassVar[str] = "registry"

    uid: str
    name: str
    host: str
    """``host[:port]``, lower case."""
    kind: RegistryKind
    created_at: datetime
    created_by: str
    insecure: bool = False
    """Plain HTTP is allowed."""
    ca: str = ""
    """PEM bundle to verify it with instead of the system's."""
    realms: tuple[str, ...] = ()
    """URL prefixes of token servers beyond those the kind knows."""
    networks: tuple[str, ...] = ()
    """CIDRs beyond public addresses that it and its realms may live in."""
    probe_repository: str = ""
    production_requires_token: bool = False
    deleted_at: datetime | None = None

    def binding(self) -> Binding:
        """Return what a value proved now is bound to."""
        digest = hashlib.sha256(self.ca.encode()).hexdigest() if self.ca else ""
        return Binding(self.host, self.realms, self.insecure, digest)


# --- Verdicts -------------------------------------------------------------------------------------


class Outcome(StrEnum):
    """What a registry's answers say about a login."""

    VALID = "VALID"
    VALID_PULL_CONFIRMED = "VALID_PULL_CONFIRMED"
    VALID_NO_ACCESS = "VALID_NO_ACCESS"
    INVALID = "INVALID"
    EXPIRED = "EXPIRED"
    MALFORMED = "MALFORMED"
    UNVERIFIABLE = "UNVERIFIABLE"
    FORBIDDEN_UNKNOWN = "FORBIDDEN_UNKNOWN"
    RATE_LIMITED = "RATE_LIMITED"
    UNAVAILABLE = "UNAVAILABLE"
    TLS_ERROR = "TLS_ERROR"
    REALM_REJECTED = "REALM_REJECTED"
    PROTOCOL_ERROR = "PROTOCOL_ERROR"


_ACCEPTED = frozenset({Outcome.VALID, Outcome.VALID_PULL_CONFIRMED, Outcome.VALID_NO_ACCESS})
_REFUSED = frozenset({Outcome.INVALID, Outcome.EXPIRED, Outcome.MALFORMED})


@dataclass(frozen=True, slots=True)
class Step:
    """One request of a check: what was asked of whom, and the status. Never a header, body or query."""

    method: str
    host: str
    path: str
    status: int | None
    """None when there was no answer."""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A registry's answer about one login."""

    outcome: Outcome
    reason: str
    """CamelCase, stable."""
    message: str
    """One sentence for a person: what it means and what to do."""
    checked_at: datetime
    steps: tuple[Step, ...] = ()
    expires_at: datetime | None = None
    scopes: tuple[str, ...] = ()
    retry_at: datetime | None = None

    @property
    def accepted(self) -> bool:
        """The registry recognised the login; only then may it become current by itself."""
        return self.outcome in _ACCEPTED

    @property
    def refused(self) -> bool:
        """The value is known to be wrong, so sending it again can only lock the account."""
        return self.outcome in _REFUSED


# --- Credentials ----------------------------------------------------------------------------------


class CredentialType(StrEnum):
    """What kind of login a credential is."""

    TOKEN = "token"  # noqa: S105  # a word of the API, not a value
    PASSWORD = "password"  # noqa: S105


@dataclass(frozen=True, slots=True)
class Login:
    """A username with its value, in hand."""

    type: CredentialType
    username: str
    secret: Secret


@dataclass(frozen=True, slots=True)
class CredentialSpec:
    """The wish: one login at one registry. Never holds the value."""

    KIND: ClassVar[str] = "credential"

    uid: str
    name: str
    registry: str
    type: CredentialType
    username: str
    created_at: datetime
    created_by: str
    expires_at: datetime | None = None
    labels: dict[str, str] = field(default_factory=dict)
    deleted_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A value that came in a request, with the verdict it got there; not yet a generation."""

    KIND: ClassVar[str] = "candidate"

    id: str
    credential: str
    credential_uid: str
    login: Login
    verdict: Verdict
    bound_to: Binding
    created_at: datetime
    created_by: str
    override: str = ""
    """Why it may be kept (or become current when `UNVERIFIABLE`) without a valid verdict."""
    expires_at: datetime | None = None
    seen_pub: int = 0
    """The publication that was current when the value came; one that waited yields to a later one."""


@dataclass(frozen=True, slots=True)
class Generation:
    """One issued login of a credential, written once under a claimed number."""

    KIND: ClassVar[str] = "generation"

    credential_uid: str
    number: int
    login: Login
    bound_to: Binding
    issued_at: datetime
    fingerprint: str
    """Keyed digest of the login, so that values can be compared without being read."""
    operation: str
    """Id of the operation that claimed the number; only that one may adopt what it finds here."""
    provider_ref: str = ""
    expires_at: datetime | None = None

    @property
    def document_name(self) -> str:
        """The name it is stored under."""
        return generation_name(self.credential_uid, self.number)


def generation_name(credential_uid: str, number: int) -> str:
    """Return the document name of generation ``number``."""
    return f"{credential_uid}-{number}"


class Stage(StrEnum):
    """What a generation is now."""

    PENDING = "pending"
    CURRENT = "current"
    PREVIOUS = "previous"
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True)
class Head:
    """Which generation is published. Zero means none."""

    pub: int = 0
    cur: int = 0
    prev: int = 0


class OperationKind(StrEnum):
    """What an operation does."""

    REGISTER = "register"
    REPLACE = "replace"
    ROLLBACK = "rollback"
    VALIDATE = "validate"
    SYNC = "sync"
    REMOVE = "remove"


class OperationState(StrEnum):
    """Where an operation is, for its caller."""

    PENDING = "pending"
    RUNNING = "running"
    WAITING = "waiting"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Phase(StrEnum):
    """How far an operation is that publishes a generation."""

    ISSUING = "ISSUING"
    ISSUED = "ISSUED"
    PROMOTED = "PROMOTED"
    DISTRIBUTING = "DISTRIBUTING"


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an operation failed, as told to its caller."""

    code: str
    message: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Progress:
    """How many targets an operation has brought to what is wanted."""

    done: int = 0
    total: int = 0


@dataclass(frozen=True, slots=True)
class Operation:
    """A piece of work that outlives its request.

    ``id`` is the id of the candidate or inbox item that asked for it. While open it lives in the state
    document of its subject, afterwards in the subject's history.
    """

    id: str
    kind: OperationKind
    state: OperationState
    requested_by: str
    created_at: datetime
    updated_at: datetime
    phase: Phase | None = None
    to: int = 0
    """The generation number this operation claimed, or rolls back to."""
    pub: int = 0
    """The publication it made; zero before promotion."""
    wave: int = 0
    """The last wave of targets that may have the new generation."""
    deadline: datetime | None = None
    progress: Progress = Progress()
    verdict: Verdict | None = None
    failure: Failure | None = None
    reason: str = ""
    """What the caller gave as the reason of a forced act."""

    @property
    def settled(self) -> bool:
        """It ended, well or not."""
        return self.state in _SETTLED


_SETTLED = frozenset({OperationState.SUCCEEDED, OperationState.FAILED, OperationState.CANCELLED})


@dataclass(frozen=True, slots=True)
class Retiring:
    """An old generation on its way out at the registry."""

    generation: int
    step: str
    refs: tuple[str, ...] = ()
    not_before: datetime | None = None
    waiting_on: str = ""
    deadline: datetime | None = None


@dataclass(frozen=True, slots=True)
class CredentialState:
    """The facts about a credential. Every change is one compare-and-set of this document."""

    KIND: ClassVar[str] = "state"

    uid: str
    name: str
    epoch: int = 0
    head: Head = Head()
    next_gen: int = 1
    op: Operation | None = None
    retiring: tuple[Retiring, ...] = ()
    verdict: Verdict | None = None
    """The newest verdict about the current generation, or about the candidate when there is none."""
    bound_to: Binding | None = None
    """What the current generation was proved against."""
    expires_at: datetime | None = None
    """When the current generation ends, where that is known."""
    username: str = ""
    """The current generation's; a new value may come with another one than the wish."""
    type: CredentialType | None = None
    """The current generation's."""


@dataclass(frozen=True, slots=True)
class History:
    """The last finished operations of a credential or rule, oldest first."""

    KIND: ClassVar[str] = "history"

    uid: str
    operations: tuple[Operation, ...] = ()


# --- What serve hands to work ---------------------------------------------------------------------


class Verb(StrEnum):
    """What an inbox item asks for."""

    CHANGED = "changed"
    """A wish was written or got its tombstone: read it again."""
    VALIDATE = "validate"
    ROLLBACK = "rollback"
    SYNC = "sync"


@dataclass(frozen=True, slots=True)
class InboxItem:
    """A verb for work. It is removed when it is done, so doing it twice must be harmless."""

    KIND: ClassVar[str] = "inbox"

    id: str
    verb: Verb
    subject_kind: str
    subject: str
    subject_uid: str
    created_at: datetime
    created_by: str
    force: bool = False
    reason: str = ""
