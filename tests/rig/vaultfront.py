"""A real HTTP(S) server in front of OpenBao, or instead of it: records, forwards, and answers as a test says.

``script`` sees every request and returns a `Reply`, or None to forward it to ``target``. ``seen`` holds every
request that arrived. For redirects, stale standbys, odd statuses, lost answers, and for counting logins.
"""

from __future__ import annotations

import json
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import urlsplit


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_arguments: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirects())
_PASSED_ON = ("X-Vault-Token", "X-Vault-Request", "X-Vault-Namespace", "Content-Type")


@dataclass(frozen=True)
class Request:
    """One request as it arrived."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def route(self) -> str:
        """The path without ``/v1/`` and query."""
        return urlsplit(self.path).path.removeprefix("/v1/")


@dataclass(frozen=True)
class Reply:
    """An answer. A dict is sent as JSON, bytes as HTML; ``drop`` closes the connection without one."""

    status: int = 200
    body: dict[str, Any] | bytes = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    drop: bool = False


Script = Callable[[Request], Reply | None]


class Front:
    """Serves on a free loopback port while it is entered."""

    def __init__(
        self, target: str = "", script: Script | None = None, tls: ssl.SSLContext | None = None
    ) -> None:
        self.target = target
        self.script = script
        self.seen: list[Request] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        scheme = "http" if tls is None else "https"
        self.address = f"{scheme}://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def count(self, method: str, route: str) -> int:
        """How often that was asked."""
        return sum(1 for request in self.seen if (request.method, request.route) == (method, route))

    def answer(self, request: Request) -> Reply:
        """Return what the script says, or what the target answers."""
        self.seen.append(request)
        said = self.script(request) if self.script is not None else None
        if said is not None:
            return said
        passed_on = {name: value for name, value in request.headers.items() if name in _PASSED_ON}
        onward = urllib.request.Request(
            self.target + request.path, method=request.method, data=request.body or None, headers=passed_on
        )
        try:
            with _OPENER.open(onward, timeout=20) as response:
                status, content = response.status, response.read()
        except urllib.error.HTTPError as exc:
            with exc:
                status, content = exc.code, exc.read()
        return Reply(status, json.loads(content) if content else b"")


def _handler(front: Front) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def handle_one_request(self) -> None:
            try:
                super().handle_one_request()
            except OSError:  # the client had enough
                self.close_connection = True

        def __getattr__(self, name: str) -> Callable[[], None]:
            if name.startswith("do_"):
                return self.serve
            raise AttributeError(name)

        def serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            reply = front.answer(Request(self.command, self.path, dict(self.headers.items()), body))
            if reply.drop:
                self.close_connection = True
                return
            _send(self, reply)

        def log_message(self, *_arguments: Any) -> None:
            """Say nothing."""

    return Handler


def _send(handler: BaseHTTPRequestHandler, reply: Reply) -> None:
    is_json = isinstance(reply.body, dict)
    content = json.dumps(reply.body).encode() if isinstance(reply.body, dict) else reply.body
    handler.send_response(reply.status)
    for name, value in reply.headers.items():
        handler.send_header(name, value)
    handler.send_header("Content-Type", "application/json" if is_json else "text/html")
    if reply.status == 204:
        content = b""
    else:
        handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content)
