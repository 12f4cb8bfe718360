"""gunicorn, as serve runs it. The only door to gunicorn.

It runs one process, so that metrics and caches are whole; more capacity is more replicas. 16 requests are
worked on at once; more threads than those stand ready to read heads and to close, which is where a caller can
be slow, and `cli.deadlines` bounds how slow.

Its access log is off (ours is without query strings), and so is its control socket, which would offer to shut
it down to whoever runs as the same user. It repeats nothing of a request, in the log or to the caller, not
even one that is broken: a value may be pasted anywhere.
"""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any

from gunicorn.app.base import BaseApplication  # type: ignore[import-untyped]
from gunicorn.glogging import Logger as GunicornLogger  # type: ignore[import-untyped]
from gunicorn.http import errors as unreadable  # type: ignore[import-untyped]
from gunicorn.http.body import Body  # type: ignore[import-untyped]
from gunicorn.util import write_nonblock  # type: ignore[import-untyped]
from gunicorn.workers.gthread import ThreadWorker  # type: ignore[import-untyped]

from secretsvc.cli.deadlines import Deadlines, Limits, Phase, Watch
from secretsvc.settings import LogLevel, Settings
from secretsvc.telemetry.logs import adopt, bind_context, describe, get_logger

THREADS = 16
"""Requests that are worked on at once."""
_READERS = 112
"""Further connections that may send their heads or be closed meanwhile; threads are started as needed."""
_GRACE_S = 10
"""How long requests under way may take when serve is told to stop."""
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  # where gunicorn's heartbeat file is no disk write

_log = get_logger(__name__)

_REFUSALS: tuple[tuple[type[Exception], HTTPStatus], ...] = (
    (unreadable.LimitRequestLine, HTTPStatus.REQUEST_URI_TOO_LONG),
    (unreadable.LimitRequestHeaders, HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE),
    (unreadable.ExpectationFailed, HTTPStatus.EXPECTATION_FAILED),
    (unreadable.UnsupportedTransferCoding, HTTPStatus.NOT_IMPLEMENTED),
    (unreadable.ParseException, HTTPStatus.BAD_REQUEST),
    (ssl.SSLError, HTTPStatus.BAD_REQUEST),
)
"""What gunicorn can not make a request of, and how it is answered."""


class Server(BaseApplication):  # type: ignore[misc]  # gunicorn has no types
    """Serves one WSGI application until it is told to stop.

    Args:
        options: gunicorn's settings, such as `options_for` returns them.
        make: makes the application, in the process that will run it.
        limits: how slow callers may be.
    """

    def __init__(
        self, options: Mapping[str, Any], make: Callable[[], Any], limits: Limits | None = None
    ) -> None:
        self._options = options
        self._make = make
        self.limits = limits or Limits()
        super().__init__()

    def load_config(self) -> None:
        """Hand the settings over; nothing is read from files or the command line."""
        for name, value in self._options.items():
            self.cfg.set(name, value)

    def load(self) -> Any:  # noqa: ANN401  # a WSGI application; gunicorn has no types
        """Make the application."""
        return self._make()


