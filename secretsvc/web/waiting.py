"""``Prefer: wait=N`` (RFC 7240): hold an answer back until the work is done, for at most N seconds.

A preference, not a promise: a request that waits occupies a thread, so only some may wait at once and the
others are answered at once. The store is asked every 100 ms.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

LONGEST_S = 60
_POLL_S = 0.1
_SEATS = 8
"""Requests that may wait at once: half of those that serve works on at once."""
_WAIT = re.compile(r"wait=\"?([0-9]{1,4})\"?\Z")


@dataclass(frozen=True, slots=True)
class Patience:
    """Waits for conditions.

    Args:
        sleep: pauses for that many seconds.
        monotonic: seconds that only rise.
        seats: bounds how many wait at once.
    """

    sleep: Callable[[float], None] = time.sleep
    monotonic: Callable[[], float] = time.monotonic
    seats: threading.BoundedSemaphore = field(default_factory=lambda: threading.BoundedSemaphore(_SEATS))

    def until(self, done: Callable[[], bool], seconds: int) -> bool:
        """Ask ``done`` until it says yes or the time is over; return whether it said yes."""
        if seconds <= 0 or not self.seats.acquire(blocking=False):
            return False
        try:
            deadline = self.monotonic() + seconds
            while not done():
                if self.monotonic() >= deadline:
                    return False
                self.sleep(_POLL_S)
        finally:
            self.seats.release()
        return True


def wished_wait(prefer: str) -> int:
    """Return the seconds that a ``Prefer`` header asks to wait, at most 60; 0 when it does not.

    What can not be understood is ignored, as the RFC asks.
    """
    for preference in prefer.split(","):
        match = _WAIT.match(preference.partition(";")[0].strip().replace(" ", "").lower())
        if match is not None:
            return min(int(match.group(1)), LONGEST_S)
    return 0
