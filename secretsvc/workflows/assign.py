"""Rules as callers wish them: which credentials belong in which namespaces and auth files.

Runs in serve and only writes wishes; work delivers. A rule that could never be delivered as written (an
unknown credential, two credentials for one registry, a Secret or file that another rule has) is refused
here, where its author can be told.
"""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass, replace

from secretsvc.core import kinds
from secretsvc.core.errors import Conflict, FieldError, InvalidInput
from secretsvc.core.model import (
    CredentialSpec,
    RegistrySpec,
    Verb,
)
from secretsvc.core.ports import AuditLog, Stored
from secretsvc.core.rules import (
    LOCAL_HOST,
    AuthFileRule,
    Dialect,
    NamespaceSelection,
    PullSecretRule,
)
from secretsvc.workflows.records import Desk, operation_id

_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?\Z")
_SUBDOMAIN = re.compile(r"(?=.{1,253}\Z)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*\Z")


@dataclass(frozen=True, slots=True)
class PullSecretDraft:
    """A pull secret as a caller describes it."""

    name: str
    secret_name: str
    credentials: tuple[str, ...]
    namespaces: tuple[str, ...]
    cluster: str = "default"
    keep: bool = False


@dataclass(frozen=True, slots=True)
class AuthFileDraft:
    """An auth file as a caller describes it."""

    name: str
    path: str
    dialect: Dialect
    credentials: tuple[str, ...]
    hosts: tuple[str, ...] = (LOCAL_HOST,)
    keep: bool = False


@dataclass(frozen=True, slots=True)
class Assigned:
    """A stored rule and the operation that brings its targets to it."""

    rule: Stored[PullSecretRule] | Stored[AuthFileRule]
    operation: str


