"""The doorbell between serve and work: a byte in a socket that both inherit."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

from secretsvc.cli.serve import _doorbell


def test_ringing_leaves_something_to_wake_up_for() -> None:
    one, other = socket.socketpair()
    with other, one:
        ring = _doorbell(os.dup(one.fileno()))
        for _ in range(3):
            ring()
        other.settimeout(5)
        assert other.recv(16) == b"!!!"
        close(ring)


def test_a_bell_that_nobody_answers_stops_no_caller() -> None:
    one, other = socket.socketpair()
    with other, one:
        ring = _doorbell(os.dup(one.fileno()))
        for _ in range(100_000):
            ring()
        close(ring)


def test_without_a_bell_nobody_is_rung() -> None:
    _doorbell(None)()


def close(ring: Callable[[], None]) -> None:
    """Close the socket that a bell holds for as long as its process lives."""
    for cell in ring.__closure__ or ():
        if isinstance(cell.cell_contents, socket.socket):
            cell.cell_contents.close()
