"""What an API server's refusal means, as one of our errors.

Of a ``Status`` only Kubernetes' own words are used: ``reason``, ``details.kind``, the causes' fields and
reasons, and the verb that RBAC missed. Never ``message``: it can quote values of the Secret that was sent.

Pure; it sends nothing and retries nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from secretsvc.core.errors import (
    DeliveryError,
    TargetChanged,
    TargetForbidden,
    TargetMissing,
    TargetUnreachable,
)

_MISSED_VERB = re.compile(r" cannot ([a-z]{1,20}) resource ")
_WORD = re.compile(r"[\w.\-/\[\]]{1,120}")
_VERBS = {"GET": "get", "POST": "create", "PATCH": "patch", "PUT": "update", "DELETE": "delete"}
_INVALID = frozenset(
    {
        HTTPStatus.BAD_REQUEST,
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        HTTPStatus.UNPROCESSABLE_ENTITY,
    }
)


def refusal(cluster: str, status: int, answer: Mapping[str, Any], method: str, about: str) -> DeliveryError:
    """Return the error for an answer that is not 2xx.

    Args:
        cluster: its name, for the message.
        status: the HTTP status.
        answer: the JSON object that came with it.
        method: the HTTP method that was refused.
        about: what the request was about, such as ``secret a/pull-secret``.
    """
    told = _Status.of(answer)
    text = f"cluster {cluster}: {about}"
    if status in {HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND}:
        return _missing(text, status, told) or _forbidden(text, told, method)
    if status == HTTPStatus.UNAUTHORIZED:
        hint = "renew the kubeconfig's token or certificate"
        return TargetForbidden(f"{text}: our login is not accepted", hint=hint, code="LoginRefused")
    if status == HTTPStatus.CONFLICT:
        return TargetChanged(f"{text}: somebody else wrote it ({told.words})", code="WriteConflict")
    if status in _INVALID:
        return TargetForbidden(f"{text}: the API server finds it invalid ({told.words})", code="Invalid")
    return _unavailable(text, status)


def _missing(text: str, status: int, told: _Status) -> TargetMissing | None:
    if "NamespaceTerminating" in told.causes:
        return TargetMissing(f"{text}: the namespace is being deleted", code="NamespaceTerminating")
    if status != HTTPStatus.NOT_FOUND:
        return None
    if told.kind == "namespaces":
        return TargetMissing(f"{text}: there is no such namespace", code="NamespaceMissing")
    return TargetMissing(f"{text}: not found", code="NotFound")


def _forbidden(text: str, told: _Status, method: str) -> TargetForbidden:
    if told.missed_verb:
        return TargetForbidden(
            f"{text}: our login may not {told.missed_verb} it",
            hint=f"grant our login the verb {told.missed_verb!r} on it by RBAC",
            code="RbacDenied",
        )
    return TargetForbidden(
        f"{text}: an admission rule or quota of the cluster refuses to {_VERBS[method]} it",
        hint="its audit log or events name the rule",
        code="AdmissionDenied",
    )


def _unavailable(text: str, status: int) -> TargetUnreachable:
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return TargetUnreachable(f"{text}: the API server asks us to wait", code="Overloaded")
    return TargetUnreachable(f"{text}: the API server answered {status}", code="ServerError")


@dataclass(frozen=True, slots=True)
class _Status:
    """What may be told of a ``Status`` object."""

    reason: str
    kind: str
    fields: tuple[str, ...]
    causes: frozenset[str]
    missed_verb: str

    @classmethod
    def of(cls, answer: Mapping[str, Any]) -> _Status:
        details = _object(answer.get("details"))
        listed = details.get("causes")
        causes = [_object(cause) for cause in listed] if isinstance(listed, list) else []
        missed = _MISSED_VERB.search(str(answer.get("message", "")))
        return cls(
            _word(answer.get("reason")),
            _word(details.get("kind")),
            tuple(dict.fromkeys(filter(None, (_word(cause.get("field")) for cause in causes)))),
            frozenset(_word(cause.get("reason")) for cause in causes),
            missed[1] if missed else "",
        )

    @property
    def words(self) -> str:
        """The reason with the fields it is about."""
        return ": ".join(filter(None, (self.reason or "no reason given", ", ".join(self.fields))))


def _object(value: object) -> Mapping[str, Any]:
    """Return ``value`` if it is a JSON object, else an empty one: proxies answer all sorts of things."""
    return value if isinstance(value, dict) else {}


def _word(value: object) -> str:
    """Return ``value`` if it looks like a name, so that no odd server puts its own text into our messages."""
    return value if isinstance(value, str) and _WORD.fullmatch(value) else ""
