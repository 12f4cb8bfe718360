"""One conversation with Vault or OpenBao. The only door to hvac and requests.

Rules:

- Only the configured address is ever spoken to. Redirects are not followed (hvac would send the token, and on
  a write the value, wherever one points), and nothing of the environment is obeyed: no proxy, no ``VAULT_*``,
  no ``.netrc``, no ``REQUESTS_CA_BUNDLE``. Cookies are not kept.
- hvac builds the requests; the answers are judged here, because its own table of status codes is incomplete.
- A token belongs to a `Door`, which is never changed: hvac's own ``login`` would swap the token under other
  threads.
- No answer's text goes into an error or a log, and a foreign exception is not chained: it holds the request,
  and the request holds the token.

This module does not log in, retry, or know what a document is. Paths must be checked by the caller: hvac lets
a path escape its mount.
"""

from __future__ import annotations

import ipaddress
import re
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from http.cookiejar import DefaultCookiePolicy
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import hvac.adapters
import hvac.api.auth_methods
import hvac.api.secrets_engines
import hvac.api.system_backend
import requests
import requests.adapters

from secretsvc.core.errors import ConfigurationError, StoreDenied, StoreError, StoreUnavailable
from secretsvc.core.model import Secret

CONNECT_SECONDS: Final = 5.0
ANSWER_SECONDS: Final = 15.0
BOOTSTRAP: Final = "Run `secretsvc vault bootstrap` with an admin's token."

_POOL = 32
_MOUNT = re.compile(r"[a-z0-9][a-z0-9-]{0,39}(/[a-z0-9][a-z0-9-]{0,39}){0,3}\Z")
_NAMESPACE = re.compile(r"[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*/?\Z")
_TOKEN = re.compile(r"[\x21-\x7e]{1,8192}\Z")
_BUSY = frozenset({408, 412, 425, 429, 472, 473, 474})
"""Timeouts, rate limits, and what standbys and replicas answer: another try may succeed."""
_UNSEAL = "unseal it: `bao operator unseal`, or `vault operator unseal`, once per key share"
_SAYS_SEALED = {501: "is not initialised", 503: "is sealed or in maintenance"}


@dataclass(frozen=True, slots=True)
class VaultAddress:
    """Where Vault or OpenBao is.

    Args:
        address: ``https://host[:port]``; plain ``http`` to this machine only, for the token travels on it.
        mount: path of the KV v2 mount that is ours.
        namespace: empty for none.
        cacert: file to verify the server with; empty for the system's certificates.

    Raises `ConfigurationError` when one of them is not usable.
    """

    address: str
    mount: str = "secretsvc"
    namespace: str = ""
    cacert: str = ""

    def __post_init__(self) -> None:
        _check_address(self.address)
        if not _MOUNT.match(self.mount):
            raise ConfigurationError(
                f"not a mount path: {self.mount!r}",
                hint="SECRETSVC_VAULT_MOUNT is like secretsvc or team/secretsvc.",
            )
        if self.namespace and not _NAMESPACE.match(self.namespace):
            raise ConfigurationError(
                f"not a Vault namespace: {self.namespace!r}",
                hint="SECRETSVC_VAULT_NAMESPACE is like team/prod.",
            )
        if self.cacert and not Path(self.cacert).is_file():
            raise ConfigurationError(
                f"there is no CA file {self.cacert}",
                hint="Set SECRETSVC_VAULT_CACERT to a readable PEM file.",
            )


@dataclass(frozen=True, slots=True)
class Answer:
    """What Vault answered, for this package only: bodies hold values."""

    status: int
    body: Mapping[str, Any] = field(default_factory=dict, repr=False)
    is_json: bool = False
    """The body was a JSON object, as all of Vault's are; a proxy's error page is not."""

    @property
    def ok(self) -> bool:
        """Vault did it."""
        return self.status in (200, 204)

    @property
    def data(self) -> dict[str, Any]:
        """The field ``data``; empty when there is none."""
        data = self.body.get("data")
        return data if isinstance(data, dict) else {}

    @property
    def auth(self) -> dict[str, Any]:
        """The field ``auth``; empty when there is none."""
        auth = self.body.get("auth")
        return auth if isinstance(auth, dict) else {}

    def says(self, text: str) -> bool:
        """Whether one of Vault's error strings contains ``text`` (lower case)."""
        errors = self.body.get("errors")
        return isinstance(errors, list) and any(text in str(error).lower() for error in errors)

    @property
    def denied(self) -> bool:
        """The token is dead, or its policies do not allow this."""
        return self.status in (401, 403)

    @property
    def mount_missing(self) -> bool:
        """Nothing is mounted at the path."""
        return self.status == HTTPStatus.NOT_FOUND and (
            self.says("no handler for route") or self.says("route entry not found")
        )

    @property
    def absent(self) -> bool:
        """There is nothing at the path, and it was Vault who said so."""
        return self.status == HTTPStatus.NOT_FOUND and self.is_json and self.body.get("errors") == []


class Door:
    """hvac's API classes with one token, which is never swapped."""

    __slots__ = ("adapter", "approle", "kv", "system", "token")

    def __init__(self, adapter: Any) -> None:  # noqa: ANN401  # hvac has no types
        self.adapter = adapter
        self.kv: Any = hvac.api.secrets_engines.KvV2(adapter)
        self.approle: Any = hvac.api.auth_methods.AppRole(adapter)
        self.token: Any = hvac.api.auth_methods.Token(adapter)
        self.system: Any = hvac.api.system_backend.SystemBackend(adapter)


