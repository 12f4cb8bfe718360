"""What work writes down for others to read: observations, views, finished requests.

Observations are facts that retiring an old value will stand on; views are what lists show and may be thrown
away. Both are written only when they say something new. Blocking; called from threads.
"""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from threading import Lock
from typing import TypeVar

from secretsvc.core.errors import RecordDamaged, StoreConflict
from secretsvc.core.model import (
    Failure,
    History,
    InboxItem,
    Operation,
    OperationKind,
    OperationState,
    Progress,
)
from secretsvc.core.ports import Stored
from secretsvc.core.rotation import targets
from secretsvc.core.rules import (
    CredentialsView,
    Delivery,
    DeliveryState,
    DeliveryView,
    Observed,
    PullSecretRule,
    Rule,
)
from secretsvc.telemetry.logs import get_logger
from secretsvc.workflows.deliver import Pass
from secretsvc.workflows.intake import Intake
from secretsvc.workflows.records import Desk
from secretsvc.workflows.report import CREDENTIALS_VIEW, view_name
from secretsvc.workflows.world import StoredRule, World

SHARD = 150
"""Lines per view document: well under 500 targets and 128 KiB, with the longest messages."""
STRAGGLERS = 50
HISTORY_GRACE = timedelta(hours=1)
"""A deleted record's history stays this long, so that whoever deleted it can ask how it went."""

_log = get_logger(__name__)
T = TypeVar("T")


class Ledger:
    """Writes observations and views of the world."""

    def __init__(self, desk: Desk, world: World, intake: Intake) -> None:
        self._store = desk.store
        self._clock = desk.clock
        self._world = world
        self._intake = intake
        self._showing = Lock()

    def observe(self, stored: StoredRule, made: Pass) -> None:
        """Write what a pass over a rule saw."""
        rule = stored.record
        observed = _observed(rule, made, self._world, self._clock())
        self._world.observed[rule.uid] = observed  # what was written is ours, stored or not
        try:
            known = self._store.get(Observed, rule.uid)
            if known is None or replace(known.record, seen_at=observed.seen_at) != observed:
                self._store.put(rule.uid, observed, known.version if known else 0)
        except RecordDamaged as exc:
            _log.error("record.damaged", message=exc.message, hint=exc.hint)
        self.show_rule(rule.uid)

    def show_rule(self, uid: str) -> None:
        """Write the view of a rule's targets."""
        with self._showing:
            self._show_rule(uid)

    def _show_rule(self, uid: str) -> None:
        stored = self._world.rules.get(uid)
        if stored is None:
            return
        known = dict(self._world.deliveries.get(uid, {}))
        shards = _sharded([known[target] for target in sorted(known)])
        for number, shard in enumerate(shards):
            view = DeliveryView(
                rule_kind=stored.record.KIND,
                rule=stored.record.name,
                rule_uid=uid,
                shard=number,
                shards=len(shards),
                deliveries=tuple(shard),
                written_at=self._clock(),
            )
            self._put(view_name(uid, number), view)
        self._drop(DeliveryView, uid, len(shards))

    def show_credentials(self) -> None:
        """Write the view of all credentials."""
        with self._showing:
            self._show_credentials()

    def _show_credentials(self) -> None:
        now = self._clock()
        shards = _sharded(self._world.summaries(now))
        for number, shard in enumerate(shards):
            view = CredentialsView(number, len(shards), tuple(shard), now)
            self._put(view_name(CREDENTIALS_VIEW, number), view)
        self._drop(CredentialsView, CREDENTIALS_VIEW, len(shards))

    def answer(self, stored: StoredRule, made: Pass, asked: list[Stored[InboxItem]]) -> None:
        """Tell those who asked for a look at a rule how it went, and clear their requests."""
        for item in asked:
            outcome = _outcome(stored.record, made, item.record, self._clock())
            self._intake.record(stored.record.uid, outcome)
            self._store.remove(InboxItem, item.record.id, item.version)

    def answer_gone(self, item: InboxItem) -> None:
        """Tell who asked about a rule that was swept meanwhile: nothing of it is left."""
        now = self._clock()
        operation = Operation(
            item.id, OperationKind.REMOVE, OperationState.SUCCEEDED, item.created_by, item.created_at, now
        )
        self._intake.record(item.subject_uid, operation)

    def forget(self, stored: StoredRule) -> None:
        """Sweep a deleted rule of which nothing is left at its targets; its tombstone goes last."""
        rule = stored.record
        self._drop(DeliveryView, rule.uid, 0)
        observed = self._store.get(Observed, rule.uid)
        if observed is not None:
            self._store.remove(Observed, rule.uid, observed.version)
        self._store.remove(type(rule), rule.name, stored.version)
        self._world.forget_rule(rule.uid)

    def sweep(self) -> None:
        """Remove the histories of deleted rules and credentials, an hour after their last word."""
        alive = {stored.record.uid for stored in list(self._world.credentials.values())}
        alive |= set(self._world.rules)
        limit = self._clock() - HISTORY_GRACE
        for uid in self._store.names(History):
            stored = self._store.get(History, uid) if uid not in alive else None
            if stored is not None and all(one.updated_at < limit for one in stored.record.operations):
                self._store.remove(History, uid, stored.version)

    def _put(self, name: str, view: DeliveryView | CredentialsView) -> None:
        """Write a view. One that is damaged, or that another worker writes just now, is left alone."""
        try:
            known = self._store.get(type(view), name)
            if known is None or replace(known.record, written_at=view.written_at) != view:
                self._store.put(name, view, known.version if known else 0)
        except RecordDamaged as exc:
            _log.error("record.damaged", message=exc.message, hint=exc.hint)
        except StoreConflict:
            _log.debug("view.contended", view=name)

    def _drop(self, kind: type[DeliveryView | CredentialsView], subject: str, first: int) -> None:
        number = first
        with suppress(RecordDamaged, StoreConflict):
            while (known := self._store.get(kind, view_name(subject, number))) is not None:
                self._store.remove(kind, view_name(subject, number), known.version)
                number += 1


