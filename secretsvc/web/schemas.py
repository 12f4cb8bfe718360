"""What callers may send, as marshmallow schemas: the shape and the bounds of every field.

Rules:

- Unknown fields are errors, and a type is never guessed: ``"true"`` is no boolean, ``"1"`` no number.
- A value becomes a `core.model.Secret` in the moment it is read.
- Texts have no control characters and every text and list has a bound. Error messages never quote input.

Whether a record fits the others (names taken, unknown credentials) is decided by the workflows, and whether
a value is right by the registry, or by our own check of it, whose verdict tells more than a schema could.
"""

from __future__ import annotations

import ipaddress
import re
import ssl
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from marshmallow import Schema, ValidationError, fields, validate

from secretsvc.core.access import LOCAL_ACTOR, Role
from secretsvc.core.ident import NAME_RULE
from secretsvc.core.model import (
    CredentialType,
    RegistryKind,
    Secret,
)
from secretsvc.core.rules import (
    LOCAL_HOST,
    Dialect,
)

NAME_PATTERN = r"^[a-z0-9-]{1,40}$"
LONGEST_SECRET = 16 * 1024
"""Bytes in UTF-8."""
LONGEST_CA = 128 * 1024
"""Characters; a stored document is bounded at 256 KiB."""
PAGE = 100
LARGEST_PAGE = 500

_NAMESPACE = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"
_SUBDOMAIN = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
_HOST = r"^[^\x00-\x20/@?#\x7f-\xa0]*$"
_NAME_OR_HOST = r"^([a-z0-9-]{1,40}|[^\x00-\x20/@?#\x7f-\xa0]*[.:][^\x00-\x20/@?#\x7f-\xa0]*)$"
_REALM = r"^https?://[A-Za-z0-9.:\[\]-]+(/[A-Za-z0-9._~/-]*)?$"
_REPOSITORY = r"^[a-z0-9]+([._/-]+[a-z0-9]+)*$"
_LABEL = r"^[A-Za-z0-9]([A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?$"
_PLAIN = r"^[^\x00-\x1f\x7f-\x9f]*$"
_NO_COLON = r"^[^:\x00-\x1f\x7f-\x9f]*$"
_DURATION = r"^[1-9][0-9]{0,8}[smhd]$"
_OPERATION = r"^[0-9a-z-]{1,80}$"
_MOST_LABELS = 32
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_SHORTEST_TOKEN = timedelta(minutes=1)
_LONGEST_TOKEN = timedelta(days=3650)
_YEARS = range(2000, 9999)


class Pattern(validate.Regexp):
    """A pattern that the whole text must match; written for OpenAPI too, so ``^`` and ``$`` stand in it."""

    def __init__(self, pattern: str, rule: str) -> None:
        super().__init__(pattern, error=rule)
        self._whole = re.compile(pattern.removeprefix("^").removesuffix("$"))

    def __call__(self, value: Any) -> Any:  # noqa: ANN401  # marshmallow's types
        """Return the text, or raise."""
        if self._whole.fullmatch(value) is None:
            raise ValidationError(str(self.error))
        return value


# --- Fields ---------------------------------------------------------------------------------------


class Flag(fields.Boolean):
    """``true`` or ``false`` and nothing like them."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> bool:  # noqa: ANN401
        del attr, data, kwargs
        if not isinstance(value, bool):
            raise self.make_error("invalid")
        return value


class SecretField(fields.String):
    """A value on its way in: bounded, and wrapped at once. It is never on its way out."""

    def __init__(self) -> None:
        super().__init__(
            required=True,
            load_only=True,
            metadata={"format": "password", "minLength": 1, "maxLength": LONGEST_SECRET},
        )

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        text = super()._deserialize(value, attr, data, **kwargs)
        if not text:
            raise ValidationError("The value is empty.")
        if len(text.encode()) > LONGEST_SECRET:
            raise ValidationError(f"The value is longer than {LONGEST_SECRET} bytes.")
        if "\0" in text:
            raise ValidationError("The value holds a NUL character.")
        return Secret(text)


class Moment(fields.AwareDateTime):
    """A time on its way in: RFC 3339 with an offset; becomes UTC."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> datetime:  # noqa: ANN401
        if not isinstance(value, str):
            raise self.make_error("invalid", input=value, obj_type=self.OBJ_TYPE)
        time = super()._deserialize(value, attr, data, **kwargs)
        if time.year not in _YEARS:
            raise ValidationError("The time is too far away.")
        return time.astimezone(UTC)


