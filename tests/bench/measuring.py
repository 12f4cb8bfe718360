"""What the benches share: percentiles, lines to print, the report, and a client that keeps its connection.

Every number is printed where it was measured and goes to ``.run/bench.json`` with the machine it was measured
on. Compare numbers of one run with each other, never with those of another machine or run.
"""

from __future__ import annotations

import http.client
import json
import math
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from tests.rig.service import Service

API = "/api/v1"
PATIENCE_S = 60.0
_QUIET_CORES = 0.1
_QUIET_WITHIN_S = 5
_ENOUGH = 100
"""Of fewer values there is no 99th percentile to speak of."""


def quantile(values: Iterable[float], share: float) -> float:
    """Return the smallest value that at least ``share`` of all values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


@dataclass(frozen=True)
class Times:
    """Seconds that one thing took, again and again."""

    seconds: tuple[float, ...]

    @property
    def facts(self) -> dict[str, float]:
        """The summary in milliseconds."""
        found = {
            "p50_ms": statistics.median(self.seconds),
            "p99_ms": quantile(self.seconds, 0.99),
            "max_ms": max(self.seconds),
        }
        if len(self.seconds) < _ENOUGH:
            del found["p99_ms"]
        return {name: round(1000 * value, 3) for name, value in found.items()} | {"n": len(self.seconds)}

    def __str__(self) -> str:
        facts = self.facts
        columns = [
            f"{name.removesuffix('_ms')} {facts[name]:8.2f} ms" if name in facts else " " * 15
            for name in ("p50_ms", "p99_ms", "max_ms")
        ]
        return "   ".join((*columns, f"n {facts['n']}"))


@dataclass
class Report:
    """What a run has measured, printed at once and kept for the file."""

    path: Path
    measured: dict[str, Any] = field(default_factory=dict)

    def tell(self, name: str, line: str, **facts: Any) -> None:
        """Print one measurement and keep its facts."""
        sys.stdout.write(f"\n  {name:<34} {line}")
        sys.stdout.flush()
        if facts:
            self.measured[name] = facts

    def times(self, name: str, seconds: Iterable[float], **facts: Any) -> Times:
        """Tell of times, and return them."""
        found = Times(tuple(seconds))
        self.tell(name, str(found), **found.facts, **facts)
        return found

    def goal(self, name: str, value: float, below: float, unit: str) -> None:
        """Say whether a goal is met; a bench measures and does not fail for it."""
        met = value < below
        self.tell(
            f"goal: {name}",
            f"{value:.2f} {unit}, under {below:g} {unit}: {'met' if met else 'MISSED'}",
            value=round(value, 3),
            below=below,
            unit=unit,
            met=met,
        )

    def write(self) -> None:
        """Write the file; what an earlier run of another choice of benches measured is not kept."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        document = {"machine": machine(), "measured": self.measured}
        self.path.write_text(json.dumps(document, indent=2) + "\n")


def machine() -> dict[str, Any]:
    """Return what the numbers depend on and a reader should know."""
    return {
        "cpus": len(os.sched_getaffinity(0)),
        "load_1m_before": _LOAD_BEFORE,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


_LOAD_BEFORE = round(os.getloadavg()[0], 2)


class Caller:
    """Calls a service's API as its admin over one kept connection. A context manager."""

    def __init__(self, service: Service) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=30)
        self._headers = {
            "Authorization": f"Bearer {service.token_file.read_text().strip()}",
            "Content-Type": "application/json",
        }

    def __call__(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """Return status and JSON body."""
        data = None if body is None else json.dumps(body).encode()
        self._connection.request(method, API + path, data, self._headers | headers)
        answer = self._connection.getresponse()
        content = answer.read()
        return answer.status, json.loads(content) if content else None

    def must(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        """Return the body of an answer that is a success."""
        status, content = self(method, path, body, **headers)
        assert 200 <= status < 300, (method, path, status, content)
        return content

    def add_registry(self, name: str, host: str) -> None:
        """Add a registry on this machine's loopback, in plain HTTP."""
        self.must(
            "POST", "/registries", {"name": name, "host": host, "insecure": True, "networks": ["127.0.0.0/8"]}
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()


def wait_until(what: str, holds: Callable[[], object], pause: float = 0.05) -> None:
    """Wait until ``holds()``, at most a minute."""
    end = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < end, f"gave up waiting for: {what}"
        time.sleep(pause)


def busy_seconds() -> float:
    """Return the processor seconds that anybody has used since the machine started."""
    fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
    ticks = [int(field) for field in fields]
    idle = ticks[3] + ticks[4]
    return (sum(ticks) - idle) / os.sysconf("SC_CLK_TCK")


def own_seconds() -> float:
    """Return the processor seconds of this process and of every process below it that has ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def wait_for_quiet() -> None:
    """Wait for a second in which nobody else works, at most `_QUIET_WITHIN_S`; then measure all the same."""
    for _ in range(_QUIET_WITHIN_S):
        before = busy_seconds()
        time.sleep(1.0)
        if busy_seconds() - before < _QUIET_CORES:
            return
