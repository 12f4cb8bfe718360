"""A real HTTP(S) server whose answers a test writes, byte by byte if need be, and that records what arrived.

For registries that can not be had, and for hostile ones. ``arrived`` is every byte that any client sent.
"""

from __future__ import annotations

import contextlib
import socketserver
import ssl
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import parse_qs, urlsplit

_REASONS = {200: "OK", 401: "Unauthorized", 403: "Forbidden"}


@dataclass(frozen=True)
class Seen:
    """One request as it arrived."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]

    @property
    def authorization(self) -> str:
        """The header of that name, or an empty text."""
        return self.headers.get("authorization", "")


@dataclass(frozen=True)
class Reply:
    """An ordinary answer; ``headers`` may repeat a name."""

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""

    def wire(self, *, head_only: bool) -> Iterable[bytes]:
        """Return the answer's bytes."""
        lines = [f"HTTP/1.1 {self.status} {_REASONS.get(self.status, 'Other')}"]
        lines += [f"{name}: {value}" for name, value in self.headers]
        lines += [f"Content-Length: {len(self.body)}", "Connection: close", "", ""]
        yield "\r\n".join(lines).encode("latin-1")
        if not head_only:
            yield self.body


Script = Callable[[Seen], Reply | Iterable[bytes]]


@dataclass
class ScriptedServer:
    """Serves ``script`` on a free port of ``address``. A context manager."""

    script: Script
    tls: ssl.SSLContext | None = None
    address: str = "127.0.0.1"
    seen: list[Seen] = field(default_factory=list)
    arrived: bytes = b""
    port: int = 0
    _server: socketserver.ThreadingTCPServer | None = None

    @property
    def host(self) -> str:
        """``host:port``, as a registry is registered."""
        return f"{self.address}:{self.port}"

    def __enter__(self) -> Self:
        self._server = _server(self)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_exc: object) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    def serve(self, connection: socketserver.StreamRequestHandler) -> None:
        """Read one request, record it, answer it."""
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            line = connection.rfile.readline(65536)
            if not line:
                return
            head += line
            self.arrived += line
        seen = _seen(head.decode("latin-1"))
        self.seen.append(seen)
        answer = self.script(seen)
        chunks = answer.wire(head_only=seen.method == "HEAD") if isinstance(answer, Reply) else answer
        for chunk in chunks:
            connection.wfile.write(chunk)
            connection.wfile.flush()


def _seen(head: str) -> Seen:
    first, *lines = head.strip().split("\r\n")
    method, target, _version = first.split(" ", 2)
    parts = urlsplit(target)
    headers = {
        name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
    }
    return Seen(method, parts.path, parse_qs(parts.query, keep_blank_values=True), headers)


def _server(owner: ScriptedServer) -> socketserver.ThreadingTCPServer:
    class Handler(socketserver.StreamRequestHandler):
        timeout = 20

        def setup(self) -> None:
            if owner.tls is not None:
                self.request = owner.tls.wrap_socket(self.request, server_side=True)
            super().setup()

        def handle(self) -> None:
            with contextlib.suppress(OSError):  # the client had enough
                owner.serve(self)

        def finish(self) -> None:
            with contextlib.suppress(OSError):
                super().finish()
                self.request.close()

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = True
        daemon_threads = True

        def handle_error(self, *_args: object) -> None:
            """A client that breaks off, or refuses our certificate, is what some tests are about."""

    return Server((owner.address, 0), Handler)
