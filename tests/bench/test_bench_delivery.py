"""How fast a new value reaches 200 namespaces of a real kube-apiserver, and how fast it could.

The ceiling is measured in the same run, in turns with ours: aiohttp sending the same server-side applies
(another Secret's name, the same bodies) with the same number under way. A watch tells when each Secret was
written and counts the writes; the API server's own counter of applies has to agree.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import secrets
import ssl
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from secretsvc.delivery.cluster import FIELD_MANAGER
from secretsvc.workflows.deliver import CONCURRENCY
from tests.bench.measuring import PATIENCE_S, Caller, Report
from tests.rig.kube import KubeCluster
from tests.rig.registry import Registry
from tests.rig.service import Service

pytestmark = pytest.mark.bench

_NAMESPACES = [f"bench-{number:03}" for number in range(200)]
_ROUNDS = 5
_OURS, _BARE = "bench-pull", "bench-bare"
_USER = "robot$bench"
_APPLY = {"Content-Type": "application/apply-patch+yaml", "Accept": "application/json"}
_APPLIES = re.compile(
    r'^apiserver_request_total\{.*code="20[01]".*resource="secrets".*verb="APPLY".*\} (\S+)$', re.MULTILINE
)


@dataclass
class Watch:
    """What a watch over one Secret name has seen since it was last cleared."""

    wanted: str = ""
    seen: dict[str, list[float]] = field(default_factory=dict)
    """Namespace to the times at which it was written."""
    current: set[str] = field(default_factory=set)
    """Namespaces whose Secret holds the wanted value."""
    done: asyncio.Event = field(default_factory=asyncio.Event)

    def expect(self, value: str) -> None:
        """Start anew, waiting for ``value`` everywhere."""
        self.wanted = value
        self.seen, self.current = {}, set()
        self.done.clear()

    def hear(self, event: dict[str, Any]) -> None:
        """Take one event."""
        now = time.perf_counter()
        secret = event["object"]
        if event["type"] not in ("ADDED", "MODIFIED"):
            return
        namespace = secret["metadata"]["namespace"]
        self.seen.setdefault(namespace, []).append(now)
        if self.wanted in base64.b64decode(secret["data"][".dockerconfigjson"]).decode():
            self.current.add(namespace)
        if len(self.current) == len(_NAMESPACES):
            self.done.set()

    @property
    def writes(self) -> int:
        """How many writes there were."""
        return sum(map(len, self.seen.values()))

    @property
    def times(self) -> list[float]:
        """When they were."""
        return sorted(at for times in self.seen.values() for at in times)


class Bare:
    """The API server as aiohttp alone sees it."""

    def __init__(self, kube: KubeCluster, session: aiohttp.ClientSession) -> None:
        self._kube = kube
        self._session = session

    async def create_namespaces(self) -> None:
        """Make all namespaces, eight at a time."""

        async def create(name: str) -> None:
            body = {"metadata": {"name": name}}
            async with self._session.post(f"{self._kube.server}/api/v1/namespaces", json=body) as answer:
                assert answer.status == 201, await answer.text()

        await _eight_at_a_time([create(name) for name in _NAMESPACES])

    async def secrets(self, name: str) -> list[dict[str, Any]]:
        """Return every Secret of that name."""
        query = {"fieldSelector": f"metadata.name={name}"}
        async with self._session.get(f"{self._kube.server}/api/v1/secrets", params=query) as answer:
            items: list[dict[str, Any]] = (await answer.json())["items"]
            return items

    async def apply(self, bodies: list[bytes], name: str) -> float:
        """Apply one body per namespace; return the seconds it took."""

        async def one(namespace: str, body: bytes) -> None:
            url = f"{self._kube.server}/api/v1/namespaces/{namespace}/secrets/{name}"
            query = {"fieldManager": FIELD_MANAGER, "force": "true"}
            async with self._session.patch(url, params=query, data=body, headers=_APPLY) as answer:
                await answer.read()
                assert answer.status in (200, 201), await answer.text()

        began = time.perf_counter()
        await _eight_at_a_time([one(name, body) for name, body in zip(_NAMESPACES, bodies, strict=True)])
        return time.perf_counter() - began

    async def applies(self) -> int:
        """Return how many applies of Secrets the API server counts."""
        async with self._session.get(f"{self._kube.server}/metrics") as answer:
            return sum(int(float(count)) for count in _APPLIES.findall(await answer.text()))

    @asynccontextmanager
    async def watch(self, name: str) -> AsyncIterator[Watch]:
        """Watch the Secrets of that name."""
        seen = Watch()
        query = {"watch": "true", "fieldSelector": f"metadata.name={name}"}

        async def listen() -> None:
            async with self._session.get(f"{self._kube.server}/api/v1/secrets", params=query) as answer:
                async for line in answer.content:
                    seen.hear(json.loads(line))

        task = asyncio.create_task(listen())
        yield seen
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _eight_at_a_time(calls: list[Any]) -> None:
    slots = asyncio.Semaphore(CONCURRENCY)

    async def one(call: Any) -> None:
        async with slots:
            await call

    await asyncio.gather(*(one(call) for call in calls))


def session_of(kube: KubeCluster) -> aiohttp.ClientSession:
    """A session of the cluster's administrator, who logs in by certificate as secretsvc does."""
    tls = ssl.create_default_context(cafile=str(kube.ca.path))
    tls.verify_flags &= ~ssl.VERIFY_X509_STRICT
    tls.load_cert_chain(*map(str, kube.ca.issue("bench", "system:masters")))
    connector = aiohttp.TCPConnector(limit=2 * CONCURRENCY, ssl=tls)
    return aiohttp.ClientSession(connector=connector, read_bufsize=2**20)


