"""The routes of API tokens, of who is calling, and of operations."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from typing import Any

from flask import Response
from marshmallow import fields

from secretsvc.core.access import (
    Principal,
    Role,
)
from secretsvc.core.errors import NotFound
from secretsvc.web import schemas
from secretsvc.web.answers import IssuedTokenAnswer, ListAnswer, OperationAnswer, TokenAnswer
from secretsvc.web.exchange import Answer, ensure_operation_id, held, page, preference_applied
from secretsvc.web.openapi import PREFIX, Resource
from secretsvc.web.services import principal, services

tokens = Resource("tokens", "API tokens and who is calling")
operations = Resource("operations", "Work that outlives its request")


class TokenList(ListAnswer):
    """Tokens by name."""

    items = fields.List(fields.Nested(TokenAnswer), required=True)


@dataclass(frozen=True, slots=True)
class _Issued:
    """What `IssuedTokenAnswer` dumps, once."""

    name: str
    role: Role
    created_at: datetime
    created_by: str
    expires_at: datetime | None
    token: str


@tokens.call("GET", "/tokens", query=schemas.Page, answer=TokenList)
def list_all(wished: dict[str, Any]) -> dict[str, object]:
    """List tokens that are not revoked; their values are not kept."""
    return page(services().gatekeeper.tokens(), lambda principal: principal.name, wished)


@tokens.call("POST", "/tokens", body=schemas.NewToken, answer=IssuedTokenAnswer, status=201)
def add(given: dict[str, Any]) -> Answer:
    """Make a token. Its value is in this answer and nowhere else."""
    made, token = services().gatekeeper.issue(
        given["name"], given["role"], given["expires_in"], principal().name
    )
    issued = _Issued(made.name, made.role, made.created_at, made.created_by, made.expires_at, token.reveal())
    return issued, HTTPStatus.CREATED, {"Location": f"{PREFIX}/tokens/{made.name}"}


@tokens.call("GET", "/tokens/<name:name>", answer=TokenAnswer)
def get_token(name: str) -> Principal:
    """Show a token's principal; its value is not kept."""
    found = next((known for known in services().gatekeeper.tokens() if known.name == name), None)
    if found is None:
        raise NotFound(f"there is no token {name!r}", hint="see `secretsvc token list`")
    return found


@tokens.call("DELETE", "/tokens/<name:name>", status=204)
def revoke(name: str) -> Response:
    """End a token at once."""
    services().gatekeeper.revoke(name, principal().name)
    return Response(status=HTTPStatus.NO_CONTENT)


@tokens.call("GET", "/whoami", answer=TokenAnswer)
def whoami() -> Principal:
    """Show who is calling."""
    return principal()


@operations.call("GET", "/operations/<string:operation>", answer=OperationAnswer, waits=True)
def get(operation: str) -> Answer:
    """Show an operation; with `Prefer: wait` once it has settled, or when the wait is over."""
    ensure_operation_id(operation)
    report = held(operation, services().reporter.operation(operation))
    return report, HTTPStatus.OK, preference_applied()
