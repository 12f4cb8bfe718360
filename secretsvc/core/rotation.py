"""How a credential's state may change: pure transitions, each of which is one compare-and-set.

The rules, which the property tests hold against every sequence of transitions:

- ``next_gen`` only rises, and a number is claimed (`claim`) before its generation is written.
- ``pub`` only rises. Promotion is {pub+1, cur=n, prev=cur}, rollback {pub+1, cur=prev, prev=cur}.
- A promotion needs the claim: only the operation that holds a number may publish it.
- `wanted` is the one function that says what a target should hold.
- A credential has at most one open operation. One that is already published yields to a newer one.

What is not here: reading generations, asking registries, writing targets (``workflows``).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from secretsvc.core.model import (
    Candidate,
    CredentialSpec,
    CredentialState,
    Failure,
    Generation,
    Head,
    History,
    InboxItem,
    Operation,
    OperationKind,
    OperationState,
    Outcome,
    Phase,
    Progress,
    RegistrySpec,
    Stage,
    Verdict,
)
from secretsvc.core.rules import (
    Delivery,
    PullSecretRule,
    Rule,
)

DISTRIBUTION_DEADLINE = timedelta(minutes=15)
"""How long an operation waits for targets before it ends with stragglers; the targets stay wanted."""

LAST_WAVE = 1_000
"""The wave at which every target is open."""

HISTORY_LENGTH = 50


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a target should hold of one credential."""

    pub: int
    generation: int


def wanted(state: CredentialState, wave: int = 0) -> Wanted | None:
    """Return what a target of wave ``wave`` should hold; None when nothing has been published.

    ``cur`` once the target's wave is open, else ``prev`` with prev's publication (the one before).
    """
    head = state.head
    if not head.cur:
        return None
    op = state.op
    held_back = op is not None and op.phase is Phase.DISTRIBUTING and wave > op.wave
    if held_back and head.prev:
        return Wanted(head.pub - 1, head.prev)
    return Wanted(head.pub, head.cur)


def stage(state: CredentialState, number: int) -> Stage | None:
    """Return what generation ``number`` is now.

    None: it is not published any more, or never was; whether its registry still takes it is not known.
    """
    if number == state.head.cur:
        return Stage.CURRENT
    if number == state.head.prev:
        return Stage.PREVIOUS
    if state.op is not None and state.op.to == number:
        return Stage.PENDING
    return None


def claim(state: CredentialState, candidate: Candidate, now: datetime) -> CredentialState:
    """Open the operation that ``candidate`` asks for, and claim a generation number for it."""
    kind = OperationKind.REPLACE if state.head.cur else OperationKind.REGISTER
    op = Operation(
        id=candidate.id,
        kind=kind,
        state=OperationState.RUNNING,
        requested_by=candidate.created_by,
        created_at=candidate.created_at,
        updated_at=now,
        phase=Phase.ISSUING,
        to=state.next_gen,
        verdict=candidate.verdict,
        reason=candidate.override,
    )
    return replace(state, epoch=state.epoch + 1, next_gen=state.next_gen + 1, op=op)


def promote(state: CredentialState, generation: Generation, now: datetime) -> CredentialState:
    """Publish the generation that the open operation claimed: the one step that makes it current."""
    op = _claimed(state, generation)
    head = Head(pub=state.head.pub + 1, cur=generation.number, prev=state.head.cur)
    return _published(state, op, head, generation, now)


def _claimed(state: CredentialState, generation: Generation) -> Operation:
    op = state.op
    if op is None or op.to != generation.number or op.id != generation.operation:
        raise ValueError("only the operation that holds a number may publish it")
    return op


def roll_back(
    state: CredentialState, item: InboxItem, previous: Generation, verdict: Verdict, now: datetime
) -> CredentialState:
    """Publish the previous generation again; the one it replaces becomes previous."""
    if not state.head.prev or previous.number != state.head.prev:
        raise ValueError("there is no such previous generation")
    op = Operation(
        id=item.id,
        kind=OperationKind.ROLLBACK,
        state=OperationState.RUNNING,
        requested_by=item.created_by,
        created_at=item.created_at,
        updated_at=now,
        to=previous.number,
        verdict=verdict,
        reason=item.reason,
    )
    head = Head(pub=state.head.pub + 1, cur=state.head.prev, prev=state.head.cur)
    return _published(replace(state, epoch=state.epoch + 1), op, head, previous, now)


