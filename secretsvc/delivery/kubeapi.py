"""The door to Kubernetes: access by the official package, the conversation by aiohttp and plain JSON.

Rules of this module:

- Where the API server is and who we are there comes from a kubeconfig (client certificates, tokens, token
  files, exec plugins) or from the pod's service account, read by the official package. It is read again every
  minute, so that rotated tokens and certificates are picked up, and after a 401. A reload that fails keeps
  the last good login. A plugin runs at the first request and after a 401.
- One `KubeApi` talks to one cluster for as long as it lives. The context is chosen once: ``kubectl config
  use-context`` moves nothing. A reload that leads to another server or CA is believed only when the uid of
  the namespace kube-system there is the one first seen; anything else is refused, and nothing is sent.
- Nothing is taken from the environment's proxy variables; redirects are not followed.
- Every request that is sent here may be sent twice: the callers make them so (versions, preconditions,
  apply). Hence one more try on a connection that the server had closed, and on 429 and 503, for as long as
  the server's ``Retry-After`` is short.
- Foreign errors become `core.errors`, in words of our own: an exception or an answer can quote what was sent.

It knows no resource but that namespace; `delivery.cluster` does. What an error answer means is told by
`delivery.refusal`.
"""

from __future__ import annotations

import asyncio
import errno
import json
import math
import os
import ssl
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from http import HTTPStatus
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode, urlsplit

import aiohttp
import yaml
from kubernetes.client import Configuration
from kubernetes.config import ConfigException
from kubernetes.config.incluster_config import (
    SERVICE_CERT_FILENAME,
    SERVICE_TOKEN_FILENAME,
    InClusterConfigLoader,
)
from kubernetes.config.kube_config import KubeConfigLoader, KubeConfigMerger
from yarl import URL

from secretsvc.core.errors import ConfigurationError, DeliveryError, TargetRefused, TargetUnreachable
from secretsvc.core.model import Secret
from secretsvc.delivery.refusal import refusal

JSON = "application/json"
_IDENTITY: Final = "/api/v1/namespaces/kube-system"
_RELOAD_EVERY: Final = 60.0
_RETRIES: Final = 2
_LONGEST_PAUSE: Final = 5.0
_CONNECTIONS: Final = 16
_TIMEOUT: Final = aiohttp.ClientTimeout(total=30, sock_connect=5)
_UNUSABLE = (ConfigException, yaml.YAMLError, OSError, ValueError, KeyError, TypeError, AttributeError)
_LOADING = threading.Lock()
"""The official loader keeps the files it writes keys to in a module global, which threads would share."""


@dataclass(frozen=True, slots=True)
class PodAccount:
    """Where a pod finds its service account; the defaults are Kubernetes' own."""

    token_file: Path = Path(SERVICE_TOKEN_FILENAME)
    ca_file: Path = Path(SERVICE_CERT_FILENAME)
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ, repr=False)
    """Has ``KUBERNETES_SERVICE_HOST`` and ``_PORT`` in a pod."""


def connect(
    name: str, kubeconfig: Path | None, context: str | None, *, account: PodAccount | None = None
) -> KubeApi:
    """Return the API of one cluster. Sends nothing yet.

    Args:
        name: what we call the cluster, for messages.
        kubeconfig: the file, or several joined by ``:``; None means the pod's service account.
        context: a context's name; None means the one that is current now.
        account: where the service account is, when that is not where pods have it.

    Raises `ConfigurationError`, with a hint, when the files do not say how to reach the cluster.
    """
    source: _Source
    if kubeconfig is None:
        source = _InCluster(name, account or PodAccount())
    else:
        source = _Kubeconfig(name, kubeconfig, context)
    login = None if source.plugin else source.load()
    return KubeApi(name, source, login)


# --- Access ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Login:
    """Who we are at which server, as it was read last."""

    server: str
    authorization: Secret
    tls: ssl.SSLContext | None
    tls_digest: str
    tls_server_name: str | None
    proxy: Secret
    place: str
    """A digest of whom we talk to: another one when server, CA, verification or proxy is another."""


