"""What a registry's answers mean: facts in, a `Decision` out. Nothing here talks to anybody.

Rules:

- Only an answer that can not be had without the right secret makes a login valid. What anybody gets without
  a login (the *anonymous control*), or with a made-up one (the *calibration*), proves nothing.
- Only a clear refusal makes it `INVALID`. Silence, 5xx, 429, an HTML page or a redirect never do.
- A message is one sentence or two for a person. It may name the host and a status; it never holds a byte of
  an answer's body. Reasons are CamelCase and stable: programs compare them.

The order of the requests is `registries.generic`'s. The statuses' meanings follow RFC 9110, the distribution
project's token specification, and what running products were seen to answer.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import unicodedata
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from secretsvc.core.dockerconfig import is_portable
from secretsvc.core.model import (
    Outcome,
    Secret,
)

if TYPE_CHECKING:
    from secretsvc.core.model import Login

MAX_SECRET_BYTES = 32_768
"""Longer values do not fit into the request headers that servers accept."""
_MAX_USERNAME = 512
"""Characters; registries' own limits are lower."""
_CLOCK_SKEW = timedelta(seconds=60)
_LONGEST_WAIT = timedelta(hours=1)
"""A registry that asks for more patience than this is asked again anyway."""
_DENIALS = frozenset({"DENIED", "UNAUTHORIZED"})
_EXPIRED = re.compile(r"\bexpired\b", re.IGNORECASE)
_OPENSHIFT_FAULT = re.compile(r"unable to validate token(?!: Unauthorized)", re.IGNORECASE)
_HEADER_SAFE = re.compile(r"[!-~]+\Z")
_TEXTS = ("message", "details", "error_description")


@dataclass(frozen=True, slots=True)
class Decision:
    """What the rules make of the facts; a verdict without its time and steps."""

    outcome: Outcome
    reason: str
    message: str
    retry_at: datetime | None = None


# --- Before any request ---------------------------------------------------------------------------


def check_login(login: Login, now: datetime) -> Decision | None:
    """Judge a login by itself; None when only the registry can tell.

    Catches what every consumer mangles (a ``:`` in the username, line ends in the secret) and a JWT that
    says itself that it has expired, so that no request is spent on them. What passes can be delivered:
    `core.dockerconfig.render` takes it, under any auth key that it takes.
    """
    fault = _username_fault(login.username) or _secret_fault(login.secret.reveal())
    if fault is not None:
        return Decision(Outcome.MALFORMED, *fault)
    expires_at = secret_expiry(login.secret)
    if expires_at is not None and expires_at + _CLOCK_SKEW < now:
        when = expires_at.isoformat()
        return Decision(Outcome.EXPIRED, "TokenExpired", f"The token itself says that it expired at {when}.")
    return None


def _username_fault(username: str) -> tuple[str, str] | None:
    if not username:
        return "UsernameEmpty", "A login needs a username; without one registries answer as to anybody."
    if len(username) > _MAX_USERNAME:
        return "UsernameTooLong", f"A username has at most {_MAX_USERNAME} characters."
    if ":" in username:
        return "UsernameHasColon", "A username can not hold ':', which separates it from the secret."
    if any(character.isspace() or _is_control(character) for character in username):
        return "UsernameHasBlank", "A username can not hold blanks, line ends or control characters."
    return None


def _secret_fault(value: str) -> tuple[str, str] | None:
    if not value:
        return "SecretEmpty", "A login needs a secret; without one registries answer as to anybody."
    if len(value.encode("utf-8", "replace")) > MAX_SECRET_BYTES:
        return "SecretTooLong", f"A secret has at most {MAX_SECRET_BYTES} bytes."
    if value != value.strip():
        return (
            "SecretHasOuterBlank",
            "The secret begins or ends with a blank or a line end; paste it without.",
        )
    if not is_portable(value):
        return "SecretHasControlCharacter", "The secret holds a line end or another control character."
    return None


def _is_control(character: str) -> bool:
    return unicodedata.category(character) in {"Cc", "Cs"}


