"""The Flask application: what happens around every request.

Before: an id, the size and type of the body, who is calling (`web.auth`). After: headers that keep answers
out of caches and frames, one access line, one measurement. Routes are in the modules of their resources,
errors in `web.problems`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from http import HTTPStatus

from flask import Flask, Response, g, request
from flask.json.provider import DefaultJSONProvider
from werkzeug.exceptions import UnsupportedMediaType

from secretsvc.core.ident import is_name
from secretsvc.telemetry.logs import bind_context, get_logger
from secretsvc.web import access, credentials, openapi, plain, problems, registries, rules
from secretsvc.web.auth import PUBLIC, Guard, Throttle
from secretsvc.web.services import Services, attach, caller_name, services

LARGEST_BODY = 64 * 1024
LARGEST_REGISTRY = 1024 * 1024
"""Bytes of a registry's body, which may hold a CA bundle."""

_RESOURCES = (
    registries.registries,
    credentials.credentials,
    rules.pull_secrets,
    rules.auth_files,
    registries.clusters,
    access.operations,
    access.tokens,
)
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")
_WITH_BODY = frozenset({"POST", "PUT", "PATCH", "DELETE"})
_NO_ROUTE = "none"
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "Strict-Transport-Security": "max-age=31536000; includeSubDomains",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

_log = get_logger(__name__)


def create_app(given: Services) -> Flask:
    """Return the application that works with these services."""
    app = Flask("secretsvc", static_folder=None)
    app.config.update(
        MAX_CONTENT_LENGTH=LARGEST_BODY,
        PROVIDE_AUTOMATIC_OPTIONS=False,
        PROPAGATE_EXCEPTIONS=False,
    )
    if isinstance(app.json, DefaultJSONProvider):
        app.json.sort_keys = False  # answers keep their schema's order, which reads better
    attach(app, given)
    app.before_request(_begin)
    app.before_request(Guard(Throttle(given.desk.clock)))
    app.before_request(openapi.ensure_names)
    app.before_request(_check_body)
    app.after_request(_finish)
    plain.register(app, given)
    openapi.document(app, given.version, _RESOURCES)
    problems.register(app)
    return app


def _begin() -> None:
    """Give the request its id and start its watch."""
    wished = request.headers.get("X-Request-ID", "")
    g.request_id = wished if _REQUEST_ID.match(wished) else services().desk.new_id()
    g.stopwatch = services().metrics.stopwatch()
    bind_context(request_id=g.request_id)


def _check_body() -> None:
    """Refuse bodies that are not declared as JSON, and set how large they may be."""
    if request.endpoint in ("registries.add", "registries.put"):
        request.max_content_length = LARGEST_REGISTRY
    has_body = bool(request.content_length) or "Transfer-Encoding" in request.headers
    if request.method in _WITH_BODY and has_body and request.mimetype != "application/json":
        raise UnsupportedMediaType


def _finish(response: Response) -> Response:
    """Add the headers, write the access line, measure."""
    for name, value in _HEADERS.items():
        response.headers.setdefault(name, value)
    response.headers["X-Request-ID"] = g.get("request_id", "")
    stopwatch: Callable[[], float] | None = g.get("stopwatch")
    seconds = stopwatch() if stopwatch is not None else 0.0
    route = request.url_rule.rule if request.url_rule is not None else _NO_ROUTE
    method = request.method if request.method in _METHODS else "other"
    services().metrics.request(method, route, response.status_code, seconds)
    # The path is not logged, nor the query: only what routing recognised can not be a pasted secret.
    write = (
        _log.debug
        if request.endpoint in PUBLIC and response.status_code < HTTPStatus.BAD_REQUEST
        else _log.info
    )
    name = (request.view_args or {}).get("name", "")
    write(
        "http.request",
        method=method,
        route=route,
        **({"name": name} if is_name(name) else {}),
        status=response.status_code,
        duration_ms=round(seconds * 1000, 1),
        actor=caller_name(),
        source=request.remote_addr or "",
    )
    return response
