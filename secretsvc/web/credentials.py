"""The routes of credentials. A value comes in with POST and PUT and never goes out."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from typing import Any

from flask import Response
from marshmallow import fields

from secretsvc.core.errors import NotFound, NotProved, StoreError
from secretsvc.core.model import (
    CredentialSpec,
    Head,
    Login,
    OperationKind,
    Verdict,
)
from secretsvc.core.rules import CredentialSummary
from secretsvc.web import schemas
from secretsvc.web.answers import (
    CredentialAnswer,
    GenerationAnswer,
    ListAnswer,
    OperationAnswer,
    RegisteredAnswer,
)
from secretsvc.web.deliveries import DeliveryList, delivery_row
from secretsvc.web.exchange import (
    Answer,
    accepted,
    expected_version,
    page,
    preference_applied,
    tag,
    tagged,
    wait_seconds,
)
from secretsvc.web.openapi import PREFIX, Resource
from secretsvc.web.services import principal, services
from secretsvc.workflows.register import CredentialDraft, NewValue, Registered
from secretsvc.workflows.report import OperationReport

credentials = Resource("credentials", "Logins at registries; values go in and never come out")


class CredentialList(ListAnswer):
    """Credentials by name."""

    items = fields.List(fields.Nested(CredentialAnswer), required=True)


class GenerationList(ListAnswer):
    """Generations, newest first."""

    items = fields.List(fields.Nested(GenerationAnswer), required=True)


class History(ListAnswer):
    """Finished operations, newest first."""

    items = fields.List(fields.Nested(OperationAnswer), required=True)


@dataclass(frozen=True, slots=True)
class _Accepted:
    """What `RegisteredAnswer` dumps."""

    spec: CredentialSpec
    state: str
    head: Head
    verdict: Verdict
    expires_at: datetime | None
    counts: dict[str, int]
    request: str
    registry_created: str | None


# --- One and all ----------------------------------------------------------------------------------


@credentials.call("GET", "/credentials", query=schemas.CredentialFilter, answer=CredentialList)
def list_all(wished: dict[str, Any]) -> dict[str, object]:
    """List credentials.

    The list comes from what the worker last wrote; `age` says how old its oldest part is.
    """
    found, seen_at = services().reporter.credentials()
    chosen = [summary for summary in found if _matches(summary, wished)]
    return page(chosen, lambda summary: summary.spec.name, wished, seen_at)


@credentials.call(
    "POST",
    "/credentials",
    body=schemas.NewCredential,
    answer=RegisteredAnswer,
    status=201,
    tagged=True,
    waits=True,
)
def add(given: dict[str, Any]) -> Answer:
    """Prove a value at its registry and register it.

    422 with `verdict` when the registry refused it, 503 with `verdict` when it could not be asked; then
    nothing is kept. `registry` is a name or a host; an unknown host is registered too. With `Prefer: wait`
    the answer comes when generation 1 is published.
    """
    login = Login(given["type"], given["username"], given["secret"])
    draft = CredentialDraft(
        name=given["name"],
        registry=given["registry"],
        login=login,
        allow_unverified=given["allow_unverified"],
        expires_at=given["expires_at"],
        labels=given["labels"],
    )
    with services().redactor.holding(login.secret, login.username):
        registered = _counted(lambda: services().registrar.register(draft, principal().name))
    summary = _published(registered)
    location = {"Location": f"{PREFIX}/credentials/{draft.name}"}
    headers = location | tag(registered.credential.version) | preference_applied()
    return _registered(registered, summary), HTTPStatus.CREATED, headers


@credentials.call("GET", "/credentials/<name:name>", answer=CredentialAnswer, tagged=True)
def get(name: str) -> Answer | Response:
    """Show a credential, never its value."""
    summary = services().reporter.credential(name)
    return tagged(summary, summary.version)


@credentials.call(
    "PATCH",
    "/credentials/<name:name>",
    body=schemas.CredentialChange,
    answer=CredentialAnswer,
    tagged=True,
)
def patch(given: dict[str, Any], name: str) -> Answer:
    """Change labels or expiry.

    A field that is given replaces the stored one as a whole; `expires_at: null` takes it away.
    """
    stored = services().registrar.change_credential(name, given, expected_version(), principal().name)
    return services().reporter.credential(name), HTTPStatus.OK, tag(stored.version)


@credentials.call("DELETE", "/credentials/<name:name>", status=204, tagged=True)
def delete(name: str) -> Response:
    """Delete a credential that no rule uses; nothing at the registry is touched."""
    services().registrar.delete_credential(name, expected_version(), principal().name)
    return Response(status=HTTPStatus.NO_CONTENT)


# --- Verbs ----------------------------------------------------------------------------------------


@credentials.call(
    "PUT",
    "/credentials/<name:name>/secret",
    body=schemas.NewValue,
    answer=OperationAnswer,
    status=202,
    tagged=True,
    waits=True,
)
def put_secret(given: dict[str, Any], name: str) -> Answer:
    """Put a new value by hand.

    It is proved first; a value that is not accepted changes nothing. The operation ends when every target
    has the new value.
    """
    spec = services().desk.find(CredentialSpec, name).record
    login = Login(given["type"] or spec.type, given["username"] or spec.username, given["secret"])
    value = NewValue(login, given["allow_unverified"], given["expires_at"])
    with services().redactor.holding(login.secret, login.username):
        registered = _counted(
            lambda: services().registrar.replace_value(name, value, expected_version(), principal().name)
        )
    report, status, headers = accepted(registered.operation, OperationKind.REPLACE, registered.verdict)
    return report, status, headers | tag(registered.credential.version)


@credentials.call("POST", "/credentials/<name:name>/validate", answer=OperationAnswer, status=202, waits=True)
def validate(name: str) -> Answer:
    """Prove the published value again."""
    return accepted(services().registrar.validate(name, principal().name), OperationKind.VALIDATE)


@credentials.call(
    "POST",
    "/credentials/<name:name>/rollback",
    body=schemas.Rollback,
    answer=OperationAnswer,
    status=202,
    waits=True,
)
def rollback(given: dict[str, Any], name: str) -> Answer:
    """Publish the previous generation again.

    It is proved first; `force` with a `reason` publishes it although it is refused.
    """
    identifier = services().registrar.roll_back(
        name, principal().name, force=given["force"], reason=given["reason"]
    )
    return accepted(identifier, OperationKind.ROLLBACK)


# --- Facts ----------------------------------------------------------------------------------------


@credentials.call("GET", "/credentials/<name:name>/generations", query=schemas.Page, answer=GenerationList)
def generations(wished: dict[str, Any], name: str) -> dict[str, object]:
    """List a credential's generations, newest first."""
    found = services().reporter.generations(name)
    return page(found, lambda row: f"{row.number:012}", wished, newest_first=True)


