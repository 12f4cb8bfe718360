"""Who listens on a port of this machine: the API token is not handed to another user's program.

Over plain HTTP nothing proves who answers. While the service is down, any user of a shared machine can take
its loopback port and wait for an admin's token. Linux tells whose socket it is (proc_pid_net(5)).

It can not be told, and is not judged, where there is no such file (another system), inside a user namespace
(where users have other numbers), and where nothing listens: then nobody answers, or the kernel forwards the
port elsewhere, which takes root to set up.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from secretsvc.core.errors import ConfigurationError
from secretsvc.settings import Listen

PROC: Final = Path("/proc")
_LISTENING: Final = "0A"
_ALL_USERS: Final = ["0", "0", "4294967295"]
"""What ``uid_map`` holds outside of every user namespace."""
_TAKES_BOTH: Final = 6
"""The IP version whose wildcard takes connections to the other one too."""

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def ensure_trusted(where: Listen, trusted: Collection[int], proc: Path = PROC) -> None:
    """Raise `ConfigurationError` when a user that is not trusted listens where we would connect to.

    Args:
        where: a loopback address, or ``localhost``, and the port.
        trusted: numbers of users.
        proc: where Linux tells about sockets.
    """
    try:
        known = (proc / "self/uid_map").read_text("ascii").split() == _ALL_USERS
    except OSError:
        return
    found = {user for address, user in _listeners(proc, where.port) if _takes(address, where.host)}
    strangers = found.difference(trusted)
    if known and strangers:
        who = ", ".join(str(user) for user in sorted(strangers))
        raise ConfigurationError(
            f"what listens at {where} is a program of user {who}, who is neither root, nor you, nor the owner"
            " of the token's file or of the service's data: it is not sent the API token",
            hint="see that the service is running; use https, or --allow-http if this is as it should be",
        )


def _takes(address: _Address, host: str) -> bool:
    """Whether a listener at ``address`` may get connections to ``host``."""
    if host == "localhost":
        return address.is_loopback or address.is_unspecified
    wanted = ipaddress.ip_address(host)
    wildcard = address.is_unspecified and address.version in (wanted.version, _TAKES_BOTH)
    return address == wanted or wildcard


def _listeners(proc: Path, port: int) -> Iterator[tuple[_Address, int]]:
    """Yield the address and the user of every socket that listens on the port."""
    for name in ("net/tcp", "net/tcp6"):
        with suppress(OSError), (proc / name).open(encoding="ascii") as lines:
            next(lines, None)
            for line in lines:
                _, local, _, state, _, _, _, user, *_ = line.split()
                address, _, hexadecimal = local.partition(":")
                if state == _LISTENING and int(hexadecimal, 16) == port:
                    yield _address(address), int(user)


def _address(text: str) -> _Address:
    """Return an address that the kernel wrote as 32-bit words in the machine's own byte order."""
    words = [int(text[start : start + 8], 16) for start in range(0, len(text), 8)]
    data = struct.pack(f"={len(words)}I", *words)
    found = ipaddress.ip_address(data)
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return mapped or found
