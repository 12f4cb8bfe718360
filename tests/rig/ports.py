"""Loopback ports for the servers of the rig."""

from __future__ import annotations

import random
import socket

_RANGE = range(20_000, 32_000)
"""Below the ports that the kernel gives to outgoing connections, which would take one between two starts."""


def free_port() -> int:
    """Return a loopback port that nothing listens on now."""
    for port in random.sample(_RANGE, 200):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError("no free loopback port was found")
