"""The dockerconfigjson document: written, read and edited so that every consumer agrees about it.

The same JSON is the value of a ``kubernetes.io/dockerconfigjson`` Secret and the content of an auth file
(``containers-auth.json(5)``, docker's ``config.json``, the kubelet's ``config.json``).

Rules:

- What we write holds ``auth`` alone: padded standard base64 of ``user:value`` in UTF-8. containers/image
  reads nothing else, docker and the kubelet let it win over ``username`` and ``password``, and a value
  that stands there once can not disagree with itself.
- What we read is read strictly, because Go's JSON is not: it takes keys in any letter case and the last of
  two equal keys. A document that two readers could understand differently is refused, never repaired.
- An edit replaces characters of the text and nothing else: foreign entries, unknown fields, order,
  indentation and line ends stay byte for byte.
- Errors say what is wrong and where, never what stands there.

Everything here that refuses raises `InvalidInput`; who reads a target translates it to `TargetRefused`.
It does not decide whose an entry is (``core.authfile``) and does not touch files.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from secretsvc.core import jsontext
from secretsvc.core.errors import FieldError, InvalidInput
from secretsvc.core.model import Secret
from secretsvc.core.ports import AuthEntry

HUB_KEY = "https://index.docker.io/v1/"
"""The auth key of Docker Hub: the only spelling that docker, containers/image and the kubelet all find."""

MAX_BYTES = 1024 * 1024
"""A Secret's limit (Kubernetes ``MaxSecretSize``), and the largest auth file we touch."""

_HUB_HOSTS = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})
_ROOT_FIELDS = {"auths": "auths", "credhelpers": "credHelpers", "credsstore": "credsStore"}
_ENTRY_FIELDS = ("auth", "username", "password", "identitytoken", "registrytoken")
_SHADOWING_FIELDS = _ENTRY_FIELDS[1:]
_AUTH_KEY = re.compile(
    r"(?:[a-z0-9](?:[a-z0-9._-]*[a-z0-9])?|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?"
    r"(?:/[a-z0-9]+(?:[._-]+[a-z0-9]+)*)*"
)
_SCHEME = re.compile(r"https?://", re.IGNORECASE)
_BASE64 = re.compile(r"[A-Za-z0-9+/]*={0,2}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_LAYOUT = frozenset("\t\r\n")


# --- Auth keys ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class KeyScope:
    """What an auth key stands for: all of a registry, or the images below a path of it."""

    host: str
    """``host[:port]`` in lower case; ``docker.io`` for every name of Docker Hub."""
    path: str
    """Without slashes at its ends; empty when the key stands for the registry."""


def key_scope(key: str) -> KeyScope:
    """Reduce an auth key to what its readers make of it.

    The scheme goes, and so does a leading ``/v1/`` or ``/v2/`` (the kubelet's ``keyring.go``, docker's
    ``ConvertToHostname``). A port stays: to all of them ``host`` and ``host:443`` are two registries.
    """
    scheme = _SCHEME.match(key)
    host, _, path = key[scheme.end() if scheme else 0 :].partition("/")
    if path in {"v1", "v2"} or path.startswith(("v1/", "v2/")):
        path = path[3:]
    host = host.lower()
    return KeyScope("docker.io" if host in _HUB_HOSTS else host, path.strip("/"))


def registry_host(key: str) -> str:
    """Return the ``host[:port]`` that an auth key belongs to, ``docker.io`` for Docker Hub."""
    return key_scope(key).host


def _check_key(key: str) -> None:
    if key == HUB_KEY:
        return
    if not _AUTH_KEY.fullmatch(key):
        problem = "is not host[:port][/path] in lower case"
        raise _refused_entry(key if key.isprintable() else "?", problem, "Give the registry's host alone.")
    if key in _HUB_HOSTS:
        raise _refused_entry(key, "is not how docker spells Docker Hub", f"The auth key is {HUB_KEY}")


# --- Writing --------------------------------------------------------------------------------------


def is_portable(value: str) -> bool:
    """Whether every consumer gets ``value`` back from an ``auth`` as it is, and can log in with it.

    Of control characters only the line ends and tabs inside a JSON object pass: a key file (Google's
    ``_json_key``) has them by nature, base64 carries them, and registries take them. Elsewhere they are a
    careless paste, and what follows a NUL docker and containers/image may cut. What `core.verdict` accepts
    and what is rendered here go by this one rule, so that every value that is promoted can be delivered.
    """
    controls = {character for character in value if unicodedata.category(character) in {"Cc", "Cs"}}
    return not controls or (controls <= _LAYOUT and _is_json_object(value))


def _is_json_object(value: str) -> bool:
    try:
        return isinstance(json.loads(value), dict)
    except (ValueError, RecursionError):
        return False


def auth_value(entry: AuthEntry) -> str:
    """Return the ``auth`` field of an entry.

    Raises:
        InvalidInput: a reader of it would get another key, username or value, or drop the document.
    """
    _check_key(entry.key)
    username, value = entry.username, entry.secret.reveal()
    if not username or ":" in username or _CONTROL.search(username):
        raise _refused_entry(entry.key, "needs a username without ':' and control characters", "")
    if not value or not is_portable(value):
        problem = "needs a value without control characters (a key file in JSON may have line ends)"
        raise _refused_entry(entry.key, problem, "")
    try:
        login = f"{username}:{value}".encode()
    except UnicodeEncodeError:
        login = b""
    if not login:
        raise _refused_entry(entry.key, "has a username with half a character (a lone surrogate)", "")
    return base64.b64encode(login).decode()


def render(entries: Sequence[AuthEntry]) -> Secret:
    """Return the dockerconfigjson text of these logins: keys sorted, the same bytes for the same logins.

    Raises:
        InvalidInput: two different logins for one auth key, an entry `auth_value` refuses, or over 1 MiB.
    """
    auths: dict[str, dict[str, str]] = {}
    for entry in entries:
        value = {"auth": auth_value(entry)}
        if auths.setdefault(entry.key, value) != value:
            hint = "Leave one of the two credentials out."
            raise _refused_entry(entry.key, "is wanted with two different logins", hint)
    text = json.dumps({"auths": auths}, sort_keys=True, separators=(",", ":"))
    if len(text) > MAX_BYTES:
        raise InvalidInput(f"{len(auths)} logins do not fit into 1 MiB", code="TooLarge")
    return Secret(text)


def _refused_entry(key: str, problem: str, hint: str) -> InvalidInput:
    message = f"The login for {key} {problem}."
    return InvalidInput(message, FieldError("/auths", problem), hint=hint, code="EntryRefused")


# --- Reading --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Document:
    """A document that every reader understands the same way. Values do not show in its ``repr``."""

    text: str = field(repr=False)
    auths: Mapping[str, Any] = field(repr=False)
    """Auth key to whatever stands there."""
    others: Mapping[str, Any] = field(repr=False)
    """The other top-level fields, such as ``credHelpers`` and ``credsStore``."""


@dataclass(frozen=True, slots=True)
class Unusable:
    """An entry without a username and value that we could take, and why."""

    key: str
    reason: str
    """CamelCase, stable."""
    detail: str


def parse(source: str | bytes) -> Document:
    """Read a document strictly.

    Raises:
        InvalidInput: with code ``Unparseable``: not UTF-8, a byte order mark, not one JSON object, two equal
            keys in one object, ``auths``, ``credHelpers`` or ``credsStore`` in other letters, or ``auths``
            not an object.
    """
    text = _decoded(source)
    try:
        return _parsed(text)
    except jsontext.NotJsonError as broken:
        at, problem = broken.at, broken.problem
    line, column = text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at)
    raise _unparseable(f"{problem} (line {line}, column {column})")


