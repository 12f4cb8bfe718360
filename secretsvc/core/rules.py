"""The nouns around a target: rules, what was observed of them, and what lists show.

`PullSecretRule` and `AuthFileRule` are wishes; everything else here is written by work alone. Records are
frozen; times are aware and in UTC.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import ClassVar

from secretsvc.core.model import CredentialSpec, Head, Operation, Verdict


@dataclass(frozen=True, slots=True)
class NamespaceSelection:
    """Which namespaces a pull secret reaches. Empty selects nothing."""

    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PullSecretRule:
    """The rule that a dockerconfigjson Secret made of these credentials is in these namespaces."""

    KIND: ClassVar[str] = "pullsecret"

    uid: str
    name: str
    secret_name: str
    credentials: tuple[str, ...]
    namespaces: NamespaceSelection
    created_at: datetime
    created_by: str
    cluster: str = "default"
    keep: bool = False
    """Leave the Secrets where they are when the rule goes or a namespace is no longer selected."""
    deleted_at: datetime | None = None


class Dialect(StrEnum):
    """Whose rules an auth file follows."""

    CONTAINERS_AUTH = "containers-auth"
    DOCKER_CONFIG = "docker-config"
    KUBELET_CONFIG = "kubelet-config"


LOCAL_HOST = "local"
"""The name of the machine that work runs on."""


@dataclass(frozen=True, slots=True)
class AuthFileRule:
    """The rule that these credentials are in this auth file on these hosts."""

    KIND: ClassVar[str] = "authfile"

    uid: str
    name: str
    path: str
    """Absolute."""
    dialect: Dialect
    credentials: tuple[str, ...]
    created_at: datetime
    created_by: str
    hosts: tuple[str, ...] = (LOCAL_HOST,)
    keep: bool = False
    deleted_at: datetime | None = None


Rule = PullSecretRule | AuthFileRule


class DeliveryState(StrEnum):
    """The observed state of one target."""

    PENDING = "pending"
    SYNCED = "synced"
    CONFLICT = "conflict"
    DENIED = "denied"
    DRIFTED = "drifted"
    FAILED = "failed"
    REMOVED = "removed"


@dataclass(frozen=True, slots=True)
class Component:
    """Which publication of one credential a target holds."""

    credential: str
    pub: int
    generation: int


@dataclass(frozen=True, slots=True)
class Delivery:
    """What was last observed at one target."""

    target: str
    """A namespace, or an absolute path."""
    state: DeliveryState
    reason: str
    message: str
    updated_at: datetime
    components: tuple[Component, ...] = ()


@dataclass(frozen=True, slots=True)
class Observed:
    """How far a rule's targets are, per credential; written by the group's deliverer.

    Stored under the rule's uid: a rule has one cluster, and two names joined by ``-`` could collide.
    """

    KIND: ClassVar[str] = "observed"

    rule_uid: str
    rule: str
    group: str
    """The cluster's name, or the host's."""
    lowest_pub: dict[str, int]
    """Credential uid to the lowest publication that any target is known to hold; 0 when one holds none."""
    counts: dict[str, int]
    """Delivery state to number of targets."""
    stragglers: tuple[str, ...]
    """At most 50 targets that are not synced."""
    seen_at: datetime
    marks: dict[str, str] = field(default_factory=dict)
    """Auth files: auth key to the keyed digest of what we last wrote there."""


@dataclass(frozen=True, slots=True)
class DeliveryView:
    """One shard of what lists show about a rule's targets. Disposable."""

    KIND: ClassVar[str] = "view"

    rule_kind: str
    rule: str
    rule_uid: str
    shard: int
    shards: int
    deliveries: tuple[Delivery, ...]
    written_at: datetime


@dataclass(frozen=True, slots=True)
class CredentialSummary:
    """One credential's line in a list; its verdict is kept without its steps."""

    spec: CredentialSpec
    version: int
    """The wish's version."""
    state: str
    head: Head
    verdict: Verdict | None
    expires_at: datetime | None
    operation: Operation | None
    counts: dict[str, int]
    """Delivery state to number of targets, over all rules that name it."""


@dataclass(frozen=True, slots=True)
class CredentialsView:
    """One shard of what lists show about credentials. Disposable."""

    KIND: ClassVar[str] = "view"

    shard: int
    shards: int
    credentials: tuple[CredentialSummary, ...]
    written_at: datetime
