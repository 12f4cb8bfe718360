"""The web application over fakes, with a stand-in for work that does what it is rung for."""

from __future__ import annotations

import io
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

from flask import Flask
from werkzeug.test import TestResponse

from secretsvc.core import rotation
from secretsvc.core.access import Role
from secretsvc.core.errors import TargetUnreachable
from secretsvc.core.model import (
    Candidate,
    CredentialState,
    Generation,
    History,
    InboxItem,
    Operation,
    OperationKind,
    OperationState,
    Progress,
)
from secretsvc.core.ports import Stored
from secretsvc.telemetry.logs import configure
from secretsvc.telemetry.metrics import Metrics, Snapshot
from secretsvc.telemetry.redaction import Redactor
from secretsvc.web.app import create_app
from secretsvc.web.services import Services
from secretsvc.web.waiting import Patience
from secretsvc.workflows.admit import Gatekeeper
from secretsvc.workflows.assign import Assigner
from secretsvc.workflows.records import Desk
from secretsvc.workflows.register import Registrar
from secretsvc.workflows.report import Reporter
from tests.fakes import CountingEntropy, FakeProver, ListAudit, MemoryStore, SettableClock

CANARY = "canary-7f3a!Zq/9"
API = "/api/v1"


class Ticking:
    """Monotonic seconds that pass only by sleeping; work runs meanwhile."""

    def __init__(self, work: Any) -> None:
        self.seconds = 0.0
        self.naps = 0
        self._work = work

    def __call__(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds
        self.naps += 1
        self._work()


class AnsweringCluster:
    """A cluster that has a version, or fails."""

    def __init__(self, *, up: bool) -> None:
        self._up = up

    def version(self) -> str:
        if not self._up:
            raise TargetUnreachable("no answer from the API server", hint="is it running?")
        return "v1.36.3"


@dataclass
class Serving:
    """The application with everything it stands on, and tokens to call it with."""

    store: MemoryStore = field(default_factory=MemoryStore)
    clock: SettableClock = field(default_factory=SettableClock)
    prover: FakeProver = field(default_factory=FakeProver)
    audit: ListAudit = field(default_factory=ListAudit)
    logs: io.StringIO = field(default_factory=io.StringIO)
    rings: int = 0
    works: bool = True
    """Whether work does its part while somebody waits."""

    def __post_init__(self) -> None:
        redactor = Redactor()
        configure("debug", "json", redactor, self.logs)
        self.desk = Desk(self.store, self.clock, CountingEntropy(), self._ring)
        self.gatekeeper = Gatekeeper(self.desk, self.audit)
        self.metrics = Metrics("1.2.3", lambda: Snapshot(store_up=True))
        self.ticking = Ticking(self._work_if_it_works)
        names = {"default": AnsweringCluster(up=True), "away": AnsweringCluster(up=False)}
        self.app: Flask = create_app(
            Services(
                desk=self.desk,
                registrar=Registrar(self.desk, self.prover, self.audit),
                assigner=Assigner(self.desk, self.audit, frozenset(names)),
                gatekeeper=self.gatekeeper,
                reporter=Reporter(self.desk),
                clusters=names,
                version="1.2.3",
                metrics=self.metrics,
                redactor=redactor,
                patience=Patience(self.ticking.sleep, self.ticking),
            )
        )
        self.tokens = {
            "admin": self._token("admin", Role.ADMIN),
            "viewer": self._token("viewer", Role.VIEWER),
            "expired": self._token("expired", Role.ADMIN, timedelta(seconds=-1)),
            "revoked": self._token("revoked", Role.ADMIN),
        }
        self.gatekeeper.revoke("revoked", "test")

    def _token(self, name: str, role: Role, lifetime: timedelta | None = None) -> str:
        return self.gatekeeper.issue(name, role, lifetime, "test")[1].reveal()

    def _ring(self) -> None:
        self.rings += 1

    def _work_if_it_works(self) -> None:
        if self.works:
            self.work()

    def call(self, method: str, path: str, *, who: str | None = "admin", **options: Any) -> TestResponse:
        """Send a request; paths are below the API's prefix unless they name a root route."""
        headers = dict(options.pop("headers", {}))
        if who is not None:
            headers["Authorization"] = f"Bearer {self.tokens[who]}"
        full = path if path.startswith(("/livez", "/readyz", "/metrics", "/openapi", "//")) else API + path
        return self.app.test_client().open(full, method=method, headers=headers, **options)

    def add_registry(self, name: str = "reg1", host: str = "reg1.example.com", **fields: Any) -> TestResponse:
        return self.call("POST", "/registries", json={"name": name, "host": host, **fields})

    def add_credential(self, name: str = "prod", **fields: Any) -> TestResponse:
        headers = fields.pop("headers", {})
        body = {"name": name, "registry": "reg1", "username": "robot$x", "secret": CANARY, **fields}
        return self.call("POST", "/credentials", json=body, headers=headers)

    def add_pull_secret(self, name: str = "pull", **fields: Any) -> TestResponse:
        body = {
            "name": name,
            "secret_name": "pull-secret",
            "credentials": ["prod"],
            "namespaces": {"names": ["team-a", "team-b"]},
            **fields,
        }
        return self.call("POST", "/pull-secrets", json=body)

    def add_auth_file(self, name: str = "file", **fields: Any) -> TestResponse:
        body = {
            "name": name,
            "path": "/srv/auth.json",
            "dialect": "containers-auth",
            "credentials": ["prod"],
            **fields,
        }
        return self.call("POST", "/auth-files", json=body)

    # --- what work does ---------------------------------------------------------------------------

    def work(self) -> None:
        """Publish every candidate, and settle everything in the inbox."""
        for name in self.store.names(Candidate):
            self._publish(self.store.get(Candidate, name))
        for name in self.store.names(InboxItem):
            item = self.store.get(InboxItem, name)
            assert item is not None
            self._settle(item)

    def _publish(self, stored: Stored[Candidate] | None) -> None:
        assert stored is not None
        candidate = stored.record
        uid = candidate.credential_uid
        old = self.store.get(CredentialState, uid)
        state = old.record if old else CredentialState(uid, candidate.credential)
        now = self.clock()
        state = rotation.claim(state, candidate, now)
        assert state.op is not None
        generation = Generation(
            uid, state.op.to, candidate.login, candidate.bound_to, now, "print", candidate.id
        )
        state, ended = rotation.settle(rotation.promote(state, generation, now), now, Progress(2, 2))
        self.store.put(uid, state, old.version if old else 0)
        self._remember(uid, ended)
        self.store.remove(Candidate, candidate.id, stored.version)

    def _settle(self, stored: Stored[InboxItem]) -> None:
        item = stored.record
        now = self.clock()
        state = OperationState.SUCCEEDED
        ended = Operation(item.id, OperationKind.SYNC, state, item.created_by, item.created_at, now)
        self._remember(item.subject_uid, replace(ended, progress=Progress(1, 1)))
        self.store.remove(InboxItem, item.id, stored.version)

    def _remember(self, uid: str, operation: Operation) -> None:
        old = self.store.get(History, uid)
        history = rotation.appended(old.record if old else History(uid), operation)
        self.store.put(uid, history, old.version if old else 0)
