"""Who may call, and what this installation is known and keyed by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import ClassVar, Self

from secretsvc.core.model import Secret

LOCAL_ACTOR = "local"
"""Who acts when nobody called: the first start, and whoever may run commands as the service's user. No token
may have this name."""


class Role(StrEnum):
    """What a principal may do: ``admin`` everything, ``viewer`` read."""

    ADMIN = "admin"
    VIEWER = "viewer"


@dataclass(frozen=True, slots=True)
class Principal:
    """Who may call, and the digest of the token that proves it. The token itself is never stored."""

    KIND: ClassVar[str] = "principal"

    id: str
    """The first 32 hex digits of the token's SHA-256: a token finds its record without a search."""
    name: str
    role: Role
    digest: str
    """Hex SHA-256 of the token, which has 256 random bits."""
    created_at: datetime
    created_by: str
    expires_at: datetime | None = None
    revoked_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class InstallationKeys:
    """This installation's identity and the keys of its digests; written once by work."""

    KIND: ClassVar[str] = "key"
    NAME: ClassVar[str] = "installation"

    installation: str
    ownership: Secret
    content: Secret
    fingerprint: Secret
    created_at: datetime

    @classmethod
    def make(cls, installation: str, now: datetime, random: Callable[[int], bytes]) -> Self:
        """Return new keys. ``random(n)`` returns ``n`` random bytes."""
        ownership, content, fingerprint = (Secret(random(32).hex()) for _ in range(3))
        return cls(installation, ownership, content, fingerprint, now)