def test_delivery(report: Report, tmp_path: Path) -> None:
    (tmp_path / "kube").mkdir()
    with (
        KubeCluster(tmp_path / "kube") as kube,
        Registry(tmp_path / "registry") as registry,
        Service(
            tmp_path / "service",
            {"SECRETSVC_LOG_LEVEL": "info", "SECRETSVC_KUBECONFIG": str(kube.kubeconfig)},
        ) as service,
        Caller(service) as caller,
    ):
        asyncio.run(measure(report, kube, registry, caller))


async def measure(report: Report, kube: KubeCluster, registry: Registry, caller: Caller) -> None:
    async with session_of(kube) as session:
        bare = Bare(kube, session)
        await bare.create_namespaces()
        # The other name is watched too, so that both kinds of writes cost the server the same.
        async with bare.watch(_OURS) as watch, bare.watch(_BARE):
            first = await deliver_first(report, registry, caller, watch)
            bodies = [bare_body(secret) for secret in await bare.secrets(_OURS)]
            await bare.apply([body(first) for body in bodies], _BARE)
            rounds = []
            for _ in range(_ROUNDS):
                value = secrets.token_urlsafe(24)
                ceiling = await bare.apply([body(value) for body in bodies], _BARE)
                rounds.append((ceiling, *await rotate(registry, caller, watch, bare)))
    tell(report, rounds)


async def deliver_first(report: Report, registry: Registry, caller: Caller, watch: Watch) -> str:
    """Register the credential and the rule; return the value."""
    value = secrets.token_urlsafe(24)
    registry.set_password(_USER, value)
    body = {"name": "bench", "registry": registry.host, "username": _USER, "secret": value}
    await asyncio.to_thread(caller.add_registry, "bench", registry.host)
    await asyncio.to_thread(caller.must, "POST", "/credentials", body, Prefer="wait=10")
    watch.expect(base64.b64encode(f"{_USER}:{value}".encode()).decode())
    rule = {
        "name": "bench",
        "secret_name": _OURS,
        "credentials": ["bench"],
        "namespaces": {"names": _NAMESPACES},
    }
    await asyncio.to_thread(caller.must, "POST", "/pull-secrets", rule)
    began = time.perf_counter()
    await asyncio.wait_for(watch.done.wait(), PATIENCE_S)
    took = time.perf_counter() - began
    report.tell("first delivery to 200 namespaces", f"{took:.2f} s", seconds=round(took, 3))
    return value


async def rotate(
    registry: Registry, caller: Caller, watch: Watch, bare: Bare
) -> tuple[float, float, float, int]:
    """Put a new value.

    Return the seconds from its acknowledgement to the first and to the last write, those between the two, and
    the number of writes.
    """
    value = secrets.token_urlsafe(24)
    registry.set_password(_USER, value)
    watch.expect(base64.b64encode(f"{_USER}:{value}".encode()).decode())
    before = await bare.applies()
    operation = await asyncio.to_thread(caller.must, "PUT", "/credentials/bench/secret", {"secret": value})
    acknowledged = time.perf_counter()
    await asyncio.wait_for(watch.done.wait(), PATIENCE_S)
    await ended(caller, operation["id"])
    applied = await bare.applies() - before
    assert applied == watch.writes
    assert watch.current == set(_NAMESPACES)
    times = watch.times
    return times[0] - acknowledged, times[-1] - acknowledged, times[-1] - times[0], applied


async def ended(caller: Caller, operation: str) -> None:
    """Wait until an operation has succeeded, so that rounds do not overlap."""
    end = time.monotonic() + PATIENCE_S
    while True:
        found = await asyncio.to_thread(caller.must, "GET", f"/operations/{operation}")
        if found["state"] == "succeeded":
            return
        assert time.monotonic() < end, found
        await asyncio.sleep(0.1)


def bare_body(secret: dict[str, Any]) -> Any:
    """Return what makes the body that we would send for this Secret, under another name."""
    metadata = secret["metadata"]
    kept = {key: metadata[key] for key in ("namespace", "labels", "annotations")}

    def body(value: str) -> bytes:
        content = json.loads(base64.b64decode(secret["data"][".dockerconfigjson"]))
        for entry in content["auths"].values():
            entry["auth"] = base64.b64encode(f"{_USER}:{value}".encode()).decode()
        encoded = base64.b64encode(json.dumps(content).encode()).decode()
        document = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {**kept, "name": _BARE},
            "type": secret["type"],
            "data": {".dockerconfigjson": encoded},
        }
        return json.dumps(document).encode()

    return body


def tell(report: Report, rounds: list[tuple[float, float, float, float, int]]) -> None:
    """Report the medians and the writes per namespace."""
    count = len(_NAMESPACES)
    ceiling, first, last, writing, applied = (list(column) for column in zip(*rounds, strict=True))
    report.times("new value: ack to first write", first)
    report.times("new value: ack to all 200", last)
    report.times("new value: first to last write", writing)
    report.times(f"bare aiohttp, {CONCURRENCY} at once, 200", ceiling)
    ratios = [bare / ours for bare, ours in zip(ceiling, last, strict=True)]
    pure = [bare / ours for bare, ours in zip(ceiling, writing, strict=True)]
    report.tell(
        "rate / bare rate, ack to all",
        f"{statistics.median(ratios):.2f}  [{min(ratios):.2f}-{max(ratios):.2f}]",
        median=round(statistics.median(ratios), 3),
    )
    report.tell(
        "rate / bare rate, writing alone",
        f"{statistics.median(pure):.2f}  [{min(pure):.2f}-{max(pure):.2f}]",
        median=round(statistics.median(pure), 3),
    )
    writes = sum(applied) / (count * len(rounds))
    report.tell("writes per namespace and value", f"{writes:.2f}", writes=writes)
    assert all(number == count for number in applied)