def secret_expiry(secret: Secret) -> datetime | None:
    """Return when a secret that is a JWT says it expires; None for every other secret.

    The signature is not checked: nobody but the registry can, and a false date only hurts who forged it.
    """
    stamp = _jwt_payload(secret.reveal()).get("exp")
    if isinstance(stamp, bool) or not isinstance(stamp, int | float):
        return None
    try:
        return datetime.fromtimestamp(stamp, UTC)
    except (OverflowError, ValueError, OSError):
        return None


def looks_like_jwt(secret: Secret) -> bool:
    """Whether the secret has the shape of a signed token with readable claims."""
    return bool(_jwt_payload(secret.reveal()))


def _jwt_payload(value: str) -> dict[str, Any]:
    parts = value.split(".")
    if len(parts) != 3 or not value.isascii():  # noqa: PLR2004  # header, payload, signature (RFC 7519)
        return {}
    try:
        payload = base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4))
    except (binascii.Error, ValueError):
        return {}
    claims = _json(payload)
    return claims if isinstance(claims, dict) else {}


def _json(text: str | bytes) -> object:
    """Parse, or return None. Deep nesting and broken encodings are no different from broken JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


# --- An answer ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Answer:
    """What the rules need to know of an HTTP answer. Holds nothing of its body."""

    status: int
    denied: bool = False
    """The body is an OCI error list that says DENIED or UNAUTHORIZED."""
    expired: bool = False
    """The body's error text says that something has expired."""
    backend_fault: bool = False
    """The body says that the token could not be checked (OpenShift answers 401 then)."""
    retry_at: datetime | None = None

    @property
    def ok(self) -> bool:
        """Exactly 200: other successes are no part of the protocol."""
        return self.status == HTTPStatus.OK

    @property
    def refuses(self) -> bool:
        """It says no to this request, for a reason in the request; 429 and time-outs are no such answer."""
        return self.status in {400, 401, 403}

    @property
    def inconclusive(self) -> bool:
        """It says nothing about the login."""
        return self.status in {408, 425, 429} or self.status >= HTTPStatus.INTERNAL_SERVER_ERROR


def summarise(status: int, content_type: str, retry_after: str, body: bytes, now: datetime) -> Answer:
    """Reduce an HTTP answer to what the rules ask about."""
    media = content_type.partition(";")[0].strip().lower()
    texts, codes = ([], set()) if media == "text/html" else _errors(body)
    joined = " ".join(texts)
    return Answer(
        status,
        denied=bool(codes & _DENIALS),
        expired=bool(_EXPIRED.search(joined)),
        backend_fault=bool(_OPENSHIFT_FAULT.search(joined)),
        retry_at=_retry_at(retry_after, now),
    )


def _errors(body: bytes) -> tuple[list[str], set[str]]:
    """Return the error texts and codes of a JSON body, or the whole of a short plain text."""
    document = _json(body)
    if not isinstance(document, dict):
        short = body if document is None and len(body) < 1024 else b""  # noqa: PLR2004  # a sentence, no page
        return [short.decode("utf-8", "replace")], set()
    listed = document.get("errors")
    rows = [row for row in listed if isinstance(row, dict)] if isinstance(listed, list) else []
    texts = [str(row[name]) for row in (document, *rows) for name in _TEXTS if isinstance(row.get(name), str)]
    return texts, {str(row.get("code")).upper() for row in rows}


def _retry_at(text: str, now: datetime) -> datetime | None:
    """Read ``Retry-After``: seconds or an HTTP date. Products round down, so a second is added."""
    text = text.strip()
    if not text:
        return None
    if text.isascii() and text.isdigit():
        seconds = int(text) if len(text) < 10 else _LONGEST_WAIT.total_seconds()  # noqa: PLR2004  # huge
        return now + min(timedelta(seconds=seconds + 1), _LONGEST_WAIT)
    try:
        wanted = parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    wanted = wanted if wanted.tzinfo is not None else wanted.replace(tzinfo=UTC)
    return min(max(wanted, now) + timedelta(seconds=1), now + _LONGEST_WAIT)


