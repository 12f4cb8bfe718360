"""What is remembered between checks: facts about hosts, and whose turn it is.

Rules: a fact lives for a day in this process's memory and is never about a credential. One check at a time
per key; who waits longer than its own deadline gives up. Nothing is stored.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Generic, TypeVar

from secretsvc.core.ports import Clock

T = TypeVar("T")

FACT_LIFE = timedelta(hours=24)
_MOST_FACTS = 4096


class HostFacts(Generic[T]):
    """A bounded memory whose entries end after a day. Safe to share between threads."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._facts: OrderedDict[Hashable, tuple[datetime, T]] = OrderedDict()

    def get(self, key: Hashable) -> T | None:
        """Return what is known, or None."""
        with self._lock:
            known = self._facts.get(key)
        if known is None or known[0] <= self._clock():
            return None
        return known[1]

    def keep(self, key: Hashable, fact: T) -> None:
        """Remember a fact, forgetting the oldest when there are too many."""
        with self._lock:
            self._facts[key] = (self._clock() + FACT_LIFE, fact)
            self._facts.move_to_end(key)
            while len(self._facts) > _MOST_FACTS:
                self._facts.popitem(last=False)


class _Turn:
    """A lock and how many hold or want it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users = 0


class Turns:
    """One at a time per key. A key that nobody uses costs nothing."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._turns: dict[Hashable, _Turn] = {}

    @contextmanager
    def take(self, key: Hashable, seconds: float) -> Iterator[bool]:
        """Wait for the turn, at most ``seconds``; yields whether it came."""
        with self._guard:
            turn = self._turns.setdefault(key, _Turn())
            turn.users += 1
        try:
            came = turn.lock.acquire(timeout=seconds)
            try:
                yield came
            finally:
                if came:
                    turn.lock.release()
        finally:
            with self._guard:
                turn.users -= 1
                if not turn.users:
                    del self._turns[key]
