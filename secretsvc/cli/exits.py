"""Exit codes: the one table from what went wrong to what the shell is told.

``secretsvc exit-codes`` prints it. The codes follow kubectl diff and argocd (1: done, but the answer is
bad), click (2: usage) and gh (4: not authenticated).
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Any

from secretsvc.core import errors
from secretsvc.core.errors import SecretsvcError


class Exit(IntEnum):
    """What a command ends with."""

    OK = 0
    BAD_ANSWER = 1
    USAGE = 2
    REMOTE = 3
    FORBIDDEN = 4
    NOT_FOUND = 5
    CONFLICT = 6
    PARTIAL = 7
    TIMED_OUT = 8
    DEFECT = 70
    INTERRUPTED = 130


MEANINGS: Mapping[Exit, str] = {
    Exit.OK: "done",
    Exit.BAD_ANSWER: "done, but the answer is bad: a value was refused, or something is unhealthy",
    Exit.USAGE: "the command, its input or the settings are wrong",
    Exit.REMOTE: "the service, its store or a registry did not answer, or failed",
    Exit.FORBIDDEN: "not authenticated, or not allowed",
    Exit.NOT_FOUND: "there is no such record",
    Exit.CONFLICT: "the name is taken, the record is in use, or it changed meanwhile",
    Exit.PARTIAL: "done for some targets, not for all",
    Exit.TIMED_OUT: "the wait ended; what was asked for goes on",
    Exit.DEFECT: "a defect of secretsvc: please report it with the traceback",
    Exit.INTERRUPTED: "interrupted",
}


class ApiProblem(SecretsvcError):
    """The API answered with an error; ``document`` is its problem (RFC 9457), or an empty mapping."""

    def __init__(self, status: int, document: Mapping[str, Any]) -> None:
        title = str(document.get("title") or f"the service answered with status {status}")
        super().__init__(
            str(document.get("detail") or title),
            hint=str(document.get("hint") or ""),
            code=str(document.get("code") or ""),
        )
        self.status = status
        self.document = document
        self.given_as: dict[str, str] = {}
        """Pointer of a wrong field to the option that it came from, as far as a command knows."""


class TimedOut(SecretsvcError):
    """The wait for an answer or an operation ended first."""


class BadAnswer(SecretsvcError):
    """What was asked for was done, and the outcome is not good."""


class PartlyDone(SecretsvcError):
    """Some targets have it and others have not."""


ERRORS: Mapping[type[SecretsvcError], Exit] = {
    SecretsvcError: Exit.REMOTE,
    errors.ConfigurationError: Exit.USAGE,
    errors.InvalidInput: Exit.USAGE,
    errors.Unauthenticated: Exit.FORBIDDEN,
    errors.Forbidden: Exit.FORBIDDEN,
    errors.NotFound: Exit.NOT_FOUND,
    errors.Conflict: Exit.CONFLICT,
    errors.PreconditionFailed: Exit.CONFLICT,
    errors.NotProved: Exit.BAD_ANSWER,
    errors.Busy: Exit.REMOTE,
    errors.StoreError: Exit.REMOTE,
    errors.StoreUnavailable: Exit.REMOTE,
    errors.StoreConflict: Exit.CONFLICT,
    errors.StoreDenied: Exit.FORBIDDEN,
    errors.RecordDamaged: Exit.REMOTE,
    errors.DeliveryError: Exit.REMOTE,
    errors.TargetUnreachable: Exit.REMOTE,
    errors.TargetForbidden: Exit.FORBIDDEN,
    errors.TargetMissing: Exit.NOT_FOUND,
    errors.TargetChanged: Exit.CONFLICT,
    errors.TargetRefused: Exit.CONFLICT,
    TimedOut: Exit.TIMED_OUT,
    BadAnswer: Exit.BAD_ANSWER,
    PartlyDone: Exit.PARTIAL,
}

STATUSES: Mapping[int, Exit] = {
    400: Exit.USAGE,
    401: Exit.FORBIDDEN,
    403: Exit.FORBIDDEN,
    404: Exit.NOT_FOUND,
    405: Exit.USAGE,
    409: Exit.CONFLICT,
    412: Exit.CONFLICT,
    413: Exit.USAGE,
    415: Exit.USAGE,
    422: Exit.USAGE,
    428: Exit.CONFLICT,
    504: Exit.TIMED_OUT,
}
"""Answers of the API; any other status that is no success is `Exit.REMOTE`."""


def exit_for(error: SecretsvcError) -> Exit:
    """Return the exit code of an error."""
    if isinstance(error, ApiProblem):
        refused = error.status == 422 and "verdict" in error.document  # noqa: PLR2004  # as in STATUSES
        return Exit.BAD_ANSWER if refused else STATUSES.get(error.status, Exit.REMOTE)
    return next(ERRORS[kind] for kind in type(error).__mro__ if kind in ERRORS)
