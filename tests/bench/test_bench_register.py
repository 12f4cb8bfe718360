"""What registering costs on the local store besides the registry's own time, and what the stores cost.

The registry of this bench is a scripted server that times its own part of every request, from the request's
arrival to its answer; the sum over a check's requests is subtracted from what the caller waited. Everything
else counts as ours: both ends of the API's HTTP, authentication, the check's connections (the scripted
server's handling of them too), encryption and the disk.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from secretsvc.core.model import CredentialSpec, CredentialType
from secretsvc.core.ports import CredentialStore
from secretsvc.store.envelope import create_key_file, load_key_file
from secretsvc.store.local import LocalStore
from tests.bench.measuring import Caller, Report, wait_until
from tests.rig.openbao import OpenBao, bootstrapped, now, vault_store
from tests.rig.registry import basic
from tests.rig.scripted import Reply, ScriptedServer, Seen
from tests.rig.service import Service

pytestmark = pytest.mark.bench

_REGISTRATIONS = 300
_WARM_UP = 20
_PUTS = 300
_GOAL_MS = 20.0
_USER, _VALUE = "robot$bench", "the-right-value"
_REQUESTS_PER_CHECK = 2
"""Without a login, and with it; the first check of a day adds one with a made-up login."""


class TimedRegistry:
    """A Basic registry that adds up how long it took to answer."""

    def __init__(self, delay: float) -> None:
        self._delay = delay
        self.spent: list[float] = []

    def __call__(self, seen: Seen) -> Reply:
        """Answer ``/v2/`` after the delay."""
        began = time.perf_counter()
        if self._delay:
            time.sleep(self._delay)
        known = seen.authorization == basic(_USER, _VALUE)
        challenge = (("WWW-Authenticate", 'Basic realm="bench"'),)
        reply = Reply(200) if known else Reply(401, challenge)
        self.spent.append(time.perf_counter() - began)
        return reply


@contextmanager
def service_with(registry: TimedRegistry, folder: Path) -> Iterator[Caller]:
    """A service on the local store that knows the registry as ``bench``."""
    with (
        ScriptedServer(registry) as server,
        Service(folder, {"SECRETSVC_LOG_LEVEL": "info"}) as service,
        Caller(service) as caller,
    ):
        caller.add_registry("bench", server.host)
        yield caller


@pytest.mark.parametrize(
    ("delay_ms", "word"), [(0, "back to back"), (25, "registry takes 2 x 25 ms")], ids=["0ms", "25ms"]
)
def test_register(report: Report, tmp_path: Path, delay_ms: int, word: str) -> None:
    registry = TimedRegistry(delay_ms / 1000)
    with service_with(registry, tmp_path) as caller:
        ours = [register(caller, registry, number) for number in range(_WARM_UP + _REGISTRATIONS)]
        began = time.perf_counter()
        wait_until("every credential is active", lambda: active(caller) == len(ours), 0.2)
        behind = time.perf_counter() - began
    found = report.times(f"register, {word}", ours[_WARM_UP:], all_published_after_s=round(behind, 2))
    report.goal(f"register p99, {word}", found.facts["p99_ms"], _GOAL_MS, "ms")


def register(caller: Caller, registry: TimedRegistry, number: int) -> float:
    """Register one credential; return the seconds besides the registry's own."""
    registry.spent.clear()
    body = {"name": f"bench-{number}", "registry": "bench", "username": _USER, "secret": _VALUE}
    began = time.perf_counter()
    status, answer = caller("POST", "/credentials", body)
    took = time.perf_counter() - began
    assert status == 201, answer
    assert answer["verdict"]["outcome"] == "VALID"
    assert len(registry.spent) == _REQUESTS_PER_CHECK + (number == 0)
    return took - sum(registry.spent)


def active(caller: Caller) -> int:
    """Count the credentials that are published, over all pages."""
    count, cursor = 0, ""
    while True:
        page = caller.must("GET", f"/credentials?state=active&limit=500&cursor={cursor}")
        count += len(page["items"])
        cursor = page["next_cursor"]
        if not cursor:
            return count


def test_store_puts(report: Report, tmp_path: Path) -> None:
    """One durable write, in turns: a bare 4 KiB append with fsync, the local store, OpenBao on raft."""
    (tmp_path / "bao").mkdir()
    with OpenBao.durable(tmp_path / "bao") as bao:
        grant = bootstrapped(bao, tmp_path / "bao")
        vault = vault_store(bao, grant)
        local = local_store(tmp_path)
        try:
            took = in_turns(tmp_path, {"local store put": local, "OpenBao (raft) put": vault})
        finally:
            local.close()
            vault.close()
    fsync = report.times("fsync of a 4 KiB append", took.pop("fsync")[_WARM_UP:])
    for name, seconds in took.items():
        found = report.times(name, seconds[_WARM_UP:])
        ratio = found.facts["p50_ms"] / fsync.facts["p50_ms"]
        report.tell(f"{name} / fsync, p50", f"{ratio:.2f}", ratio=round(ratio, 2))


def in_turns(folder: Path, stores: dict[str, CredentialStore]) -> dict[str, list[float]]:
    """Time one fsync and one put of each store, again and again."""
    took: dict[str, list[float]] = {"fsync": [], **{name: [] for name in stores}}
    with (folder / "plain").open("ab", buffering=0) as plain:

        def append() -> None:
            plain.write(os.urandom(4096))
            os.fsync(plain.fileno())

        for number in range(_WARM_UP + _PUTS):
            took["fsync"].append(timed(append))
            for name, store in stores.items():
                took[name].append(timed(partial(put, store, number)))
    for store in stores.values():
        assert len(store.names(CredentialSpec)) == _WARM_UP + _PUTS
    return took


def put(store: CredentialStore, number: int) -> None:
    """Write one new document."""
    name = f"bench-{number}"
    spec = CredentialSpec(name, name, "bench", CredentialType.TOKEN, _USER, now(), "bench")
    store.put(name, spec, 0)


def timed(act: Callable[[], None]) -> float:
    """Return the seconds that ``act`` takes."""
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def local_store(folder: Path) -> LocalStore:
    """A fresh local store."""
    data, key = folder / "data", folder / "kek"
    create_key_file(key, data)
    return LocalStore(data, load_key_file(key, data))
