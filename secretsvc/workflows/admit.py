"""Who may call: issuing, checking and revoking API tokens.

A token's value is shown once, to whoever asked for it; stored is its digest. There is no default account:
the first admin token is made at the first start (`ensure_admin`) and written to a file by the caller.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from secretsvc.core.access import (
    Principal,
    Role,
)
from secretsvc.core.errors import (
    Conflict,
    Forbidden,
    NotFound,
    RecordDamaged,
    StoreConflict,
    Unauthenticated,
)
from secretsvc.core.ident import same_digest
from secretsvc.core.model import Secret
from secretsvc.core.ports import AuditLog, Stored
from secretsvc.core.tokens import ENTROPY_BYTES, is_well_formed, make_token, token_digest, token_id
from secretsvc.telemetry.logs import get_logger
from secretsvc.workflows.records import Desk

_log = get_logger(__name__)

ADMIN_NAME = "admin"
_HINT = "send `Authorization: Bearer <token>`; an admin makes one with `secretsvc token create`"


class Gatekeeper:
    """Issues tokens and recognises them."""

    def __init__(self, desk: Desk, audit: AuditLog) -> None:
        self._desk = desk
        self._audit = audit

    def authenticate(self, token: Secret | None) -> Principal:
        """Return who presents ``token``, or raise `Unauthenticated`.

        The answer does not tell an unknown token from a revoked one by its text.
        """
        if token is None:
            raise Unauthenticated("this call needs an API token", hint=_HINT)
        if not is_well_formed(token):
            raise Unauthenticated("that is not a token of secretsvc (mistyped or cut off?)", hint=_HINT)
        digest = token_digest(token)
        stored = self._desk.store.get(Principal, token_id(digest))
        if stored is None or not same_digest(stored.record.digest, digest):
            raise Unauthenticated("the token is unknown, expired or revoked", hint=_HINT)
        principal = stored.record
        ended = principal.expires_at is not None and principal.expires_at <= self._desk.clock()
        if principal.revoked_at is not None or ended:
            raise Unauthenticated("the token is unknown, expired or revoked", hint=_HINT)
        return principal

    def authorize(self, principal: Principal, action: str, *, writes: bool) -> None:
        """Raise `Forbidden` unless the principal's role allows the action; denials are recorded."""
        if principal.role is Role.ADMIN or not writes:
            return
        self._audit.record(
            "access.denied", action, actor=principal.name, outcome="denied", role=principal.role
        )
        raise Forbidden(
            f"{action} needs the role {Role.ADMIN.value}; this token has {principal.role.value}",
            hint="use a token of an admin",
        )

    def issue(
        self, name: str, role: Role, lifetime: timedelta | None, actor: str
    ) -> tuple[Principal, Secret]:
        """Make a token; ``lifetime`` None means that it does not expire. The value is not kept."""
        if any(found.record.name == name for found in self._live()):
            raise Conflict(f"there is a token {name!r} already", hint="revoke it first", code="NameTaken")
        token = make_token(self._desk.entropy(ENTROPY_BYTES))
        digest = token_digest(token)
        now = self._desk.clock()
        principal = Principal(
            id=token_id(digest),
            name=name,
            role=role,
            digest=digest,
            created_at=now,
            created_by=actor,
            expires_at=now + lifetime if lifetime is not None else None,
        )
        self._desk.store.put(principal.id, principal, 0)
        self._audit.record("token.create", name, actor=actor, outcome="stored", role=role)
        return principal, token

    def tokens(self) -> list[Principal]:
        """Return every principal whose token is not revoked, by name."""
        return sorted((found.record for found in self._live()), key=lambda principal: principal.name)

    def revoke(self, name: str, actor: str) -> None:
        """End every token of a name at once; two made in the same moment may share it."""
        found = [stored for stored in self._live() if stored.record.name == name]
        if not found:
            raise NotFound(f"there is no token {name!r}", hint="see `secretsvc token list`")
        for stored in found:
            self._revoke(stored, actor)

    def reset_admin(self, actor: str) -> Secret:
        """Make a new admin token and revoke the one before it."""
        for stored in self._live():
            if stored.record.name == ADMIN_NAME:
                self._revoke(stored, actor)
        return self.issue(ADMIN_NAME, Role.ADMIN, None, actor)[1]

    def is_known(self) -> bool:
        """Whether anybody was ever let in here."""
        return bool(self._desk.store.names(Principal))

    def ensure_admin(self, actor: str) -> Secret | None:
        """Make the first admin token, or return None when some principal exists already."""
        if self.is_known():
            return None
        return self.issue(ADMIN_NAME, Role.ADMIN, None, actor)[1]

    def _live(self) -> list[Stored[Principal]]:
        """Return who may call. A damaged record lets nobody in, and must not keep others from being ended."""
        live = []
        for name in self._desk.store.names(Principal):
            try:
                stored = self._desk.store.get(Principal, name)
            except RecordDamaged as exc:
                _log.error("record.damaged", message=exc.message, hint=exc.hint)
                continue
            if stored is not None and stored.record.revoked_at is None:
                live.append(stored)
        return live

    def _revoke(self, stored: Stored[Principal], actor: str) -> None:
        ended = replace(stored.record, revoked_at=self._desk.clock())
        try:
            self._desk.store.put(stored.record.id, ended, stored.version)
        except StoreConflict:
            raise Conflict("the token changed meanwhile", hint="try again") from None
        self._audit.record("token.revoke", stored.record.name, actor=actor, outcome="revoked")
