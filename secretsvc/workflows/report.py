"""What callers may see: credentials, rules, deliveries, operations. Read only, and never a value.

Single records are read fresh. Lists come from the views that work writes, and say how old they are; what
has no line in a view yet (just created) is read on the spot.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TypeVar

from secretsvc.core.errors import NotFound
from secretsvc.core.ident import is_ulid
from secretsvc.core.model import (
    Candidate,
    CredentialSpec,
    CredentialState,
    Head,
    History,
    InboxItem,
    Operation,
    OperationKind,
    OperationState,
    Progress,
    RegistrySpec,
    Stage,
    Verb,
)
from secretsvc.core.ports import Stored
from secretsvc.core.rotation import condition, confirmed, expiry, stage
from secretsvc.core.rules import (
    AuthFileRule,
    CredentialSummary,
    CredentialsView,
    Delivery,
    DeliveryView,
    Observed,
    PullSecretRule,
    Rule,
)
from secretsvc.workflows.records import Desk

V = TypeVar("V", CredentialsView, DeliveryView)

CREDENTIALS_VIEW = "credentials"


def view_name(subject: str, shard: int) -> str:
    """Return the document name of one shard; ``subject`` is `CREDENTIALS_VIEW` or a rule's uid."""
    return f"{subject}-{shard}"


@dataclass(frozen=True, slots=True)
class RuleReport:
    """A rule with what is known of its targets."""

    rule: Rule
    version: int
    counts: dict[str, int]


@dataclass(frozen=True, slots=True)
class DeliveryReport:
    """One target of one rule."""

    rule_kind: str
    rule: str
    group: str
    """The cluster's name, or the host's."""
    delivery: Delivery


@dataclass(frozen=True, slots=True)
class OperationReport:
    """An operation with what it is about."""

    operation: Operation
    subject_uid: str


@dataclass(frozen=True, slots=True)
class GenerationReport:
    """One generation's number and stage; what it holds can not be read."""

    number: int
    stage: Stage | None