def bearer_token(body: bytes) -> Secret | None:
    """Return the token of a token server's answer, or None when there is none that fits a header.

    ``access_token`` wins over ``token`` as in most clients; the token is opaque and need not be a JWT.
    """
    document = _json(body)
    if not isinstance(document, dict):
        return None
    value = document.get("access_token") or document.get("token")
    if not isinstance(value, str) or not _HEADER_SAFE.match(value):
        return None
    return Secret(value)


# --- The unauthenticated ping ---------------------------------------------------------------------


def on_ping(host: str, answer: Answer) -> Decision | None:
    """Judge ``GET /v2/`` without a login; None for 401 and 200, the two that a registry gives."""
    if answer.status in {HTTPStatus.OK, HTTPStatus.UNAUTHORIZED}:
        return None
    if answer.inconclusive:
        return _no_answer(host, answer)
    if answer.status == HTTPStatus.FORBIDDEN:
        return _forbidden(host)
    if 300 <= answer.status < 400:  # noqa: PLR2004  # the redirects
        return Decision(
            Outcome.PROTOCOL_ERROR,
            "RegistryRedirects",
            f"{host} redirects its callers, which is not followed; register the host it points to.",
        )
    return Decision(
        Outcome.PROTOCOL_ERROR,
        "NotARegistry",
        f"{host} does not answer like a registry: GET /v2/ gave {answer.status}, not 401 or 200.",
    )


def on_ping_only(host: str, answer: Answer) -> Decision:
    """Judge a registry that was asked without a login and answered 401 or 200."""
    if answer.ok:
        return Decision(
            Outcome.UNVERIFIABLE,
            "OpenRegistry",
            f"{host} answers without a login, so it can not prove one; set a private probe repository.",
        )
    return Decision(Outcome.VALID, "RegistryAnswers", f"{host} answers and asks for a login.")


def unusable_challenge(host: str) -> Decision:
    """Judge a 401 that offers no way to authenticate that we speak."""
    return Decision(
        Outcome.PROTOCOL_ERROR,
        "NoUsableChallenge",
        f"{host} asks for a login but offers neither Basic nor Bearer (with a realm) in a readable way.",
    )


# --- A login was sent -----------------------------------------------------------------------------


def on_login(host: str, answer: Answer, *, jwt_fault: bool = False) -> Decision | None:
    """Judge the answer to a request that carried the login; None for 200, which must still be doubted.

    Args:
        host: who was asked.
        answer: what came.
        jwt_fault: this registry answers 5xx to a wrong secret of this shape.
    """
    if answer.ok:
        return None
    if answer.inconclusive:
        return _no_answer(host, answer, jwt_fault=jwt_fault)
    if answer.status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        return _on_refusal(host, answer)
    if 300 <= answer.status < 400:  # noqa: PLR2004  # the redirects
        return Decision(
            Outcome.REALM_REJECTED,
            "LoginRedirected",
            f"{host} redirects the login to another place; the secret was not sent there.",
        )
    return Decision(
        Outcome.PROTOCOL_ERROR,
        "UnexpectedStatus",
        f"{host} answered {answer.status} to the login, which says neither yes nor no. A 400 can mean that "
        "the account waits for its owner to act, or that the registry's own password file is broken.",
    )


def _on_refusal(host: str, answer: Answer) -> Decision:
    if answer.backend_fault:
        return Decision(
            Outcome.UNAVAILABLE,
            "TokenNotChecked",
            f"{host} could not check the token just now; nothing is known.",
        )
    if answer.expired:
        return Decision(Outcome.EXPIRED, "RegistrySaysExpired", f"{host} says that this login has expired.")
    if answer.status == HTTPStatus.UNAUTHORIZED or answer.denied:
        return Decision(
            Outcome.INVALID,
            "LoginRefused",
            f"{host} refused the username or the secret. Check both; a locked account looks the same.",
        )
    return _forbidden(host)


def _forbidden(host: str) -> Decision:
    return Decision(
        Outcome.FORBIDDEN_UNKNOWN,
        "ForbiddenWithoutReason",
        f"{host} answered 403 without saying why; a firewall or an address rule may stand in between.",
    )