class VaultLink:
    """Sends requests to one address, and waits ``answer_seconds`` for each. Used by many threads at once."""

    def __init__(self, where: VaultAddress, *, answer_seconds: float = ANSWER_SECONDS) -> None:
        self.where = where
        self._answer_seconds = answer_seconds
        self._session = _session(where.cacert)

    def door(self, token: Secret | None = None, *, namespaced: bool = True) -> Door:
        """Return the API with ``token``, or without one (to log in)."""
        if token is not None and not _TOKEN.match(token.reveal()):
            raise StoreDenied(
                "the Vault token has characters that no token has", hint="Check the token's file."
            )
        adapter = hvac.adapters.RawAdapter(
            base_uri=self.where.address.rstrip("/"),
            token=token.reveal() if token is not None else None,
            verify=self._session.verify,
            timeout=(CONNECT_SECONDS, self._answer_seconds),
            allow_redirects=False,
            session=self._session,
            namespace=(self.where.namespace or None) if namespaced else None,
            ignore_exceptions=True,  # answers are judged here
            strict_http=True,  # GET ?list=true: proxies know no LIST
        )
        return Door(adapter)

    def ask(self, call: Callable[[], Any]) -> Answer:
        """Make a call of a `Door` and return the answer, whatever its status.

        Raises `StoreUnavailable` when none came.
        """
        try:
            response: requests.Response = call()
        except requests.exceptions.SSLError:
            raise StoreUnavailable(
                f"the certificate of Vault at {self.where.address} is not trusted",
                hint="Set SECRETSVC_VAULT_CACERT to the CA that signed it.",
                code="VaultCertificate",
            ) from None
        except requests.exceptions.Timeout:
            raise StoreUnavailable(f"Vault at {self.where.address} does not answer in time") from None
        except requests.exceptions.RequestException:
            raise StoreUnavailable(
                f"Vault at {self.where.address} can not be reached",
                hint="Is it running, and is the address right?",
            ) from None
        try:
            body = response.json()
        except ValueError:
            body = None
        return Answer(response.status_code, body if isinstance(body, dict) else {}, isinstance(body, dict))

    def health(self) -> str:
        """Return product version and state, or raise `StoreUnavailable`. Needs no token."""
        door = self.door(namespaced=False)
        params = {"standbyok": "true", "perfstandbyok": "true"}
        answer = self.ask(lambda: door.adapter.get("/v1/sys/health", params=params))
        if answer.status not in (200, 429, 472, 473) or not answer.is_json:
            raise self.refusal(answer, "its health")
        return f"version {str(answer.body.get('version', 'unknown'))[:40]}"

    def refusal(self, answer: Answer, what: str) -> StoreError:
        """Return the error for an answer that is none of those the caller knows what to do with.

        ``what`` was asked, such as ``state/01j...``; never a value.
        """
        where = f"Vault at {self.where.address}"
        if answer.denied:
            return StoreDenied(f"{where} does not allow {what}", hint=BOOTSTRAP)
        if answer.mount_missing:
            return StoreError(f"{where} has nothing mounted for {what}", hint=BOOTSTRAP, code="MountMissing")
        if 300 <= answer.status < 400:  # noqa: PLR2004
            return StoreUnavailable(
                f"{where} redirects (status {answer.status}), and its token goes nowhere else",
                hint="Set SECRETSVC_VAULT_ADDR to the active node or to the load balancer itself.",
                code="VaultRedirects",
            )
        if answer.status >= 500 or answer.status in _BUSY or answer.says("upgrading from non-versioned"):  # noqa: PLR2004
            sealed = _SAYS_SEALED.get(answer.status)
            state = sealed or f"answers {answer.status}"
            return StoreUnavailable(
                f"{where} {state}: no answer about {what}",
                hint=_UNSEAL if sealed else "",
                code="StoreSealed" if sealed else "",
            )
        if answer.ok or answer.status == HTTPStatus.NOT_FOUND:
            return StoreUnavailable(
                f"{where} answers {what} as Vault never would", hint="Is something else at that address?"
            )
        return StoreError(f"{where} did not accept {what} (status {answer.status})")

    def close(self) -> None:
        """Close connections."""
        self._session.close()


def _session(cacert: str) -> requests.Session:
    session = requests.Session()
    session.trust_env = False
    session.verify = cacert or _system_certificates()
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    adapter = requests.adapters.HTTPAdapter(pool_connections=1, pool_maxsize=_POOL)
    session.mount("https://", adapter)
    session.mount("http://", adapter)
    return session


def _system_certificates() -> str | bool:
    """Return the system's bundle; requests' own when OpenSSL knows of none."""
    paths = ssl.get_default_verify_paths()
    return paths.cafile or paths.capath or True


def _check_address(address: str) -> None:
    try:
        parts = urlsplit(address)
        host, _ = parts.hostname, parts.port
    except ValueError:
        parts, host = urlsplit(""), None
    plain = not (parts.path.strip("/") or parts.query or parts.fragment or "@" in parts.netloc)
    if parts.scheme not in ("http", "https") or not host or not plain:
        raise ConfigurationError(
            "the address of Vault is not like https://vault.example.com:8200",
            hint="Set SECRETSVC_VAULT_ADDR.",
        )
    if parts.scheme == "http" and not _is_loopback(host):
        raise ConfigurationError(
            f"the address of Vault is plain http to {host}: the token would travel in clear",
            hint="Set SECRETSVC_VAULT_ADDR to an https address; http is for this machine only.",
        )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
