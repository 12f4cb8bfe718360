"""What the API answers, as marshmallow schemas that dump our records directly.

No schema here has a field for a credential's value. The one value that is ever answered is a new API token,
once, to whoever asked for it (`IssuedTokenAnswer`). Times are RFC 3339 in UTC.
"""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from marshmallow import Schema, fields, pre_dump, validate

from secretsvc.core import access, model, rules
from secretsvc.core.rules import (
    CredentialSummary,
    DeliveryState,
)
from secretsvc.workflows.records import operation_id


def rfc3339(time: datetime) -> str:
    """Return a time as RFC 3339 in UTC with a ``Z``."""
    return time.astimezone(UTC).isoformat().replace("+00:00", "Z")


class Time(fields.AwareDateTime):
    """A time on its way out."""

    def _serialize(self, value: Any, attr: str | None, obj: Any, **kwargs: Any) -> str | None:  # noqa: ANN401  # marshmallow's types
        del attr, obj, kwargs
        return None if value is None else rfc3339(value)


def _time(*, nullable: bool = False) -> Time:
    return Time(required=True, allow_none=nullable, format="iso", default_timezone=UTC)


def _text(words: type[StrEnum] | None = None, attribute: str | None = None) -> fields.String:
    check = validate.OneOf([word.value for word in words]) if words is not None else None
    return fields.String(required=True, attribute=attribute, validate=check)


def _texts(attribute: str | None = None) -> fields.List[str]:
    return fields.List(fields.String(), required=True, attribute=attribute)


class ListAnswer(Schema):
    """What every list has besides its items."""

    next_cursor = fields.String(required=True, allow_none=True)
    age = fields.String(required=True, metadata={"description": "Age of its oldest part, such as 3s."})


# --- Verdicts and operations ----------------------------------------------------------------------


class StepAnswer(Schema):
    """One request of a check."""

    method = _text()
    host = _text()
    path = _text()
    status = fields.Integer(required=True, allow_none=True)
    note = _text()


class VerdictAnswer(Schema):
    """A registry's answer about a login."""

    outcome = _text(model.Outcome)
    reason = _text()
    message = _text()
    checked_at = _time()
    steps = fields.List(fields.Nested(StepAnswer), required=True)
    expires_at = _time(nullable=True)
    scopes = _texts()
    retry_at = _time(nullable=True)


class ProgressAnswer(Schema):
    """How many targets hold what is wanted."""

    done = fields.Integer(required=True)
    total = fields.Integer(required=True)


class FailureAnswer(Schema):
    """Why an operation failed."""

    code = _text()
    message = _text()
    hint = _text()


class OperationAnswer(Schema):
    """A piece of work that outlives its request. ``generation`` is 0 until it has claimed one."""

    id = fields.Function(
        lambda row: operation_id(row.operation.id, row.subject_uid),
        required=True,
        metadata={"type": "string"},
    )
    kind = _text(model.OperationKind, "operation.kind")
    state = _text(model.OperationState, "operation.state")
    requested_by = _text(attribute="operation.requested_by")
    reason = _text(attribute="operation.reason")
    created_at = Time(required=True, attribute="operation.created_at")
    updated_at = Time(required=True, attribute="operation.updated_at")
    generation = fields.Integer(required=True, attribute="operation.to")
    progress = fields.Nested(ProgressAnswer, required=True, attribute="operation.progress")
    verdict = fields.Nested(VerdictAnswer, required=True, allow_none=True, attribute="operation.verdict")
    error = fields.Nested(FailureAnswer, required=True, allow_none=True, attribute="operation.failure")


# --- Registries and clusters ----------------------------------------------------------------------


class RegistryAnswer(Schema):
    """A registry."""

    name = _text()
    uid = _text()
    host = _text()
    kind = _text(model.RegistryKind)
    insecure = fields.Boolean(required=True)
    ca = _text()
    realms = _texts()
    networks = _texts()
    probe_repository = _text()
    production_requires_token = fields.Boolean(required=True)
    created_at = _time()
    created_by = _text()


class ClusterAnswer(Schema):
    """A cluster that the settings give."""

    name = _text()


class ClusterPingAnswer(Schema):
    """Whether a cluster's API server answers."""

    name = _text()
    reachable = fields.Boolean(required=True)
    version = _text()
    reason = _text()
    message = _text()
    hint = _text()


# --- Credentials ----------------------------------------------------------------------------------


class CountsAnswer(Schema):
    """Targets by state; every state is named, so that a reader need not guess."""

    total = fields.Integer(required=True)
    pending = fields.Integer(required=True)
    synced = fields.Integer(required=True)
    conflict = fields.Integer(required=True)
    denied = fields.Integer(required=True)
    drifted = fields.Integer(required=True)
    failed = fields.Integer(required=True)
    removed = fields.Integer(required=True)

    @pre_dump
    def complete(self, counts: dict[str, int], **_kwargs: object) -> dict[str, int]:
        """Add the states that no target is in, and the total."""
        by_state = {state.value: counts.get(state.value, 0) for state in DeliveryState}
        return {"total": sum(by_state.values()), **by_state}


def _open_operation(summary: CredentialSummary) -> str | None:
    if summary.operation is None:
        return None
    return operation_id(summary.operation.id, summary.spec.uid)