def _published(
    state: CredentialState, op: Operation, head: Head, generation: Generation, now: datetime
) -> CredentialState:
    running = replace(
        op,
        state=OperationState.RUNNING,
        phase=Phase.DISTRIBUTING,
        pub=head.pub,
        wave=LAST_WAVE,
        updated_at=now,
        deadline=now + DISTRIBUTION_DEADLINE,
    )
    return replace(
        state,
        head=head,
        op=running,
        verdict=op.verdict,
        bound_to=generation.bound_to,
        expires_at=generation.expires_at,
        username=generation.login.username,
        type=generation.login.type,
    )


def settle(
    state: CredentialState, now: datetime, progress: Progress, failure: Failure | None = None
) -> tuple[CredentialState, Operation]:
    """End the open operation; return the state without it, and the operation for the history."""
    if state.op is None:
        raise ValueError("no operation is open")
    ended = replace(
        state.op,
        state=OperationState.FAILED if failure else OperationState.SUCCEEDED,
        updated_at=now,
        progress=progress,
        failure=failure,
    )
    return replace(state, op=None), ended


def yields(op: Operation | None) -> bool:
    """Whether a newer request may take the open operation's place: it is published already."""
    return op is None or op.phase is Phase.DISTRIBUTING


def appended(history: History, operation: Operation) -> History:
    """Add a finished operation, once, and forget all but the last 50."""
    kept = tuple(known for known in history.operations if known.id != operation.id)
    return replace(history, operations=(*kept, operation)[-HISTORY_LENGTH:])


def may_become_current(verdict: Verdict, override: str) -> bool:
    """Whether a value with this verdict may be published.

    Only an accepted one, or one that can not be verified at all when someone recorded why to trust it.
    """
    return verdict.accepted or (verdict.outcome is Outcome.UNVERIFIABLE and bool(override))


def targets(rule: Rule) -> tuple[str, ...]:
    """Return the targets a rule names; none once it is deleted."""
    if rule.deleted_at is not None:
        return ()
    return rule.namespaces.names if isinstance(rule, PullSecretRule) else (rule.path,)


def confirmed(
    rule: Rule, deliveries: Iterable[Delivery], state: CredentialState, before: Progress
) -> Progress:
    """Add to ``before`` how many of a rule's targets hold a credential's newest publication."""
    wished = targets(rule)
    holding = {
        delivery.target
        for delivery in deliveries
        for part in delivery.components
        if part.credential == state.name and part.pub >= state.head.pub
    }
    return Progress(before.done + len(holding & set(wished)), before.total + len(wished))


def expiry(spec: CredentialSpec, state: CredentialState | None) -> datetime | None:
    """Return when a credential ends: as its caller said, or else as its value or registry did."""
    return spec.expires_at or (state.expires_at if state is not None else None)


def condition(
    spec: CredentialSpec, state: CredentialState | None, registry: RegistrySpec | None, now: datetime
) -> str:
    """Return the credential's state as shown: unverified, active, invalid, expired or stale."""
    if state is None or state.verdict is None:
        return "unverified"
    if state.bound_to is not None and registry is not None and registry.binding() != state.bound_to:
        return "stale"
    if state.verdict.outcome in (Outcome.INVALID, Outcome.MALFORMED):
        return "invalid"
    ends = expiry(spec, state)
    if state.verdict.outcome is Outcome.EXPIRED or (ends is not None and ends <= now):
        return "expired"
    if state.head.cur and (state.verdict.accepted or not _never_accepted(state)):
        return "active"
    return "unverified"


def _never_accepted(state: CredentialState) -> bool:
    return state.verdict is None or state.verdict.outcome is Outcome.UNVERIFIABLE