def entries(document: Document) -> tuple[tuple[AuthEntry, ...], tuple[Unusable, ...]]:
    """Return the logins of a document and what else is in it, in its order.

    ``credHelpers`` count as unusable: the value is in a program, not in the document.
    """
    read = [read_entry(key, value) for key, value in document.auths.items()]
    helpers = document.others.get("credHelpers")
    outside = [
        Unusable(key, "CredentialHelper", "its login is kept by a credential helper program")
        for key in (helpers if isinstance(helpers, dict) else ())
    ]
    return (
        tuple(entry for entry in read if isinstance(entry, AuthEntry)),
        (*(entry for entry in read if isinstance(entry, Unusable)), *outside),
    )


def read_entry(key: str, value: object) -> AuthEntry | Unusable:
    """Return the login that stands under ``key``, as the most tolerant reader sees it."""
    if not isinstance(value, dict):
        return Unusable(key, "Malformed", "is not an object")
    if any(name.casefold() in _ENTRY_FIELDS and name not in _ENTRY_FIELDS for name in value):
        return Unusable(key, "Ambiguous", "has a field like `auth` in other letters")
    if any(not isinstance(value.get(name, ""), str | None) for name in _ENTRY_FIELDS):
        return Unusable(key, "Malformed", "has a login field that is not a string")
    if value.get("identitytoken") or value.get("registrytoken"):
        return Unusable(key, "IdentityToken", "holds an identity token, which the kubelet ignores")
    if value.get("auth"):
        return _auth_login(key, value["auth"])
    return _plain_login(key, value.get("username") or "", value.get("password") or "")


