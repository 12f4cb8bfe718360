"""How long a first start takes until the service is ready, and until it gives an authenticated answer."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.bench.measuring import Caller, Report
from tests.rig.service import Service

pytestmark = pytest.mark.bench

_STARTS = 5
_GOAL_S = 5.0


def test_start(report: Report, tmp_path: Path) -> None:
    """Fresh data directories; the first start only warms the caches of files and byte code."""
    ready, answered = [], []
    for number in range(_STARTS):
        service = Service(tmp_path / str(number), {"SECRETSVC_LOG_LEVEL": "info"})
        started = time.perf_counter()
        with service:
            ready.append(time.perf_counter() - started)
            with Caller(service) as caller:
                assert caller.must("GET", "/credentials")["items"] == []
            answered.append(time.perf_counter() - started)
    report.times("start to /readyz", ready[1:], note="seen by polling every 50 ms")
    report.times("start to authenticated answer", answered[1:])
    report.goal("start to first answer, worst", max(answered[1:]), _GOAL_S, "s")