class _Kubeconfig:
    """A context of a kubeconfig."""

    def __init__(self, cluster: str, path: Path, context: str | None) -> None:
        self._cluster = cluster
        self._path = path
        self._context = context or ""
        self.plugin = False
        self.verifies = True
        self._describe()

    def load(self) -> _Login:
        with _LOADING, tempfile.TemporaryDirectory(prefix="secretsvc-") as scratch:
            configuration = Configuration(proxy="", no_proxy="")
            try:
                loader = KubeConfigLoader(  # type: ignore[no-untyped-call]
                    self._read(), self._context, config_base_path=None, temp_file_path=scratch
                )
                loader.load_and_set(configuration)  # type: ignore[no-untyped-call]
                login = _login(configuration)
            except _UNUSABLE:
                # The loader's messages quote the entries they are about, tokens included.
                raise self._wrong("an entry, a file or a key it names can not be used") from None
        if self.plugin and not (login.authorization or configuration.cert_file):
            raise self._wrong("its login plugin gave no token or certificate", "run the plugin by hand")
        return login

    def _describe(self) -> None:
        """Find context, cluster and user, keep the context's name, and say which one is missing."""
        config = self._read()
        if config is None:
            raise self._wrong("there is no such file")
        try:
            names = {entry["name"] for entry in config.safe_get("contexts") or []}
            self._context = self._context or config.safe_get("current-context")
            if self._context not in names:
                known, wanted = ", ".join(sorted(names)) or "none", self._context or "(no current context)"
                raise self._wrong(f"it has no context {wanted}; it has {known}")
            chosen = config["contexts"].get_with_name(self._context)["context"]
            server = config["clusters"].get_with_name(chosen["cluster"])["cluster"]
            user = config["users"].get_with_name(chosen["user"])["user"] if chosen.safe_get("user") else {}
        except _UNUSABLE:
            raise self._wrong("its context names a cluster or user that it does not define") from None
        self.plugin = "exec" in user or "auth-provider" in user
        self.verifies = not server.safe_get("insecure-skip-tls-verify")

    def _read(self) -> Any:  # noqa: ANN401  # the official package is not typed
        try:
            return KubeConfigMerger(str(self._path)).config  # type: ignore[no-untyped-call]
        except _UNUSABLE:
            raise self._wrong("it can not be read as a kubeconfig") from None

    def _wrong(self, why: str, hint: str = "") -> ConfigurationError:
        return ConfigurationError(
            f"cluster {self._cluster}: kubeconfig {self._path}: {why}",
            hint=hint or f"try: KUBECONFIG={self._path} kubectl config view",
            code="KubeconfigUnusable",
        )


class _InCluster:
    """The service account of the pod that we run in."""

    plugin = False
    verifies = True

    def __init__(self, cluster: str, account: PodAccount) -> None:
        self._cluster = cluster
        self._account = account

    def load(self) -> _Login:
        configuration = Configuration(proxy="", no_proxy="")
        files = str(self._account.token_file), str(self._account.ca_file)
        try:
            InClusterConfigLoader(*files, environ=self._account.environ).load_and_set(  # type: ignore[no-untyped-call]
                configuration
            )
            return _login(configuration)
        except _UNUSABLE:
            raise ConfigurationError(
                f"cluster {self._cluster}: no kubeconfig is set and this is not a pod with a service account",
                hint="set SECRETSVC_KUBECONFIG (or KUBECONFIG) to a kubeconfig",
                code="NoClusterAccess",
            ) from None


_Source = _Kubeconfig | _InCluster


def _login(configuration: Configuration) -> _Login:
    """Read what the official loader has found; raises `ValueError` for what we do not allow."""
    server = str(configuration.host).rstrip("/")
    parts = urlsplit(server)
    if parts.username is not None or parts.scheme not in {"http", "https"} or not parts.hostname:
        msg = "not an http(s) URL without a login"
        raise ValueError(msg)
    if parts.scheme == "http" and not _is_loopback(parts.hostname):
        msg = "values would travel in the clear"
        raise ValueError(msg)
    tls, digest = _tls(configuration) if parts.scheme == "https" else (None, "")
    return _Login(
        server,
        _authorization(configuration),
        tls,
        digest,
        configuration.tls_server_name or None,
        Secret(configuration.proxy or ""),
        _place(server, configuration),
    )


def _place(server: str, configuration: Configuration) -> str:
    ca = Path(configuration.ssl_ca_cert).read_bytes() if configuration.ssl_ca_cert else b""
    name, proxy = configuration.tls_server_name or "", configuration.proxy or ""
    parts = (server, name, proxy, str(configuration.verify_ssl), sha256(ca).hexdigest())
    return sha256(json.dumps(parts).encode()).hexdigest()


def _authorization(configuration: Configuration) -> Secret:
    """Return the header's value; a token from a file ends in a line end."""
    value = configuration.get_api_key_with_prefix("BearerToken", alias="authorization")
    return Secret((value or "").strip())


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _tls(configuration: Configuration) -> tuple[ssl.SSLContext, str]:
    """Return the TLS context, and a digest that differs when its files or flags do."""
    ca, certificate, key = configuration.ssl_ca_cert, configuration.cert_file, configuration.key_file
    context = ssl.create_default_context(cafile=ca or None)
    # As the Go clients do: clusters' own CAs seldom carry every extension that RFC 5280 asks for.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if not configuration.verify_ssl:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if certificate:
        # The password stops OpenSSL from asking for one on the terminal.
        context.load_cert_chain(certificate, key or None, password="")
    digest = sha256(str(configuration.verify_ssl).encode())
    for path in filter(None, (ca, certificate, key)):
        digest.update(sha256(Path(path).read_bytes()).digest())
    return context, digest.hexdigest()


