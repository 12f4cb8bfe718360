"""Serve and work over one in-memory store, in one process: what serve wishes, targets get."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Coroutine

from secretsvc.core.model import (
    CredentialType,
    Login,
    RegistrySpec,
    Secret,
)
from secretsvc.core.rules import (
    DeliveryState,
    Dialect,
    PullSecretRule,
)
from secretsvc.workflows.assign import Assigner, AuthFileDraft, PullSecretDraft
from secretsvc.workflows.reconcile import Worker
from secretsvc.workflows.records import Desk
from secretsvc.workflows.register import CredentialDraft, NewValue, Registrar, RegistryDraft
from secretsvc.workflows.report import Reporter
from tests.fakecluster import FakeAuthFiles, FakeCluster
from tests.fakes import CountingEntropy, FakeProver, ListAudit, MemoryStore, SettableClock

PATH = "/etc/app/auth.json"


class Site:
    """Serve and work over one store, in one process."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.clock = SettableClock()
        self.prover = FakeProver()
        self.cluster = FakeCluster(namespaces={"a", "b", "c"})
        self.files = FakeAuthFiles()
        self.audit = ListAudit()
        desk = Desk(self.store, self.clock, CountingEntropy(), self.ring)
        self.desk = desk
        self.registrar = Registrar(desk, self.prover, self.audit)
        self.assigner = Assigner(desk, self.audit, frozenset({"default"}))
        self.reporter = Reporter(desk)
        self.worker: Worker | None = None
        self.refresh_s = 60.0

    def ring(self) -> None:
        self.clock.advance(milliseconds=1)
        if self.worker is not None:
            self.worker.ring()

    def start(self) -> Worker:
        clusters = {"default": self.cluster}
        self.worker = Worker(
            self.desk, self.prover, clusters, self.files, self.audit, refresh_s=self.refresh_s
        )
        return self.worker

    def register(self, name: str = "prod", value: str = "one") -> str:
        host = f"{name}.example.com"
        if name not in [r.record.name for r in self.desk.all(RegistrySpec)]:
            self.registrar.add_registry(RegistryDraft(name, host), "ann")
        return self.registrar.register(CredentialDraft(name, name, login(value)), "ann").operation

    def put(self, value: str, name: str = "prod") -> str:
        return self.registrar.replace_value(name, NewValue(login(value)), None, "ann").operation

    def pull(self, *namespaces: str, name: str = "pull", credentials: tuple[str, ...] = ("prod",)) -> str:
        draft = PullSecretDraft(name, name, credentials, namespaces)
        return self.assigner.add_pull_secret(draft, "ann").operation

    def file(self, credentials: tuple[str, ...] = ("prod",)) -> str:
        draft = AuthFileDraft("host", PATH, Dialect.CONTAINERS_AUTH, credentials)
        return self.assigner.add_auth_file(draft, "ann").operation

    def held(self, namespace: str, name: str = "pull") -> str:
        live = self.cluster.secrets.get((namespace, name))
        return live.dockerconfigjson.reveal() if live is not None and live.dockerconfigjson else ""

    def state(self, target: str, name: str = "pull") -> tuple[DeliveryState, str] | None:
        for row in self.reporter.deliveries(PullSecretRule, name):
            if row.delivery.target == target:
                return row.delivery.state, row.delivery.reason
        return None


def login(value: str) -> Login:
    return Login(CredentialType.TOKEN, "robot", Secret(value))


def encoded(value: str) -> str:
    return base64.b64encode(f"robot:{value}".encode()).decode()


async def until(met: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not met():  # noqa: ASYNC110  # what is awaited has no event
            await asyncio.sleep(0.005)


def work(site: Site, story: Callable[[], Coroutine[None, None, None]]) -> None:
    """Run a story beside a worker."""

    async def run() -> None:
        stop = asyncio.Event()
        task = asyncio.create_task(site.start().run(stop))
        try:
            await story()
            if task.done():
                task.result()
        finally:
            stop.set()
            await task

    asyncio.run(run())


def settled(site: Site, operation: str) -> Callable[[], bool]:
    return lambda: site.reporter.operation(operation).operation.settled
