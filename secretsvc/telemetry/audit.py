"""Who did what: one structured line per act, in the log under the event ``audit``.

A line has ``action``, ``subject``, ``actor``, ``outcome``, the request's id where there is one, and the facts
the act names. Values never go in; the callers have only names and outcomes to give.
"""

from __future__ import annotations

from secretsvc.telemetry.logs import Logger


class LogAudit:
    """The `core.ports.AuditLog` that writes to the log.

    Args:
        logger: where lines go; they are at level INFO.
    """

    def __init__(self, logger: Logger) -> None:
        self._logger = logger

    def record(self, action: str, subject: str, *, actor: str, outcome: str, **facts: str | int) -> None:
        """Write one act."""
        line: dict[str, object] = {f"fact_{name}" if name in _TAKEN else name: facts[name] for name in facts}
        line |= {"action": action, "subject": subject, "actor": actor, "outcome": outcome}
        self._logger.info("audit", **line)


_TAKEN = frozenset({"event", "level", "logger", "timestamp", "request_id"})
