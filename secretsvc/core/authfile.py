"""What an auth file should become: whose its entries are, and what its readers will make of it.

Rules:

- An entry belongs to us if it is what we want or if its digest is one we may have written. Every other
  entry is somebody else's: it stays, and a wanted key that it occupies is reported, not taken.
- A key that means the same registry in another spelling (``https://quay.io`` for ``quay.io``) occupies it
  too: two spellings side by side are read in random order by the kubelet.
- Whatever in the file hides, outranks or breaks our entries for the dialect's reader is told.

Pure; it does not read or write files (``delivery.hosts`` does) and does not parse JSON (`dockerconfig` does).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from secretsvc.core.dockerconfig import (
    Document,
    auth_bytes,
    auth_value,
    key_scope,
    merge,
    read_entry,
    registry_host,
)
from secretsvc.core.errors import FieldError, InvalidInput
from secretsvc.core.ports import AuthEntry, AuthFileWish
from secretsvc.core.rules import Dialect

_READERS = {
    Dialect.CONTAINERS_AUTH: "podman, skopeo and CRI-O",
    Dialect.DOCKER_CONFIG: "docker",
    Dialect.KUBELET_CONFIG: "the kubelet",
}
_STRING_FIELDS = {
    Dialect.CONTAINERS_AUTH: ("auth", "identitytoken"),
    Dialect.DOCKER_CONFIG: ("auth", "username", "password", "email", "identitytoken", "registrytoken"),
    Dialect.KUBELET_CONFIG: ("auth", "username", "password", "email"),
}
"""The fields each reader declares as strings: another type there makes its JSON decoder drop the file."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do to an auth file."""

    text: str = field(repr=False)
    """What the file should hold."""
    changed: bool
    """It does not hold that yet. When False and there was no file, there needs to be none."""
    held: bool
    """Something of ours is in the file as it is now."""
    marks: Mapping[str, str]
    """Auth key to digest of what is ours in ``text``."""
    foreign: tuple[str, ...]
    notes: tuple[str, ...]


def plan(document: Document | None, wish: AuthFileWish) -> Plan:
    """Decide what the file becomes. ``document`` is None when there is no file, or an empty one.

    Raises:
        InvalidInput: the wish itself can not be written in this dialect.
    """
    check_wish(wish)
    auths = document.auths if document else {}
    wanted = {entry.key: entry for entry in wish.entries}
    ours = {key for key in {*wanted, *wish.accepted} if is_ours(wish, key, auths.get(key))}
    taken = {key: _occupant(document, key, ours) for key in wanted}
    foreign = tuple(sorted(key for key, occupant in taken.items() if occupant))
    put = [entry for key, entry in wanted.items() if key not in foreign]
    remove = sorted((wish.remove & ours) - set(wanted))
    text = merge(document, put, remove)
    marks = {key: _digest_in(wish, key, auths.get(key)) for key in ours - set(remove)}
    marks |= {entry.key: wish.digest(entry) for entry in put}
    return Plan(
        text=text,
        changed=bool(put or remove) and (document is None or text is not document.text),
        held=bool(ours),
        marks=marks,
        foreign=foreign,
        notes=(
            *_taken_notes(taken),
            *_kept_notes(wish, auths, ours),
            *hazards(document, [e.key for e in put], wish.dialect),
        ),
    )


def check_wish(wish: AuthFileWish) -> None:
    """Refuse what the dialect's reader could not use.

    Raises:
        InvalidInput: a key or login no document may hold, two logins for one key, or a path key for docker,
            which takes a random one of a host's path keys for every image of that host.
    """
    seen: dict[str, AuthEntry] = {}
    for entry in wish.entries:
        auth_value(entry)
        if seen.setdefault(entry.key, entry) != entry:
            raise _refused(entry.key, "is wanted with two different logins")
        if wish.dialect is Dialect.DOCKER_CONFIG and key_scope(entry.key).path:
            raise _refused(entry.key, "has a path, and docker would use it for the whole registry")


def is_ours(wish: AuthFileWish, key: str, value: object) -> bool:
    """Whether ``value``, standing under ``key``, is what we want there or may have put there."""
    entry = read_entry(key, value)
    if not isinstance(entry, AuthEntry):
        return False
    digest = wish.digest(entry)
    wanted = (wish.digest(other) for other in wish.entries if other.key == key)
    return digest in wish.accepted.get(key, frozenset()) or digest in wanted


