"""Who may call: the guard before every request.

Rules:

- Everything needs a token but `PUBLIC`, unknown routes included: an anonymous caller learns nothing.
- The token comes as ``Authorization: Bearer`` and in no other way, never in a URL or a cookie.
- A viewer may GET; everything else is an admin's.
- Who presents wrong tokens again and again is told to wait, and tokens that we do not know are not even
  looked up then. A token that was valid lately is never held up, so nobody can lock its user out.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from datetime import datetime, timedelta

from flask import g, request
from werkzeug.exceptions import TooManyRequests

from secretsvc.core.access import Principal
from secretsvc.core.errors import Unauthenticated
from secretsvc.core.model import Secret
from secretsvc.core.ports import Clock
from secretsvc.core.tokens import token_digest
from secretsvc.telemetry.logs import bind_context, get_logger
from secretsvc.web.services import admit, services

PUBLIC = frozenset({"livez", "readyz", "metrics"})
"""Endpoints that anybody may call; they tell nothing about anything stored but its health and numbers."""
READING = frozenset({"GET", "HEAD"})

_log = get_logger(__name__)


class Throttle:
    """Counts wrong tokens per source.

    Args:
        clock: the time.
        allowed: wrong tokens that a source may present within ``window``.
        window: how long a wrong token counts.
        sources: how many sources are remembered; the one that was quiet longest is forgotten first.
    """

    def __init__(
        self,
        clock: Clock,
        allowed: int = 10,
        window: timedelta = timedelta(minutes=1),
        sources: int = 1024,
    ) -> None:
        self._clock = clock
        self._allowed = allowed
        self._window = window
        self._most = sources
        self._lock = threading.Lock()
        self._failures: OrderedDict[str, deque[datetime]] = OrderedDict()

    def failed(self, source: str) -> None:
        """Note a wrong token."""
        with self._lock:
            failures = self._failures.setdefault(source, deque(maxlen=self._allowed))
            self._failures.move_to_end(source)
            if len(self._failures) > self._most:
                self._failures.popitem(last=False)
            failures.append(self._clock())

    def pause(self, source: str) -> int:
        """Return the seconds the source should wait, 0 while it is below the limit."""
        now = self._clock()
        with self._lock:
            failures = self._failures.get(source, deque())
            while failures and failures[0] <= now - self._window:
                failures.popleft()
            if len(failures) < self._allowed:
                return 0
            return max(1, round((failures[0] + self._window - now).total_seconds()))


class Known:
    """Remembers which tokens were valid lately, by digest.

    Args:
        most: how many are remembered; the one that was used longest ago is forgotten first.
    """

    def __init__(self, most: int = 4096) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._digests: OrderedDict[str, None] = OrderedDict()

    def __contains__(self, digest: str) -> bool:
        with self._lock:
            return digest in self._digests

    def add(self, digest: str) -> None:
        """Remember a token that is valid."""
        with self._lock:
            self._digests[digest] = None
            self._digests.move_to_end(digest)
            if len(self._digests) > self._most:
                self._digests.popitem(last=False)

    def discard(self, digest: str) -> None:
        """Forget a token."""
        with self._lock:
            self._digests.pop(digest, None)


class Guard:
    """Lets requests in.

    Args:
        throttle: counts wrong tokens.
    """

    def __init__(self, throttle: Throttle) -> None:
        self._throttle = throttle
        self._known = Known()

    def __call__(self) -> None:
        """Find out who is calling and whether they may, or raise."""
        if request.endpoint in PUBLIC:
            return
        caller = self._caller()
        admit(caller)
        # Names of principals can be used again; the id tells in every line, the audit's too, which it was.
        bind_context(request_id=g.request_id, actor_id=caller.id)
        if request.url_rule is not None:
            action = f"{request.method} {request.url_rule.rule}"
            services().gatekeeper.authorize(caller, action, writes=request.method not in READING)

    def _caller(self) -> Principal:
        token = _bearer()
        if token is None:
            return services().gatekeeper.authenticate(None)
        digest, source = token_digest(token), request.remote_addr or "unknown"
        pause = 0 if digest in self._known else self._throttle.pause(source)
        if pause:
            raise TooManyRequests(retry_after=pause)
        try:
            caller = services().gatekeeper.authenticate(token)
        except Unauthenticated as exc:
            self._known.discard(digest)
            self._throttle.failed(source)
            _log.warning("access.refused", source=source, reason=exc.message)
            raise
        self._known.add(digest)
        return caller


def _bearer() -> Secret | None:
    """Return the token of the ``Authorization`` header, if there is one of the scheme ``Bearer``."""
    scheme, _, value = request.headers.get("Authorization", "").partition(" ")
    return Secret(value.strip()) if scheme.lower() == "bearer" and value.strip() else None