def options_for(settings: Settings) -> dict[str, Any]:
    """Return gunicorn's settings."""
    options: dict[str, Any] = {
        "bind": str(settings.listen),
        "workers": 1,
        "worker_class": _Worker,
        "threads": THREADS,
        "control_socket_disable": True,
        "accesslog": None,
        "errorlog": "-",
        "loglevel": _level(settings.log_level).value,
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


def _level(wished: LogLevel) -> LogLevel:
    """Return how much gunicorn may say: at DEBUG it would write the path of every request."""
    return LogLevel.INFO if wished is LogLevel.DEBUG else wished


class _Logger(GunicornLogger):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's lines in our log, in our format."""

    def setup(self, cfg: Any) -> None:  # noqa: ANN401  # gunicorn has no types
        super().setup(cfg)
        adopt("gunicorn.error", "gunicorn.access")


class _Body(Body):  # type: ignore[misc]  # gunicorn has no types
    """A request's body that is waited for no longer than the deadline."""

    def __init__(self, reader: object, watch: Watch) -> None:
        super().__init__(reader)
        self.watch = watch

    def read(self, size: int | None = None) -> bytes:
        with self.watch.reading_body():
            found: bytes = super().read(size)
        return found

    def readline(self, size: int | None = None) -> bytes:
        with self.watch.reading_body():
            found: bytes = super().readline(size)
        return found


class _Worker(ThreadWorker):  # type: ignore[misc]  # gunicorn has no types
    """Waits for nobody too long, and tells what went wrong without a word of what was sent.

    A connection is watched from the moment a thread takes it up. It is closed by that thread too: closing
    waits for the peer, and gunicorn would do that where it accepts everybody else's connections.
    """

    wsgi: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401  # gunicorn has no types
        super().__init__(*args, **kwargs)
        self._deadlines = Deadlines(self.app.limits, _log)
        self._seats = threading.BoundedSemaphore(self.cfg.threads)

    def get_thread_pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(max_workers=self.cfg.threads + _READERS)

    def load_wsgi(self) -> None:
        super().load_wsgi()
        self.wsgi = _timed(self.wsgi)

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        pause = timeout if self._deadlines.idle else min(timeout, Deadlines.TICK_S)
        super().wait_for_and_dispatch_events(pause)
        self._deadlines.sweep()

    def enqueue_req(self, conn: Any) -> None:  # noqa: ANN401  # as in the base class
        self._deadlines.queue()
        super().enqueue_req(conn)

    def handle(self, conn: Any) -> Any:  # noqa: ANN401  # as in the base class
        try:
            with self._deadlines.watching(conn.sock, _source(conn.client)) as watch:
                conn.watch = watch
                stays = super().handle(conn)
                if not stays:
                    watch.enter(Phase.CLOSE)
                    self._close(conn)
                return stays
        finally:
            bind_context()  # the next lines of this thread are about another request

    def _close(self, conn: Any) -> None:  # noqa: ANN401  # as in the base class
        conn.closed = True
        with suppress(OSError):  # it is closed already
            conn.close(graceful=True)

    def finish_request(self, conn: Any, fs: Future[Any]) -> None:  # noqa: ANN401  # as in the base class
        if getattr(conn, "closed", False):
            self.nr_conns -= 1
        else:
            super().finish_request(conn, fs)

    def handle_request(self, req: Any, conn: Any) -> Any:  # noqa: ANN401  # as in the base class
        conn.watch.enter(Phase.WORK)
        req.body = _Body(req.body.reader, conn.watch)
        with self._seats:
            return super().handle_request(req, conn)

    def _keepalive_after(self, conn: Any, keepalive: Any) -> bool:  # noqa: ANN401  # as in the base class
        conn.watch.enter(Phase.CLOSE)  # what is left of the body is waited for like a peer that closes
        return bool(super()._keepalive_after(conn, keepalive))

    def handle_error(self, _req: object, client: Any, addr: Any, exc: Exception) -> None:  # noqa: ANN401  # as in the base class
        found = (status for kind, status in _REFUSALS if isinstance(exc, kind))
        status = next(found, HTTPStatus.INTERNAL_SERVER_ERROR)
        if status is HTTPStatus.INTERNAL_SERVER_ERROR:
            _log.error("request.crashed", **describe(exc))
        else:
            _log.warning(
                "request.unreadable", status=int(status), error=type(exc).__name__, source=_source(addr)
            )
        with suppress(OSError):
            write_nonblock(client, _unreadable_answer(status))


def _timed(application: Callable[..., Iterable[bytes]]) -> Callable[..., Iterable[bytes]]:
    """Return the application; when it has worked, its answer must be taken within the deadline."""

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        body = environ["wsgi.input"]
        found = application(environ, start_response)
        body.watch.enter(Phase.ANSWER)
        return found

    return answer


def _source(address: object) -> str:
    return str(address[0]) if isinstance(address, tuple) and address else ""


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
