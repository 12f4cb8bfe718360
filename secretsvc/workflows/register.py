"""Registries and credentials as callers wish them: register, replace, change, delete.

Runs in serve. A value that arrives here is proved in hand before anything is stored, then stored as a
candidate; work makes it a generation. Nothing here ever reads a value back.

Order of writes when registering: candidate, registry (if it was unknown), credential. A crash in between
leaves at most a candidate that belongs to nothing, which work sweeps.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from datetime import datetime
from threading import BoundedSemaphore

from secretsvc.core import kinds
from secretsvc.core.errors import Busy, Conflict, FieldError, InvalidInput, NotFound, NotProved
from secretsvc.core.model import (
    Candidate,
    CredentialSpec,
    CredentialState,
    Login,
    RegistryKind,
    RegistrySpec,
    Verb,
    Verdict,
)
from secretsvc.core.ports import AuditLog, RegistryProver, Stored
from secretsvc.core.rules import (
    AuthFileRule,
    PullSecretRule,
)
from secretsvc.workflows.records import Desk, operation_id

_NOT_A_NAME = re.compile(r"[^a-z0-9]+")
_NAME_LENGTH = 40

ASKING = 8
"""Values proved at the same time; a silent registry takes 10 s each, and half of serve's threads."""


@dataclass(frozen=True, slots=True)
class RegistryDraft:
    """A registry as a caller describes it; None means the kind's default."""

    name: str
    host: str
    kind: RegistryKind | None = None
    insecure: bool = False
    ca: str = ""
    realms: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    probe_repository: str = ""
    production_requires_token: bool | None = None


@dataclass(frozen=True, slots=True)
class CredentialDraft:
    """A credential as a caller describes it, with its value in hand."""

    name: str
    registry: str
    """A registry's name, or a host: anything with a dot or a port."""
    login: Login
    allow_unverified: bool = False
    """Keep the value although the registry could not confirm it; never although it refused it."""
    expires_at: datetime | None = None
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NewValue:
    """A new value for an existing credential."""

    login: Login
    allow_unverified: bool = False
    expires_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Registered:
    """What became of a value that was accepted for storing."""

    credential: Stored[CredentialSpec]
    verdict: Verdict
    operation: str
    new_registry: RegistrySpec | None = None
    """Set when the credential's host was unknown and was registered with it."""


