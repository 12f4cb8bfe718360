"""``secretsvc serve`` and ``secretsvc work``: starting the two programs. The only door to gunicorn.

gunicorn runs one process of 16 threads, so that metrics and caches are whole; more capacity is more replicas.
Its access log is off (ours is without query strings), and so is its control socket, which would offer to shut
it down to whoever runs as the same user. It repeats nothing of a request, in the log or to the caller, not
even one that is broken: a value may be pasted anywhere.
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any

import click
from gunicorn.app.base import BaseApplication  # type: ignore[import-untyped]
from gunicorn.glogging import Logger as GunicornLogger  # type: ignore[import-untyped]
from gunicorn.http import errors as unreadable  # type: ignore[import-untyped]
from gunicorn.util import write_nonblock  # type: ignore[import-untyped]
from gunicorn.workers.gthread import ThreadWorker  # type: ignore[import-untyped]

from secretsvc import wiring
from secretsvc.cli.parent import Parent
from secretsvc.cli.session import Command, Session, pass_session
from secretsvc.core.errors import ConfigurationError
from secretsvc.settings import PREFIX, LogLevel, Settings, load_client, version
from secretsvc.telemetry.logs import adopt, bind_context, describe, get_logger

_THREADS = 16
_GRACE_S = 10
"""How long requests under way may take when serve is told to stop."""
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  # where gunicorn's heartbeat file is no disk write

_log = get_logger(__name__)
_log_level = click.option(
    "--log-level",
    type=click.Choice([known.value for known in LogLevel]),
    help="The least important line that is logged [SECRETSVC_LOG_LEVEL].",
)


@click.command("serve", cls=Command)
@click.option("--with-worker", is_flag=True, help="Run the worker too, as a second process.")
@click.option("--listen", metavar="HOST:PORT", help="Where to listen [SECRETSVC_LISTEN].")
@_log_level
@pass_session
def serve(session: Session, with_worker: bool, listen: str | None, log_level: str | None) -> int:
    """Serve the API.

    The first start makes the data directory, the key file and an admin token, and says where they are.
    """
    settings = _settings(session, {"LISTEN": listen, "LOG_LEVEL": log_level})
    if with_worker:
        return _serve_with_worker(session, settings)
    redactor = wiring.start_logs(settings)
    _warn(settings)
    if settings.lifeline_fd is None:
        _ensure_port_free(settings)
        _tell_made(session, wiring.first_start(settings))
    ring = _doorbell(settings.doorbell_fd)
    _Server(settings, lambda: wiring.serve_app(settings, redactor, ring)).run()
    return 0


@click.command("work", cls=Command)
@_log_level
@pass_session
def work(session: Session, log_level: str | None) -> None:
    """Do the work: make generations, deliver to every target, watch. SIGTERM ends it."""
    settings = _settings(session, {"LOG_LEVEL": log_level})
    wiring.start_logs(settings)
    _warn(settings)
    asyncio.run(_work(settings))


def _settings(session: Session, given: Mapping[str, str | None]) -> Settings:
    wiring.harden()
    session.flags |= {name: value for name, value in given.items() if value}
    return session.settings()


def _warn(settings: Settings) -> None:
    for warning in settings.warnings:
        _log.warning("settings.warning", detail=warning)


# --- serve ----------------------------------------------------------------------------------------


class _Logger(GunicornLogger):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's lines in our log, in our format."""

    def setup(self, cfg: Any) -> None:  # noqa: ANN401  # gunicorn has no types
        super().setup(cfg)
        adopt("gunicorn.error", "gunicorn.access")


_REFUSALS: tuple[tuple[type[Exception], HTTPStatus], ...] = (
    (unreadable.LimitRequestLine, HTTPStatus.REQUEST_URI_TOO_LONG),
    (unreadable.LimitRequestHeaders, HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE),
    (unreadable.ExpectationFailed, HTTPStatus.EXPECTATION_FAILED),
    (unreadable.UnsupportedTransferCoding, HTTPStatus.NOT_IMPLEMENTED),
    (unreadable.ParseException, HTTPStatus.BAD_REQUEST),
    (ssl.SSLError, HTTPStatus.BAD_REQUEST),
)
"""What gunicorn can not make a request of, and how it is answered."""


class _Worker(ThreadWorker):  # type: ignore[misc]  # gunicorn has no types
    """Tells what went wrong before the application was asked, without a word of what was sent."""

    def handle_error(self, _req: object, client: Any, addr: Any, exc: Exception) -> None:  # noqa: ANN401  # as in the base class
        bind_context()  # of the thread's request before this one
        found = (status for kind, status in _REFUSALS if isinstance(exc, kind))
        status = next(found, HTTPStatus.INTERNAL_SERVER_ERROR)
        if status is HTTPStatus.INTERNAL_SERVER_ERROR:
            _log.error("request.crashed", **describe(exc))
        else:
            source = addr[0] if addr else ""
            _log.warning("request.unreadable", status=int(status), error=type(exc).__name__, source=source)
        with suppress(OSError):
            write_nonblock(client, _unreadable_answer(status))


