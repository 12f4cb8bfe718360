"""The report that all benches of a run tell."""

from __future__ import annotations

pytest_plugins = ("tests.bench.measuring",)