class Duration(fields.String):
    """A number of seconds, minutes, hours or days: ``90s``, ``12h``, ``30d``."""

    def __init__(self, shortest: timedelta, longest: timedelta, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(validate=None, **kwargs)
        self.metadata = {**self.metadata, "pattern": _DURATION}
        self._bounds = shortest, longest

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        text = super()._deserialize(value, attr, data, **kwargs)
        if re.fullmatch(_DURATION[1:-1], text) is None:
            raise ValidationError("A duration is a number with s, m, h or d, such as 90d.")
        shortest, longest = self._bounds
        duration = timedelta(**{_UNITS[text[-1]]: int(text[:-1])})
        if not shortest <= duration <= longest:
            raise ValidationError(f"The duration must be from {shortest} to {longest}.")
        return duration


def _plain(longest: int, **kwargs: Any) -> fields.String:  # noqa: ANN401
    checks = [validate.Length(max=longest), Pattern(_PLAIN, "Control characters are not allowed.")]
    return fields.String(validate=checks, **kwargs)


def _matching(pattern: str, rule: str, longest: int, shortest: int = 1, **kwargs: Any) -> fields.String:  # noqa: ANN401
    checks = [validate.Length(min=shortest, max=longest), Pattern(pattern, rule)]
    return fields.String(validate=checks, **kwargs)


def _name(**kwargs: Any) -> fields.String:  # noqa: ANN401
    return fields.String(validate=[Pattern(NAME_PATTERN, f"A name is {NAME_RULE}.")], **kwargs)


def _word(words: type[RegistryKind | CredentialType | Dialect | Role], **kwargs: Any) -> fields.Enum[Any]:  # noqa: ANN401
    return fields.Enum(words, by_value=fields.String, **kwargs)


def _names(**kwargs: Any) -> fields.List[str]:  # noqa: ANN401
    return fields.List(_name(), validate=validate.Length(min=1, max=100), **kwargs)


class Input(Schema):
    """The base of all bodies: unknown fields are errors."""

    error_messages = {"unknown": "There is no such field.", "type": "A JSON object must stand here."}  # noqa: RUF012  # as marshmallow declares it


# --- Registries -----------------------------------------------------------------------------------


def _check_host(text: str) -> None:
    """Refuse what names no host, such as ``[::]``: a registry is named after its host."""
    if text and not any(character.isalnum() for character in text):
        raise ValidationError("A host has letters or digits.")


def _check_network(text: str) -> None:
    try:
        ipaddress.ip_network(text)
    except ValueError:
        raise ValidationError("A network is written like 10.0.0.0/8, without host bits.") from None


def _check_ca(text: str) -> None:
    if not text:
        return
    if "PRIVATE KEY" in text:
        raise ValidationError("A CA bundle holds certificates only; a private key has no business here.")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=text)
    except (ssl.SSLError, ValueError, TypeError):
        raise ValidationError("That is not a bundle of PEM certificates.") from None


class RegistryChange(Input):
    """A registry's description. What is left out gets its default, which the kind may give."""

    name = _name()
    host = fields.String(
        required=True,
        validate=[
            validate.Length(min=1, max=260),
            Pattern(_HOST, "Write it like registry.example.com:5000."),
            _check_host,
        ],
    )
    kind = _word(RegistryKind, load_default=None, allow_none=True)
    insecure = Flag(load_default=False)
    ca = fields.String(load_default="", validate=[validate.Length(max=LONGEST_CA), _check_ca])
    realms = fields.List(
        _matching(_REALM, "A realm is a URL prefix like https://auth.example.com/token.", 512),
        load_default=list,
        validate=validate.Length(max=16),
    )
    networks = fields.List(
        fields.String(validate=[validate.Length(max=64), _check_network]),
        load_default=list,
        validate=validate.Length(max=64),
    )
    probe_repository = fields.String(
        load_default="",
        validate=[
            validate.Length(max=255),
            Pattern(rf"^({_REPOSITORY[1:-1]})?$", "A repository is written like team/app."),
        ],
    )
    production_requires_token = Flag(load_default=None, allow_none=True)


class NewRegistry(RegistryChange):
    """A new registry."""

    name = _name(required=True)


# --- Credentials ----------------------------------------------------------------------------------


def _check_labels(labels: dict[str, str]) -> None:
    if len(labels) > _MOST_LABELS:
        raise ValidationError(f"A credential has at most {_MOST_LABELS} labels.")


def _labels(**kwargs: Any) -> fields.Dict:  # noqa: ANN401
    return fields.Dict(
        keys=_matching(_LABEL, "A label's name has letters, digits and . _ / - between them.", 63),
        values=_plain(255),
        validate=_check_labels,
        metadata={"maxProperties": _MOST_LABELS},
        **kwargs,
    )


