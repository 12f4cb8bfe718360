"""``/livez``, ``/readyz`` and ``/metrics``: for probes and Prometheus, without a token.

``/livez`` never touches a dependency, so a sealed store does not restart anybody. ``/readyz`` means that the
store answers. What they tell of an outage is an error code, not where the store is.
"""

from __future__ import annotations

import threading
from collections import Counter
from datetime import datetime, timedelta
from http import HTTPStatus

from flask import Flask, Response

from secretsvc.core.errors import SecretsvcError, StoreError, StoreUnavailable
from secretsvc.core.model import AuthFileRule, PullSecretRule
from secretsvc.core.ports import Clock
from secretsvc.telemetry.metrics import CONTENT_TYPE, CredentialFact, Snapshot
from secretsvc.web.services import services
from secretsvc.workflows.report import Reporter

_FRESH = timedelta(seconds=5)


def register(app: Flask) -> None:
    """Add the routes."""
    for view in (livez, readyz, metrics):
        app.add_url_rule(f"/{view.__name__}", endpoint=view.__name__, view_func=view, methods=["GET"])


def livez() -> Response:
    """Say that the process answers."""
    return Response("ok\n", HTTPStatus.OK, content_type="text/plain; charset=utf-8")


def readyz() -> Response:
    """Say whether the store answers; 503 with a hint when it does not."""
    try:
        services().desk.store.probe()
    except SecretsvcError as exc:
        hint = exc.hint or "`secretsvc doctor` looks for the cause"
        raise StoreUnavailable("the store does not answer", hint=hint, code=exc.code) from exc
    return Response("ready\n", HTTPStatus.OK, content_type="text/plain; charset=utf-8")


def metrics() -> Response:
    """Answer a scrape."""
    return Response(services().metrics.render(), HTTPStatus.OK, content_type=CONTENT_TYPE)


class StateSnapshot:
    """Reads what metrics export; kept for 5 s, so that scraping without a token costs little.

    Args:
        reporter: reads the state.
        clock: the time.
    """

    def __init__(self, reporter: Reporter, clock: Clock) -> None:
        self._reporter = reporter
        self._clock = clock
        self._lock = threading.Lock()
        self._taken: tuple[datetime, Snapshot] | None = None

    def __call__(self) -> Snapshot:
        """Return the state; when the store does not answer, only that."""
        with self._lock:
            now = self._clock()
            if self._taken is None or now - self._taken[0] >= _FRESH:
                self._taken = now, self._read(now)
            return self._taken[1]

    def _read(self, now: datetime) -> Snapshot:
        try:
            credentials, seen_at = self._reporter.credentials()
            counts: Counter[tuple[str, str]] = Counter()
            for kind, word in ((PullSecretRule, "pull-secret"), (AuthFileRule, "auth-file")):
                for report in self._reporter.rules(kind):
                    counts.update({(word, state): count for state, count in report.counts.items()})
        except StoreError:
            return Snapshot(store_up=False)
        facts = tuple(
            CredentialFact(line.spec.name, line.spec.registry, line.state, line.expires_at)
            for line in credentials
        )
        return Snapshot(
            store_up=True,
            credentials=facts,
            deliveries=dict(counts),
            view_age=max(0.0, (now - seen_at).total_seconds()),
        )
