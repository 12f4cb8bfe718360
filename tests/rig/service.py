"""secretsvc itself, started as a user does: ``secretsvc serve --with-worker`` on a free loopback port."""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from tests.rig.ports import free_port

EMBEDDED = ("serve", "--with-worker")
_READY_WITHIN = 60.0
_STOPS_WITHIN = 30.0


class ServiceFailed(Exception):
    """The service did not become ready, or did not stop."""


class Service:
    """One embedded service below ``folder``. A context manager: entering starts it, leaving stops it.

    Args:
        folder: for its data, key, token and log.
        environment: settings besides those that place it in ``folder``.
        program: what to run of it.
    """

    def __init__(
        self,
        folder: Path,
        environment: Mapping[str, str],
        program: Sequence[str] = ("serve", "--with-worker"),
    ) -> None:
        self.folder = folder
        self.port = free_port()
        self._given = dict(environment)
        self._program = program
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def token_file(self) -> Path:
        """The first admin's token."""
        return self.folder / "data" / "admin.token"

    @property
    def client_environment(self) -> dict[str, str]:
        """What the command line needs to find it."""
        return {"SECRETSVC_URL": self.url, "SECRETSVC_TOKEN_FILE": str(self.token_file)}

    @property
    def pid(self) -> int:
        """The parent's process id."""
        assert self._process is not None
        return self._process.pid

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start it and wait until it is ready."""
        self.folder.mkdir(parents=True, exist_ok=True)
        environment = {
            "PATH": os.environ["PATH"],
            "SECRETSVC_DATA_DIR": str(self.folder / "data"),
            "SECRETSVC_KEY_FILE": str(self.folder / "kek"),
            "SECRETSVC_LISTEN": f"127.0.0.1:{self.port}",
            "SECRETSVC_LOG_LEVEL": "debug",
            **self._given,
        }
        command = [sys.executable, "-m", "secretsvc", *self._program]
        with (self.folder / "service.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        end = time.monotonic() + _READY_WITHIN
        while self._process.poll() is None and time.monotonic() < end:
            if self._answers():
                return
            time.sleep(0.05)
        self.kill()
        raise ServiceFailed(f"the service did not become ready:\n{self.log()}")

    def stop(self) -> None:
        """Stop it as an init system would."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_STOPS_WITHIN)
        except subprocess.TimeoutExpired:
            self.kill()
            raise ServiceFailed(f"the service did not stop:\n{self.log()}") from None
        self._process = None

    def kill(self) -> None:
        """End parent and children at once, as a power cut would."""
        if self._process is not None:
            for pid in [*self.children(), self._process.pid]:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            self._process.wait()
            self._process = None

    def children(self) -> list[int]:
        """Return the process ids of everything below the parent."""
        found: list[int] = []
        waiting = [self.pid]
        while waiting:
            pid = waiting.pop()
            try:
                below = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            except FileNotFoundError:
                continue
            found += map(int, below)
            waiting += map(int, below)
        return found

    def log(self) -> str:
        """Return everything it has said."""
        return (self.folder / "service.log").read_text(errors="replace")

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()