def _username(**kwargs: Any) -> fields.String:  # noqa: ANN401
    rule = "A username has no ':' (it ends there in HTTP Basic) and no control characters."
    return _matching(_NO_COLON, rule, 512, **kwargs)


class Value(Input):
    """A value in hand."""

    secret = SecretField()
    allow_unverified = Flag(load_default=False)
    expires_at = Moment(load_default=None, allow_none=True)


class NewCredential(Value):
    """A new credential with its value."""

    name = _name(required=True)
    registry = fields.String(
        required=True,
        validate=[
            validate.Length(min=1, max=260),
            Pattern(_NAME_OR_HOST, "Give a registry's name, or a host (with a dot or a port)."),
            _check_host,
        ],
    )
    type = _word(CredentialType, load_default=CredentialType.TOKEN)
    username = _username(required=True)
    labels = _labels(load_default=dict)


class NewValue(Value):
    """A new value for a credential; a type or username that is left out stays as it is."""

    type = _word(CredentialType, load_default=None, allow_none=True)
    username = _username(load_default=None, allow_none=True)


class CredentialChange(Input):
    """What of a credential may change besides its value; a field that is given replaces the stored one."""

    labels = _labels()
    expires_at = Moment(allow_none=True)


class Rollback(Input):
    """How a rollback is meant."""

    force = Flag(load_default=False)
    reason = _plain(500, load_default="")


# --- Rules ----------------------------------------------------------------------------------------


class NamespaceNames(Input):
    """Which namespaces."""

    names = fields.List(
        _matching(_NAMESPACE, "That is not a namespace's name.", 63),
        required=True,
        validate=validate.Length(max=900),
    )


class HostNames(Input):
    """Which hosts."""

    names = fields.List(_name(), required=True, validate=validate.Length(max=100))


class PullSecretChange(Input):
    """A pull secret's description."""

    name = _name()
    secret_name = _matching(_SUBDOMAIN, "A Secret's name is a DNS subdomain.", 253, required=True)
    cluster = _name(load_default="default")
    credentials = _names(required=True)
    namespaces = fields.Nested(NamespaceNames, required=True)
    keep = Flag(load_default=False)


class NewPullSecret(PullSecretChange):
    """A new pull secret."""

    name = _name(required=True)


class AuthFileChange(Input):
    """An auth file's description."""

    name = _name()
    path = _matching(_PLAIN, "Control characters are not allowed.", 4096, required=True)
    dialect = _word(Dialect, required=True)
    credentials = _names(required=True)
    hosts = fields.Nested(HostNames, load_default=lambda: {"names": [LOCAL_HOST]})
    keep = Flag(load_default=False)


class NewAuthFile(AuthFileChange):
    """A new auth file."""

    name = _name(required=True)


# --- Tokens and lists -----------------------------------------------------------------------------


class NewToken(Input):
    """A new API token."""

    name = fields.String(
        required=True,
        validate=[
            Pattern(NAME_PATTERN, f"A name is {NAME_RULE}."),
            validate.NoneOf([LOCAL_ACTOR], error=f"`{LOCAL_ACTOR}` is who acts on this machine."),
        ],
    )
    role = _word(Role, required=True)
    expires_in = Duration(_SHORTEST_TOKEN, _LONGEST_TOKEN, load_default=timedelta(days=90))


class Page(Input):
    """Which part of a list."""

    limit = fields.Integer(load_default=PAGE, validate=validate.Range(min=1, max=LARGEST_PAGE))
    cursor = _matching(
        r"^[A-Za-z0-9_-]*$", "Send the `next_cursor` of the page before.", 8192, 0, load_default=""
    )


class CredentialFilter(Page):
    """Which credentials."""

    state = fields.String(validate=validate.OneOf(["unverified", "active", "invalid", "expired", "stale"]))
    registry = _name()
    label = fields.List(
        _matching(r"^[^=\x00-\x1f]+=[^\x00-\x1f]*$", "A label is written like name=value.", 320),
        load_default=list,
        validate=validate.Length(max=32),
    )


def pointers(messages: object, at: str = "") -> list[tuple[str, str]]:
    """Flatten marshmallow's tree of messages to (JSON pointer, message) rows.

    For a dictionary field the tree has a level ``key`` or ``value`` that is not in the body.
    """
    if isinstance(messages, Mapping):
        if at.startswith("/labels/") and set(messages) <= {"key", "value"}:
            return [row for part in messages.values() for row in pointers(part, at)]
        rows = []
        for name, part in messages.items():
            step = "" if name == "_schema" else "/" + str(name).replace("~", "~0").replace("/", "~1")
            rows += pointers(part, at + step)
        return rows
    texts = messages if isinstance(messages, list | tuple) else [messages]
    return [(at, str(text)) for text in texts]