def _unreadable_answer(status: HTTPStatus) -> bytes:
    """Return a whole HTTP answer with a problem as `web.problems` makes them."""
    problem = {
        "type": "about:blank",
        "title": status.phrase,
        "status": int(status),
        "detail": "The request could not be read as HTTP.",
        "code": "UnreadableRequest",
        "request_id": "",
        "errors": [],
        "retryable": False,
        "hint": "look at its first line, its headers and its length; nothing of it is repeated here",
    }
    body = json.dumps(problem).encode() + b"\n"
    head = (
        f"HTTP/1.1 {int(status)} {status.phrase}\r\nConnection: close\r\nCache-Control: no-store\r\n"
        f"Content-Type: application/problem+json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class _Server(BaseApplication):  # type: ignore[misc]  # gunicorn has no types
    def __init__(self, settings: Settings, make: Callable[[], Any]) -> None:
        self._settings = settings
        self._make = make
        super().__init__()

    def load_config(self) -> None:
        for name, value in _gunicorn_options(self._settings).items():
            self.cfg.set(name, value)

    def load(self) -> Any:  # noqa: ANN401  # a WSGI application; gunicorn has no types
        """Make the application, in the process that will run it."""
        if self._settings.lifeline_fd is not None:
            _end_with_parent(self._settings.lifeline_fd)
        return self._make()


def _gunicorn_options(settings: Settings) -> dict[str, Any]:
    options: dict[str, Any] = {
        "bind": str(settings.listen),
        "workers": 1,
        "worker_class": _Worker,
        "threads": _THREADS,
        "control_socket_disable": True,
        "accesslog": None,
        "errorlog": "-",
        "loglevel": _gunicorn_level(settings.log_level).value,
        "logger_class": _Logger,
        "graceful_timeout": _GRACE_S,
        "keepalive": 5,
        "proc_name": "secretsvc",
    }
    if _SHARED_MEMORY.is_dir():
        options["worker_tmp_dir"] = str(_SHARED_MEMORY)
    if settings.tls is not None:
        options |= {"certfile": str(settings.tls.cert), "keyfile": str(settings.tls.key)}
    return options


def _gunicorn_level(wished: LogLevel) -> LogLevel:
    """Return how much gunicorn may say: at DEBUG it would write the path of every request."""
    return LogLevel.INFO if wished is LogLevel.DEBUG else wished


def _ensure_port_free(settings: Settings) -> None:
    host, port = settings.listen.host, settings.listen.port
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as exc:
        raise ConfigurationError(
            f"{settings.listen} can not be listened on: {exc.strerror}",
            hint="stop what uses it, or choose another with --listen or SECRETSVC_LISTEN",
        ) from exc


def _doorbell(descriptor: int | None) -> Callable[[], None]:
    """Return what wakes work: a byte in the socket, none when it is full of them already."""
    if descriptor is None:
        return _silence
    bell = socket.socket(fileno=descriptor)
    bell.setblocking(False)

    def ring() -> None:
        with suppress(OSError):
            bell.send(b"!")

    return ring


def _silence() -> None:
    """Ring nobody: work polls its inbox."""


def _end_with_parent(lifeline: int) -> None:
    """Stop gunicorn when the parent is gone, however it went; its own worker watches from a thread."""
    arbiter = os.getppid()

    def watch() -> None:
        os.read(lifeline, 1)
        if os.getppid() == arbiter:
            os.kill(arbiter, signal.SIGTERM)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()


# --- work -----------------------------------------------------------------------------------------


async def _work(settings: Settings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    worker, store = wiring.make_worker(settings)
    if settings.doorbell_fd is not None:
        _on_bytes(loop, settings.doorbell_fd, worker.ring, worker.ring)
    if settings.lifeline_fd is not None:
        _on_bytes(loop, settings.lifeline_fd, stop.set, stop.set)
    _log.info("work.started")
    try:
        await worker.run(stop)
    finally:
        await asyncio.to_thread(store.close)
    _log.info("work.stopped")


def _on_bytes(
    loop: asyncio.AbstractEventLoop, descriptor: int, heard: Callable[[], None], ended: Callable[[], None]
) -> None:
    """Call ``heard`` when bytes come, and ``ended`` once when there will be no more."""

    def read() -> None:
        if os.read(descriptor, 4096):
            heard()
            return
        loop.remove_reader(descriptor)
        ended()

    loop.add_reader(descriptor, read)


# --- serve --with-worker --------------------------------------------------------------------------


def _serve_with_worker(session: Session, settings: Settings) -> int:
    wiring.start_logs(settings)
    _warn(settings)
    _ensure_port_free(settings)
    started = wiring.first_start(settings)
    environ = {**session.environ, **{PREFIX + name: value for name, value in session.flags.items()}}

    def on_ready() -> None:
        _tell_made(session, started)
        session.terminal.note("\n".join(_welcome(session, settings, started)))

    return asyncio.run(Parent(settings, environ, get_logger("secretsvc.parent"), on_ready).run())


def _tell_made(session: Session, started: wiring.FirstStart) -> None:
    if started.made:
        session.terminal.note(
            "\n".join(["made at this first start:", *(f"  {line}" for line in started.made)])
        )


def _welcome(session: Session, settings: Settings, started: wiring.FirstStart) -> list[str]:
    program = shlex.quote(sys.argv[0]) if Path(sys.argv[0]).name == "secretsvc" else "secretsvc"
    lines = [f"secretsvc {version()} is ready at {settings.url}"]
    if not started.has_token_file:
        return [*lines, f"  there is no admin token file; make one: {program} token reset --local"]
    lines.append(f"  admin token: {started.token_file}")
    if settings.vault is None:
        lines.append(f"  key file:    {settings.key_file}")
    ending = "credential add NAME --registry HOST --username USER --type token"
    lines.append(f"  next:        {_needed(session, settings)}{program} {ending}")
    return lines


def _needed(session: Session, settings: Settings) -> str:
    """Return the variables that the next command needs, as a shell takes them before it."""
    plain = {name: value for name, value in session.environ.items() if not name.startswith(PREFIX)}
    found = load_client(plain)
    needed = {}
    if found.url != settings.url:
        needed["URL"] = settings.url
    if found.token_file != settings.admin_token_file:
        needed["TOKEN_FILE"] = str(settings.admin_token_file)
    return "".join(f"{PREFIX}{name}={shlex.quote(value)} " for name, value in needed.items())
