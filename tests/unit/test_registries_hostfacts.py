"""What the prover remembers between checks."""

from __future__ import annotations

import threading
from collections.abc import Hashable

from secretsvc.registries.hostfacts import HostFacts, Turns
from tests.fakes import SettableClock


def test_a_fact_lives_for_a_day() -> None:
    clock = SettableClock()
    facts: HostFacts[bool] = HostFacts(clock)
    assert facts.get("k") is None
    facts.keep("k", False)
    clock.advance(hours=23, minutes=59)
    assert facts.get("k") is False
    clock.advance(minutes=1)
    assert facts.get("k") is None


def test_the_memory_is_bounded() -> None:
    facts: HostFacts[int] = HostFacts(SettableClock())
    for number in range(5000):
        facts.keep(number, number)
    assert facts.get(0) is None
    assert facts.get(4999) == 4999


def test_one_at_a_time_per_key() -> None:
    turns = Turns()
    inside: dict[Hashable, int] = {"a": 0, "b": 0}
    most: dict[Hashable, int] = {"a": 0, "b": 0}

    def work(key: str) -> None:
        for _ in range(200):
            with turns.take(key, 60) as came:
                assert came
                inside[key] += 1
                most[key] = max(most[key], inside[key])
                inside[key] -= 1

    threads = [threading.Thread(target=work, args=(key,)) for key in "aabb"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == {"a": 1, "b": 1}


def test_who_waits_too_long_gives_up_and_another_key_does_not_wait() -> None:
    turns = Turns()
    with turns.take("a", 60):
        with turns.take("a", 0) as came:
            assert not came
        with turns.take("b", 0) as came:
            assert came
    with turns.take("a", 0) as came:
        assert came