def hazards(document: Document | None, keys: Iterable[str], dialect: Dialect) -> tuple[str, ...]:
    """Tell what in a file keeps the dialect's reader from using the entries under ``keys``.

    Sentences without values. Sources: docker's ``cli/config/configfile``, the kubelet's
    ``pkg/credentialprovider``, containers/image's ``pkg/docker/config``.
    """
    if document is None:
        return ()
    mine = list(keys)
    return (*_spoilers(document, mine, dialect), *_shadows(document, mine, dialect))


def _digest_in(wish: AuthFileWish, key: str, value: object) -> str:
    entry = read_entry(key, value)
    return wish.digest(entry) if isinstance(entry, AuthEntry) else ""


def _occupant(document: Document | None, key: str, ours: set[str]) -> str:
    """Return the foreign key that stands where ``key`` should, or an empty string."""
    if document is None or key in ours:
        return ""
    if key in document.auths:
        return key
    return next(iter(_equivalents(document, key)), "")


def _equivalents(document: Document, key: str) -> list[str]:
    scope = key_scope(key)
    return [other for other in document.auths if other != key and key_scope(other) == scope]


def _taken_notes(taken: Mapping[str, str]) -> list[str]:
    return [
        f"{key} is left alone: {'its entry' if occupant == key else f'the entry {occupant}'} is not ours"
        for key, occupant in sorted(taken.items())
        if occupant
    ]


def _kept_notes(wish: AuthFileWish, auths: Mapping[str, object], ours: set[str]) -> list[str]:
    kept = sorted(key for key in wish.remove if key in auths and key not in ours)
    return [f"{key} is not taken out: its entry is not ours" for key in kept]


def _spoilers(document: Document, mine: list[str], dialect: Dialect) -> list[str]:
    """Tell of entries, and fields, that make the reader drop the whole file."""
    reader = _READERS[dialect]
    notes = [
        f"the entry {key} {problem}: {reader} will not use any entry of this file until it is repaired"
        for key, value in document.auths.items()
        if key not in mine and (problem := _spoils(value, dialect))
    ]
    helpers = document.others.get("credHelpers")
    if dialect is not Dialect.KUBELET_CONFIG and not isinstance(helpers, dict | None):
        notes.append(f"credHelpers is not an object: {reader} will not use this file until it is repaired")
    return notes


def _spoils(value: object, dialect: Dialect) -> str:
    if not isinstance(value, dict):
        return "" if value is None else "is not an object"
    if any(not isinstance(value.get(name), str | None) for name in _STRING_FIELDS[dialect]):
        return "has a field of the wrong type"
    auth = value.get("auth") or ""
    if not auth or dialect is Dialect.CONTAINERS_AUTH:
        return ""
    data = auth_bytes(auth, unpadded=dialect is Dialect.KUBELET_CONFIG)
    if data is None:
        return "has an auth that is not base64"
    username, colon, _ = data.partition(b":")
    if not colon or (not username and dialect is Dialect.DOCKER_CONFIG):
        return "has an auth without a username and a ':'"
    return ""


def _shadows(document: Document, mine: list[str], dialect: Dialect) -> list[str]:
    """Tell of what the reader prefers to our entries."""
    notes = []
    helpers = document.others.get("credHelpers")
    helped = {registry_host(key) for key in helpers} if isinstance(helpers, dict) else set()
    if dialect is Dialect.DOCKER_CONFIG and document.others.get("credsStore"):
        notes.append("credsStore is set: docker asks that program and ignores the entries of this file")
    for key in mine:
        if dialect is not Dialect.KUBELET_CONFIG and registry_host(key) in helped:
            notes.append(f"credHelpers names a program for {key}: it is asked instead of the entry")
        notes += [
            f"the entry {other} is another spelling of {key}: remove it"
            for other in _equivalents(document, key)
        ]
        notes += _narrower(document, key, dialect)
    return notes


def _narrower(document: Document, key: str, dialect: Dialect) -> list[str]:
    scope = key_scope(key)
    below = f"{scope.path}/" if scope.path else ""
    others = ((other, key_scope(other)) for other in document.auths)
    found = [
        other
        for other, there in others
        if there.host == scope.host and there.path != scope.path and there.path.startswith(below)
    ]
    if dialect is Dialect.DOCKER_CONFIG:
        return [f"the entry {other} has a path: docker may use it for all of {scope.host}" for other in found]
    return [f"the entry {other} goes before {key} for the images below it" for other in found]


def _refused(key: str, problem: str) -> InvalidInput:
    return InvalidInput(f"The login for {key} {problem}.", FieldError("/auths", problem), code="EntryRefused")
