"""In-memory targets for the worker's unit tests: a cluster and a machine's auth files.

They keep the promises of the ports (`Cluster`, `AuthFiles`) that the worker leans on: resourceVersions, uids,
terminating namespaces, ownership by digest. The real adapters have contract suites against real servers.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace

from secretsvc.core.delivery import SECRET_TYPE
from secretsvc.core.errors import DeliveryError, TargetChanged, TargetMissing
from secretsvc.core.ports import (
    AuthEntry,
    AuthFileResult,
    AuthFileWish,
    LiveSecret,
    SecretMetadata,
    WantedSecret,
)


@dataclass
class FakeCluster:
    """A cluster whose namespaces are a set, and which fails when told to."""

    name: str = "default"
    namespaces: set[str] = field(default_factory=set)
    secrets: dict[tuple[str, str], LiveSecret] = field(default_factory=dict)
    failure: DeliveryError | None = None
    writes: list[tuple[str, str]] = field(default_factory=list)
    _counter: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    async def identity(self) -> str:
        self._check()
        return f"uid-of-{self.name}"

    async def secrets_named(self, name: str) -> dict[str, SecretMetadata]:
        self._check()
        return {space: live.metadata for (space, known), live in self.secrets.items() if known == name}

    async def read_secret(self, namespace: str, name: str) -> LiveSecret | None:
        self._check()
        return self.secrets.get((namespace, name))

    async def apply_secret(self, wanted: WantedSecret, found: SecretMetadata | None) -> LiveSecret:
        self._check()
        if wanted.namespace not in self.namespaces:
            raise TargetMissing(f"there is no namespace {wanted.namespace}", code="NamespaceMissing")
        key = (wanted.namespace, wanted.name)
        there = self.secrets.get(key)
        expected = (found.uid, found.resource_version) if found else None
        if ((there.metadata.uid, there.metadata.resource_version) if there else None) != expected:
            raise TargetChanged("somebody wrote it")
        uid = there.metadata.uid if there else f"secret-{next(self._counter)}"
        labels = {**(there.metadata.labels if there else {}), **wanted.labels}
        annotations = {**(there.metadata.annotations if there else {}), **wanted.annotations}
        metadata = SecretMetadata(*key, uid, str(next(self._counter)), labels, annotations)
        self.secrets[key] = LiveSecret(metadata, SECRET_TYPE, wanted.dockerconfigjson)
        self.writes.append(key)
        return self.secrets[key]

    async def delete_secret(self, metadata: SecretMetadata) -> None:
        self._check()
        self.secrets.pop((metadata.namespace, metadata.name), None)

    async def version(self) -> str:
        return "v0.0.0-fake"

    async def close(self) -> None:
        pass

    def tamper(self, namespace: str, name: str, live: LiveSecret | None) -> None:
        """Write as somebody else would."""
        if live is None:
            self.secrets.pop((namespace, name), None)
            return
        metadata = replace(live.metadata, resource_version=str(next(self._counter)))
        self.secrets[(namespace, name)] = replace(live, metadata=metadata)

    def _check(self) -> None:
        if self.failure is not None:
            raise self.failure


@dataclass
class FakeAuthFiles:
    """Auth files as maps from auth key to entry."""

    files: dict[str, dict[str, AuthEntry]] = field(default_factory=dict)
    failure: DeliveryError | None = None

    def write(self, wish: AuthFileWish) -> AuthFileResult:
        if self.failure is not None:
            raise self.failure
        file = dict(self.files.get(wish.path, {}))
        foreign = []
        for entry in wish.entries:
            there = file.get(entry.key)
            if there is None or there == entry or wish.digest(there) in wish.accepted.get(entry.key, ()):
                file[entry.key] = entry
            else:
                foreign.append(entry.key)
        for key in wish.remove:
            if key in file and wish.digest(file[key]) in wish.accepted.get(key, ()):
                del file[key]
        changed = file != self.files.get(wish.path)
        self.files[wish.path] = file
        marks = {entry.key: wish.digest(entry) for entry in wish.entries if entry.key not in foreign}
        return AuthFileResult(changed, marks, tuple(foreign))
