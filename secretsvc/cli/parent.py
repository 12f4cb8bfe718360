"""``serve --with-worker``: one parent that keeps serve and work running as two child processes.

Rules:

- A child that dies is started again, after a pause that grows while it keeps dying early. One that ends
  because its settings are wrong is not: the other is stopped too, and the parent ends with the same code.
- SIGTERM, SIGINT and SIGHUP stop both within `STOP_S`, by force at the end. The children are in sessions of
  their own, so that Ctrl-C reaches the parent alone and they stop in order.
- A child sees the end of the parent, however it ends, as the end of its lifeline: a pipe whose other end
  only the parent has.
- The doorbell is a socket pair that outlives its children: serve writes a byte, work wakes.

What it does not do: touch the store, or know what the children do.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from secretsvc.cli.exits import Exit
from secretsvc.settings import PREFIX, Settings
from secretsvc.telemetry.logs import Logger

STOP_S = 20.0
"""How long children may take to stop before they are killed."""

_PAUSES_S = (0.5, 30.0)
_HEALTHY_S = 60.0
"""A child that ran this long starts with the shortest pause again."""
_READY_POLL_S = (0.1, 2.0)
_READY_PATIENCE_S = 30.0
"""After so long it is told once and asked with the longer pause: every question is some lines in the log."""
_PROBE_S = 5.0


@dataclass(frozen=True, slots=True)
class Program:
    """One child: its command, and the end of the doorbell that it gets."""

    name: str
    doorbell: int


class Parent:
    """Runs the two programs until it is told to stop.

    Args:
        settings: where serve listens.
        environ: the children's environment, without what the parent adds.
        log: where starts and deaths are told.
        on_ready: called once, when ``/readyz`` first answers 200.
    """

    def __init__(
        self, settings: Settings, environ: Mapping[str, str], log: Logger, on_ready: Callable[[], None]
    ) -> None:
        self._settings = settings
        self._environ = environ
        self._log = log
        self._on_ready = on_ready
        self._stop = asyncio.Event()
        self._exit: int = Exit.OK
        self._running: dict[str, asyncio.subprocess.Process] = {}

    async def run(self) -> int:
        """Start both, keep them running, stop them; return the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, self._stop.set)
        lifeline, held = os.pipe()
        serve_end, work_end = socket.socketpair()
        programs = (Program("serve", serve_end.fileno()), Program("work", work_end.fileno()))
        tasks = [asyncio.create_task(self._keep(program, lifeline)) for program in programs]
        tasks.append(asyncio.create_task(self._tell_when_ready()))
        try:
            await self._stop.wait()
            await self._end_children()
            await asyncio.gather(*tasks)
        finally:
            os.close(held)
            os.close(lifeline)
            serve_end.close()
            work_end.close()
        return self._exit

    async def _keep(self, program: Program, lifeline: int) -> None:
        pause = _PAUSES_S[0]
        while not self._stop.is_set():
            started = time.monotonic()
            process = await self._start(program, lifeline)
            code = await process.wait()
            del self._running[program.name]
            if self._stop.is_set():
                return
            if code == Exit.USAGE:
                # It has said on standard error what is wrong; starting again would only repeat it.
                self._exit = code
                self._stop.set()
                return
            pause = _PAUSES_S[0] if time.monotonic() - started >= _HEALTHY_S else pause
            self._log.warning("child.died", child=program.name, how=_ending(code), restart_in_s=pause)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), pause)
            pause = min(pause * 2, _PAUSES_S[1])

    async def _start(self, program: Program, lifeline: int) -> asyncio.subprocess.Process:
        own = {f"{PREFIX}DOORBELL_FD": str(program.doorbell), f"{PREFIX}LIFELINE_FD": str(lifeline)}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "secretsvc", program.name),
            env={**self._environ, **own},
            pass_fds=(program.doorbell, lifeline),
            start_new_session=True,
        )
        self._running[program.name] = process
        self._log.info("child.started", child=program.name, pid=process.pid)
        if self._stop.is_set():
            process.terminate()
        return process

    async def _end_children(self) -> None:
        processes = dict(self._running)
        for process in processes.values():
            with suppress(ProcessLookupError):
                process.terminate()
        if processes:
            ends = [asyncio.create_task(process.wait()) for process in processes.values()]
            await asyncio.wait(ends, timeout=STOP_S)
        for name, process in processes.items():
            if process.returncode is not None:
                continue
            self._log.warning("child.killed", child=name, pid=process.pid, after_s=STOP_S)
            with suppress(ProcessLookupError):
                # Its session has no other member than it and its own children.
                os.killpg(process.pid, signal.SIGKILL)

    async def _tell_when_ready(self) -> None:
        started, told = time.monotonic(), False
        while not self._stop.is_set():
            status = await _probe(self._settings)
            if status == 200:  # noqa: PLR2004  # HTTP's OK
                self._on_ready()
                return
            if not told and time.monotonic() - started > _READY_PATIENCE_S:
                told = True
                self._log.warning("not.ready", status=status, url=f"{self._settings.url}/readyz")
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), _READY_POLL_S[told])


async def _probe(settings: Settings) -> int:
    """Return the status of ``/readyz``, 0 when there is no answer."""
    host = settings.url.partition("://")[2].rpartition(":")[0].strip("[]")
    try:
        async with asyncio.timeout(_PROBE_S):
            reader, writer = await asyncio.open_connection(
                host, settings.listen.port, ssl=_own_certificate(settings)
            )
            try:
                writer.write(b"GET /readyz HTTP/1.0\r\nHost: localhost\r\n\r\n")
                line = await reader.readline()
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return 0
    words = line.split()
    return int(words[1]) if len(words) > 1 and words[1].isdigit() else 0


def _own_certificate(settings: Settings) -> ssl.SSLContext | None:
    """Trust serve's own certificate and nothing else, whatever names it has and whoever signed it."""
    if settings.tls is None:
        return None
    context = ssl.create_default_context(cafile=str(settings.tls.cert))
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def _ending(code: int) -> str:
    if code < 0:
        with suppress(ValueError):
            return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"
