"""Whether the token server that a challenge names may be given a login.

Rules (those of distribution's ``realmAllowed``, the fix of CVE-2026-33540, and stricter where noted):

- ``https``, unless the registry itself is marked insecure. No user, no fragment, no dot segments.
- The host is the registry's own, or belongs to its kind, or shares its registrable domain by the public
  suffix list, or an admin listed the URL's beginning. An address shares a domain with nothing. Nor does a
  name below a suffix that the list does not know (``cluster.local``, ``corp.local``), where nobody can tell
  where one owner ends and the next begins, or below one whose customers each get a name (``azurecr.io``).
- The port is the registry's own or 443, unless the URL's beginning is listed.
- A relative realm (``/token``) belongs to the registry.

The addresses behind the name are judged later, by `registries.addresses`, before a byte is sent. The only
door to publicsuffixlist, whose bundled list is used.
"""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import parse_qsl, unquote, urlsplit

from publicsuffixlist import PublicSuffixList

from secretsvc.core.errors import InvalidInput
from secretsvc.core.kinds import api_host, is_tenant, normalise_host, profile, split_host
from secretsvc.core.model import RegistrySpec
from secretsvc.registries.transport import Url, default_port

_UNSAFE = re.compile(r"[\x00-\x20\x7f\\]")
_SHOWN = 120


class RealmRefused(Exception):
    """A login must not go there."""

    def __init__(self, reason: str, shown: str) -> None:
        super().__init__(reason)
        self.reason = reason
        """What is wrong with it, as the end of a sentence."""
        self.shown = shown
        """Its scheme and host, made safe to print."""


def registry_url(spec: RegistrySpec, path: str) -> Url:
    """Return the URL of a path of the registry's own API."""
    name, port = split_host(spec.host)
    scheme = "http" if spec.insecure else "https"
    return Url(scheme, api_host(name), port or default_port(scheme), path)


class RealmJudge:
    """Judges realms; holds the public suffix list."""

    def __init__(self) -> None:
        self._suffixes = PublicSuffixList(accept_unknown=False)

    def judge(self, realm: str, spec: RegistrySpec) -> Url:
        """Return the realm as a URL a login may be sent to.

        Raises:
            RealmRefused: it must not.
        """
        own = registry_url(spec, "/")
        if realm.startswith("/") and not realm.startswith("//"):
            return _checked_parts(f"{own.scheme}://{own.authority}{realm}")
        url = _checked_parts(realm)
        if url.scheme != "https" and not spec.insecure:
            raise RealmRefused("it is not https", _shown(url))
        if any(_begins_with(url, prefix) for prefix in spec.realms):
            return url
        if (url.host, url.port) == (own.host, own.port):
            return url
        if url.port not in {own.port, 443}:
            raise RealmRefused("it is on another port", _shown(url))
        if url.host != own.host and not self._belongs(url.host, own.host, spec):
            raise RealmRefused("it does not belong to the registry's domain", _shown(url))
        return url

    def _belongs(self, host: str, own: str, spec: RegistrySpec) -> bool:
        if host in profile(spec.kind).realm_hosts:
            return True
        if _is_address(host) or _is_address(own) or is_tenant(own):
            return False
        domain = self._suffixes.privatesuffix(own)
        return domain is not None and self._suffixes.privatesuffix(host) == domain


def _checked_parts(text: str) -> Url:
    """Take a URL apart; refuse what different parsers read differently."""
    if _UNSAFE.search(text) or not text.isascii():
        raise RealmRefused("it holds characters that no URL has", "an unprintable realm")
    try:
        parts = urlsplit(text)
        port = parts.port
        query = tuple(parse_qsl(parts.query, keep_blank_values=True, max_num_fields=50))
    except ValueError:
        raise RealmRefused("it is not a URL", "an unreadable realm") from None
    if parts.scheme not in {"https", "http"} or not parts.hostname:
        raise RealmRefused("it is not an http(s) URL with a host", "a realm without a host")
    host = _host(f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname)
    path = unquote(parts.path, errors="replace") or "/"
    url = Url(parts.scheme, host, port or default_port(parts.scheme), parts.path or "/", query)
    if "@" in parts.netloc:
        raise RealmRefused("it carries a user", _shown(url))
    if parts.fragment:
        raise RealmRefused("it has a fragment", _shown(url))
    if {".", ".."} & set(re.split(r"[/\\]", path)):
        raise RealmRefused("its path has dot segments", _shown(url))
    return url


def _host(text: str) -> str:
    """Return the plain host of a realm; Docker Hub's names are not merged here, they are real hosts."""
    try:
        name, _port = split_host(normalise_host(text))
    except InvalidInput:
        raise RealmRefused("its host is neither a name nor an address", "a realm with an odd host") from None
    return text.lower().removesuffix(".") if name == "docker.io" else name


def _begins_with(url: Url, prefix: str) -> bool:
    """Whether ``prefix`` is the beginning of the URL, at a segment's end. A bad prefix matches nothing."""
    try:
        listed = _checked_parts(prefix)
    except RealmRefused:
        return False
    if (url.scheme, url.host, url.port) != (listed.scheme, listed.host, listed.port):
        return False
    return url.path == listed.path or url.path.startswith(listed.path.rstrip("/") + "/")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _shown(url: Url) -> str:
    return f"{url.scheme}://{url.authority}"[:_SHOWN]
