"""Prometheus metrics. The only door to prometheus-client.

State (credentials, deliveries, expiry) is not counted as it changes but read from a snapshot when somebody
scrapes, so that it can not drift from the truth and what is gone is gone. When the store does not answer,
``secretsvc_store_up`` is 0 and the state is absent rather than old; while it takes its time to, scrapes show
the last state for a minute. Requests and validations are counted.

No label ever holds a namespace, a username, a path or anything else a caller may choose freely: routes
are templates, and credentials are names that an admin gave.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from secretsvc.telemetry.kept import Kept

CONTENT_TYPE = CONTENT_TYPE_LATEST
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_FRESH_S = 5.0
_STALE_S = 60.0
CREDENTIAL_STATES = ("unverified", "active", "invalid", "expired", "stale")


@dataclass(frozen=True, slots=True)
class CredentialFact:
    """What is exported of one credential."""

    name: str
    registry: str
    state: str
    expires_at: datetime | None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state at the time of a scrape."""

    store_up: bool
    credentials: tuple[CredentialFact, ...] = ()
    deliveries: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """Rule kind and delivery state to number of targets."""
    view_age: float = 0.0
    """Seconds since the oldest view was written."""


class Metrics:
    """Counts what happens and exports it together with the state.

    Args:
        version: of this program.
        snapshot: returns the state; must not raise. Asked at most once in 5 s, since anybody may scrape.
        monotonic: seconds that only rise.
    """

    def __init__(
        self,
        version: str,
        snapshot: Callable[[], Snapshot],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry = CollectorRegistry()
        kept = Kept(
            snapshot, Snapshot(store_up=False), fresh_s=_FRESH_S, stale_s=_STALE_S, monotonic=monotonic
        )
        self._registry.register(_StateCollector(version, kept))
        self._durations = Histogram(
            "secretsvc_http_request_duration_seconds",
            "Time from a request's arrival to its answer.",
            ("method", "route", "status"),
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self._validations = Counter(
            "secretsvc_validations",
            "Verdicts of registries about logins.",
            ("outcome",),
            registry=self._registry,
        )

    def stopwatch(self) -> Callable[[], float]:
        """Start measuring; the function returned gives the seconds since then."""
        started = time.perf_counter()
        return lambda: time.perf_counter() - started

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count an answered request; ``route`` is the template, never the path."""
        self._durations.labels(method, route, str(status)).observe(seconds)

    def validation(self, outcome: str) -> None:
        """Count a verdict."""
        self._validations.labels(outcome).inc()

    def render(self) -> bytes:
        """Return everything in the text format, of the type `CONTENT_TYPE`."""
        return generate_latest(self._registry)


class _StateCollector(Collector):
    def __init__(self, version: str, snapshot: Callable[[], Snapshot]) -> None:
        self._version = version
        self._snapshot = snapshot

    def describe(self) -> list[Metric]:
        """Name nothing in advance: registering must not take a snapshot."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield the state of now."""
        seen = self._snapshot()
        yield self._build_info()
        yield GaugeMetricFamily("secretsvc_store_up", "Whether the store answers.", value=seen.store_up)
        if not seen.store_up:
            return
        yield GaugeMetricFamily(
            "secretsvc_view_age_seconds", "Age of the oldest view that lists are made of.", seen.view_age
        )
        yield _credentials(seen)
        yield _expiries(seen)
        yield _deliveries(seen)

    def _build_info(self) -> Metric:
        family = GaugeMetricFamily(
            "secretsvc_build_info", "Which program this is.", labels=("version", "python")
        )
        family.add_metric((self._version, platform.python_version()), 1)
        return family


def _credentials(seen: Snapshot) -> Metric:
    family = GaugeMetricFamily("secretsvc_credentials", "Credentials by state.", labels=("state",))
    counts = dict.fromkeys(CREDENTIAL_STATES, 0)
    for credential in seen.credentials:
        counts[credential.state] = counts.get(credential.state, 0) + 1
    for state, count in counts.items():
        family.add_metric((state,), count)
    return family


def _expiries(seen: Snapshot) -> Metric:
    family = GaugeMetricFamily(
        "secretsvc_credential_expiry_timestamp_seconds",
        "When a credential ends, where that is known.",
        labels=("credential", "registry"),
    )
    for credential in seen.credentials:
        if credential.expires_at is not None:
            family.add_metric((credential.name, credential.registry), credential.expires_at.timestamp())
    return family


def _deliveries(seen: Snapshot) -> Metric:
    family = GaugeMetricFamily(
        "secretsvc_deliveries", "Targets by rule kind and state.", labels=("kind", "state")
    )
    for (kind, state), count in sorted(seen.deliveries.items()):
        family.add_metric((kind, state), count)
    return family
