"""How long a connection may occupy a thread: nobody may stop the service by being slow on purpose.

Rules:

- A connection is waited for only while it sends a request's head (a TLS handshake included) or body, takes an
  answer, or is being closed. Each has a deadline as a whole: sending one byte now and then does not help.
- The application's own time has no deadline here.
- When connections queue for a thread, those that only send a head or are being closed get less time.
- Who is late is cut off at the socket, which wakes the thread that waits for it.

What it does not do: read or write, or know about HTTP. It is asked to `Deadlines.sweep` again and again.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from secretsvc.telemetry.logs import Logger


class Phase(StrEnum):
    """What a thread does with a connection; in all phases but `WORK` it may wait for the peer."""

    HEAD = "head"
    BODY = "body"
    WORK = "work"
    ANSWER = "answer"
    CLOSE = "close"


@dataclass(frozen=True, slots=True)
class Limits:
    """Deadlines, in seconds from the start of each phase."""

    head: float = 10.0
    body: float = 30.0
    answer: float = 60.0
    close: float = 5.0
    pressed: float = 2.0
    """For head and close while other connections queue for a thread."""

    def of(self, phase: Phase, *, pressed: bool) -> float | None:
        """Return the seconds that a phase may take, None if it may take any time."""
        if phase is Phase.HEAD:
            return min(self.head, self.pressed) if pressed else self.head
        if phase is Phase.CLOSE:
            return min(self.close, self.pressed) if pressed else self.close
        return {Phase.BODY: self.body, Phase.ANSWER: self.answer}.get(phase)


class Watch:
    """One connection while a thread is busy with it.

    Args:
        connection: a duplicate of its socket, so that ending it can not hit another one of the same number.
        source: the peer's address, for the log.
        monotonic: seconds that only rise.
    """

    def __init__(self, connection: socket.socket, source: str, monotonic: Callable[[], float]) -> None:
        self._connection = connection
        self._monotonic = monotonic
        self._body_since: float | None = None
        self._now = (Phase.HEAD, monotonic())
        self.source = source
        self.cut = False

    @property
    def phase(self) -> Phase:
        """What the thread does now."""
        return self._now[0]

    def enter(self, phase: Phase) -> None:
        """Begin a phase."""
        self._now = (phase, self._monotonic())

    @contextmanager
    def reading_body(self) -> Iterator[None]:
        """Wait for the body until the block ends; all such blocks of a request have one deadline together."""
        if self.phase is not Phase.WORK:  # such as what is left of it while the connection is being closed
            yield
            return
        if self._body_since is None:
            self._body_since = self._monotonic()
        self._now = (Phase.BODY, self._body_since)
        try:
            yield
        finally:
            self.enter(Phase.WORK)

    def late(self, limits: Limits, *, pressed: bool) -> bool:
        """Whether the phase of now has taken longer than it may."""
        phase, since = self._now
        limit = limits.of(phase, pressed=pressed)
        return limit is not None and self._monotonic() - since >= limit

    def end(self) -> None:
        """Cut the connection off; whoever waits for it sees its end."""
        self.cut = True
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)


class Deadlines:
    """Watches the connections of one server process. Safe in threads.

    Args:
        limits: the deadlines.
        log: where cut connections are told.
        monotonic: seconds that only rise.
    """

    TICK_S: Final = 0.25
    """How often `sweep` should be asked while something is watched."""

    def __init__(self, limits: Limits, log: Logger, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._log = log
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._watches: set[Watch] = set()
        self._queued = 0

    @property
    def idle(self) -> bool:
        """Whether nothing is watched."""
        return not self._watches

    def queue(self) -> None:
        """Note that a connection wants a thread; `watching` is its turn."""
        with self._lock:
            self._queued += 1

    @contextmanager
    def watching(self, connection: socket.socket, source: str) -> Iterator[Watch]:
        """Watch a connection, which begins to send a head, until the block ends."""
        with self._lock:
            self._queued -= 1
        with socket.socket(fileno=os.dup(connection.fileno())) as duplicate:
            watch = Watch(duplicate, source, self._monotonic)
            with self._lock:
                self._watches.add(watch)
            try:
                yield watch
            finally:
                with self._lock:
                    self._watches.discard(watch)

    def sweep(self) -> None:
        """Cut off every connection whose time is over."""
        with self._lock:
            pressed = self._queued > 0
            late = [
                watch
                for watch in self._watches
                if not watch.cut and watch.late(self._limits, pressed=pressed)
            ]
            told = [(watch.phase, watch.source) for watch in late]
            for watch in late:
                watch.end()
        for phase, source in told:
            self._log.warning("connection.too_slow", phase=phase.value, source=source)