class Reporter:
    """Serve's reading side."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    # --- credentials ------------------------------------------------------------------------------

    def credential(self, name: str) -> CredentialSummary:
        """Return one credential, read fresh."""
        stored = self._desk.find(CredentialSpec, name)
        counts = Counter(row.delivery.state.value for row in self.credential_deliveries(name))
        return self._credential(stored, dict(counts))

    def credentials(self) -> tuple[list[CredentialSummary], datetime]:
        """Return every credential by name, and when the oldest part of the answer was seen."""
        lines: dict[str, CredentialSummary] = {}
        seen_at = self._desk.clock()
        for view in self._shards(CREDENTIALS_VIEW, CredentialsView):
            seen_at = min(seen_at, view.written_at)
            lines |= {line.spec.name: line for line in view.credentials}
        summaries = []
        for name in self._desk.store.names(CredentialSpec):
            line = lines.get(name)
            if line is None:
                stored = self._desk.store.get(CredentialSpec, name)
                if stored is None or stored.record.deleted_at is not None:
                    continue
                line = self._credential(stored, {})
            summaries.append(_as_of(line, self._desk.clock()))
        return summaries, seen_at

    def generations(self, name: str) -> list[GenerationReport]:
        """Return the numbers that were claimed for a credential, newest first, with their stage."""
        state = self._state(self._desk.find(CredentialSpec, name).record.uid)
        if state is None:
            return []
        return [GenerationReport(number, stage(state, number)) for number in range(state.next_gen - 1, 0, -1)]

    def history(self, name: str) -> list[Operation]:
        """Return a credential's finished operations, newest first."""
        stored = self._desk.store.get(History, self._desk.find(CredentialSpec, name).record.uid)
        return list(reversed(stored.record.operations)) if stored is not None else []

    def credential_deliveries(self, name: str) -> list[DeliveryReport]:
        """Return every target that a credential reaches, over all rules."""
        self._desk.find(CredentialSpec, name)
        rows: list[DeliveryReport] = []
        for stored in self._rules():
            if name in stored.record.credentials:
                rows += self._deliveries(stored.record)
        return rows

    # --- rules ------------------------------------------------------------------------------------

    def rule(self, kind: type[PullSecretRule | AuthFileRule], name: str) -> RuleReport:
        """Return one rule, read fresh."""
        return self._rule(self._found(kind, name))

    def rules(self, kind: type[PullSecretRule | AuthFileRule]) -> list[RuleReport]:
        """Return every rule of a kind, by name."""
        return [self._rule(stored) for stored in self._rules() if type(stored.record) is kind]

    def deliveries(self, kind: type[PullSecretRule | AuthFileRule], name: str) -> list[DeliveryReport]:
        """Return a rule's targets."""
        return self._deliveries(self._found(kind, name).record)

    # --- operations -------------------------------------------------------------------------------

    def operation(self, identifier: str) -> OperationReport:
        """Return an operation by the id its request was answered with."""
        request, _, uid = identifier.partition("-")
        if not (is_ulid(request) and is_ulid(uid)):
            raise NotFound(f"there is no operation {identifier!r}")
        # Read in the order in which a request moves on, so that it can not slip by between two reads.
        waiting = self._waiting(request)
        opened = self._open(request, uid)
        found = self._finished(request, uid) or opened or waiting
        if found is None:
            raise NotFound(
                f"there is no operation {identifier!r}", hint="a record keeps its last 50 operations"
            )
        return OperationReport(found, uid)

    def _open(self, request: str, uid: str) -> Operation | None:
        state = self._state(uid)
        if state is None or state.op is None or state.op.id != request:
            return None
        return replace(state.op, progress=self._progress(state))

    def _finished(self, request: str, uid: str) -> Operation | None:
        stored = self._desk.store.get(History, uid)
        operations = stored.record.operations if stored is not None else ()
        return next((known for known in operations if known.id == request), None)

    def _waiting(self, request: str) -> Operation | None:
        if request in self._desk.store.names(Candidate):
            return self._pending(request, OperationKind.REPLACE, "")
        item = self._desk.store.get(InboxItem, request)
        if item is None:
            return None
        kind = {Verb.VALIDATE: OperationKind.VALIDATE, Verb.ROLLBACK: OperationKind.ROLLBACK}
        return self._pending(request, kind.get(item.record.verb, OperationKind.SYNC), item.record.created_by)

    def _pending(self, request: str, kind: OperationKind, actor: str) -> Operation:
        now = self._desk.clock()
        return Operation(request, kind, OperationState.PENDING, actor, now, now)

    def _progress(self, state: CredentialState) -> Progress:
        progress = Progress()
        for stored in self._rules():
            if state.name in stored.record.credentials:
                deliveries = [row.delivery for row in self._deliveries(stored.record)]
                progress = confirmed(stored.record, deliveries, state, progress)
        return progress

    # --- the parts --------------------------------------------------------------------------------

    def _credential(self, stored: Stored[CredentialSpec], counts: dict[str, int]) -> CredentialSummary:
        registry = self._desk.store.get(RegistrySpec, stored.record.registry)
        state = self._state(stored.record.uid)
        now = self._desk.clock()
        return summary(stored, state, registry.record if registry else None, counts, now)

    def _deliveries(self, rule: Rule) -> list[DeliveryReport]:
        group = rule.cluster if isinstance(rule, PullSecretRule) else rule.hosts[0]
        return [
            DeliveryReport(rule.KIND, rule.name, group, delivery)
            for view in self._shards(rule.uid, DeliveryView)
            for delivery in view.deliveries
        ]

    def _shards(self, subject: str, kind: type[V]) -> Iterator[V]:
        shard, shards = 0, 1
        while shard < shards:
            stored = self._desk.store.get(kind, view_name(subject, shard))
            if stored is None:
                return
            yield stored.record
            shard, shards = shard + 1, stored.record.shards

    def _rules(self) -> Iterator[Stored[PullSecretRule] | Stored[AuthFileRule]]:
        yield from self._desk.all(PullSecretRule)
        yield from self._desk.all(AuthFileRule)

    def _found(
        self, kind: type[PullSecretRule | AuthFileRule], name: str
    ) -> Stored[PullSecretRule] | Stored[AuthFileRule]:
        if kind is PullSecretRule:
            return self._desk.find(PullSecretRule, name)
        return self._desk.find(AuthFileRule, name)

    def _rule(self, stored: Stored[PullSecretRule] | Stored[AuthFileRule]) -> RuleReport:
        observed = self._desk.store.get(Observed, stored.record.uid)
        counts = observed.record.counts if observed is not None else {}
        return RuleReport(stored.record, stored.version, counts)

    def _state(self, uid: str) -> CredentialState | None:
        stored = self._desk.store.get(CredentialState, uid)
        return stored.record if stored is not None else None


def _as_of(line: CredentialSummary, now: datetime) -> CredentialSummary:
    """Let time pass for a line that was written a while ago."""
    ended = line.expires_at is not None and line.expires_at <= now
    return replace(line, state="expired") if ended and line.state == "active" else line


def summary(
    stored: Stored[CredentialSpec],
    state: CredentialState | None,
    registry: RegistrySpec | None,
    counts: dict[str, int],
    now: datetime,
) -> CredentialSummary:
    """Return what is shown of a credential: its wish, with the login that is published."""
    spec = stored.record
    username, kind = (state.username, state.type) if state else ("", None)
    return CredentialSummary(
        spec=replace(spec, username=username or spec.username, type=kind or spec.type),
        version=stored.version,
        state=condition(spec, state, registry, now),
        head=state.head if state else Head(),
        verdict=state.verdict if state else None,
        expires_at=expiry(spec, state),
        operation=state.op if state else None,
        counts=counts,
    )
