"""What is known about each kind of registry, as data, and the spelling of registry hosts.

Rules:

- A host is ``host[:port]`` in lower case, in its ASCII (IDNA) form, IPv6 in brackets, without the default
  port 443 and without a final dot. All names of Docker Hub become ``docker.io``.
- A kind only adds convenience and warnings: nothing here ever makes a wrong credential look right. A guess
  from the host is a guess; the caller may say otherwise.
- Facts come from the registries' documentation and from running products; hosts that could not be confirmed
  are left out, since an admin can list further realms on the registry itself.

No I/O and no name resolution; which addresses may be reached is decided by `registries.addresses`.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass

from secretsvc.core.errors import FieldError, InvalidInput
from secretsvc.core.model import (
    RegistryKind,
    RegistrySpec,
)

DOCKER_HUB = "docker.io"
DOCKER_HUB_KEY = "https://index.docker.io/v1/"
"""The one auth key that docker, podman, crane and the kubelet all find for Docker Hub."""
_DOCKER_HUB_API = "registry-1.docker.io"
_DOCKER_HUB_NAMES = frozenset({DOCKER_HUB, "index.docker.io", _DOCKER_HUB_API, "registry.hub.docker.com"})
_TOKEN_ONLY_HOSTS = frozenset({"registry.redhat.io", "registry.connect.redhat.com"})
"""Supported for production clusters with registry service accounts only (Red Hat's documentation)."""

_TENANTS = re.compile(
    r".+\.(azurecr\.(io|cn|us)|jfrog\.io|amazonaws\.com(\.cn)?|on\.aws|openshiftapps\.com"
    r"|container-registry\.ovh\.net|tencentcloudcr\.com|sonatype\.app)\Z"
)
"""Names that one provider gives to many customers, missing from the public suffix list as such."""

_DEFAULT_PORT = 443
_MAX_HOST = 253
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\Z")
_PORT = re.compile(r"[1-9][0-9]{0,4}\Z")
_NUMERIC_LABEL = re.compile(r"([0-9]+|0x[0-9a-f]*)\Z")
_NOT_OF_A_HOST = (("://", "scheme"), ("/", "path"), ("@", "user"), ("?", "query"), ("#", "fragment"))
_EXAMPLE = "Write it like registry.example.com or registry.example.com:5000."


@dataclass(frozen=True, slots=True)
class Profile:
    """What one kind is like."""

    realm_hosts: tuple[str, ...] = ()
    """Token servers outside the registry's own domain that belong to it."""
    accepts_anything: bool = False
    """It can be configured to take any login, so a yes is believed only after it refused a made-up one."""
    token_ping_is_proof: bool = False
    """A token that ``/v2/`` refuses was made for a login it did not recognise."""
    jwt_faults: bool = False
    """It answers 500, not 401, to a wrong secret that looks like a JWT."""


_PROFILES: dict[RegistryKind, Profile] = {
    # Any registry may turn out to be a Nexus with "allow anonymous docker pull", which takes every login.
    RegistryKind.GENERIC: Profile(accepts_anything=True),
    RegistryKind.NEXUS: Profile(accepts_anything=True),
    RegistryKind.ARTIFACTORY: Profile(accepts_anything=True),
    RegistryKind.REDHAT: Profile(realm_hosts=("sso.redhat.com",)),
    RegistryKind.DOCKERHUB: Profile(realm_hosts=("auth.docker.io",)),
    RegistryKind.HARBOR: Profile(token_ping_is_proof=True),
    RegistryKind.QUAY: Profile(jwt_faults=True),
}
_PLAIN = Profile()


def profile(kind: RegistryKind) -> Profile:
    """Return what is known about ``kind``."""
    return _PROFILES.get(kind, _PLAIN)


# --- Hosts ----------------------------------------------------------------------------------------


def normalise_host(text: str) -> str:
    """Return ``text`` as the canonical ``host[:port]``.

    Raises:
        InvalidInput: it is a URL, has a path, a user or a query, or is no host name or address.
    """
    for mark, part in _NOT_OF_A_HOST:
        if mark in text:
            raise _bad_host(f"A registry host is given without a {part}.")
    host, port = _split_port(text)
    host = _address(host[1:-1]) if host.startswith("[") else _name_or_ipv4(host)
    if port in {None, _DEFAULT_PORT}:
        return DOCKER_HUB if host in _DOCKER_HUB_NAMES else host
    return f"{host}:{port}"


def split_host(host: str) -> tuple[str, int | None]:
    """Split a canonical ``host[:port]``; an IPv6 address loses its brackets, no port gives None."""
    name, port = _split_port(host)
    return name.strip("[]"), port


def _bad_host(detail: str) -> InvalidInput:
    return InvalidInput(detail, FieldError("/host", detail), hint=_EXAMPLE)


def _split_port(text: str) -> tuple[str, int | None]:
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        return text, None
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise _bad_host("An IPv6 address must be written in brackets.")
    if not _PORT.match(port) or int(port) > 0xFFFF:  # noqa: PLR2004  # the highest port there is
        raise _bad_host("The port of a registry host is a number from 1 to 65535.")
    return host, int(port)


def _address(text: str) -> str:
    try:
        address = ipaddress.IPv6Address(text)
    except ValueError as exc:
        raise _bad_host("What stands in brackets is not an IPv6 address.") from exc
    if address.scope_id is not None:
        raise _bad_host("An IPv6 address of a registry has no zone.")
    return f"[{address.compressed}]"


def _name_or_ipv4(text: str) -> str:
    name = _ascii(text).removesuffix(".")
    if not name or len(name) > _MAX_HOST:
        raise _bad_host("A registry host has 1 to 253 characters.")
    labels = name.split(".")
    # The system resolver reads 127.1, 0x7f000001 and 2130706433 as addresses; only one spelling is taken.
    if _NUMERIC_LABEL.match(labels[-1]):
        try:
            return str(ipaddress.IPv4Address(name))
        except ValueError as exc:
            raise _bad_host("A registry host that ends in a number must be a plain IPv4 address.") from exc
    if not all(map(_LABEL.match, labels)):
        raise _bad_host("A registry host is made of letters, digits, '-' and '.'.")
    return name


def _ascii(text: str) -> str:
    """Return the IDNA form, refusing names that the mapping changes (sharp s, full-width forms)."""
    lowered = text.lower()
    if lowered.isascii():
        return lowered
    try:
        encoded = lowered.encode("idna")
        unchanged = encoded.decode("idna") == lowered
    except UnicodeError as exc:
        raise _bad_host("The registry host is not a valid international name.") from exc
    if not unchanged:
        raise _bad_host("The registry host has more than one reading; write it in its xn-- form.")
    return encoded.decode("ascii")


def is_tenant(name: str) -> bool:
    """Whether the names next to this one may belong to other customers of the same provider.

    Args:
        name: a host name without its port.
    """
    return _TENANTS.match(name) is not None


def api_host(host: str) -> str:
    """Return the host that serves the registry API of ``host``: only Docker Hub's is another."""
    return _DOCKER_HUB_API if host == DOCKER_HUB else host


def auth_key(spec: RegistrySpec) -> str:
    """Return the key of ``auths`` under which every consumer looks for this registry's login."""
    return DOCKER_HUB_KEY if spec.host == DOCKER_HUB else spec.host


# --- Kinds ----------------------------------------------------------------------------------------

_HOSTS: tuple[tuple[re.Pattern[str], RegistryKind], ...] = tuple(
    (re.compile(pattern + r"\Z"), kind)
    for pattern, kind in (
        (r"registry(\.connect|\.access)?\.redhat\.(io|com)", RegistryKind.REDHAT),
        (r"(.+\.)?quay\.io", RegistryKind.QUAY),
        (r"docker\.io", RegistryKind.DOCKERHUB),
        (r"ghcr\.io", RegistryKind.GHCR),
        (r"[0-9]{12}\.dkr\.ecr(-fips)?\.[a-z0-9-]+\.amazonaws\.com(\.cn)?", RegistryKind.ECR),
        (r"public\.ecr\.aws", RegistryKind.ECR),
        (r"(.+\.)?gcr\.io", RegistryKind.GAR),
        (r".+-docker\.pkg\.dev", RegistryKind.GAR),
        (r".+\.azurecr\.(io|cn|us)", RegistryKind.ACR),
        (r".+\.jfrog\.io", RegistryKind.ARTIFACTORY),
        (r"registry\.gitlab\.com", RegistryKind.GITLAB),
        (r"codeberg\.org", RegistryKind.GITEA),
        (r"image-registry\.openshift-image-registry\.svc(\.cluster\.local)?", RegistryKind.OPENSHIFT),
        (r"default-route-openshift-image-registry\..+", RegistryKind.OPENSHIFT),
        (r"harbor\..+", RegistryKind.HARBOR),
        (r"quay\..+", RegistryKind.QUAY),
        (r"(registry\.)?gitlab\..+", RegistryKind.GITLAB),
        (r"(gitea|forgejo)\..+", RegistryKind.GITEA),
        (r"artifactory\..+", RegistryKind.ARTIFACTORY),
        (r"nexus\..+", RegistryKind.NEXUS),
        (r"zot\..+", RegistryKind.ZOT),
    )
)


def guess_kind(host: str) -> RegistryKind:
    """Guess the kind from a canonical host; `RegistryKind.GENERIC` when nothing speaks for another."""
    name, _port = split_host(host)
    return next((kind for pattern, kind in _HOSTS if pattern.match(name)), RegistryKind.GENERIC)


def production_requires_token(host: str) -> bool:
    """Whether a new registry of this host takes only tokens for production by default."""
    return split_host(host)[0] in _TOKEN_ONLY_HOSTS


# --- Usernames ------------------------------------------------------------------------------------


def _redhat(name: str) -> str:
    if re.fullmatch(r"[0-9]+\|.+", name):
        return ""
    return (
        "A Red Hat registry service account is called like 12345678|name, number and bar included; "
        "a personal login is for stand-alone use only."
    )


def _quay(name: str) -> str:
    if "+" in name or name in {"$app", "$oauthtoken", "$token"}:
        return ""
    return "A Quay robot is called like org+robot; a person's login is locked out by failed attempts."


def _harbor(name: str) -> str:
    if name.startswith("robot$"):
        return ""
    return "A Harbor robot is called like robot$project+name or robot$name, unless the prefix was changed."


def _ecr(name: str) -> str:
    return "" if name == "AWS" else "The username of Amazon ECR is always AWS."


def _gar(name: str) -> str:
    if name in {"_json_key", "_json_key_base64", "oauth2accesstoken"}:
        return ""
    return "The username of Google's registries is _json_key, _json_key_base64 or oauth2accesstoken."


_USERNAMES: dict[RegistryKind, Callable[[str], str]] = {
    RegistryKind.REDHAT: _redhat,
    RegistryKind.QUAY: _quay,
    RegistryKind.HARBOR: _harbor,
    RegistryKind.ECR: _ecr,
    RegistryKind.GAR: _gar,
}


def username_warning(kind: RegistryKind, username: str) -> str:
    """Return a sentence about a username that does not look as this kind's do, or an empty text.

    Only a warning: prefixes are configurable and people's logins are legal, so the registry decides.
    """
    check = _USERNAMES.get(kind)
    return check(username) if check is not None else ""
