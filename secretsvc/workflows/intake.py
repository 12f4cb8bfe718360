"""What work does with candidates and verbs: make generations, promote, roll back, prove again.

Every path is a chain of single compare-and-sets that may stop anywhere and be taken up again:

1. claim      state: open the operation, claim the number    (`core.rotation.claim`)
2. write      generation <uid>-<n>, create only; found there already by this operation: adopt it
3. promote    state: {pub+1, cur=n, prev}                     (`core.rotation.promote`)
4. remove     the candidate
5. settle     history, then state: when every target follows  (`reconcile`)

A candidate whose registry could not be asked waits and is proved again; one that turns out refused, or
whose registry changed meanwhile, is dropped and its history says why. Blocking; called from threads.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from enum import StrEnum

from secretsvc.core.errors import RecordDamaged, StoreConflict
from secretsvc.core.ident import keyed_digest, same_digest
from secretsvc.core.model import (
    Candidate,
    CredentialSpec,
    CredentialState,
    Failure,
    Generation,
    Head,
    History,
    InboxItem,
    Login,
    Operation,
    OperationKind,
    OperationState,
    Outcome,
    Phase,
    Progress,
    RegistrySpec,
    Verb,
    Verdict,
    generation_name,
)
from secretsvc.core.ports import AuditLog, R, RegistryProver, Stored
from secretsvc.core.rotation import appended, claim, may_become_current, promote, roll_back, settle, yields
from secretsvc.telemetry.logs import get_logger
from secretsvc.workflows.records import Desk
from secretsvc.workflows.world import World

_log = get_logger(__name__)

ORPHAN_AGE = timedelta(minutes=10)
"""How long a candidate may wait for its credential to appear before it counts as left over."""


class Taken(StrEnum):
    """What became of a candidate or verb."""

    DONE = "done"
    WAITING = "waiting"
    """Its registry could not confirm the value; ask again later."""
    EARLY = "early"
    """What it belongs to is not there yet, or busy; take it again soon."""


class _Dropped(Exception):
    def __init__(self, failure: Failure, verdict: Verdict | None = None) -> None:
        super().__init__(failure.code)
        self.failure = failure
        self.verdict = verdict


@dataclass(frozen=True, slots=True)
class _Case:
    """A credential with everything that decides about it."""

    spec: CredentialSpec
    state: CredentialState
    version: int
    registry: RegistrySpec


class Intake:
    """Work's side of credentials."""

    def __init__(self, desk: Desk, prover: RegistryProver, world: World, audit: AuditLog) -> None:
        self._desk = desk
        self._store = desk.store
        self._prover = prover
        self._world = world
        self._audit = audit

    # --- candidates -------------------------------------------------------------------------------

    def take_candidate(self, name: str) -> Taken:
        """Make a candidate the current generation, or find out that it must wait or go."""
        stored = self._store.get(Candidate, name)
        if stored is None:
            return Taken.DONE
        candidate = stored.record
        if not self._belongs(candidate):
            return self._take_orphan(stored)
        case = self._case(candidate.credential, candidate.credential_uid)
        if case is None:
            return Taken.EARLY
        if self._is_finished(case, candidate.id):
            self._store.remove(Candidate, candidate.id, stored.version)
            return Taken.DONE
        try:
            return self._take_live(case, stored)
        except _Dropped as dropped:
            verdict = dropped.verdict or candidate.verdict
            self._drop(case, candidate, dropped.failure, verdict)
            self._store.remove(Candidate, candidate.id, stored.version)
            return Taken.DONE

    def _take_live(self, case: _Case, stored: Stored[Candidate]) -> Taken:
        candidate = stored.record
        held = case.state.op is not None and case.state.op.id == candidate.id
        if not held:
            if not yields(case.state.op):
                return Taken.EARLY
            self._ensure_same_place(case, candidate)
            if not may_become_current(candidate.verdict, candidate.override):
                _ensure_newest(case, candidate)
                case, candidate = self._proved_again(case, candidate)
                if not may_become_current(candidate.verdict, candidate.override):
                    return Taken.WAITING
            if self._is_published(case, candidate):
                return self._take_known(case, stored)
            case = self._superseded(case)
            case = self._write(case, claim(case.state, candidate, self._desk.clock()))
        self._publish(case, candidate)
        self._store.remove(Candidate, candidate.id, stored.version)
        return Taken.DONE

    def _is_published(self, case: _Case, candidate: Candidate) -> bool:
        """Whether this very value is current already: a new generation would only push out the previous."""
        if not case.state.head.cur:
            return False
        current = self._store.get(Generation, generation_name(case.spec.uid, case.state.head.cur))
        return (
            current is not None
            and current.record.bound_to == candidate.bound_to
            and same_digest(current.record.fingerprint, self._fingerprint(case.spec, candidate.login))
        )

    def _take_known(self, case: _Case, stored: Stored[Candidate]) -> Taken:
        candidate = stored.record
        case = self._write(case, replace(case.state, verdict=candidate.verdict))
        op = self._ended(candidate, OperationKind.REPLACE, verdict=candidate.verdict)
        self.record(case.spec.uid, replace(op, reason="the value is the one that is published already"))
        self._store.remove(Candidate, candidate.id, stored.version)
        return Taken.DONE

    def _publish(self, case: _Case, candidate: Candidate) -> None:
        op = case.state.op
        if op is None or op.phase is Phase.DISTRIBUTING:
            return
        generation = self._adopted(self._generation(case, candidate, op))
        self._write(case, promote(case.state, generation, self._desk.clock()))
        self._audit.record(
            "credential.promote",
            case.spec.name,
            actor=op.requested_by,
            outcome="promoted",
            generation=generation.number,
            operation=op.id,
        )

    def _generation(self, case: _Case, candidate: Candidate, op: Operation) -> Generation:
        return Generation(
            credential_uid=case.spec.uid,
            number=op.to,
            login=candidate.login,
            bound_to=candidate.bound_to,
            issued_at=candidate.created_at,
            fingerprint=self._fingerprint(case.spec, candidate.login),
            operation=op.id,
            expires_at=candidate.expires_at,
        )

    def _adopted(self, generation: Generation) -> Generation:
        """Write a generation once, or return the one that this operation wrote before it was stopped."""
        try:
            self._store.put(generation.document_name, generation, 0)
        except StoreConflict:
            found = self._store.get(Generation, generation.document_name)
            if found is None or found.record.operation != generation.operation:
                raise RecordDamaged(
                    f"generation {generation.document_name} was written by another operation",
                    hint="restore the store's backup of this record; nothing was published",
                ) from None
            return found.record
        return generation

    def _fingerprint(self, spec: CredentialSpec, login: Login) -> str:
        return keyed_digest(self._world.keys.fingerprint, spec.uid, login.username, login.secret.reveal())

    def _proved_again(self, case: _Case, candidate: Candidate) -> tuple[_Case, Candidate]:
        """Prove a value that was kept unverified; raise `_Dropped` when it is refused."""
        verdict = self._prover.prove(case.registry, candidate.login)
        if verdict.refused:
            failure = Failure(verdict.reason, verdict.message, "put a right value with `credential rotate`")
            raise _Dropped(failure, verdict)
        if case.state.verdict != verdict and not case.state.head.cur:
            case = self._write(case, replace(case.state, verdict=verdict))
        return case, replace(
            candidate, verdict=verdict, expires_at=candidate.expires_at or verdict.expires_at
        )

    def _ensure_same_place(self, case: _Case, candidate: Candidate) -> None:
        if candidate.bound_to != case.registry.binding():
            raise _Dropped(
                Failure(
                    "RegistryChanged",
                    f"registry {case.registry.name!r} was changed after this value was proved",
                    "enter the value again, so that it is proved against the new place",
                )
            )

    def _belongs(self, candidate: Candidate) -> bool:
        spec = self._store.get(CredentialSpec, candidate.credential)
        return spec is not None and spec.record.uid == candidate.credential_uid and not spec.record.deleted_at

    def _take_orphan(self, stored: Stored[Candidate]) -> Taken:
        """Sweep a candidate whose credential is gone, or never came."""
        found = self._store.get(CredentialSpec, stored.record.credential)
        expected_still = found is None and self._desk.clock() - stored.record.created_at < ORPHAN_AGE
        if expected_still:
            return Taken.EARLY
        self._store.remove(Candidate, stored.record.id, stored.version)
        return Taken.DONE

    def _drop(self, case: _Case, candidate: Candidate, failure: Failure, verdict: Verdict) -> None:
        kind = OperationKind.REPLACE if case.state.head.cur else OperationKind.REGISTER
        op = self._ended(candidate, kind, verdict, failure)
        if not case.state.head.cur:
            self._write(case, replace(case.state, verdict=verdict))
        self.record(case.spec.uid, op)
        self._audit.record(
            "credential.drop", case.spec.name, actor=op.requested_by, outcome=failure.code, operation=op.id
        )

    # --- verbs ------------------------------------------------------------------------------------

    def take_verb(self, item: InboxItem) -> Taken:
        """Carry out ``validate`` or ``rollback`` on a credential."""
        case = self._case(item.subject, item.subject_uid)
        if case is None or self._is_finished(case, item.id):
            return Taken.DONE
        if case.state.op is not None and case.state.op.id == item.id:
            return Taken.DONE
        if not yields(case.state.op):
            return Taken.EARLY
        try:
            if item.verb is Verb.ROLLBACK:
                self._roll_back(case, item)
            else:
                self._validate(case, item)
        except _Dropped as dropped:
            self._finish(case, item, dropped.verdict, dropped.failure)
        return Taken.DONE

    def _roll_back(self, case: _Case, item: InboxItem) -> None:
        previous = self._readable(case, case.state.head.prev)
        verdict = self._prover.prove(case.registry, previous.login)
        if not (verdict.accepted or item.force):
            hint = "put a new value instead, or force with a reason (`--force --reason TEXT`)"
            failure = Failure("PreviousNotValid", f"the previous value is not valid: {verdict.message}", hint)
            raise _Dropped(failure, verdict)
        case = self._superseded(case)
        self._write(case, roll_back(case.state, item, previous, verdict, self._desk.clock()))
        self._audit.record(
            "credential.rollback",
            case.spec.name,
            actor=item.created_by,
            outcome="forced" if not verdict.accepted else "promoted",
            generation=previous.number,
            operation=item.id,
            reason=item.reason,
        )

    def _validate(self, case: _Case, item: InboxItem) -> None:
        if not case.state.head.cur and self._ask_now(case):
            state = self._store.get(CredentialState, case.spec.uid)
            self._finish(case, item, state.record.verdict if state else None, None)
            return
        current = self._readable(case, case.state.head.cur)
        verdict = self._prover.prove(case.registry, current.login)
        if verdict.accepted or verdict.refused or verdict.outcome is Outcome.UNVERIFIABLE:
            expires_at = current.expires_at or verdict.expires_at
            case = self._write(case, replace(case.state, verdict=verdict, expires_at=expires_at))
        self._audit.record(
            "credential.validate", case.spec.name, actor=item.created_by, outcome=verdict.outcome
        )
        self._finish(case, item, verdict, None)

    def _ask_now(self, case: _Case) -> bool:
        """Prove a value that waits unverified without waiting longer; False when there is none."""
        for name in self._store.names(Candidate):
            stored = self._store.get(Candidate, name)
            if stored is not None and stored.record.credential_uid == case.spec.uid:
                self.take_candidate(name)
                return True
        return False

    def _readable(self, case: _Case, number: int) -> Generation:
        """Return a generation whose value may be sent to its registry now."""
        found = self._store.get(Generation, generation_name(case.spec.uid, number)) if number else None
        if found is None:
            raise _Dropped(
                Failure("NoValue", f"credential {case.spec.name!r} has no such value", "put one first")
            )
        if found.record.bound_to != case.registry.binding():
            raise _Dropped(
                Failure(
                    "Stale",
                    f"registry {case.registry.name!r} was changed after the value was proved",
                    "put a new value: a stored one is never sent to a new place",
                )
            )
        return found.record

    def _finish(self, case: _Case, item: InboxItem, verdict: Verdict | None, failure: Failure | None) -> None:
        kind = OperationKind.ROLLBACK if item.verb is Verb.ROLLBACK else OperationKind.VALIDATE
        op = replace(self._ended(item, kind, verdict, failure), reason=item.reason)
        self.record(case.spec.uid, op)

    def _ended(
        self,
        request: Candidate | InboxItem,
        kind: OperationKind,
        verdict: Verdict | None,
        failure: Failure | None = None,
    ) -> Operation:
        return Operation(
            id=request.id,
            kind=kind,
            state=OperationState.FAILED if failure else OperationState.SUCCEEDED,
            requested_by=request.created_by,
            created_at=request.created_at,
            updated_at=self._desk.clock(),
            verdict=verdict,
            failure=failure,
        )

    # --- ends -------------------------------------------------------------------------------------

    def settle(
        self, seen: CredentialState, operation: str, progress: Progress, failure: Failure | None
    ) -> None:
        """End a credential's operation, if it is still the open one: history first, then the state."""
        case = self._case(seen.name, seen.uid)
        if case is None or case.state.op is None or case.state.op.id != operation:
            return
        state, ended = settle(case.state, self._desk.clock(), progress, failure)
        self.record(seen.uid, ended)
        self._write(case, state)

    def record(self, uid: str, operation: Operation) -> None:
        """Append a finished operation to a history; a damaged one is left and stops nothing."""
        try:
            stored = self._store.get(History, uid)
        except RecordDamaged as exc:
            _log.error("record.damaged", message=exc.message, hint=exc.hint, operation=operation.id)
            return
        history, version = (stored.record, stored.version) if stored else (History(uid), 0)
        self._store.put(uid, appended(history, operation), version)

    def sweep_credential(self, stored: Stored[CredentialSpec]) -> None:
        """Remove everything of a credential that has its tombstone, the tombstone last."""
        uid = stored.record.uid
        self._remove_candidates(uid)
        for name in self._store.names(Generation):
            if name.startswith(f"{uid}-"):
                self._remove(Generation, name)
        self._remove(History, uid)
        self._remove(CredentialState, uid)
        self._store.remove(CredentialSpec, stored.record.name, stored.version)

    def _remove_candidates(self, uid: str) -> None:
        """Remove the values that still wait for their registry: nobody wishes for them any more."""
        for name in self._store.names(Candidate):
            try:
                found = self._store.get(Candidate, name)
            except RecordDamaged:
                continue  # nobody can tell whose it is; it is told of where it is taken
            if found is not None and found.record.credential_uid == uid:
                self._store.remove(Candidate, name, found.version)

    def _remove(self, kind: type[Generation | History | CredentialState], name: str) -> None:
        found = self._readable_record(kind, name)
        if found is not None:
            self._store.remove(kind, name, found.version)

    def _readable_record(self, kind: type[R], name: str) -> Stored[R] | None:
        """Return a record, or None also when it is damaged: it is left as it is, and the rest goes on."""
        try:
            return self._store.get(kind, name)
        except RecordDamaged as exc:
            _log.error("record.damaged", message=exc.message, hint=exc.hint)
            return None

    # --- the parts --------------------------------------------------------------------------------

    def _case(self, name: str, uid: str) -> _Case | None:
        spec = self._store.get(CredentialSpec, name)
        if spec is None or spec.record.uid != uid or spec.record.deleted_at is not None:
            return None
        registry = self._store.get(RegistrySpec, spec.record.registry)
        if registry is None:
            return None
        state = self._store.get(CredentialState, uid)
        if state is None:
            return _Case(spec.record, CredentialState(uid, name, head=Head()), 0, registry.record)
        return _Case(spec.record, state.record, state.version, registry.record)

    def _write(self, case: _Case, state: CredentialState) -> _Case:
        version = self._store.put(state.uid, state, case.version)
        return replace(case, state=state, version=version)

    def _is_finished(self, case: _Case, request: str) -> bool:
        stored = self._readable_record(History, case.spec.uid)
        return stored is not None and any(known.id == request for known in stored.record.operations)

    def _superseded(self, case: _Case) -> _Case:
        """Close an operation that is published already, so that a newer one can open."""
        if case.state.op is None:
            return case
        failure = Failure("Superseded", "a newer value was published before every target had this one")
        state, ended = settle(case.state, self._desk.clock(), case.state.op.progress, failure)
        self.record(case.spec.uid, replace(ended, state=OperationState.CANCELLED))
        return self._write(case, state)


def _ensure_newest(case: _Case, candidate: Candidate) -> None:
    """Refuse a value that waited while another was published."""
    if case.state.head.pub > candidate.seen_pub:
        raise _Dropped(Failure("Superseded", "a newer value was published while this one waited"))
