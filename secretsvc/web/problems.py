"""Every error as an RFC 9457 problem: the one table from `core.errors` to HTTP statuses.

A problem has ``type``, ``title``, ``status``, ``detail``, ``code`` (stable), ``request_id``, ``errors[]``
(pointer and detail), ``retryable`` and ``hint`` (what to do next); a refused credential adds its ``verdict``,
a record in use its ``users``. Nothing of the request is quoted but names that passed their check, and
nothing of what another server said. What the store is, and which document it was asked for, stays in the
log: it tells a caller nothing about their request.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from http import HTTPStatus

from flask import Flask, Response, g, json, request
from werkzeug.exceptions import HTTPException

from secretsvc.core import errors
from secretsvc.core.errors import FieldError, InvalidInput, NotProved, SecretsvcError
from secretsvc.core.model import (
    Outcome,
    Verdict,
)
from secretsvc.telemetry.logs import describe, get_logger
from secretsvc.telemetry.redaction import STRUCK_OUT
from secretsvc.web.answers import VerdictAnswer
from secretsvc.web.reading import Unreadable
from secretsvc.web.services import services

MEDIA_TYPE = "application/problem+json"

STATUSES: dict[type[SecretsvcError], HTTPStatus] = {
    errors.SecretsvcError: HTTPStatus.INTERNAL_SERVER_ERROR,
    errors.ConfigurationError: HTTPStatus.INTERNAL_SERVER_ERROR,
    errors.InvalidInput: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.Unauthenticated: HTTPStatus.UNAUTHORIZED,
    errors.Forbidden: HTTPStatus.FORBIDDEN,
    errors.NotFound: HTTPStatus.NOT_FOUND,
    errors.Conflict: HTTPStatus.CONFLICT,
    errors.PreconditionFailed: HTTPStatus.PRECONDITION_FAILED,
    errors.NotProved: HTTPStatus.UNPROCESSABLE_ENTITY,  # 503 when the registry could not be asked
    errors.Busy: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.StoreError: HTTPStatus.INTERNAL_SERVER_ERROR,
    errors.StoreUnavailable: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.StoreConflict: HTTPStatus.CONFLICT,
    errors.StoreDenied: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.RecordDamaged: HTTPStatus.INTERNAL_SERVER_ERROR,
    errors.DeliveryError: HTTPStatus.BAD_GATEWAY,
    errors.TargetUnreachable: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.TargetForbidden: HTTPStatus.BAD_GATEWAY,
    errors.TargetMissing: HTTPStatus.CONFLICT,
    errors.TargetChanged: HTTPStatus.CONFLICT,
    errors.TargetRefused: HTTPStatus.CONFLICT,
}

NOT_ASKED = frozenset({Outcome.UNAVAILABLE, Outcome.RATE_LIMITED, Outcome.TLS_ERROR, Outcome.PROTOCOL_ERROR})
"""Verdicts that say nothing about the value: the registry gave no usable answer."""
_WORTH_REPEATING = frozenset({Outcome.UNAVAILABLE, Outcome.RATE_LIMITED})

_RETRY_AFTER_S = 5
_MAX_POINTER = 200
_STEP = re.compile(r"[a-z_]{1,32}|[0-9]{1,6}")
"""What a step of a pointer looks like; anything else is the caller's, and might be a pasted value."""

_HINTS: dict[HTTPStatus, str] = {
    HTTPStatus.BAD_REQUEST: "send one JSON object; /openapi.json describes every body",
    HTTPStatus.NOT_FOUND: "see /openapi.json for what there is",
    HTTPStatus.METHOD_NOT_ALLOWED: "the Allow header names the methods of this route",
    HTTPStatus.CONFLICT: "read the record again, then repeat",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "bodies are at most 64 KiB, a registry's with its CA 1 MiB",
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: "send JSON with `Content-Type: application/json`",
    HTTPStatus.UNPROCESSABLE_ENTITY: "correct the fields named in `errors`; /openapi.json describes them",
    HTTPStatus.TOO_MANY_REQUESTS: "wait as long as Retry-After says; tokens in use are never held up",
    HTTPStatus.SERVICE_UNAVAILABLE: "try again in a moment; `secretsvc doctor` looks for the cause",
    HTTPStatus.BAD_GATEWAY: "`secretsvc doctor` looks for the cause",
    HTTPStatus.INTERNAL_SERVER_ERROR: "the service's log has the details under this request_id",
}
_TAKEN = "choose another name, or "
_TAKEN_HINTS: dict[str | None, str] = {
    "credentials": f"{_TAKEN}put a new value with `secretsvc credential rotate NAME --manual`",
    "registries": f"{_TAKEN}change what is there with `secretsvc registry set NAME`",
    "pull-secrets": f"{_TAKEN}change what is there with `secretsvc pull-secret set NAME`",
    "auth-files": f"{_TAKEN}add to what is there with `secretsvc authfile write --name NAME`",
}
"""By resource: what to do when a name is taken and the error does not say."""
_STORE_AWAY: dict[type[SecretsvcError], str] = {
    errors.StoreUnavailable: "the store gives no answer, so nothing can be read or written",
    errors.StoreDenied: "the store refuses the service's own login",
}
"""What callers are told instead of the store's own words."""
_STORE_SAYS = {
    "StoreSealed": "the store is sealed, so nothing can be read or written",
    "DiskFull": "the disk that the store is on is full, so nothing can be written",
}
"""By code: what callers can act on, without where the store is."""
_CODES: dict[HTTPStatus, tuple[str, str]] = {
    HTTPStatus.BAD_REQUEST: ("MalformedRequest", "The request can not be read."),
    HTTPStatus.NOT_FOUND: ("NoSuchRoute", "There is no such route."),
    HTTPStatus.METHOD_NOT_ALLOWED: ("MethodNotAllowed", "This route does not know this method."),
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: ("BodyTooLarge", "The body is too large."),
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: ("UnsupportedMediaType", "The body is not declared as JSON."),
    HTTPStatus.TOO_MANY_REQUESTS: ("TooManyAttempts", "Too many tokens from this address were wrong."),
    HTTPStatus.INTERNAL_SERVER_ERROR: ("InternalError", "Something went wrong that nobody foresaw."),
}
_log = get_logger(__name__)


