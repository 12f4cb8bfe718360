"""Whose program would get the token: what Linux tells of listeners is read right, and judged."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from secretsvc.cli.listener import ensure_trusted
from secretsvc.core.errors import ConfigurationError
from secretsvc.settings import Listen

HEADER = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
LOOPBACK, ANY = "0100007F", "00000000"
LOOPBACK6, ANY6 = "00000000000000000000000001000000", "0" * 32
MAPPED = "0000000000000000FFFF00000100007F"
TRUSTED = frozenset({0, 1000})


def line(local: str, user: int, state: str = "0A", port: int = 8080) -> str:
    rest = "00000000:0000" if len(local) == 8 else f"{ANY6}:0000"
    return (
        f"   0: {local}:{port:04X} {rest} {state} 00000000:00000000 00:00000000 00000000 {user:5} 0 1 1 0\n"
    )


def told(folder: Path, *lines: str, users: str = "0 0 4294967295") -> Path:
    """Return a folder that tells like /proc."""
    (folder / "net").mkdir()
    (folder / "self").mkdir()
    (folder / "self/uid_map").write_text(f"  {users}\n")
    for name, width in (("tcp", 8), ("tcp6", 32)):
        fitting = [text for text in lines if len(text.split()[1].partition(":")[0]) == width]
        (folder / "net" / name).write_text(HEADER + "".join(fitting))
    return folder


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
@pytest.mark.parametrize("local", [LOOPBACK, ANY, MAPPED, ANY6])
def test_another_user_s_listener_is_not_trusted(tmp_path: Path, host: str, local: str) -> None:
    proc = told(tmp_path, line(local, 1001))
    with pytest.raises(ConfigurationError, match="user 1001"):
        ensure_trusted(Listen(host, 8080), TRUSTED, proc)
    ensure_trusted(Listen(host, 8080), TRUSTED | {1001}, proc)


@pytest.mark.parametrize("local", [LOOPBACK6, ANY6])
def test_it_is_the_same_on_ipv6(tmp_path: Path, local: str) -> None:
    proc = told(tmp_path, line(local, 1001))
    with pytest.raises(ConfigurationError, match=r"\[::1\]:8080"):
        ensure_trusted(Listen("::1", 8080), TRUSTED, proc)


@pytest.mark.parametrize(
    "other",
    [
        line(LOOPBACK, 0),
        line(LOOPBACK, 1000),
        line(LOOPBACK, 1001, state="01"),
        line(LOOPBACK, 1001, port=8081),
        line("0200007F", 1001),
        line(LOOPBACK6, 1001),
    ],
)
def test_what_is_trusted_or_somewhere_else_is_let_be(tmp_path: Path, other: str) -> None:
    ensure_trusted(Listen("127.0.0.1", 8080), TRUSTED, told(tmp_path, line(LOOPBACK, 0), other))


def test_one_stranger_among_the_trusted_is_enough(tmp_path: Path) -> None:
    proc = told(tmp_path, line(ANY, 0), line(LOOPBACK, 1001))
    with pytest.raises(ConfigurationError):
        ensure_trusted(Listen("127.0.0.1", 8080), TRUSTED, proc)


def test_where_it_can_not_be_told_it_is_not_judged(tmp_path: Path) -> None:
    ensure_trusted(Listen("127.0.0.1", 8080), TRUSTED, tmp_path / "nowhere")
    ensure_trusted(Listen("127.0.0.1", 8080), TRUSTED, told(tmp_path, line(LOOPBACK, 9), users="0 1000 1"))


@pytest.mark.rig
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_this_kernel_tells_of_a_real_listener(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as server:
        where = Listen(host, server.getsockname()[1])
        ensure_trusted(where, frozenset({os.geteuid()}))
        with pytest.raises(ConfigurationError):
            ensure_trusted(where, frozenset())
