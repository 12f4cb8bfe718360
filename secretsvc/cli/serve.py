"""``secretsvc serve`` and ``secretsvc work``: starting the two programs, apart or together.

How serve speaks HTTP is in `cli.webserver`, how the two are kept running together in `cli.parent`.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from secretsvc import wiring
from secretsvc.cli.parent import Parent
from secretsvc.cli.session import Command, Session, pass_session
from secretsvc.cli.webserver import Server, options_for
from secretsvc.core.errors import ConfigurationError
from secretsvc.settings import PREFIX, LogLevel, Settings, load_client, version
from secretsvc.telemetry.logs import get_logger
from secretsvc.telemetry.redaction import Redactor

if TYPE_CHECKING:
    from wsgiref.types import WSGIApplication

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
    Server(options_for(settings), lambda: _application(settings, redactor)).run()
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


def _application(settings: Settings, redactor: Redactor) -> WSGIApplication:
    """Make the application, in the process that will run it."""
    if settings.lifeline_fd is not None:
        _end_with_parent(settings.lifeline_fd)
    return wiring.serve_app(settings, redactor, _doorbell(settings.doorbell_fd))


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