class CredentialFacts(Schema):
    """What every answer about a credential has. ``generation`` is the published one, 0 when none is."""

    name = _text(attribute="spec.name")
    uid = _text(attribute="spec.uid")
    registry = _text(attribute="spec.registry")
    type = _text(model.CredentialType, "spec.type")
    username = _text(attribute="spec.username")
    labels = fields.Dict(keys=fields.String(), values=fields.String(), required=True, attribute="spec.labels")
    created_at = Time(required=True, attribute="spec.created_at")
    created_by = _text(attribute="spec.created_by")
    expires_at = _time(nullable=True)
    state = fields.String(
        required=True, validate=validate.OneOf(["unverified", "active", "invalid", "expired", "stale"])
    )
    generation = fields.Integer(required=True, attribute="head.cur")
    verdict = fields.Nested(VerdictAnswer, required=True, allow_none=True)
    deliveries = fields.Nested(CountsAnswer, required=True, attribute="counts")


class CredentialAnswer(CredentialFacts):
    """A credential, with the operation that is open for it."""

    operation = fields.Function(
        _open_operation, required=True, allow_none=True, metadata={"type": ["string", "null"]}
    )


class RegisteredAnswer(CredentialFacts):
    """A credential that was just accepted, with the operation that publishes its value."""

    operation = fields.String(required=True, attribute="request")
    registry_created = fields.String(required=True, allow_none=True)
    """The name under which the credential's host was registered together with it."""


class GenerationAnswer(Schema):
    """A generation's number and stage; what it holds can not be read."""

    number = fields.Integer(required=True)
    stage = fields.String(
        required=True,
        allow_none=True,
        validate=validate.OneOf([word.value for word in model.Stage]),
        metadata={"description": "null: not published any more; whether the registry takes it is not known"},
    )


# --- Rules and deliveries -------------------------------------------------------------------------


class NamesAnswer(Schema):
    """A selection by name."""

    names = _texts()


class RuleAnswer(Schema):
    """What pull secrets and auth files have in common."""

    name = _text(attribute="rule.name")
    uid = _text(attribute="rule.uid")
    credentials = _texts("rule.credentials")
    keep = fields.Boolean(required=True, attribute="rule.keep")
    created_at = Time(required=True, attribute="rule.created_at")
    created_by = _text(attribute="rule.created_by")
    deliveries = fields.Nested(CountsAnswer, required=True, attribute="counts")


class PullSecretAnswer(RuleAnswer):
    """A pull secret."""

    secret_name = _text(attribute="rule.secret_name")
    cluster = _text(attribute="rule.cluster")
    namespaces = fields.Nested(NamesAnswer, required=True, attribute="rule.namespaces")


class AuthFileAnswer(RuleAnswer):
    """An auth file."""

    path = _text(attribute="rule.path")
    dialect = _text(rules.Dialect, "rule.dialect")
    hosts = fields.Function(
        lambda row: {"names": list(row.rule.hosts)},
        required=True,
        metadata={
            "type": "object",
            "properties": {"names": {"type": "array", "items": {"type": "string"}}},
            "required": ["names"],
        },
    )


class ChangedPullSecretAnswer(PullSecretAnswer):
    """A pull secret that was just written, with the operation that brings its targets to it."""

    operation = fields.String(required=True)


class ChangedAuthFileAnswer(AuthFileAnswer):
    """An auth file that was just written, with the operation that brings it to disk."""

    operation = fields.String(required=True)


class ComponentAnswer(Schema):
    """Which publication of one credential a target holds."""

    credential = _text()
    pub = fields.Integer(required=True)
    generation = fields.Integer(required=True)


class TargetAnswer(Schema):
    """A place: a namespace of a cluster, or a path on a host."""

    cluster = fields.String()
    namespace = fields.String()
    host = fields.String()
    path = fields.String()


class DeliveryAnswer(Schema):
    """The observed state of one target. ``generation`` is null when it holds several credentials."""

    rule_kind = fields.String(required=True, validate=validate.OneOf(["pull-secret", "auth-file"]))
    rule = _text()
    target = fields.Nested(TargetAnswer, required=True)
    state = _text(rules.DeliveryState)
    reason = _text()
    message = _text()
    generation = fields.Integer(required=True, allow_none=True)
    components = fields.List(fields.Nested(ComponentAnswer), required=True)
    updated_at = _time()


# --- Access ---------------------------------------------------------------------------------------


class TokenAnswer(Schema):
    """A token's principal; the token itself is not kept."""

    name = _text()
    role = _text(access.Role)
    created_at = _time()
    created_by = _text()
    expires_at = _time(nullable=True)


class IssuedTokenAnswer(TokenAnswer):
    """A new token, shown this once."""

    token = _text()


# --- Problems -------------------------------------------------------------------------------------


class ProblemRow(Schema):
    """One wrong field: a JSON pointer into the body, or ``?name`` for a query parameter."""

    pointer = _text()
    detail = _text()


class ProblemAnswer(Schema):
    """An RFC 9457 problem."""

    type = _text()
    title = _text()
    status = fields.Integer(required=True)
    detail = _text()
    code = _text()
    request_id = _text()
    errors = fields.List(fields.Nested(ProblemRow), required=True)
    retryable = fields.Boolean(required=True)
    hint = _text()
    verdict = fields.Nested(VerdictAnswer)
    users = fields.List(fields.String())