# --- The conversation -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Request:
    method: str
    target: str
    headers: Mapping[str, str]
    data: bytes | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class _Reply:
    status: int
    text: bytes = field(repr=False)
    retry_after: str

    @property
    def come_back_after(self) -> float | None:
        """Seconds that the server wants us to wait before we ask again; None when it does not."""
        if self.status not in {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}:
            return None
        return float(self.retry_after) if self.retry_after.isdecimal() else 1.0


class KubeApi:
    """One API server. Belongs to one event loop from its first request to `close`."""

    def __init__(self, name: str, source: _Source, login: _Login | None) -> None:
        self.name = name
        self._source = source
        self._login = login
        self._uid = ""
        self._read_at = -math.inf
        self._reading = asyncio.Lock()
        self._session: aiohttp.ClientSession | None = None

    @property
    def verifies_server(self) -> bool:
        """False when the kubeconfig says ``insecure-skip-tls-verify``: anybody in between can read values."""
        return self._source.verifies

    async def identity(self) -> str:
        """Return the uid of the namespace kube-system; the first that is seen is the cluster's for good.

        Raises what `request` raises, and `TargetRefused` (``ClusterChanged``) for another one.
        """
        _, namespace = await self.request("GET", _IDENTITY, about="namespace kube-system")
        return self._recognised(namespace)

    async def request(
        self,
        method: str,
        path: str,
        *,
        about: str,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        content_type: str = JSON,
        accept: str = JSON,
    ) -> tuple[int, dict[str, Any]]:
        """Send one request and return the status (2xx) and the JSON object that was answered.

        Args:
            method: in upper case.
            path: from the root, already quoted (see `segment`).
            about: what the request is about, for messages, such as ``secret a/pull-secret``.
            query: parameters, not yet quoted.
            body: sent as JSON.
            content_type: of the body.
            accept: what we want to be answered.

        Raises `TargetUnreachable`, `TargetForbidden`, `TargetMissing` (404, or a terminating namespace),
        `TargetChanged` (409) and, with nothing sent, `TargetRefused` when the login leads to another cluster.
        """
        headers = {"Accept": accept} | ({} if body is None else {"Content-Type": content_type})
        target = path + (f"?{urlencode(query, quote_via=quote)}" if query else "")
        request = _Request(method, target, headers, None if body is None else json.dumps(body).encode())
        login = await self._current_login()
        reply = await self._patiently(login, request)
        if reply.status == HTTPStatus.UNAUTHORIZED:
            reply = await self._patiently(await self._renewed_login(login), request)
        if reply.status >= HTTPStatus.MULTIPLE_CHOICES:
            raise self._refused(reply, request, about)
        return reply.status, self._parsed(reply)

    async def close(self) -> None:
        """Close the connections; a later request opens new ones."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    # --- Login ---

    async def _current_login(self) -> _Login:
        async with self._reading:
            now = asyncio.get_running_loop().time()
            if self._login is None:
                self._login = await self._load()
            elif now - self._read_at >= _RELOAD_EVERY and not self._source.plugin:
                try:
                    new = await self._load()
                except TargetUnreachable:
                    new = self._login
                self._login = await self._trusted(new, self._login)
            else:
                return self._login
            self._read_at = now
            return self._login

    async def _renewed_login(self, refused: _Login) -> _Login:
        """Return a login that is newer than one that was answered 401."""
        async with self._reading:
            if self._login is refused or self._login is None:
                self._login = await self._trusted(await self._load(), refused)
                self._read_at = asyncio.get_running_loop().time()
            return self._login

    async def _trusted(self, new: _Login, old: _Login) -> _Login:
        """Return the new login, once it is known to lead to the same cluster."""
        if new.place != old.place and self._uid:
            request = _Request("GET", _IDENTITY, {"Accept": JSON}, None)
            reply = await self._patiently(new, request)
            if reply.status >= HTTPStatus.MULTIPLE_CHOICES:
                raise self._refused(reply, request, "namespace kube-system")
            self._recognised(self._parsed(reply))
        # The TLS context stays while its files are the same: connections are kept per context.
        return replace(new, tls=old.tls) if new.tls_digest == old.tls_digest else new

    def _recognised(self, kube_system: Mapping[str, Any]) -> str:
        """Return the cluster's uid; the first one that is seen is what all others are compared with."""
        metadata = kube_system.get("metadata")
        uid = metadata.get("uid") if isinstance(metadata, dict) else None
        if not isinstance(uid, str) or not uid:
            raise self._not_kubernetes()
        if self._uid not in {"", uid}:
            raise TargetRefused(
                f"cluster {self.name}: its access leads to another cluster than when we started",
                hint="put the access back, or restart to deliver to that cluster from now on",
                code="ClusterChanged",
            )
        self._uid = uid
        return uid

    async def _load(self) -> _Login:
        try:
            return await asyncio.to_thread(self._source.load)
        except ConfigurationError as exc:
            raise TargetUnreachable(exc.message, hint=exc.hint, code=exc.code) from None

    # --- One request ---

    async def _patiently(self, login: _Login, request: _Request) -> _Reply:
        """Send until the server does not ask us to come back later."""
        reply = await self._once_connected(login, request)
        for _ in range(_RETRIES):
            pause = reply.come_back_after
            if pause is None or pause > _LONGEST_PAUSE:
                break
            await asyncio.sleep(pause)
            reply = await self._once_connected(login, request)
        return reply

    async def _once_connected(self, login: _Login, request: _Request) -> _Reply:
        """Send, and once more when the server had closed the connection that we kept."""
        try:
            try:
                return await self._send(login, request)
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as exc:
                if isinstance(exc, aiohttp.ClientConnectorError):
                    raise
            return await self._send(login, request)
        except (aiohttp.ClientError, TimeoutError) as exc:
            raise self._unreachable(login, exc) from None

    async def _send(self, login: _Login, request: _Request) -> _Reply:
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=_CONNECTIONS)
            jar = aiohttp.DummyCookieJar()
            agent = {"User-Agent": "secretsvc"}
            self._session = aiohttp.ClientSession(
                connector=connector, cookie_jar=jar, headers=agent, timeout=_TIMEOUT, trust_env=False
            )
        credentials = {"Authorization": login.authorization.reveal()} if login.authorization else {}
        async with self._session.request(
            request.method,
            URL(login.server + request.target, encoded=True),
            data=request.data,
            headers={**request.headers, **credentials},
            ssl=True if login.tls is None else login.tls,
            server_hostname=login.tls_server_name,
            proxy=login.proxy.reveal() or None,
            allow_redirects=False,
        ) as response:
            return _Reply(response.status, await response.read(), response.headers.get("Retry-After", ""))

    # --- Errors ---

    def _parsed(self, reply: _Reply) -> dict[str, Any]:
        answer = _json_object(reply.text)
        if answer is None:
            raise self._not_kubernetes()
        return answer

    def _refused(self, reply: _Reply, request: _Request, about: str) -> DeliveryError:
        """Only a ``Status`` says that something is absent; the 404 of some other server says nothing."""
        answer = _json_object(reply.text) or {}
        if reply.status == HTTPStatus.NOT_FOUND and answer.get("kind") != "Status":
            return self._not_kubernetes()
        return refusal(self.name, reply.status, answer, request.method, about)

    def _not_kubernetes(self) -> TargetUnreachable:
        return TargetUnreachable(
            f"cluster {self.name}: what answers there is not a Kubernetes API server",
            hint="check the server's URL, and any proxy or load balancer before it",
            code="NotKubernetes",
        )

    def _unreachable(self, login: _Login, exc: Exception) -> TargetUnreachable:
        where = urlsplit(login.server).netloc
        if isinstance(exc, (aiohttp.ClientConnectorCertificateError, aiohttp.ClientSSLError)):
            code, why = "TlsError", "its certificate does not verify, or it refuses our TLS"
        elif isinstance(exc, TimeoutError):
            code, why = "Timeout", "it does not answer in time"
        elif isinstance(exc, aiohttp.ClientConnectorDNSError):
            code, why = "NameUnknown", "its name does not resolve"
        elif isinstance(exc, aiohttp.ClientConnectorError):
            code, why = "ConnectionFailed", os.strerror(exc.os_error.errno or errno.EHOSTUNREACH)
        else:
            code, why = "ConnectionLost", "it broke off the conversation"
        return TargetUnreachable(f"cluster {self.name} at {where}: {why}", code=code)


def segment(name: str) -> str:
    """Return ``name`` quoted as one segment of a path."""
    return quote(name, safe="")


def _json_object(text: bytes) -> dict[str, Any] | None:
    """Return the object that ``text`` is; the parser's own error would hold all of it."""
    try:
        answer = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return answer if isinstance(answer, dict) else None
