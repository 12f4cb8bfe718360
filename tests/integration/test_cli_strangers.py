"""The command line and a program of another user that took the service's port."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from secretsvc.cli.exits import Exit
from secretsvc.core.tokens import make_token

pytestmark = [pytest.mark.rig, pytest.mark.skipif(os.geteuid() != 0, reason="takes two users")]

NOBODY = 65534


class Greedy(HTTPServer):
    """Keeps every token it is sent. Its socket was made by another user."""

    def __init__(self) -> None:
        self.got: list[str | None] = []
        os.seteuid(NOBODY)
        try:
            super().__init__(("127.0.0.1", 0), Taking)
        finally:
            os.seteuid(0)


class Taking(BaseHTTPRequestHandler):
    """Takes the token and answers nothing useful."""

    server: Greedy

    def do_GET(self) -> None:
        self.server.got.append(self.headers["Authorization"])
        self.send_error(500)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def stranger() -> Iterator[Greedy]:
    with Greedy() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def whoami(folder: Path, port: int, *options: str) -> subprocess.CompletedProcess[str]:
    environ = {"SECRETSVC_URL": f"http://127.0.0.1:{port}", "SECRETSVC_TOKEN_FILE": str(folder / "token")}
    return subprocess.run(
        [sys.executable, "-m", "secretsvc", *options, "whoami"],
        env={"PATH": os.environ["PATH"], **environ},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_it_is_sent_no_token_unless_it_may(tmp_path: Path, stranger: Greedy) -> None:
    port = stranger.server_port
    token = make_token(os.urandom(32)).reveal()
    (tmp_path / "token").write_text(token)
    refused = whoami(tmp_path, port)
    assert refused.returncode == Exit.USAGE, refused.stderr
    assert f"user {NOBODY}" in refused.stderr
    assert stranger.got == []
    assert whoami(tmp_path, port, "--allow-http").returncode == Exit.REMOTE
    os.chown(tmp_path / "token", NOBODY, -1)
    assert whoami(tmp_path, port).returncode == Exit.REMOTE
    assert stranger.got == [f"Bearer {token}"] * 2
