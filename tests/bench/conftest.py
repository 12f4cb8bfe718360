"""The report that all benches of a run tell, and who else worked meanwhile."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bench.measuring import Report, busy_seconds, own_seconds, wait_for_quiet


@pytest.fixture(autouse=True)
def foreign(request: pytest.FixtureRequest, report: Report) -> Iterator[None]:
    """Tell how many processors others used meanwhile; a bench stops its servers before it ends."""
    wait_for_quiet()
    began, busy, own = time.monotonic(), busy_seconds(), own_seconds()
    yield
    cores = (busy_seconds() - busy - own_seconds() + own) / (time.monotonic() - began)
    report.tell("foreign processors meanwhile", f"{max(0.0, cores):.2f}")
    report.measured.setdefault("foreign", {})[request.node.name] = round(max(0.0, cores), 3)


@pytest.fixture(scope="session")
def report() -> Iterator[Report]:
    """The report of this run."""
    found = Report(Path(".run/bench.json"))
    yield found
    found.write()
    sys.stdout.write(f"\n  all numbers: {found.path}\n")
