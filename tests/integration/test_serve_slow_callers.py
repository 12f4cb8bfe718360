"""serve against callers that are slow on purpose: nobody can keep its threads, plain or over TLS."""

from __future__ import annotations

import http.client
import json
import os
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.rig.kube import CertificateAuthority
from tests.rig.ports import free_port
from tests.rig.service import Service

pytestmark = pytest.mark.rig

PATIENCE = 40.0
HEAD = b"GET /livez HTTP/1.1\r\nHost: x\r\nX-A: "
HALF_HELLO = b"\x16\x03\x01\x02\x00\x01"
PROGRAM = """
import json, sys, time
from secretsvc.cli.deadlines import Limits
from secretsvc.cli.webserver import Server, options_for
from secretsvc.settings import load
from secretsvc.telemetry.logs import bind_context, configure
from secretsvc.telemetry.redaction import Redactor

def application(environ, start_response):
    bind_context(request_id="of-an-earlier-request")
    path, answer = environ["PATH_INFO"], b"ok"
    if path == "/body":
        answer = b"%d" % len(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
    elif path == "/big":
        answer = b"x" * 50_000_000
    elif path == "/work":
        time.sleep(2)
    start_response("200 OK", [("Content-Length", str(len(answer)))])
    return [answer]

configure("info", "json", Redactor())
settings, limits = (json.loads(text) for text in sys.argv[1:])
Server(options_for(load(settings)), lambda: application, Limits(**limits)).run()
"""


@dataclass
class Running:
    """The web server with a small application."""

    port: int
    secure: bool
    log: Path

    def connect(self) -> socket.socket:
        plain = socket.create_connection(("127.0.0.1", self.port), PATIENCE)
        return _client_context().wrap_socket(plain) if self.secure else plain

    def get(self, path: str) -> bytes:
        """Ask on a connection of its own."""
        connection: http.client.HTTPConnection
        if self.secure:
            connection = http.client.HTTPSConnection(
                "127.0.0.1", self.port, timeout=PATIENCE, context=_client_context()
            )
        else:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request("GET", path)
            return connection.getresponse().read()
        finally:
            connection.close()

    def lines(self, event: str) -> list[dict[str, object]]:
        """Return the log's lines of one event."""
        found = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [line for line in found if line["event"] == event]


def _client_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@contextmanager
def running(folder: Path, *, secure: bool, **limits: float) -> Iterator[Running]:
    port = free_port()
    settings = {"SECRETSVC_LISTEN": f"127.0.0.1:{port}"}
    if secure:
        certificate, key = CertificateAuthority(folder).issue("serve", server=True)
        settings |= {"SECRETSVC_TLS_CERT": str(certificate), "SECRETSVC_TLS_KEY": str(key)}
    command = [sys.executable, "-c", PROGRAM, json.dumps(settings), json.dumps(limits)]
    place = Running(port, secure, folder / "log")
    with place.log.open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env={"PATH": os.environ["PATH"]})
    try:
        eventually(lambda: process.poll() is not None or _up(place))
        yield place
    finally:
        process.terminate()
        process.wait(PATIENCE)


def _up(place: Running) -> bool:
    try:
        return place.get("/") == b"ok"
    except OSError:
        return False


def eventually(true: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def drip(connection: socket.socket) -> None:
    """Send a byte now and then until the server has had enough of it."""

    def refused() -> bool:
        try:
            connection.sendall(b"a")
        except OSError:
            return True
        return False

    eventually(refused)


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
def test_a_head_that_comes_byte_by_byte_is_cut_off(tmp_path: Path, secure: bool) -> None:
    with running(tmp_path, secure=secure, head=1) as place, place.connect() as slow:
        slow.sendall(HEAD)
        drip(slow)
        eventually(lambda: place.lines("connection.too_slow"))
        assert place.lines("connection.too_slow")[0]["phase"] == "head"
        assert place.get("/") == b"ok"


def test_half_a_handshake_is_cut_off(tmp_path: Path) -> None:
    with running(tmp_path, secure=True, head=1) as place:
        with socket.create_connection(("127.0.0.1", place.port), PATIENCE) as slow:
            slow.sendall(HALF_HELLO)
            assert slow.recv(1) == b""
        assert place.get("/") == b"ok"


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
def test_a_body_that_comes_byte_by_byte_is_cut_off(tmp_path: Path, secure: bool) -> None:
    with running(tmp_path, secure=secure, body=1) as place, place.connect() as slow:
        slow.sendall(b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 65536\r\n\r\n")
        drip(slow)
        eventually(lambda: place.lines("connection.too_slow"))
        assert place.lines("connection.too_slow")[0]["phase"] == "body"
        assert place.get("/") == b"ok"


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
def test_an_answer_that_nobody_takes_is_cut_off(tmp_path: Path, secure: bool) -> None:
    with running(tmp_path, secure=secure, answer=1) as place, place.connect() as slow:
        slow.sendall(b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n")
        eventually(lambda: place.lines("connection.too_slow"))
        assert place.lines("connection.too_slow")[0]["phase"] == "answer"


def test_work_may_take_longer_than_every_limit(tmp_path: Path) -> None:
    with running(tmp_path, secure=False, head=0.5, body=0.5, answer=0.5, close=0.5, pressed=0.5) as place:
        assert place.get("/work") == b"ok"


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
def test_more_slow_callers_than_threads_do_not_stop_it(tmp_path: Path, secure: bool) -> None:
    with running(tmp_path, secure=secure, head=600, pressed=0.5) as place, ExitStack() as stack:
        for _ in range(200):
            slow = stack.enter_context(socket.create_connection(("127.0.0.1", place.port), PATIENCE))
            slow.sendall(HALF_HELLO if secure else HEAD)
        assert place.get("/") == b"ok"


def test_callers_that_never_close_do_not_stop_it(tmp_path: Path) -> None:
    with running(tmp_path, secure=False) as place, ExitStack() as stack:
        for _ in range(60):
            slow = stack.enter_context(socket.create_connection(("127.0.0.1", place.port), PATIENCE))
            slow.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert place.get("/") == b"ok"


def test_a_line_does_not_carry_the_id_of_the_request_before(tmp_path: Path) -> None:
    with running(tmp_path, secure=False) as place:
        assert place.get("/") == b"ok"
        with place.connect() as broken:
            broken.sendall(b"no HTTP\r\n\r\n")
            assert broken.recv(12) == b"HTTP/1.1 400"
        eventually(lambda: place.lines("request.unreadable"))
        assert "request_id" not in place.lines("request.unreadable")[0]


def test_the_service_answers_while_its_threads_wait_for_others(tmp_path: Path) -> None:
    with Service(tmp_path, {}) as service, ExitStack() as stack:
        for _ in range(16):
            slow = stack.enter_context(socket.create_connection(("127.0.0.1", service.port), PATIENCE))
            slow.sendall(HEAD)
        connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=PATIENCE)
        connection.request("GET", "/livez")
        assert connection.getresponse().status == 200
        connection.close()