class Assigner:
    """Serve's side of rules.

    Args:
        clusters: the names of the clusters that the settings give.
    """

    def __init__(self, desk: Desk, audit: AuditLog, clusters: frozenset[str]) -> None:
        self._desk = desk
        self._audit = audit
        self._clusters = clusters

    def add_pull_secret(self, draft: PullSecretDraft, actor: str) -> Assigned:
        """Store a new pull secret."""
        with self._desk.deciding:
            self._desk.ensure_free(PullSecretRule, draft.name)
            stored = self._desk.create(self._pull_secret(draft, self._desk.new_id(), actor))
        return self._told(stored, "pull-secret.add", actor)

    def change_pull_secret(self, draft: PullSecretDraft, expected: int | None, actor: str) -> Assigned:
        """Replace a pull secret's description; targets that it no longer names lose our Secret."""
        old = self._desk.find(PullSecretRule, draft.name)
        if (draft.secret_name, draft.cluster) != (old.record.secret_name, old.record.cluster):
            raise Conflict(
                "a pull secret keeps its secret_name and cluster",
                hint="add another pull secret, then delete this one",
                code="Immutable",
            )
        with self._desk.deciding:
            rule = self._pull_secret(draft, old.record.uid, old.record.created_by)
            rule = replace(rule, created_at=old.record.created_at)
            stored = self._desk.replace(rule, old.version, expected)
        return self._told(stored, "pull-secret.change", actor)

    def add_auth_file(self, draft: AuthFileDraft, actor: str) -> Assigned:
        """Store a new auth file."""
        with self._desk.deciding:
            self._desk.ensure_free(AuthFileRule, draft.name)
            stored = self._desk.create(self._auth_file(draft, self._desk.new_id(), actor))
        return self._told(stored, "auth-file.add", actor)

    def change_auth_file(self, draft: AuthFileDraft, expected: int | None, actor: str) -> Assigned:
        """Replace an auth file's description; entries it no longer names are taken out of the file."""
        old = self._desk.find(AuthFileRule, draft.name)
        if (draft.path, draft.dialect) != (old.record.path, old.record.dialect):
            raise Conflict(
                "an auth file keeps its path and dialect",
                hint="add another auth file, then delete this one",
                code="Immutable",
            )
        with self._desk.deciding:
            rule = self._auth_file(draft, old.record.uid, old.record.created_by)
            rule = replace(rule, created_at=old.record.created_at)
            stored = self._desk.replace(rule, old.version, expected)
        return self._told(stored, "auth-file.change", actor)

    def delete(
        self, kind: type[PullSecretRule | AuthFileRule], name: str, expected: int | None, actor: str
    ) -> str:
        """Delete a rule: work removes exactly what it made, then the rule. Returns the operation's id."""
        buried = (
            self._desk.bury(self._desk.find(PullSecretRule, name), expected)
            if kind is PullSecretRule
            else self._desk.bury(self._desk.find(AuthFileRule, name), expected)
        )
        item = self._desk.tell(Verb.CHANGED, buried.record, actor)
        self._audit.record(f"{_noun(kind)}.delete", name, actor=actor, outcome="deleted")
        return operation_id(item.id, buried.record.uid)

    def sync(self, kind: type[PullSecretRule | AuthFileRule], name: str, actor: str) -> str:
        """Ask work to look at every target of a rule now. Returns the operation's id."""
        stored = (
            self._desk.find(PullSecretRule, name)
            if kind is PullSecretRule
            else self._desk.find(AuthFileRule, name)
        )
        item = self._desk.tell(Verb.SYNC, stored.record, actor)
        return operation_id(item.id, stored.record.uid)

    # --- the parts --------------------------------------------------------------------------------

    def _told(
        self, stored: Stored[PullSecretRule] | Stored[AuthFileRule], action: str, actor: str
    ) -> Assigned:
        item = self._desk.tell(Verb.CHANGED, stored.record, actor)
        self._audit.record(action, stored.record.name, actor=actor, outcome="stored")
        return Assigned(stored, operation_id(item.id, stored.record.uid))

    def _pull_secret(self, draft: PullSecretDraft, uid: str, actor: str) -> PullSecretRule:
        faults = [
            FieldError(f"/namespaces/names/{index}", f"{name!r} is not a namespace's name")
            for index, name in enumerate(draft.namespaces)
            if _NAMESPACE.match(name) is None
        ]
        if _SUBDOMAIN.match(draft.secret_name) is None:
            faults.append(FieldError("/secret_name", "not a Secret's name (a DNS subdomain)"))
        if draft.cluster not in self._clusters:
            faults.append(FieldError("/cluster", f"there is no cluster {draft.cluster!r}"))
        faults += self._credential_faults(draft.credentials)
        _raise(faults)
        self._ensure_secret_free(draft)
        return PullSecretRule(
            uid=uid,
            name=draft.name,
            secret_name=draft.secret_name,
            credentials=draft.credentials,
            namespaces=NamespaceSelection(tuple(sorted(set(draft.namespaces)))),
            created_at=self._desk.clock(),
            created_by=actor,
            cluster=draft.cluster,
            keep=draft.keep,
        )

    def _auth_file(self, draft: AuthFileDraft, uid: str, actor: str) -> AuthFileRule:
        faults = []
        if (
            not draft.path.startswith("/")
            or posixpath.normpath(draft.path) != draft.path
            or "\0" in draft.path
        ):
            faults.append(FieldError("/path", "must be absolute and without '.', '..' or doubled slashes"))
        if draft.hosts != (LOCAL_HOST,):
            faults.append(FieldError("/hosts/names", f"only the host {LOCAL_HOST!r} is known"))
        faults += self._credential_faults(draft.credentials)
        _raise(faults)
        for found in self._desk.all(AuthFileRule):
            if found.record.path == draft.path and found.record.name != draft.name:
                raise Conflict(
                    f"the auth file {found.record.name!r} has the path {draft.path} already",
                    hint=f"add the credentials to {found.record.name!r}",
                    code="PathTaken",
                )
        return AuthFileRule(
            uid=uid,
            name=draft.name,
            path=draft.path,
            dialect=draft.dialect,
            credentials=draft.credentials,
            created_at=self._desk.clock(),
            created_by=actor,
            hosts=draft.hosts,
            keep=draft.keep,
        )

    def _credential_faults(self, names: tuple[str, ...]) -> list[FieldError]:
        """Find what is wrong with a rule's credentials: none, unknown, or two for one registry."""
        if not names:
            return [FieldError("/credentials", "name at least one credential")]
        faults: list[FieldError] = []
        by_key: dict[str, str] = {}
        for index, name in enumerate(names):
            stored = self._desk.store.get(CredentialSpec, name)
            if stored is None or stored.record.deleted_at is not None:
                faults.append(FieldError(f"/credentials/{index}", f"there is no credential {name!r}"))
                continue
            registry = self._desk.find(RegistrySpec, stored.record.registry).record
            key = kinds.auth_key(registry)
            other = by_key.setdefault(key, name)
            if other != name or names.index(name) != index:
                detail = f"{other!r} is for {key} already: clients use one login per registry"
                faults.append(FieldError(f"/credentials/{index}", detail))
        return faults

    def _ensure_secret_free(self, draft: PullSecretDraft) -> None:
        for found in self._desk.all(PullSecretRule):
            rule = found.record
            same = (rule.cluster, rule.secret_name) == (draft.cluster, draft.secret_name)
            shared = sorted(set(rule.namespaces.names) & set(draft.namespaces))
            if same and shared and rule.name != draft.name:
                raise Conflict(
                    f"the pull secret {rule.name!r} has {draft.secret_name!r} in {shared[0]!r} already",
                    hint="use another secret_name, or other namespaces",
                    code="SecretTaken",
                )


def _raise(faults: list[FieldError]) -> None:
    if faults:
        raise InvalidInput("the rule can not be delivered as written", *faults)


def _noun(kind: type[PullSecretRule | AuthFileRule]) -> str:
    return "pull-secret" if kind is PullSecretRule else "auth-file"