def auth_bytes(auth: str, *, unpadded: bool) -> bytes | None:
    """Decode an ``auth`` field as Go does: line ends inside are skipped, other odd characters are not.

    Args:
        auth: the field.
        unpadded: accept missing ``=`` too (the kubelet does; docker and containers/image do not).
    """
    packed = auth.replace("\r", "").replace("\n", "")
    if not _BASE64.fullmatch(packed) or ("=" in packed and len(packed) % 4):
        return None
    missing = -len(packed) % 4
    if missing and not unpadded:
        return None
    try:
        return base64.b64decode(packed + "=" * missing, validate=True)
    except binascii.Error:
        return None


def _auth_login(key: str, auth: str) -> AuthEntry | Unusable:
    data = auth_bytes(auth, unpadded=True)
    if data is None:
        return Unusable(key, "NotBase64", "has an `auth` that is not standard base64")
    try:
        username, colon, value = data.decode().partition(":")
    except UnicodeDecodeError:
        return Unusable(key, "NotUtf8", "has an `auth` that is not UTF-8")
    if not colon:
        return Unusable(key, "NoColon", "has an `auth` without a ':'")
    return _plain_login(key, username, value)


def _plain_login(key: str, username: str, value: str) -> AuthEntry | Unusable:
    if not username and not value:
        return Unusable(key, "Empty", "holds no login; a credential helper may keep it")
    if not username or ":" in username:
        return Unusable(key, "BadUsername", "has an empty username, or one with a ':'")
    if not value or "\0" in value:
        return Unusable(key, "BadValue", "has an empty value, or one with a NUL")
    if any("\ud800" <= character <= "\udfff" for character in username + value):
        return Unusable(key, "NotUtf8", "holds half a character (a lone surrogate)")
    return AuthEntry(key, username, Secret(value))


def _decoded(source: str | bytes) -> str:
    position = -1
    text = source if isinstance(source, str) else ""
    if isinstance(source, bytes):
        try:
            text = source.decode()
        except UnicodeDecodeError as exc:
            position = exc.start
    if position >= 0:
        raise _unparseable(f"not UTF-8 (byte {position})")
    if text.startswith("\ufeff"):
        raise _unparseable("it begins with a byte order mark, which no reader accepts")
    return text


def _parsed(text: str) -> Document:
    root = jsontext.read(text)
    for member in root.members:
        name = _ROOT_FIELDS.get(member.name.casefold(), member.name)
        if name != member.name:
            raise jsontext.NotJsonError(
                member.start, f"a field like `{name}` in other letters, which some read"
            )
    others = {member.name: member.value for member in root.members}
    auths: dict[str, Any] = {}
    if (member_of_auths := root.find("auths")) is not None:
        auths = {m.name: m.value for m in jsontext.scan(text, member_of_auths.value_start).members}
        del others["auths"]
    return Document(text, auths, others)


def _unparseable(problem: str) -> InvalidInput:
    hint = "Repair it by hand; it is left as it is."
    return InvalidInput(
        f"not a usable document: {problem}", FieldError("", problem), hint=hint, code="Unparseable"
    )


# --- Editing --------------------------------------------------------------------------------------


def holds(value: object, entry: AuthEntry) -> bool:
    """Whether ``value``, as it stands in a document, gives every reader exactly this login."""
    if not isinstance(value, dict) or not isinstance(read_entry(entry.key, value), AuthEntry):
        return False
    same = value.get("username") or entry.username, value.get("password") or entry.secret.reveal()
    return value.get("auth") == auth_value(entry) and same == (entry.username, entry.secret.reveal())


def merge(document: Document | None, put: Sequence[AuthEntry], remove: Iterable[str] = ()) -> str:
    """Return the text with these logins in it and those auth keys out of it.

    Everything else stays byte for byte; when nothing is to be done it is the same text object. A new
    document is indented by tabs and has no line end at its end, as podman and docker write it. Of an
    entry that is put, fields that hold another login go and unknown ones stay.

    Raises:
        InvalidInput: an entry that `auth_value` refuses.
    """
    text = document.text if document else "{}"
    auths = document.auths if document else {}
    wanted = {entry.key: entry for entry in put}
    for key in remove:
        if key in auths and key not in wanted:
            text = jsontext.drop(text, ("auths",), key)
    for entry in wanted.values():
        if not holds(auths.get(entry.key), entry):
            text = _put_entry(text, entry)
    return text


def _put_entry(text: str, entry: AuthEntry) -> str:
    if jsontext.locate(text, ()).find("auths") is None:
        text = jsontext.put(text, (), "auths", "{}")
    existing = jsontext.locate(text, ("auths",)).find(entry.key)
    if existing is None or not isinstance(existing.value, dict):
        text = jsontext.put(text, ("auths",), entry.key, "{}")
    path = ("auths", entry.key)
    text = jsontext.put(text, path, "auth", json.dumps(auth_value(entry)))
    for name in _SHADOWING_FIELDS:
        text = jsontext.drop(text, path, name)
    return text
