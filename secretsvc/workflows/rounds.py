"""When each rule is looked at next, and who asked: the worker's timetable.

A rule is in one round at a time. What is asked for during a round is looked at in the next one, at once.
Seconds are those of a monotonic clock.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from secretsvc.core.model import InboxItem
from secretsvc.core.ports import Stored
from secretsvc.core.rules import DeliveryState, PullSecretRule
from secretsvc.workflows.deliver import Pass
from secretsvc.workflows.world import StoredRule

DRIFT_S = 60.0
"""A settled rule is compared with its targets this often."""
FILE_DRIFT_S = 10.0
"""The same for auth files: a `podman login` that read the file before us may write it after us."""
BACKOFF_S = (2.0, 60.0)

_RETRY_S = {
    DeliveryState.PENDING: 10.0,
    DeliveryState.CONFLICT: 30.0,
    DeliveryState.DENIED: 30.0,
}


@dataclass(slots=True)
class Rounds:
    """The timetable. For one event loop; nothing here waits."""

    asked: dict[str, list[Stored[InboxItem]]] = field(default_factory=dict)
    """Rule uid to the requests that the end of its next round answers."""
    _due: dict[str, float] = field(default_factory=dict)
    _running: set[str] = field(default_factory=set)
    _failures: dict[str, int] = field(default_factory=dict)

    def soon(self, uids: Iterable[str]) -> None:
        """Look at rules as soon as possible, again if they are being looked at."""
        self._due |= dict.fromkeys(uids, 0.0)

    def wait(self) -> float:
        """Return how many seconds there are until the next round is due."""
        waiting = [at for uid, at in self._due.items() if uid not in self._running]
        return max(0.0, min(waiting, default=time.monotonic() + DRIFT_S) - time.monotonic())

    def begin(self) -> list[str]:
        """Return the rules whose round is due; each is in its round from now on until `end`."""
        now = time.monotonic()
        begun = [uid for uid, at in self._due.items() if at <= now and uid not in self._running]
        for uid in begun:
            del self._due[uid]
            self._running.add(uid)
        return begun

    def end(self, uid: str, rest: float | None) -> None:
        """A round is over; look again after ``rest`` seconds, or never when the rule is gone."""
        self._running.discard(uid)
        if rest is None:
            self._due.pop(uid, None)
            self._failures.pop(uid, None)
        else:
            self._due.setdefault(uid, time.monotonic() + rest)

    def rest(self, stored: StoredRule, made: Pass) -> float:
        """Return how long to leave a rule alone after what a pass has seen, in seconds."""
        uid = stored.record.uid
        states = {delivery.state for delivery in made.deliveries.values()}
        if not made.looked or states & {DeliveryState.FAILED, DeliveryState.DRIFTED}:
            return self.back_off(uid)
        self._failures.pop(uid, None)
        drift = DRIFT_S if isinstance(stored.record, PullSecretRule) else FILE_DRIFT_S
        return min((_RETRY_S.get(state, drift) for state in states), default=drift)

    def back_off(self, uid: str) -> float:
        """Return how long to leave a rule alone that failed once more, in seconds."""
        failures = self._failures.get(uid, 0)
        self._failures[uid] = failures + 1
        return min(BACKOFF_S[0] * 2.0**failures, BACKOFF_S[1])

    def is_asked(self, request: str) -> bool:
        """Whether the end of some round answers this request."""
        return any(item.record.id == request for items in self.asked.values() for item in items)

    def answered(self, uid: str, asked: list[Stored[InboxItem]]) -> None:
        """Those who asked have been told."""
        left = [item for item in self.asked.pop(uid, []) if item not in asked]
        if left:
            self.asked[uid] = left
