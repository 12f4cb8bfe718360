"""Candidates and verbs on the work side: what becomes of them, and a stop after every write."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from secretsvc.core.errors import Conflict, InvalidInput, NotProved, PreconditionFailed
from secretsvc.core.model import (
    Candidate,
    CredentialSpec,
    CredentialState,
    CredentialType,
    Generation,
    History,
    InboxItem,
    Login,
    OperationState,
    Outcome,
    Progress,
    RegistrySpec,
    Secret,
    generation_name,
)
from secretsvc.core.ports import Record
from secretsvc.workflows.intake import Intake, Taken
from secretsvc.workflows.records import Desk
from secretsvc.workflows.register import CredentialDraft, NewValue, Registrar, RegistryDraft
from secretsvc.workflows.report import Reporter
from secretsvc.workflows.world import World
from tests.fakes import CountingEntropy, FakeProver, ListAudit, MemoryStore, SettableClock, verdict_of


class Killed(BaseException):
    """The process ends here."""


class Interrupted(MemoryStore):
    """A store whose caller is killed after a given number of writes."""

    def __init__(self) -> None:
        super().__init__()
        self.left: int | None = None

    def put(self, name: str, record: Record, expected: int) -> int:
        version = super().put(name, record, expected)
        self._count()
        return version

    def remove(self, kind: type[Record], name: str, expected: int) -> None:
        super().remove(kind, name, expected)
        self._count()

    def _count(self) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left <= 0:
                self.left = None
                raise Killed


class Bench:
    """Both halves over one store, without processes."""

    def __init__(self) -> None:
        self.store = Interrupted()
        self.clock = SettableClock()
        self.prover = FakeProver()
        self.audit = ListAudit()
        self.desk = Desk(self.store, self.clock, CountingEntropy(), lambda: None)
        self.registrar = Registrar(self.desk, self.prover, self.audit)
        self.restart()

    def restart(self) -> None:
        world = World(self.store)
        world.load(self.desk)
        self.intake = Intake(self.desk, self.prover, world, self.audit)

    def register(self, value: str = "one", **draft: object) -> str:
        self.clock.advance(seconds=1)
        if not self.store.names(RegistrySpec):
            self.registrar.add_registry(RegistryDraft("reg", "reg.example.com"), "ann")
        wish = CredentialDraft("prod", "reg", login(value), **draft)
        return self.registrar.register(wish, "ann").operation.partition("-")[0]

    def put(self, value: str, **fields: object) -> str:
        self.clock.advance(seconds=1)
        made = self.registrar.replace_value("prod", NewValue(login(value), **fields), None, "ann")
        return made.operation.partition("-")[0]

    def take_all(self) -> None:
        for name in self.store.names(Candidate):
            self.intake.take_candidate(name)

    @property
    def state(self) -> CredentialState:
        spec = self.store.get(CredentialSpec, "prod")
        assert spec is not None
        state = self.store.get(CredentialState, spec.record.uid)
        assert state is not None
        return state.record

    @property
    def history(self) -> list[OperationState]:
        stored = self.store.get(History, self.state.uid)
        return [op.state for op in stored.record.operations] if stored else []

    def value(self, number: int) -> str:
        found = self.store.get(Generation, generation_name(self.state.uid, number))
        assert found is not None
        return found.record.login.secret.reveal()

    def settle(self) -> None:
        op = self.state.op
        assert op is not None
        self.intake.settle(self.state, op.id, Progress(), None)


def login(value: str) -> Login:
    return Login(CredentialType.TOKEN, "robot", Secret(value))


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_proved_value_becomes_generation_one(bench: Bench) -> None:
    bench.register()
    bench.take_all()
    assert (bench.state.head.pub, bench.state.head.cur, bench.state.next_gen) == (1, 1, 2)
    assert bench.value(1) == "one"
    assert bench.store.names(Candidate) == []


def test_a_refused_value_leaves_nothing(bench: Bench) -> None:
    bench.prover.answer = Outcome.INVALID
    with pytest.raises(NotProved) as refusal:
        bench.register(allow_unverified=True)
    assert refusal.value.verdict.outcome is Outcome.INVALID
    assert bench.store.names(Candidate) == bench.store.names(CredentialSpec) == []


def test_a_refusal_does_not_register_its_unknown_host(bench: Bench) -> None:
    bench.prover.answer = Outcome.INVALID
    draft = CredentialDraft("prod", "new.example.com", login("x"))
    with pytest.raises(NotProved):
        bench.registrar.register(draft, "ann")
    assert bench.store.names(RegistrySpec) == []
    bench.prover.answer = Outcome.VALID
    made = bench.registrar.register(draft, "ann")
    assert made.new_registry is not None
    assert bench.store.names(RegistrySpec) == ["new-example-com"]


def test_an_unreachable_registry_is_kept_only_when_asked(bench: Bench) -> None:
    bench.prover.answer = Outcome.UNAVAILABLE
    with pytest.raises(NotProved):
        bench.register()
    name = bench.register(allow_unverified=True)
    assert bench.intake.take_candidate(name) is Taken.WAITING
    assert bench.state.head.cur == 0
    bench.prover.answer = Outcome.VALID
    assert bench.intake.take_candidate(name) is Taken.DONE
    assert bench.state.head.cur == 1
    assert bench.state.verdict is not None
    assert bench.state.verdict.outcome is Outcome.VALID


def test_a_waiting_value_that_turns_out_refused_is_dropped(bench: Bench) -> None:
    bench.prover.answer = Outcome.UNAVAILABLE
    name = bench.register(allow_unverified=True)
    bench.prover.answer = Outcome.INVALID
    assert bench.intake.take_candidate(name) is Taken.DONE
    assert bench.store.names(Candidate) == []
    assert bench.state.head.cur == 0
    assert bench.history == [OperationState.FAILED]


def test_a_waiting_value_never_replaces_a_newer_one(bench: Bench) -> None:
    bench.register("one")
    bench.take_all()
    bench.settle()
    bench.prover.answer = Outcome.UNAVAILABLE
    old = bench.put("old", allow_unverified=True)
    assert bench.intake.take_candidate(old) is Taken.WAITING
    bench.prover.answer = Outcome.VALID
    new = bench.put("new")
    assert bench.intake.take_candidate(new) is Taken.DONE
    assert bench.intake.take_candidate(old) is Taken.DONE
    assert bench.value(bench.state.head.cur) == "new"


def test_a_value_proved_at_another_place_is_never_published(bench: Bench) -> None:
    name = bench.register()
    moved = RegistryDraft("reg", "elsewhere.example.com")
    bench.registrar.change_registry(moved, None, "ann")
    asked = len(bench.prover.asked)
    assert bench.intake.take_candidate(name) is Taken.DONE
    assert bench.state.head.cur == 0
    assert len(bench.prover.asked) == asked


def test_replacing_and_rolling_back(bench: Bench) -> None:
    bench.register("one")
    bench.take_all()
    bench.put("two")
    bench.take_all()
    assert (bench.state.head.pub, bench.state.head.cur, bench.state.head.prev) == (2, 2, 1)
    verb(bench, lambda: bench.registrar.roll_back("prod", "ann"))
    assert (bench.state.head.pub, bench.state.head.cur, bench.state.head.prev) == (3, 1, 2)


def verb(bench: Bench, ask: Callable[[], str]) -> Taken:
    bench.clock.advance(seconds=1)
    item = bench.store.get(InboxItem, ask().partition("-")[0])
    assert item is not None
    return bench.intake.take_verb(item.record)


def test_a_rollback_to_a_dead_value_is_refused_unless_forced(bench: Bench) -> None:
    bench.register("one")
    bench.take_all()
    bench.put("two")
    bench.take_all()
    bench.settle()
    bench.prover.answer = Outcome.INVALID
    verb(bench, lambda: bench.registrar.roll_back("prod", "ann"))
    assert bench.state.head.cur == 2
    assert bench.history[-1] is OperationState.FAILED
    verb(bench, lambda: bench.registrar.roll_back("prod", "ann", force=True, reason="registry is lying"))
    assert bench.state.head.cur == 1
    assert bench.state.op is not None
    assert bench.state.op.reason == "registry is lying"


def test_no_rollback_without_a_previous_value(bench: Bench) -> None:
    bench.register()
    bench.take_all()
    with pytest.raises(Conflict, match="no previous"):
        bench.registrar.roll_back("prod", "ann")


def test_validate_keeps_the_last_conclusive_verdict(bench: Bench) -> None:
    bench.register()
    bench.take_all()
    bench.settle()
    bench.prover.answer = Outcome.UNAVAILABLE
    verb(bench, lambda: bench.registrar.validate("prod", "ann"))
    assert bench.state.verdict is not None
    assert bench.state.verdict.outcome is Outcome.VALID
    bench.prover.answer = Outcome.INVALID
    verb(bench, lambda: bench.registrar.validate("prod", "ann"))
    assert bench.state.verdict.outcome is Outcome.INVALID
    assert bench.state.head.cur == 1


def test_a_stored_value_is_never_sent_to_a_changed_registry(bench: Bench) -> None:
    bench.register()
    bench.take_all()
    bench.settle()
    bench.registrar.change_registry(RegistryDraft("reg", "evil.example.com"), None, "ann")
    asked = len(bench.prover.asked)
    verb(bench, lambda: bench.registrar.validate("prod", "ann"))
    assert len(bench.prover.asked) == asked
    assert bench.history[-1] is OperationState.FAILED


def test_a_newer_value_supersedes_one_that_is_still_distributing(bench: Bench) -> None:
    bench.register("one")
    bench.take_all()
    bench.put("two")
    bench.take_all()
    bench.put("three")
    bench.take_all()
    assert bench.value(bench.state.head.cur) == "three"
    assert bench.history == [OperationState.CANCELLED, OperationState.CANCELLED]


def test_a_left_over_candidate_is_swept_and_a_young_one_is_not(bench: Bench) -> None:
    name = bench.register()
    stored = bench.store.get(Candidate, name)
    assert stored is not None
    lost = replace(stored.record, id="0" * 26, credential="never", credential_uid="x")
    bench.store.put(lost.id, lost, 0)
    assert bench.intake.take_candidate(lost.id) is Taken.EARLY
    bench.clock.advance(minutes=11)
    assert bench.intake.take_candidate(lost.id) is Taken.DONE
    assert bench.store.names(Candidate) == [name]


def test_a_deleted_credential_is_swept_whole(bench: Bench) -> None:
    bench.register()
    bench.take_all()
    bench.put("two")
    bench.take_all()
    bench.registrar.delete_credential("prod", None, "ann")
    with pytest.raises(Conflict, match="cleaned up"):
        bench.register()
    stored = bench.store.get(CredentialSpec, "prod")
    assert stored is not None
    bench.intake.sweep_credential(stored)
    for kind in (CredentialSpec, CredentialState, Generation, History):
        assert bench.store.names(kind) == []


def test_a_value_that_waits_goes_with_its_credential(bench: Bench) -> None:
    bench.prover.answer = verdict_of(Outcome.UNAVAILABLE)
    name = bench.register(allow_unverified=True)
    waiting = bench.store.get(Candidate, name)
    assert waiting is not None
    others = replace(waiting.record, id="z" * 26, credential="other", credential_uid="other")
    bench.store.put(others.id, others, 0)
    bench.registrar.delete_credential("prod", None, "ann")
    stored = bench.store.get(CredentialSpec, "prod")
    assert stored is not None
    bench.intake.sweep_credential(stored)
    assert bench.store.names(Candidate) == [others.id]


def test_a_taken_name_is_refused_and_leaves_no_second_credential(bench: Bench) -> None:
    bench.register()
    with pytest.raises(Conflict, match="already"):
        bench.register()


STORY = ("one", "two", "three")


def tell(bench: Bench, number: int) -> None:
    """Serve's part of the story's next step; a caller who got no answer does not know whether it worked."""
    value = STORY[number]
    if number == 0:
        bench.register(value)
    else:
        bench.put(value)


@pytest.mark.parametrize("stop", range(1, 13))
@pytest.mark.parametrize("again", [None, *range(1, 8)])
def test_a_stop_after_any_write_loses_and_doubles_nothing(stop: int, again: int | None) -> None:
    bench = Bench()
    kills = [stop, again]
    for number in range(len(STORY)):
        tell(bench, number)
        if number == len(STORY) - 1:
            for left in kills:
                bench.store.left = left
                try:
                    bench.take_all()
                    if bench.state.op is not None:
                        bench.settle()
                except Killed:
                    bench.restart()
            bench.store.left = None
        bench.take_all()
        if bench.state.op is not None:
            bench.settle()
    assert bench.value(bench.state.head.cur) == "three"
    assert bench.value(bench.state.head.prev) == "two"
    assert bench.state.head.pub == 3
    assert bench.state.next_gen == 4
    assert bench.store.names(Candidate) == []
    assert bench.history == [OperationState.SUCCEEDED] * 3
    published = [act.facts["generation"] for act in bench.audit.acts if act.action == "credential.promote"]
    assert sorted(set(published)) in ([1, 2, 3], [1, 2])
    assert bench.state.verdict == verdict_of(Outcome.VALID)


def test_a_change_that_changes_nothing_keeps_the_version(bench: Bench) -> None:
    bench.register()
    before = bench.store.get(CredentialSpec, "prod")
    assert before is not None
    assert bench.registrar.change_credential("prod", {}, before.version, "ann") == before
    assert bench.registrar.change_credential("prod", {"labels": {}}, None, "ann") == before
    with pytest.raises(PreconditionFailed):
        bench.registrar.change_credential("prod", {}, before.version + 1, "ann")
    assert bench.registrar.change_credential("prod", {"labels": {"a": "b"}}, None, "ann") != before


def test_a_bad_host_is_a_fault_of_the_registry_field(bench: Bench) -> None:
    with pytest.raises(InvalidInput) as refused:
        bench.registrar.register(CredentialDraft("prod", "not a host:5000", login("x")), "ann")
    assert [fault.pointer for fault in refused.value.fields] == ["/registry"]


def test_a_registry_that_goes_while_a_value_is_proved_is_a_conflict(bench: Bench) -> None:
    bench.registrar.add_registry(RegistryDraft("reg", "reg.example.com"), "ann")

    def delete_it(*_: object) -> Outcome:
        bench.registrar.delete_registry("reg", None, "eve")
        return Outcome.VALID

    bench.prover.answer = delete_it
    with pytest.raises(Conflict, match="changed while"):
        bench.register()
    assert bench.store.names(Candidate) == bench.store.names(CredentialSpec) == []


def test_a_missing_registry_loses_no_value(bench: Bench) -> None:
    name = bench.register()
    registry = bench.store.get(RegistrySpec, "reg")
    assert registry is not None
    bench.store.remove(RegistrySpec, "reg", registry.version)
    bench.clock.advance(hours=1)
    assert bench.intake.take_candidate(name) is Taken.EARLY
    bench.store.put("reg", registry.record, 0)
    assert bench.intake.take_candidate(name) is Taken.DONE
    assert bench.value(1) == "one"


def test_a_new_value_is_not_stored_when_the_wish_changed_while_it_was_proved(bench: Bench) -> None:
    bench.register()
    bench.take_all()
    version = bench.registrar.change_credential("prod", {"labels": {"a": "b"}}, None, "ann").version

    def change_it(*_: object) -> Outcome:
        bench.registrar.change_credential("prod", {"labels": {"c": "d"}}, None, "eve")
        return Outcome.VALID

    bench.prover.answer = change_it
    with pytest.raises(PreconditionFailed):
        bench.registrar.replace_value("prod", NewValue(login("two")), version, "ann")
    assert bench.store.names(Candidate) == []


def test_the_username_shown_is_the_one_that_is_published(bench: Bench) -> None:
    def shown() -> str:
        return Reporter(bench.desk).credential("prod").spec.username

    bench.register("one")
    bench.take_all()
    other = Login(CredentialType.PASSWORD, "robot-2", Secret("two"))
    bench.clock.advance(seconds=1)
    bench.registrar.replace_value("prod", NewValue(other), None, "ann")
    assert shown() == "robot"
    bench.take_all()
    assert shown() == "robot-2"
    assert [act.action for act in bench.audit.acts].count("credential.replace") == 1
    verb(bench, lambda: bench.registrar.roll_back("prod", "ann"))
    assert shown() == "robot"


def test_the_same_value_again_keeps_the_previous_one_in_reach(bench: Bench) -> None:
    bench.register("one")
    bench.take_all()
    bench.put("two")
    bench.take_all()
    bench.settle()
    head = bench.state.head
    bench.put("two")
    bench.take_all()
    assert bench.state.head == head
    assert bench.history[-1] is OperationState.SUCCEEDED
    assert bench.store.names(Candidate) == []


def test_the_same_value_is_a_new_generation_at_a_changed_registry(bench: Bench) -> None:
    bench.register("one")
    bench.take_all()
    bench.settle()
    bench.registrar.change_registry(RegistryDraft("reg", "moved.example.com"), None, "ann")
    bench.put("one")
    bench.take_all()
    assert bench.state.head.cur == 2


def test_validate_asks_at_once_about_a_value_that_waits(bench: Bench) -> None:
    bench.prover.answer = Outcome.UNAVAILABLE
    name = bench.register(allow_unverified=True)
    assert bench.intake.take_candidate(name) is Taken.WAITING
    verb(bench, lambda: bench.registrar.validate("prod", "ann"))
    assert bench.state.head.cur == 0
    bench.prover.answer = Outcome.VALID
    verb(bench, lambda: bench.registrar.validate("prod", "ann"))
    assert bench.state.head.cur == 1
    assert bench.store.names(Candidate) == []


def test_the_expiry_is_what_the_caller_said_last(bench: Bench) -> None:
    def shown() -> datetime | None:
        return Reporter(bench.desk).credential("prod").expires_at

    soon, later = bench.clock() + timedelta(days=1), bench.clock() + timedelta(days=30)
    bench.register(expires_at=soon)
    bench.take_all()
    assert shown() == soon
    bench.registrar.change_credential("prod", {"expires_at": later}, None, "ann")
    assert shown() == later
    bench.put("two")
    bench.take_all()
    assert shown() is None