def _observed(rule: Rule, made: Pass, world: World, now: datetime) -> Observed:
    lowest: dict[str, int] = {}
    for name in rule.credentials:
        spec = world.credentials.get(name)
        if spec is not None:
            held = [_pub_of(name, made.deliveries.get(target)) for target in targets(rule)]
            lowest[spec.record.uid] = min(held, default=0)
    behind = sorted(one.target for one in made.deliveries.values() if one.state is not DeliveryState.SYNCED)
    return Observed(
        rule_uid=rule.uid,
        rule=rule.name,
        group=rule.cluster if isinstance(rule, PullSecretRule) else rule.hosts[0],
        lowest_pub=lowest,
        counts=dict(Counter(one.state.value for one in made.deliveries.values())),
        stragglers=tuple(behind[:STRAGGLERS]),
        seen_at=now,
        marks=made.marks,
    )


def _pub_of(credential: str, delivery: Delivery | None) -> int:
    parts = delivery.components if delivery is not None else ()
    return next((part.pub for part in parts if part.credential == credential), 0)


def _outcome(rule: Rule, made: Pass, item: InboxItem, now: datetime) -> Operation:
    bad = [one for one in made.deliveries.values() if one.state is not DeliveryState.SYNCED]
    total = len(made.deliveries)
    failure = None
    if bad:
        first = bad[0]
        failure = Failure(first.reason, f"{len(bad)} of {total} targets; {first.target}: {first.message}")
    elif not made.looked:
        failure = Failure("NotReached", "its targets could not be looked at; they still are tried")
    return Operation(
        id=item.id,
        kind=OperationKind.REMOVE if rule.deleted_at is not None else OperationKind.SYNC,
        state=OperationState.FAILED if failure else OperationState.SUCCEEDED,
        requested_by=item.created_by,
        created_at=item.created_at,
        updated_at=now,
        progress=Progress(total - len(bad), total),
        failure=failure,
    )


def _sharded(rows: list[T]) -> list[list[T]]:
    """Cut into shards; there is always one, so that a reader finds how many there are."""
    return [rows[at : at + SHARD] for at in range(0, len(rows), SHARD)] or [[]]