@credentials.call("GET", "/credentials/<name:name>/deliveries", query=schemas.Page, answer=DeliveryList)
def deliveries(wished: dict[str, Any], name: str) -> dict[str, object]:
    """List the targets that a credential reaches, over all rules."""
    rows = [delivery_row(report, name) for report in services().reporter.credential_deliveries(name)]
    return page(sorted(rows, key=lambda row: row.key), lambda row: row.key, wished)


@credentials.call("GET", "/credentials/<name:name>/history", query=schemas.Page, answer=History)
def history(wished: dict[str, Any], name: str) -> dict[str, object]:
    """List a credential's finished operations, newest first."""
    uid = services().desk.find(CredentialSpec, name).record.uid
    found = [OperationReport(operation, uid) for operation in services().reporter.history(name)]
    found.sort(key=lambda report: report.operation.id, reverse=True)
    return page(found, lambda report: report.operation.id, wished, newest_first=True)


# --- The parts ------------------------------------------------------------------------------------


def _matches(summary: CredentialSummary, wished: dict[str, Any]) -> bool:
    labels = dict(label.split("=", 1) for label in wished["label"])
    return (
        wished.get("state", summary.state) == summary.state
        and wished.get("registry", summary.spec.registry) == summary.spec.registry
        and all(summary.spec.labels.get(name) == value for name, value in labels.items())
    )


def _counted(prove: Callable[[], Registered]) -> Registered:
    """Count the verdict that proving comes to, whichever way it goes."""
    try:
        registered = prove()
    except NotProved as exc:
        services().metrics.validation(exc.verdict.outcome)
        raise
    services().metrics.validation(registered.verdict.outcome)
    return registered


def _published(registered: Registered) -> CredentialSummary | None:
    """Return the credential as it is now, or once it is published if the caller prefers to wait.

    The value is stored already: nothing that goes wrong while we look is an error.
    """
    name = registered.credential.record.name
    seen: list[CredentialSummary] = []

    def done() -> bool:
        with suppress(NotFound, StoreError):
            seen[:] = [services().reporter.credential(name)]
            return bool(seen[0].head.cur) or _ended(registered.operation)
        return False

    if not done():
        services().patience.until(done, wait_seconds())
    return seen[0] if seen else None


def _ended(operation: str) -> bool:
    with suppress(NotFound):
        return services().reporter.operation(operation).operation.settled
    return False


def _registered(registered: Registered, summary: CredentialSummary | None) -> _Accepted:
    spec = registered.credential.record
    return _Accepted(
        spec=spec,
        state=summary.state if summary else "unverified",
        head=summary.head if summary else Head(),
        verdict=registered.verdict,
        expires_at=summary.expires_at if summary else spec.expires_at,
        counts=summary.counts if summary else {},
        request=registered.operation,
        registry_created=registered.new_registry.name if registered.new_registry else None,
    )
