"""``/livez``, ``/readyz`` and ``/metrics``: for probes and Prometheus, without a token.

``/livez`` never touches a dependency, so a sealed store does not restart anybody. ``/readyz`` means that the
store answers; it is asked at most once a second, whoever calls. What they tell of an outage is an error code,
not where the store is or what its login is: the log has that.
"""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus

from flask import Flask, Response

from secretsvc.core.errors import SecretsvcError, StoreUnavailable
from secretsvc.telemetry.kept import Kept
from secretsvc.telemetry.logs import get_logger
from secretsvc.telemetry.metrics import CONTENT_TYPE
from secretsvc.web.services import Services, services

_FRESH_S = 1.0
_STALE_S = 5.0
_UNKNOWN = "StoreUnavailable"

_log = get_logger(__name__)


def register(app: Flask, given: Services) -> None:
    """Add the routes."""
    trouble = Kept(
        lambda: _trouble(given),
        _UNKNOWN,
        fresh_s=_FRESH_S,
        stale_s=_STALE_S,
        monotonic=given.patience.monotonic,
    )
    for name, view in (("livez", livez), ("readyz", lambda: readyz(trouble)), ("metrics", metrics)):
        app.add_url_rule(f"/{name}", endpoint=name, view_func=view, methods=["GET"])


def livez() -> Response:
    """Say that the process answers."""
    return Response("ok\n", HTTPStatus.OK, content_type="text/plain; charset=utf-8")


def readyz(trouble: Callable[[], str]) -> Response:
    """Say whether the store answers; 503 with an error's code when it does not."""
    code = trouble()
    if code:
        raise StoreUnavailable(
            "the store does not answer",
            hint="the service's log says why, and so does `secretsvc doctor`",
            code=code,
        )
    return Response("ready\n", HTTPStatus.OK, content_type="text/plain; charset=utf-8")


def metrics() -> Response:
    """Answer a scrape."""
    return Response(services().metrics.render(), HTTPStatus.OK, content_type=CONTENT_TYPE)


def _trouble(given: Services) -> str:
    """Ask the store; return the code of what is wrong with it, and log the rest."""
    try:
        given.desk.store.probe()
    except SecretsvcError as exc:
        _log.error("store.not_ready", reason=exc.code, message=exc.message, hint=exc.hint)
        return exc.code
    return ""
