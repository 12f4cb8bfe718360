"""How the targets of rules are shown, for a rule and for a credential alike."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from marshmallow import fields

from secretsvc.core.rules import (
    Component,
    DeliveryState,
    PullSecretRule,
)
from secretsvc.web.answers import DeliveryAnswer, ListAnswer
from secretsvc.workflows.report import DeliveryReport


class DeliveryList(ListAnswer):
    """Targets."""

    items = fields.List(fields.Nested(DeliveryAnswer), required=True)


@dataclass(frozen=True, slots=True)
class DeliveryRow:
    """One target as `DeliveryAnswer` dumps it."""

    rule_kind: str
    rule: str
    target: dict[str, str]
    state: DeliveryState
    reason: str
    message: str
    generation: int | None
    components: tuple[Component, ...]
    updated_at: datetime
    key: str
    """Sorts and tells apart; no name holds a blank."""


def delivery_row(report: DeliveryReport, credential: str = "") -> DeliveryRow:
    """Return what is shown of a target; ``generation`` is that of ``credential``, or of its only one."""
    delivery = report.delivery
    is_pull_secret = report.rule_kind == PullSecretRule.KIND
    numbers = [
        part.generation for part in delivery.components if not credential or part.credential == credential
    ]
    place = ("cluster", "namespace") if is_pull_secret else ("host", "path")
    kind = "pull-secret" if is_pull_secret else "auth-file"
    return DeliveryRow(
        rule_kind=kind,
        rule=report.rule,
        target={place[0]: report.group, place[1]: delivery.target},
        state=delivery.state,
        reason=delivery.reason,
        message=delivery.message,
        generation=numbers[0] if len(numbers) == 1 else None,
        components=delivery.components,
        updated_at=delivery.updated_at,
        key=f"{kind} {report.rule} {delivery.target}",
    )
