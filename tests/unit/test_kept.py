"""Kept answers: asked by one at a time, and nobody waits for somebody else's question."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from secretsvc.telemetry.kept import Kept
from secretsvc.telemetry.metrics import Metrics, Snapshot

WAIT = 20.0


class Slow:
    """A question that takes as long as it is told to; time passes only when it is told to."""

    def __init__(self) -> None:
        self.asked = 0
        self.seconds = 0.0
        self.lasts = 0.0
        self.begun, self.may_end = threading.Event(), threading.Event()
        self.may_end.set()

    def __call__(self) -> int:
        self.asked += 1
        self.begun.set()
        assert self.may_end.wait(WAIT)
        self.seconds += self.lasts
        return self.asked

    def monotonic(self) -> float:
        return self.seconds


def kept(slow: Slow) -> Kept[int]:
    return Kept(slow, 0, fresh_s=5, stale_s=60, monotonic=slow.monotonic)


def test_an_answer_is_fresh_from_when_it_came_however_long_it_took() -> None:
    slow = Slow()
    answer = kept(slow)
    slow.lasts = 30
    assert answer() == 1
    slow.seconds += 4.9
    assert answer() == 1
    slow.seconds += 0.2
    assert answer() == 2


def test_the_first_two_who_come_together_get_the_same_answer() -> None:
    slow = Slow()
    answer = kept(slow)
    slow.may_end.clear()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(answer)
        assert slow.begun.wait(WAIT)
        other = pool.submit(answer)
        slow.may_end.set()
        assert (first.result(WAIT), other.result(WAIT)) == (1, 1)
    assert slow.asked == 1


@pytest.mark.parametrize(("age", "given"), [(6, 1), (61, 0)])
def test_while_one_asks_others_get_the_last_answer_or_none(age: float, given: int) -> None:
    slow = Slow()
    answer = kept(slow)
    assert answer() == 1
    slow.seconds += age
    slow.begun.clear()
    slow.may_end.clear()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(answer)
        assert slow.begun.wait(WAIT)
        try:
            assert pool.submit(answer).result(WAIT) == given
        finally:
            slow.may_end.set()
        assert first.result(WAIT) == 2
    assert slow.asked == 2


def test_a_question_that_fails_may_be_asked_again() -> None:
    answers = iter([0, 1])
    answer = Kept(lambda: 1 // next(answers), 7, fresh_s=5, stale_s=60, monotonic=lambda: 0.0)
    with pytest.raises(ZeroDivisionError):
        answer()
    assert answer() == 1


def test_a_scrape_does_not_wait_for_another_one_s_snapshot() -> None:
    begun, may_end = threading.Event(), threading.Event()

    def snapshot() -> Snapshot:
        begun.set()
        assert may_end.wait(WAIT)
        return Snapshot(store_up=True)

    metrics = Metrics("1", snapshot)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(metrics.render)
        assert begun.wait(WAIT)
        try:
            assert b"secretsvc_store_up 0.0" in pool.submit(metrics.render).result(WAIT)
        finally:
            may_end.set()
        assert b"secretsvc_store_up 1.0" in first.result(WAIT)
