"""The rules of `core.rotation` over every sequence of transitions that hypothesis can think of."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secretsvc.core.model import (
    Binding,
    Candidate,
    CredentialSpec,
    CredentialState,
    CredentialType,
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
    RegistryKind,
    RegistrySpec,
    Secret,
    Stage,
    Verb,
)
from secretsvc.core.rotation import (
    HISTORY_LENGTH,
    appended,
    claim,
    condition,
    confirmed,
    may_become_current,
    promote,
    roll_back,
    settle,
    stage,
    wanted,
    yields,
)
from secretsvc.core.rules import (
    Component,
    Delivery,
    DeliveryState,
    NamespaceSelection,
    PullSecretRule,
)
from tests.fakes import NOON, verdict_of

BOUND = Binding("reg.example.com", (), insecure=False, ca_digest="")
LOGIN = Login(CredentialType.TOKEN, "robot", Secret("value"))


def candidate(name: str) -> Candidate:
    return Candidate(name, "prod", "uid", LOGIN, verdict_of(Outcome.VALID), BOUND, NOON, "ann")


def item(name: str) -> InboxItem:
    return InboxItem(name, Verb.ROLLBACK, "credential", "prod", "uid", NOON, "ann")


def generation(state: CredentialState, number: int, operation: str) -> Generation:
    return Generation(state.uid, number, LOGIN, BOUND, NOON, "print", operation)


def step(state: CredentialState, move: str, serial: int) -> CredentialState:
    """Make one move where it is allowed, as the workflows do; otherwise stay."""
    if move == "claim" and yields(state.op):
        return claim(replace(state, op=None), candidate(f"c{serial}"), NOON)
    if move == "promote" and state.op is not None and state.op.phase is Phase.ISSUING:
        return promote(state, generation(state, state.op.to, state.op.id), NOON)
    if move == "roll back" and yields(state.op) and state.head.prev:
        previous = generation(state, state.head.prev, "earlier")
        return roll_back(
            replace(state, op=None), item(f"r{serial}"), previous, verdict_of(Outcome.VALID), NOON
        )
    if move == "settle" and state.op is not None and state.op.phase is Phase.DISTRIBUTING:
        return settle(state, NOON, Progress(1, 1))[0]
    return state


MOVES = st.lists(st.sampled_from(["claim", "promote", "roll back", "settle"]), max_size=40)


@given(MOVES)
def test_publications_and_numbers_only_rise(moves: list[str]) -> None:
    state = CredentialState("uid", "prod")
    used: set[int] = set()
    for serial, move in enumerate(moves):
        after = step(state, move, serial)
        assert after.next_gen >= state.next_gen
        assert after.head.pub - state.head.pub in (0, 1)
        assert after.epoch >= state.epoch
        if after.next_gen > state.next_gen:
            assert after.op is not None
            assert after.op.to not in used
            used.add(after.op.to)
        if after.head != state.head:
            assert after.head.pub == state.head.pub + 1
            assert after.head.prev == state.head.cur
        assert after.head.cur < after.next_gen
        state = after


@given(MOVES, st.integers(0, 3))
def test_wanted_is_a_published_generation_and_never_ahead(moves: list[str], wave: int) -> None:
    state = CredentialState("uid", "prod")
    for serial, move in enumerate(moves):
        state = step(state, move, serial)
        want = wanted(state, wave)
        if not state.head.cur:
            assert want is None
        else:
            assert want is not None
            assert (want.pub, want.generation) == (state.head.pub, state.head.cur)


def distributing(wave: int) -> CredentialState:
    op = Operation(
        "o",
        OperationKind.REPLACE,
        OperationState.RUNNING,
        "ann",
        NOON,
        NOON,
        Phase.DISTRIBUTING,
        to=2,
        wave=wave,
    )
    return CredentialState("uid", "prod", head=Head(pub=7, cur=2, prev=1), op=op)


def test_a_target_of_a_closed_wave_wants_the_previous_publication() -> None:
    state = distributing(wave=0)
    assert wanted(state, 0) is not None
    closed = wanted(state, 1)
    assert closed is not None
    assert (closed.pub, closed.generation) == (6, 1)


def test_a_first_generation_is_wanted_even_in_a_closed_wave() -> None:
    state = replace(distributing(wave=0), head=Head(pub=1, cur=1, prev=0))
    want = wanted(state, 5)
    assert want is not None
    assert want.generation == 1


def test_only_the_holder_of_a_number_may_publish_it() -> None:
    state = claim(CredentialState("uid", "prod"), candidate("c1"), NOON)
    with pytest.raises(ValueError, match="holds a number"):
        promote(state, generation(state, 1, "somebody-else"), NOON)
    with pytest.raises(ValueError, match="holds a number"):
        promote(state, generation(state, 2, "c1"), NOON)


def test_rollback_takes_only_the_previous_generation() -> None:
    state = CredentialState("uid", "prod", head=Head(3, 3, 2), next_gen=4)
    with pytest.raises(ValueError, match="previous"):
        roll_back(state, item("r1"), generation(state, 1, "x"), verdict_of(Outcome.VALID), NOON)


def test_stages() -> None:
    state = CredentialState("uid", "prod", head=Head(3, 3, 2), next_gen=4)
    assert [stage(state, number) for number in (1, 2, 3)] == [None, Stage.PREVIOUS, Stage.CURRENT]
    assert stage(claim(state, candidate("c9"), NOON), 4) is Stage.PENDING


def test_settling_keeps_what_went_wrong() -> None:
    failure = Failure("Stragglers", "two are missing")
    state, ended = settle(distributing(0), NOON, Progress(1, 3), failure)
    assert state.op is None
    assert (ended.state, ended.failure, ended.progress) == (OperationState.FAILED, failure, Progress(1, 3))


@given(st.lists(st.integers(0, 80), max_size=120))
def test_history_is_bounded_and_holds_an_operation_once(ids: list[int]) -> None:
    history = History("uid")
    for number in ids:
        op = Operation(f"o{number}", OperationKind.SYNC, OperationState.SUCCEEDED, "ann", NOON, NOON)
        history = appended(history, op)
    known = [op.id for op in history.operations]
    assert len(known) == len(set(known)) <= HISTORY_LENGTH
    if ids:
        assert known[-1] == f"o{ids[-1]}"


@given(st.sampled_from(Outcome), st.sampled_from(["", "because"]))
def test_only_proof_or_a_recorded_override_of_the_unverifiable_publishes(outcome: Outcome, why: str) -> None:
    allowed = may_become_current(verdict_of(outcome), why)
    proved = outcome in (Outcome.VALID, Outcome.VALID_PULL_CONFIRMED, Outcome.VALID_NO_ACCESS)
    assert allowed == (proved or (outcome is Outcome.UNVERIFIABLE and bool(why)))


SPEC = CredentialSpec("uid", "prod", "reg", CredentialType.TOKEN, "robot", NOON, "ann")
REGISTRY = RegistrySpec("ruid", "reg", BOUND.host, RegistryKind.GENERIC, NOON, "ann")


@pytest.mark.parametrize(
    ("changes", "registry", "shown"),
    [
        ({}, REGISTRY, "active"),
        ({"verdict": None}, REGISTRY, "unverified"),
        ({"head": Head()}, REGISTRY, "unverified"),
        ({"verdict": verdict_of(Outcome.UNAVAILABLE), "head": Head()}, REGISTRY, "unverified"),
        ({"verdict": verdict_of(Outcome.UNVERIFIABLE)}, REGISTRY, "unverified"),
        ({"verdict": verdict_of(Outcome.INVALID)}, REGISTRY, "invalid"),
        ({"verdict": verdict_of(Outcome.EXPIRED)}, REGISTRY, "expired"),
        ({"expires_at": NOON}, REGISTRY, "expired"),
        ({"expires_at": NOON + timedelta(seconds=1)}, REGISTRY, "active"),
        ({}, replace(REGISTRY, host="other.example.com"), "stale"),
        ({}, replace(REGISTRY, insecure=True), "stale"),
        ({}, replace(REGISTRY, ca="PEM"), "stale"),
        ({}, replace(REGISTRY, realms=("https://auth.example.com/",)), "stale"),
        ({}, replace(REGISTRY, networks=("10.0.0.0/8",)), "active"),
    ],
)
def test_condition(changes: dict[str, object], registry: RegistrySpec, shown: str) -> None:
    facts = {"head": Head(1, 1, 0), "verdict": verdict_of(Outcome.VALID), "bound_to": BOUND, **changes}
    state = CredentialState("uid", "prod", **facts)
    assert condition(SPEC, state, registry, NOON) == shown


def test_no_state_yet_is_unverified() -> None:
    assert condition(SPEC, None, REGISTRY, NOON) == "unverified"


def test_confirmed_counts_only_wished_targets_at_the_publication() -> None:
    rule = PullSecretRule("r", "rule", "pull", ("prod",), NamespaceSelection(("a", "b", "c")), NOON, "ann")
    state = CredentialState("uid", "prod", head=Head(pub=2, cur=2, prev=1))

    def at(target: str, pub: int) -> Delivery:
        return Delivery(target, DeliveryState.SYNCED, "", "", NOON, (Component("prod", pub, pub),))

    seen = [at("a", 2), at("b", 1), at("gone", 2)]
    assert confirmed(rule, seen, state, Progress(1, 1)) == Progress(2, 4)
    assert confirmed(replace(rule, deleted_at=NOON), seen, state, Progress()) == Progress(0, 0)
