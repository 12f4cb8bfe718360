"""What views share of HTTP: entity tags, pages of lists, and operations that are answered with 202.

An ETag is ``"v<version>"`` of the caller's wish. ``If-Match`` that is anything but one such tag (or ``*``)
matches nothing, so that a precondition we do not understand never lets a write through.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from http import HTTPStatus
from typing import Any, TypeVar

from flask import Response, request

from secretsvc.core.errors import FieldError, InvalidInput, NotFound, StoreError
from secretsvc.core.ident import is_document_name
from secretsvc.core.model import (
    Operation,
    OperationKind,
    OperationState,
    Verdict,
)
from secretsvc.web.openapi import PREFIX
from secretsvc.web.services import principal, services
from secretsvc.web.waiting import wished_wait
from secretsvc.workflows.report import OperationReport

T = TypeVar("T")
Answer = tuple[Any, int, dict[str, str]]
"""What a view returns: something its answer schema dumps, the status, and headers."""

_TAG = re.compile(r'"v([0-9]{1,18})"\Z')
_NO_VERSION = -1


# --- Entity tags ----------------------------------------------------------------------------------


def tag(version: int) -> dict[str, str]:
    """Return the header that names a version."""
    return {"ETag": f'"v{version}"'}


def expected_version() -> int | None:
    """Return the version that ``If-Match`` names, None when any will do, -1 when none can match."""
    wished = request.headers.get("If-Match")
    if wished is None or wished.strip() == "*":
        return None
    match = _TAG.match(wished.strip())
    return int(match.group(1)) if match is not None else _NO_VERSION


def tagged(body: object, version: int) -> Answer | Response:
    """Answer a GET with its ETag, or with 304 when ``If-None-Match`` has it."""
    headers = tag(version)
    known = request.if_none_match
    if "If-None-Match" in request.headers and (known.star_tag or known.contains_weak(f"v{version}")):
        return Response(status=HTTPStatus.NOT_MODIFIED, headers=headers)
    return body, HTTPStatus.OK, headers


def same_name(given: dict[str, Any], name: str) -> None:
    """Raise `InvalidInput` when a body that may repeat its record's name has another one."""
    if given.get("name", name) != name:
        fault = FieldError("/name", "must be the name in the path, or left out: records are not renamed")
        raise InvalidInput("the body is about another record than the path", fault)


# --- Lists ----------------------------------------------------------------------------------------


def page(
    items: Sequence[T],
    key_of: Callable[[T], str],
    wished: dict[str, Any],
    seen_at: datetime | None = None,
    *,
    newest_first: bool = False,
) -> dict[str, object]:
    """Return one page of a list that is sorted by its items' keys.

    Args:
        items: all of them.
        key_of: returns an item's key, which no other item has; a cursor is the last key of the page before.
        wished: the loaded `schemas.Page`.
        seen_at: when the oldest part was observed; by default now.
        newest_first: the keys fall.
    """
    after = _from_cursor(wished["cursor"])
    rest = [
        item
        for item in items
        if not after or (key_of(item) < after if newest_first else key_of(item) > after)
    ]
    shown = rest[: wished["limit"]]
    now = services().desk.clock()
    age = max(0, int((now - (seen_at or now)).total_seconds()))
    return {
        "items": shown,
        "next_cursor": _to_cursor(key_of(shown[-1])) if len(rest) > len(shown) else None,
        "age": f"{age}s",
    }


def _to_cursor(name: str) -> str:
    return base64.urlsafe_b64encode(name.encode()).decode().rstrip("=")


def _from_cursor(cursor: str) -> str:
    try:
        return base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode()
    except (binascii.Error, UnicodeDecodeError):
        fault = FieldError("?cursor", "not a cursor of ours")
        raise InvalidInput("the list can not go on from there", fault) from None


# --- Operations -----------------------------------------------------------------------------------


def accepted(identifier: str, kind: OperationKind, verdict: Verdict | None = None) -> Answer:
    """Answer 202 with an operation, or 200 when ``Prefer: wait`` saw its end.

    ``verdict`` is what proving the value came to, where the operation does not tell yet.
    The request has taken effect already, so nothing that goes wrong while we look at it is an error.
    """
    seen = settled_or_seen(identifier, kind)
    if seen.operation.verdict is None:
        seen = replace(seen, operation=replace(seen.operation, verdict=verdict))
    headers = {"Location": operation_path(identifier)} | preference_applied()
    return seen, HTTPStatus.OK if seen.operation.settled else HTTPStatus.ACCEPTED, headers


def settled_or_seen(identifier: str, kind: OperationKind) -> OperationReport:
    """Wait for an operation as long as the caller prefers; return what was last seen of it."""
    return held(identifier, _look(identifier) or _asked_for(identifier, kind))


def held(identifier: str, known: OperationReport) -> OperationReport:
    """Return an operation once it has settled, or as it is when the caller's preferred wait is over.

    ``known`` is what was seen of it so far, and is returned when nothing newer can be read.
    """
    seen = [known]

    def done() -> bool:
        seen[0] = _look(identifier) or seen[0]
        return seen[0].operation.settled

    if not known.operation.settled:
        services().patience.until(done, wait_seconds())
    return seen[0]


def wait_seconds() -> int:
    """Return how long the caller prefers to wait; 0 is not at all."""
    return wished_wait(request.headers.get("Prefer", ""))


def preference_applied() -> dict[str, str]:
    """Return the header that tells the caller that their preference was understood."""
    seconds = wait_seconds()
    return {"Preference-Applied": f"wait={seconds}", "Vary": "Prefer"} if seconds else {}


def operation_path(identifier: str) -> str:
    """Return where an operation is found."""
    return f"{PREFIX}/operations/{identifier}"


def ensure_operation_id(identifier: str) -> None:
    """Raise `NotFound` for what can not be an operation's id, before it gets near the store."""
    if not is_document_name(identifier):
        raise NotFound("there is no such operation", hint="ids are given in Location and `operation`")


def _look(identifier: str) -> OperationReport | None:
    try:
        return services().reporter.operation(identifier)
    except (NotFound, StoreError):
        return None


def _asked_for(identifier: str, kind: OperationKind) -> OperationReport:
    """Return the operation as it was asked for a moment ago."""
    request_id, _, uid = identifier.partition("-")
    now = services().desk.clock()
    return OperationReport(
        Operation(request_id, kind, OperationState.PENDING, principal().name, now, now), uid
    )
