"""Who may call: the guard before every request.

Rules:

- Everything needs a token but `PUBLIC`, unknown routes included: an anonymous caller learns nothing.
- The token comes as ``Authorization: Bearer`` and in no other way, never in a URL or a cookie.
- A viewer may GET; everything else is an admin's.
- Who presents wrong tokens again and again is told to wait. That only concerns wrong tokens: a valid one is
  never held up, so nobody can lock anybody out.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from datetime import datetime, timedelta

from flask import request
from werkzeug.exceptions import TooManyRequests

from secretsvc.core.access import Principal
from secretsvc.core.errors import Unauthenticated
from secretsvc.core.model import Secret
from secretsvc.core.ports import Clock
from secretsvc.telemetry.logs import get_logger
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

    def failed(self, source: str) -> int:
        """Note a wrong token; return the seconds the source should wait, 0 while it is below the limit."""
        now = self._clock()
        with self._lock:
            failures = self._failures.setdefault(source, deque(maxlen=self._allowed))
            self._failures.move_to_end(source)
            if len(self._failures) > self._most:
                self._failures.popitem(last=False)
            while failures and failures[0] <= now - self._window:
                failures.popleft()
            if len(failures) < self._allowed:
                failures.append(now)
                return 0
            return max(1, round((failures[0] + self._window - now).total_seconds()))


class Guard:
    """Lets requests in.

    Args:
        throttle: counts wrong tokens.
    """

    def __init__(self, throttle: Throttle) -> None:
        self._throttle = throttle

    def __call__(self) -> None:
        """Find out who is calling and whether they may, or raise."""
        if request.endpoint in PUBLIC:
            return
        caller = self._caller()
        admit(caller)
        if request.url_rule is not None:
            action = f"{request.method} {request.url_rule.rule}"
            services().gatekeeper.authorize(caller, action, writes=request.method not in READING)

    def _caller(self) -> Principal:
        token = _bearer()
        try:
            return services().gatekeeper.authenticate(token)
        except Unauthenticated as exc:
            if token is None:
                raise
            source = request.remote_addr or "unknown"
            pause = self._throttle.failed(source)
            if pause:
                raise TooManyRequests(retry_after=pause) from None
            _log.warning("access.refused", source=source, reason=exc.message)
            raise


def _bearer() -> Secret | None:
    """Return the token of the ``Authorization`` header, if there is one of the scheme ``Bearer``."""
    scheme, _, value = request.headers.get("Authorization", "").partition(" ")
    return Secret(value.strip()) if scheme.lower() == "bearer" and value.strip() else None
