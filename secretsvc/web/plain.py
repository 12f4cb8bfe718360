"""``/livez``, ``/readyz`` and ``/metrics``: for probes and Prometheus, without a token.

``/livez`` never touches a dependency, so a sealed store does not restart anybody. ``/readyz`` means that the
store answers. What they tell of an outage is an error code, not where the store is.
"""

from __future__ import annotations

from http import HTTPStatus

from flask import Flask, Response

from secretsvc.core.errors import SecretsvcError, StoreUnavailable
from secretsvc.telemetry.metrics import CONTENT_TYPE
from secretsvc.web.services import services


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