def _no_answer(host: str, answer: Answer, *, jwt_fault: bool = False) -> Decision:
    if answer.status == HTTPStatus.TOO_MANY_REQUESTS:
        message = f"{host} asks to slow down; nothing is known about the login."
        return Decision(Outcome.RATE_LIMITED, "TooManyRequests", message, answer.retry_at)
    if jwt_fault:
        return Decision(
            Outcome.UNAVAILABLE,
            "ServerErrorLikeWrongToken",
            f"{host} answered {answer.status}; this kind of registry does so when such a token is wrong.",
            answer.retry_at,
        )
    message = f"{host} answered {answer.status}; nothing is known about the login."
    return Decision(Outcome.UNAVAILABLE, "ServerError", message, answer.retry_at)


def on_bearer_ping(host: str, answer: Answer, *, is_proof: bool) -> Decision | None:
    """Judge ``/v2/`` asked with the token that the login bought; None when the registry takes the token.

    Args:
        host: the registry.
        answer: its answer.
        is_proof: in this registry a token that is refused here was made for nobody.
    """
    if answer.ok:
        return None
    if answer.inconclusive:
        return _no_answer(host, answer)
    if answer.status == HTTPStatus.UNAUTHORIZED and is_proof:
        return Decision(
            Outcome.INVALID,
            "TokenIsAnonymous",
            f"{host} gave a token but did not recognise the username or secret.",
        )
    return Decision(
        Outcome.PROTOCOL_ERROR,
        "TokenNotTaken",
        f"{host} answered {answer.status} to the token of its own token server; check its clock, issuer and "
        "service.",
    )


def login_not_looked_at(host: str) -> Decision:
    """Judge an open registry that answers a username and secret by asking for a token instead."""
    return Decision(
        Outcome.UNVERIFIABLE,
        "LoginNotLookedAt",
        f"{host} answers without a login and does not look at a username and secret; set a probe repository.",
    )


def no_token(host: str) -> Decision:
    """Judge a token server's 200 without a token in it."""
    return Decision(
        Outcome.PROTOCOL_ERROR,
        "NoTokenInAnswer",
        f"{host} answered 200 without a token; it may be a login page or another service in between.",
    )


# --- Is a yes worth anything? ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Doubts:
    """What others than the login's owner get from the same registry."""

    anonymous_refused: bool
    """The same request without a login was refused, or its token was."""
    made_up_refused: bool | None
    """A random username with a random secret was refused; None when not asked or not clearly answered."""


def on_yes(host: str, doubts: Doubts) -> Decision:
    """Judge a login that got its 200 everywhere."""
    if doubts.made_up_refused is False:
        return Decision(
            Outcome.UNVERIFIABLE,
            "AcceptsAnyLogin",
            f"{host} accepts a made-up login too, so its yes proves nothing; set a private probe repository.",
        )
    if doubts.anonymous_refused or doubts.made_up_refused:
        return Decision(Outcome.VALID, "LoginAccepted", f"{host} accepted the username and the secret.")
    return Decision(
        Outcome.UNAVAILABLE,
        "ControlUnanswered",
        f"{host} said yes, as it does to anybody; whether it tells logins apart could not be found out.",
    )


def open_registry(host: str) -> Decision:
    """Judge a yes of a registry that serves anybody without a login."""
    return on_ping_only(host, Answer(HTTPStatus.OK))


# --- The repository probe -------------------------------------------------------------------------


def on_probe(host: str, base: Decision, granted: Answer, anonymous: Answer | None) -> Decision:
    """Refine ``base`` by what the probe repository's manifest said with and without the login.

    A public repository and one that is hidden or missing (404) prove nothing, so ``base`` stays.
    """
    if granted.ok and anonymous is not None and anonymous.status in {401, 403, 404}:
        return Decision(
            Outcome.VALID_PULL_CONFIRMED,
            "PullConfirmed",
            f"{host} let this login read its private probe repository.",
        )
    if base.outcome is Outcome.VALID and granted.status in {401, 403}:
        return Decision(
            Outcome.VALID_NO_ACCESS,
            "NoAccessToProbe",
            f"{host} accepted the login but does not let it read the probe repository; grant it pull.",
        )
    return base
