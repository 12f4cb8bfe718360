"""Answers that are kept for a moment, because anybody may ask and asking is slow.

One caller at a time asks anew. The others do not queue behind it: they get the last answer. Where there is
none that is young enough they wait a moment for the one that is coming, and then get one that says so.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")
_MOMENT_S = 1.0
"""What a caller waits for an answer that another one is asking for; the first two may come together."""


class Kept(Generic[T]):
    """A question whose answer is kept. Safe in threads.

    Args:
        ask: asks the question; what it raises reaches the caller that asks anew, and nothing is kept then.
        missing: the answer when somebody has asked for more than a moment and there is no other.
        fresh_s: seconds for which an answer is not asked for again.
        stale_s: seconds after which an answer is given to nobody any more.
        monotonic: seconds that only rise.
    """

    def __init__(
        self,
        ask: Callable[[], T],
        missing: T,
        *,
        fresh_s: float,
        stale_s: float,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask = ask
        self._missing = missing
        self._fresh_s = fresh_s
        self._stale_s = stale_s
        self._monotonic = monotonic
        self._asking = threading.Lock()
        self._kept: tuple[float, T] | None = None

    def __call__(self) -> T:
        """Return an answer."""
        kept = self._younger_than(self._fresh_s)
        if kept is not None:
            return kept[1]
        if not self._asking.acquire(blocking=False):
            kept = self._younger_than(self._stale_s)
            if kept is not None:
                return kept[1]
            if not self._asking.acquire(timeout=_MOMENT_S):
                return self._missing
        try:
            kept = self._younger_than(self._fresh_s)  # somebody may have asked just now
            if kept is None:
                answer = self._ask()
                kept = self._kept = self._monotonic(), answer
            return kept[1]
        finally:
            self._asking.release()

    def _younger_than(self, seconds: float) -> tuple[float, T] | None:
        kept = self._kept
        return kept if kept is not None and self._monotonic() - kept[0] < seconds else None