def register(app: Flask) -> None:
    """Answer every error of the application with a problem."""
    app.register_error_handler(SecretsvcError, of_ours)
    app.register_error_handler(HTTPException, of_http)
    app.register_error_handler(Exception, of_nobody)


def status_of(error: SecretsvcError) -> HTTPStatus:
    """Return the status of an error: its class's, or the nearest parent's, in the table."""
    if isinstance(error, NotProved) and error.verdict.outcome in NOT_ASKED:
        return HTTPStatus.SERVICE_UNAVAILABLE
    return next(STATUSES[kind] for kind in type(error).__mro__ if kind in STATUSES)


def of_ours(error: SecretsvcError) -> Response:
    """Answer one of our own errors."""
    status = status_of(error)
    extra: dict[str, object] = {}
    fields: Sequence[FieldError] = ()
    retryable = error.retryable
    if isinstance(error, InvalidInput):
        fields = error.fields
    elif isinstance(error, errors.Conflict) and error.users:
        extra["users"] = list(error.users)
    elif isinstance(error, NotProved):
        extra["verdict"] = VerdictAnswer().dump(error.verdict)
        retryable = error.verdict.outcome in _WORTH_REPEATING
    told, hint = _told(error)
    answer = _answer(status, error.code, told, hint, fields, retryable=retryable, **extra)
    if status is HTTPStatus.UNAUTHORIZED:
        answer.headers["WWW-Authenticate"] = "Bearer"
    if retryable and status is HTTPStatus.SERVICE_UNAVAILABLE:
        answer.headers["Retry-After"] = str(_pause(error))
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR and not isinstance(error, NotProved):
        _log.error("request.failed", reason=error.code, message=error.message, hint=error.hint)
    return answer


def _told(error: SecretsvcError) -> tuple[str, str]:
    """Return the message and the hint that a caller gets; an empty hint is the status's own."""
    if error.code in _STORE_SAYS:
        return _STORE_SAYS[error.code], error.hint
    for kind, message in _STORE_AWAY.items():
        if isinstance(error, kind):
            return message, ""
    if error.code == "NameTaken" and not error.hint:
        return error.message, _TAKEN_HINTS.get(request.blueprint, "choose another name")
    return error.message, error.hint


def of_http(error: HTTPException) -> Response:
    """Answer what Flask and werkzeug refuse: unknown routes, methods, sizes ..."""
    status = HTTPStatus(error.code or HTTPStatus.INTERNAL_SERVER_ERROR)
    code, detail = _CODES.get(status, (_camel_case(status.phrase), f"{status.phrase}."))
    if isinstance(error, Unreadable) and error.description:
        detail = error.description
    retryable = status is HTTPStatus.TOO_MANY_REQUESTS
    answer = _answer(status, code, detail, "", retryable=retryable)
    for name, value in error.get_headers():
        if name.lower() in ("allow", "retry-after"):
            answer.headers[name] = value
    return answer


def of_nobody(error: Exception) -> Response:
    """Answer an error nobody foresaw, without a word of its message; log where it happened."""
    _log.error("request.crashed", **describe(error))
    status = HTTPStatus.INTERNAL_SERVER_ERROR
    return _answer(status, *_CODES[status], "", retryable=False)


def _answer(
    status: HTTPStatus,
    code: str,
    detail: str,
    hint: str,
    fields: Sequence[FieldError] = (),
    *,
    retryable: bool,
    **extra: object,
) -> Response:
    problem: dict[str, object] = {
        "type": "about:blank",
        "title": status.phrase,
        "status": int(status),
        "detail": detail,
        "code": code,
        "request_id": g.get("request_id", ""),
        "errors": [{"pointer": _printable(row.pointer), "detail": row.detail} for row in fields],
        "retryable": retryable,
        "hint": hint or _HINTS.get(status, "see /openapi.json"),
    }
    return Response(json.dumps(problem | extra) + "\n", int(status), content_type=MEDIA_TYPE)


def _pause(error: SecretsvcError) -> int:
    """Return the seconds after which repeating makes sense."""
    verdict: Verdict | None = error.verdict if isinstance(error, NotProved) else None
    if verdict is None or verdict.retry_at is None:
        return _RETRY_AFTER_S
    seconds = (verdict.retry_at - services().desk.clock()).total_seconds()
    return max(1, round(seconds))


def _printable(pointer: str) -> str:
    """Return a pointer whose steps are names of fields, or typing errors in them, and ``***`` for others."""
    start, steps = pointer[:1], pointer[1:].split("/")
    shown = [step if _STEP.fullmatch(step) else STRUCK_OUT for step in steps]
    return (start + "/".join(shown))[:_MAX_POINTER] if pointer else ""


def _camel_case(phrase: str) -> str:
    return "".join(word.capitalize() for word in re.split(r"[^A-Za-z]+", phrase))