class Registrar:
    """Serve's side of registries and credentials."""

    def __init__(self, desk: Desk, prover: RegistryProver, audit: AuditLog) -> None:
        self._desk = desk
        self._prover = prover
        self._audit = audit
        self._asking = BoundedSemaphore(ASKING)

    # --- registries -------------------------------------------------------------------------------

    def add_registry(self, draft: RegistryDraft, actor: str) -> Stored[RegistrySpec]:
        """Store a new registry. Raises `Conflict` when the name or the host is taken."""
        with self._desk.deciding:
            self._desk.ensure_free(RegistrySpec, draft.name)
            registry = self._described(draft, self._desk.new_id(), actor)
            self._ensure_host_free(registry)
            stored = self._desk.create(registry)
        self._desk.tell(Verb.CHANGED, registry, actor)
        self._audit.record("registry.add", draft.name, actor=actor, outcome="stored", host=registry.host)
        return stored

    def change_registry(self, draft: RegistryDraft, expected: int | None, actor: str) -> Stored[RegistrySpec]:
        """Replace a registry's description.

        When host, realms, ``insecure`` or CA change, its credentials become stale: their stored values are
        never sent to the new place, and each waits for a new value.
        """
        old = self._desk.find(RegistrySpec, draft.name)
        described = self._described(draft, old.record.uid, old.record.created_by)
        registry = replace(described, created_at=old.record.created_at)
        with self._desk.deciding:
            self._ensure_host_free(registry)
            stored = self._desk.replace(registry, old.version, expected)
        self._desk.tell(Verb.CHANGED, registry, actor)
        outcome = "stored" if registry.binding() == old.record.binding() else "credentials-stale"
        self._audit.record("registry.change", draft.name, actor=actor, outcome=outcome, host=registry.host)
        return stored

    def delete_registry(self, name: str, expected: int | None, actor: str) -> None:
        """Delete a registry that no credential uses; `Conflict` names those that do."""
        stored = self._desk.find(RegistrySpec, name)
        users = [
            found.record.name for found in self._desk.all(CredentialSpec) if found.record.registry == name
        ]
        _ensure_unused("registry", name, [f"credential/{user}" for user in users])
        buried = self._desk.bury(stored, expected)
        self._desk.tell(Verb.CHANGED, buried.record, actor)
        self._audit.record("registry.delete", name, actor=actor, outcome="deleted")

    def ping_registry(self, name: str) -> Verdict:
        """Ask a registry without a login whether it answers like one."""
        return self._prover.ping(self._desk.find(RegistrySpec, name).record)

    # --- credentials ------------------------------------------------------------------------------

    def register(self, draft: CredentialDraft, actor: str) -> Registered:
        """Prove a value and store it with its credential.

        Raises `NotProved` when the registry refused the value, or could not confirm it and
        ``allow_unverified`` is off; then nothing is kept.
        """
        self._desk.ensure_free(CredentialSpec, draft.name)
        registry, is_new = self._registry_for(draft.registry, actor)
        verdict = self._proved(registry, draft.login, draft.name, actor, override=draft.allow_unverified)
        credential = CredentialSpec(
            uid=self._desk.new_id(),
            name=draft.name,
            registry=registry.name,
            type=draft.login.type,
            username=draft.login.username,
            created_at=self._desk.clock(),
            created_by=actor,
            expires_at=draft.expires_at,
            labels=draft.labels,
        )
        value = NewValue(draft.login, draft.allow_unverified, draft.expires_at)
        with self._desk.deciding:
            if not is_new:
                self._ensure_still(registry)
            self._desk.ensure_free(CredentialSpec, draft.name)
            candidate = self._candidate(credential, registry, value, verdict, actor)
            self._desk.store.put(candidate.id, candidate, 0)
            if is_new:
                self._ensure_host_free(registry)
                self._desk.create(registry)
            stored = self._desk.create(credential)
        if is_new:
            self._desk.tell(Verb.CHANGED, registry, actor)
        self._desk.ring()
        self._audit.record(
            "credential.register", draft.name, actor=actor, outcome=verdict.outcome, registry=registry.name
        )
        request = operation_id(candidate.id, credential.uid)
        return Registered(stored, verdict, request, registry if is_new else None)

    def replace_value(self, name: str, value: NewValue, expected: int | None, actor: str) -> Registered:
        """Prove a new value for a credential and store it as a candidate; a bad value changes nothing."""
        stored = self._desk.find(CredentialSpec, name)
        self._desk.unchanged(stored, expected)
        registry = self._desk.find(RegistrySpec, stored.record.registry).record
        verdict = self._proved(registry, value.login, name, actor, override=value.allow_unverified)
        with self._desk.deciding:
            # Proving took seconds: what the If-Match is about is looked at again.
            stored = self._desk.find(CredentialSpec, name)
            self._ensure_still(registry)
            # Written even when nothing in it changes: of two callers with one tag, the second is told.
            wish = replace(stored.record, expires_at=value.expires_at)
            stored = self._desk.replace(wish, stored.version, expected)
            candidate = self._candidate(stored.record, registry, value, verdict, actor)
            self._desk.store.put(candidate.id, candidate, 0)
        self._desk.ring()
        self._audit.record("credential.replace", name, actor=actor, outcome=verdict.outcome)
        return Registered(stored, verdict, operation_id(candidate.id, stored.record.uid))

    def change_credential(
        self,
        name: str,
        changes: dict[str, object],
        expected: int | None,
        actor: str,
    ) -> Stored[CredentialSpec]:
        """Change ``labels`` or ``expires_at`` of a credential; its value has its own verb."""
        stored = self._desk.find(CredentialSpec, name)
        if all(getattr(stored.record, name) == value for name, value in changes.items()):
            return self._desk.unchanged(stored, expected)
        wish = replace(stored.record, **changes)  # type: ignore[arg-type]  # the schema allows these two only
        changed = self._desk.replace(wish, stored.version, expected)
        self._desk.tell(Verb.CHANGED, wish, actor)
        self._audit.record("credential.change", name, actor=actor, outcome="stored")
        return changed

    def delete_credential(self, name: str, expected: int | None, actor: str) -> None:
        """Delete a credential that no rule uses; nothing at the registry is touched."""
        with self._desk.deciding:
            stored = self._desk.find(CredentialSpec, name)
            _ensure_unused("credential", name, self.users_of(name))
            buried = self._desk.bury(stored, expected)
        self._desk.tell(Verb.CHANGED, buried.record, actor)
        self._audit.record("credential.delete", name, actor=actor, outcome="deleted")

    def users_of(self, name: str) -> list[str]:
        """Return the rules that name a credential, as ``kind/name``."""
        pulls = [
            r.record for r in self._desk.all(PullSecretRule, strict=True) if name in r.record.credentials
        ]
        files = [r.record for r in self._desk.all(AuthFileRule, strict=True) if name in r.record.credentials]
        return [f"pull-secret/{rule.name}" for rule in pulls] + [f"auth-file/{rule.name}" for rule in files]

    def validate(self, name: str, actor: str) -> str:
        """Ask work to prove the current value again; return the operation's id."""
        return self._verb(Verb.VALIDATE, name, actor)

    def roll_back(self, name: str, actor: str, *, force: bool = False, reason: str = "") -> str:
        """Ask work to publish the previous generation again; return the operation's id.

        Work proves the previous value first and refuses a bad one unless ``force`` with a reason is given.
        """
        stored = self._desk.find(CredentialSpec, name)
        state = self._desk.store.get(CredentialState, stored.record.uid)
        if state is None or not state.record.head.prev:
            raise Conflict(
                f"credential {name!r} has no previous generation to go back to",
                hint=f"put a value with `secretsvc credential rotate {name} --manual`",
                code="NoPrevious",
            )
        if force and not reason.strip():
            raise InvalidInput(
                "a forced rollback needs a reason", FieldError("/reason", "say why; it is recorded")
            )
        return self._verb(Verb.ROLLBACK, name, actor, force=force, reason=reason)

    # --- the parts --------------------------------------------------------------------------------

    def _verb(self, verb: Verb, name: str, actor: str, *, force: bool = False, reason: str = "") -> str:
        stored = self._desk.find(CredentialSpec, name)
        item = self._desk.tell(verb, stored.record, actor, force=force, reason=reason)
        outcome = "forced" if force else "asked"
        self._audit.record(f"credential.{verb}", name, actor=actor, outcome=outcome, reason=reason)
        return operation_id(item.id, stored.record.uid)

    def _described(self, draft: RegistryDraft, uid: str, actor: str) -> RegistrySpec:
        host = kinds.normalise_host(draft.host)
        needs_token = draft.production_requires_token
        return RegistrySpec(
            uid=uid,
            name=draft.name,
            host=host,
            kind=draft.kind or kinds.guess_kind(host),
            created_at=self._desk.clock(),
            created_by=actor,
            insecure=draft.insecure,
            ca=draft.ca,
            realms=draft.realms,
            networks=draft.networks,
            probe_repository=draft.probe_repository,
            production_requires_token=(
                kinds.production_requires_token(host) if needs_token is None else needs_token
            ),
        )

    def _ensure_host_free(self, registry: RegistrySpec) -> None:
        for found in self._desk.all(RegistrySpec):
            if found.record.host == registry.host and found.record.name != registry.name:
                raise Conflict(
                    f"{registry.host} is registered already, as {found.record.name!r}",
                    hint=f"use the registry {found.record.name!r}",
                    code="HostTaken",
                )

    def _ensure_still(self, registry: RegistrySpec) -> None:
        """Raise `Conflict` when the registry was deleted or moved while a value was proved against it."""
        found = self._desk.store.get(RegistrySpec, registry.name)
        gone = found is None or found.record.deleted_at is not None
        if found is None or gone or found.record.binding() != registry.binding():
            raise Conflict(
                f"registry {registry.name!r} was changed while the value was proved against it",
                hint="look at the registry, then send the value again",
                code="RegistryChanged",
            )

    def _registry_for(self, text: str, actor: str) -> tuple[RegistrySpec, bool]:
        """Return the registry that ``text`` names, and whether it is new and not stored yet."""
        if "." not in text and ":" not in text:
            return self._known_registry(text), False
        host = _host(text)
        for found in self._desk.all(RegistrySpec):
            if found.record.host == host:
                return found.record, False
        draft = RegistryDraft(name=self._free_name(host), host=host)
        return self._described(draft, self._desk.new_id(), actor), True

    def _known_registry(self, name: str) -> RegistrySpec:
        try:
            return self._desk.find(RegistrySpec, name).record
        except NotFound as exc:
            raise InvalidInput(
                f"there is no registry {name!r}",
                FieldError("/registry", "an unknown name; a host has a dot or a port"),
                hint="see `secretsvc registry list`, or give the registry's host",
                code="UnknownRegistry",
            ) from exc

    def _free_name(self, host: str) -> str:
        base = _NOT_A_NAME.sub("-", host).strip("-")[:_NAME_LENGTH].strip("-") or "registry"
        taken = set(self._desk.store.names(RegistrySpec))
        name, number = base, 1
        while name in taken:
            number += 1
            ending = f"-{number}"
            name = base[: _NAME_LENGTH - len(ending)] + ending
        return name

    def _proved(
        self, registry: RegistrySpec, login: Login, name: str, actor: str, *, override: bool
    ) -> Verdict:
        verdict = self._asked(registry, login)
        if verdict.accepted or (override and not verdict.refused):
            return verdict
        self._audit.record("credential.refused", name, actor=actor, outcome=verdict.outcome)
        raise NotProved(verdict.message, verdict, hint=_next_step(verdict))

    def _asked(self, registry: RegistrySpec, login: Login) -> Verdict:
        """Ask the registry, unless so many callers wait for registries that nobody else would be served."""
        if not self._asking.acquire(blocking=False):
            raise Busy(
                f"{ASKING} other values are being proved at this moment", hint="try again in a few seconds"
            )
        try:
            return self._prover.prove(registry, login)
        finally:
            self._asking.release()

    def _candidate(
        self,
        credential: CredentialSpec,
        registry: RegistrySpec,
        value: NewValue,
        verdict: Verdict,
        actor: str,
    ) -> Candidate:
        override = f"allow_unverified by {actor}" if value.allow_unverified else ""
        state = self._desk.store.get(CredentialState, credential.uid)
        return Candidate(
            id=self._desk.new_id(),
            credential=credential.name,
            credential_uid=credential.uid,
            login=value.login,
            verdict=verdict,
            bound_to=registry.binding(),
            created_at=self._desk.clock(),
            created_by=actor,
            override=override,
            expires_at=value.expires_at or verdict.expires_at,
            seen_pub=state.record.head.pub if state is not None else 0,
        )


def _next_step(verdict: Verdict) -> str:
    if verdict.refused:
        return "correct the value and try again"
    if verdict.reason == "AddressNotAllowed":
        return (
            "a registry in a private network says so: `secretsvc registry add NAME HOST --network CIDR`, "
            "or `registry set NAME --network CIDR` when it is described already"
        )
    return "try again later, or keep it unverified with `allow_unverified` (`--allow-unverified`)"


def _host(text: str) -> str:
    try:
        return kinds.normalise_host(text)
    except InvalidInput as exc:
        fields = (FieldError("/registry", fault.detail) for fault in exc.fields)
        raise InvalidInput(exc.message, *fields, hint=exc.hint, code=exc.code) from exc


def _ensure_unused(word: str, name: str, users: list[str]) -> None:
    if users:
        raise Conflict(
            f"{word} {name!r} is used by {', '.join(users)}",
            hint="take it out of them first",
            code="InUse",
            users=tuple(users),
        )
