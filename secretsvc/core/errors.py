"""Every error secretsvc raises on purpose, in one tree.

::

    SecretsvcError          code (stable slug), message, hint, retryable
    ├── ConfigurationError  settings or files on this machine are wrong; start-up only
    ├── InvalidInput        a field of a request is wrong; carries FieldError rows
    ├── Unauthenticated     no token, or one that is unknown, expired or revoked
    ├── Forbidden           the caller's role does not allow this
    ├── NotFound            no record of that kind and name
    ├── Conflict            the name is taken, or the record is in use
    ├── PreconditionFailed  If-Match named another version than the stored one
    ├── NotProved           the value was not accepted: carries the verdict
    ├── Busy                too much of the same is under way; retryable
    ├── StoreError
    │   ├── StoreUnavailable   no answer, sealed, or standby; retryable
    │   ├── StoreConflict      a compare-and-set lost; read again
    │   ├── StoreDenied        our own login lacks the right
    │   └── RecordDamaged      does not decrypt, does not parse, or is of a newer format
    └── DeliveryError
        ├── TargetUnreachable  the API server did not answer; retryable
        ├── TargetForbidden    RBAC, admission or file permissions refuse us
        ├── TargetMissing      no such namespace, or it is terminating; no such directory
        ├── TargetChanged      somebody wrote between our read and our write; read again
        └── TargetRefused      the target itself is not one we may write (conflict, unparseable)

Messages and hints are shown to users and logged, so they never hold a secret value, a request body or
a foreign server's answer. Adapters translate foreign exceptions at their door, ``raise ... from``;
``web.problems`` and ``cli.exits`` are the two tables from this tree to status and exit codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from secretsvc.core.model import Verdict


class SecretsvcError(Exception):
    """The root: something a caller can be told about.

    Args:
        message: what is wrong, and where.
        hint: what to do next; may be empty.
        code: a stable CamelCase slug, by default the class's own name.
    """

    retryable = False

    def __init__(self, message: str, *, hint: str = "", code: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code or type(self).__name__


class ConfigurationError(SecretsvcError):
    """The settings, or the files they name, do not allow a start."""


@dataclass(frozen=True, slots=True)
class FieldError:
    """One wrong field: a JSON pointer such as ``/username`` and what is wrong with it."""

    pointer: str
    detail: str


class InvalidInput(SecretsvcError):
    """The request is well-formed but a value in it is not acceptable."""

    def __init__(self, message: str, *fields: FieldError, hint: str = "", code: str = "") -> None:
        super().__init__(message, hint=hint, code=code)
        self.fields = fields


class Unauthenticated(SecretsvcError):
    """Nobody we know is calling."""


class Forbidden(SecretsvcError):
    """We know who is calling, and they may not."""


class NotFound(SecretsvcError):
    """There is no such record."""


class Conflict(SecretsvcError):
    """The request contradicts what is stored: a name taken, or a record still in use.

    Args:
        users: who uses the record, as ``kind/name``, when that is the reason.
    """

    def __init__(self, message: str, *, hint: str = "", code: str = "", users: tuple[str, ...] = ()) -> None:
        super().__init__(message, hint=hint, code=code)
        self.users = users


class PreconditionFailed(SecretsvcError):
    """The record has changed since the caller read it."""


class NotProved(SecretsvcError):
    """The registry (or our own check of the value) did not accept the credential."""

    def __init__(self, message: str, verdict: Verdict, *, hint: str = "") -> None:
        super().__init__(message, hint=hint, code=verdict.reason)
        self.verdict = verdict


class Busy(SecretsvcError):
    """So much of this is under way that more would take from everybody else."""

    retryable = True


class StoreError(SecretsvcError):
    """The store did not do what was asked."""


class StoreUnavailable(StoreError):
    """No usable answer from the store; nothing is known to have changed."""

    retryable = True


class StoreConflict(StoreError):
    """Somebody wrote the document first; nothing was written."""

    retryable = True


class StoreDenied(StoreError):
    """The store knows us and refuses: a policy is missing, or the login is spent."""


class RecordDamaged(StoreError):
    """A stored document can not be trusted or understood. It is left as it is."""


class DeliveryError(SecretsvcError):
    """A target was not brought to what is wanted; what it held is still there."""


class TargetUnreachable(DeliveryError):
    """No answer from the target's server."""

    retryable = True


class TargetForbidden(DeliveryError):
    """The target's server, or the file system, refuses us."""


class TargetMissing(DeliveryError):
    """The namespace or directory is not there, or is going away."""


class TargetChanged(DeliveryError):
    """The target changed between our read and our write."""

    retryable = True


class TargetRefused(DeliveryError):
    """The target holds something we must not overwrite."""
