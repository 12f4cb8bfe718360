"""One HTTP request to a registry or its token server, under every limit. Nothing else reaches them.

Rules:

- Resolve, judge *every* address, connect to the judged literal; TLS and the ``Host`` header keep the name.
- One deadline covers a whole check, name resolution and handshake included; at most 5 s of it to connect.
  At most 64 KiB of an answer are read off the wire, headers included; compressed bodies are refused.
- No redirects, no proxies, no ``.netrc``, no cookies, no retries, no connection reuse. Plain HTTP only for an
  ``http`` URL, which only a registry marked insecure gets.
- Repeated header lines stay apart. Whatever goes wrong is a `TransportFailure` with a `Fault`: a closed
  set, without the foreign exception, which could hold the request.

What an answer means is not decided here.
"""

from __future__ import annotations

import http.client
import io
import ipaddress
import queue
import socket
import ssl
import threading
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import sha256
from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode

import urllib3.connection
import urllib3.exceptions

from secretsvc.core.model import Secret
from secretsvc.registries.addresses import address_verdict, parse_networks

if TYPE_CHECKING:
    from urllib3.response import BaseHTTPResponse

Resolver = Callable[[str, int], Sequence[str]]
"""Turns a host and port into literal addresses, in order of preference; `OSError` when there are none."""
Monotonic = Callable[[], float]
"""Returns seconds that only rise."""

MAX_ANSWER_BYTES = 65_536
CONNECT_SECONDS = 5.0
_USER_AGENT = "secretsvc"
"""Must not resemble Docker's: some registries answer ``/v2/`` differently to a Docker client."""
_HOSTNAME_MISMATCH = (62, 64)
"""OpenSSL's X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH."""


class Fault(StrEnum):
    """Everything that can keep an answer from us."""

    ADDRESS = "AddressNotAllowed"
    NAME = "NameNotFound"
    CONNECT = "ConnectionFailed"
    TIMEOUT = "NoAnswerInTime"
    RESET = "ConnectionLost"
    CERTIFICATE = "CertificateUntrusted"
    CERTIFICATE_NAME = "CertificateForAnotherName"
    CA = "CaBundleUnreadable"
    TLS = "TlsFailed"
    ANSWER = "AnswerUnreadable"


class TransportFailure(Exception):
    """There is no usable answer."""

    def __init__(self, fault: Fault, detail: str = "") -> None:
        super().__init__(fault)
        self.fault = fault
        self.detail = detail
        """For a person; made by us."""


@dataclass(frozen=True, slots=True)
class Url:
    """Where a request goes, in parts that have been checked one by one."""

    scheme: str
    host: str
    """A name or a literal address, IPv6 without brackets."""
    port: int
    path: str
    query: tuple[tuple[str, str], ...] = ()

    @property
    def authority(self) -> str:
        """``host[:port]`` as the ``Host`` header wants it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == default_port(self.scheme) else f"{host}:{self.port}"

    @property
    def request_target(self) -> str:
        """Path and query, encoded."""
        path = quote(self.path, safe="/%:@!$&'()*+,;=~")
        return f"{path}?{urlencode(self.query, quote_via=quote)}" if self.query else path


def default_port(scheme: str) -> int:
    """Return the port that a URL of this scheme has when it names none."""
    return 443 if scheme == "https" else 80


@dataclass(frozen=True, slots=True)
class Trust:
    """What a connection may rely on: the registry's own settings."""

    ca: str = ""
    """PEM bundle instead of the system's authorities."""
    networks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """One question."""

    method: str
    url: Url
    authorization: Secret | None = None
    """The whole header value."""
    accept: str = "application/json"


@dataclass(frozen=True, slots=True)
class Response:
    """One answer; header names in lower case, one item per line received."""

    status: int
    headers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    body: bytes = field(default=b"", repr=False)
    truncated: bool = False

    def header(self, name: str) -> str:
        """Return the first line of that name, or an empty text."""
        return next(iter(self.headers.get(name, ())), "")


def basic_authorization(username: str, secret: Secret) -> Secret:
    """Return the header value of a login: RFC 7617 with UTF-8, as Go's clients send it."""
    return Secret("Basic " + b64encode(f"{username}:{secret.reveal()}".encode()).decode("ascii"))


def bearer_authorization(token: Secret) -> Secret:
    """Return the header value of a token that a token server gave."""
    return Secret(f"Bearer {token.reveal()}")


class Deadline:
    """The moment after which nothing is waited for any more."""

    def __init__(self, seconds: float, monotonic: Monotonic) -> None:
        self._monotonic = monotonic
        self._end = monotonic() + seconds

    def left(self) -> float:
        """Return the seconds that are left; raise the time-out fault when there are none."""
        left = self._end - self._monotonic()
        if left <= 0:
            raise TransportFailure(Fault.TIMEOUT)
        return left


def system_resolver(host: str, port: int) -> list[str]:
    """Resolve with the system's resolver."""
    rows = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(row[4][0]) for row in rows))


class Transport:
    """Sends requests. Safe to share between threads."""

    def __init__(self, resolve: Resolver, monotonic: Monotonic) -> None:
        self._resolve = resolve
        self._monotonic = monotonic
        self._contexts: dict[str, ssl.SSLContext] = {}

    def deadline(self, seconds: float) -> Deadline:
        """Start a deadline on this transport's clock."""
        return Deadline(seconds, self._monotonic)

    def send(self, request: Request, trust: Trust, deadline: Deadline) -> Response:
        """Return the answer.

        Raises:
            TransportFailure: there is none.
        """
        addresses = self._addresses(request.url, trust, deadline)
        connection = self._connect(request.url, addresses, trust, deadline)
        try:
            return _exchange(connection, request, deadline)
        except TransportFailure:
            raise
        except (TimeoutError, urllib3.exceptions.TimeoutError):
            raise TransportFailure(Fault.TIMEOUT) from None
        except (OSError, urllib3.exceptions.ProtocolError, urllib3.exceptions.SSLError):
            raise TransportFailure(Fault.RESET) from None
        except (http.client.HTTPException, urllib3.exceptions.HTTPError, ValueError):
            raise TransportFailure(Fault.ANSWER) from None
        finally:
            connection.close()

    def _addresses(self, url: Url, trust: Trust, deadline: Deadline) -> list[str]:
        """Resolve and judge; nothing is connected to unless every address is allowed."""
        try:
            literals = self._resolve_within(url, deadline.left())
            addresses = [ipaddress.ip_address(text) for text in literals]
            networks = parse_networks(trust.networks)
        except TimeoutError:
            raise TransportFailure(Fault.TIMEOUT, "the name was not resolved in time") from None
        except (OSError, ValueError):
            raise TransportFailure(Fault.NAME) from None
        for address in addresses:
            reason = address_verdict(address, networks)
            if reason:
                raise TransportFailure(Fault.ADDRESS, f"{address}: {reason}")
        if not addresses:
            raise TransportFailure(Fault.NAME)
        return [str(address) for address in addresses]

    def _resolve_within(self, url: Url, seconds: float) -> Sequence[str]:
        """Resolve on a thread of its own: the system's resolver has no time limit that we could set."""
        done: queue.SimpleQueue[Sequence[str] | OSError] = queue.SimpleQueue()

        def run() -> None:
            try:
                done.put(self._resolve(url.host, url.port))
            except (OSError, ValueError) as exc:
                done.put(exc if isinstance(exc, OSError) else OSError("not a resolvable name"))

        threading.Thread(target=run, name="resolve", daemon=True).start()
        try:
            result = done.get(timeout=seconds)
        except queue.Empty:
            raise TimeoutError from None
        if isinstance(result, OSError):
            raise result
        return result

    def _connect(
        self, url: Url, addresses: list[str], trust: Trust, deadline: Deadline
    ) -> urllib3.connection.HTTPConnection:
        limit = self.deadline(min(CONNECT_SECONDS, deadline.left()))
        failure = TransportFailure(Fault.CONNECT)
        for address in addresses:
            connection = self._connection(url, address, trust, limit)
            try:
                connection.connect()
            except Exception as exc:  # noqa: BLE001  # classified, and its details dropped
                connection.close()
                failure = _connect_failure(exc)
                if failure.fault not in {Fault.CONNECT, Fault.TIMEOUT}:
                    break
            else:
                return connection
        raise failure

    def _connection(
        self, url: Url, address: str, trust: Trust, limit: Deadline
    ) -> urllib3.connection.HTTPConnection:
        if url.scheme == "http":
            return urllib3.connection.HTTPConnection(address, url.port, timeout=limit.left())
        return urllib3.connection.HTTPSConnection(
            address,
            url.port,
            timeout=limit.left(),
            cert_reqs="CERT_REQUIRED",
            ssl_context=self._context(trust.ca),
            server_hostname=url.host,  # the context checks the certificate against it
        )

    def _context(self, ca: str) -> ssl.SSLContext:
        """Return the TLS context of a CA bundle; parsing one takes long enough to keep it."""
        key = sha256(ca.encode()).hexdigest() if ca else ""
        context = self._contexts.get(key)
        if context is None:
            try:
                context = ssl.create_default_context(cadata=ca or None)
            except (ssl.SSLError, ValueError):
                raise TransportFailure(Fault.CA) from None
            self._contexts[key] = context
        return context


def _connect_failure(exc: Exception) -> TransportFailure:
    if isinstance(exc, TransportFailure):
        return exc
    if isinstance(exc, urllib3.exceptions.NewConnectionError):  # a subclass of the next, yet no time-out
        return TransportFailure(Fault.CONNECT)
    if isinstance(exc, urllib3.exceptions.ConnectTimeoutError | TimeoutError):
        return TransportFailure(Fault.TIMEOUT)
    if isinstance(exc, ssl.SSLCertVerificationError):
        wrong_name = exc.verify_code in _HOSTNAME_MISMATCH
        return TransportFailure(Fault.CERTIFICATE_NAME if wrong_name else Fault.CERTIFICATE)
    if isinstance(exc, ssl.SSLError | urllib3.exceptions.SSLError):
        return TransportFailure(Fault.TLS)
    return TransportFailure(Fault.CONNECT)


class _Metered(io.RawIOBase):
    """The socket's byte stream with a budget and a deadline: both hold for headers and body together."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket, deadline: Deadline) -> None:
        self._raw = raw
        self._sock = sock
        self._deadline = deadline
        self._left = MAX_ANSWER_BYTES
        self.spent = False
        """The server had more to say."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int | None:  # type: ignore[override]  # the buffer io passes
        if self._left == 0:
            self.spent = True
            return 0
        self._sock.settimeout(self._deadline.left())
        count = self._raw.readinto(buffer[: self._left])
        self._left -= count or 0
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


def _exchange(
    connection: urllib3.connection.HTTPConnection, request: Request, deadline: Deadline
) -> Response:
    meters: list[_Metered] = []

    class _Reply(http.client.HTTPResponse):
        """A response that reads through a meter."""

        def __init__(self, sock: socket.socket, *args: object, **options: object) -> None:
            super().__init__(sock, *args, **options)  # type: ignore[arg-type]
            meter = _Metered(self.fp.detach(), sock, deadline)
            meters.append(meter)
            self.fp = io.BufferedReader(meter)

    connection.response_class = _Reply
    connection.timeout = deadline.left()
    connection.request(
        request.method,
        request.url.request_target,
        headers=_headers(request),
        preload_content=False,
        decode_content=False,
        enforce_content_length=False,
    )
    answer = connection.getresponse()
    if any(meter.spent for meter in meters):
        raise TransportFailure(Fault.ANSWER, "its headers are too long")
    if answer.headers.get("content-encoding", "identity").strip().lower() not in {"", "identity"}:
        raise TransportFailure(Fault.ANSWER, "it is compressed although that was not asked for")
    body, cut = _body(answer)
    headers = {name.lower(): tuple(answer.headers.getlist(name)) for name in answer.headers}
    return Response(answer.status, headers, body, cut or any(meter.spent for meter in meters))


def _headers(request: Request) -> dict[str, str]:
    headers = {
        "Host": request.url.authority,
        "User-Agent": _USER_AGENT,
        "Accept": request.accept,
        "Accept-Encoding": "identity",
        "Connection": "close",
    }
    if request.authorization is not None:
        headers["Authorization"] = request.authorization.reveal()
    return headers


def _body(answer: BaseHTTPResponse) -> tuple[bytes, bool]:
    """Read what the meter lets through; a body that ends early is cut, not an error."""
    parts: list[bytes] = []
    size = 0
    try:
        while part := answer.read(MAX_ANSWER_BYTES, decode_content=False):
            parts.append(part)
            size += len(part)
    except (urllib3.exceptions.ProtocolError, http.client.IncompleteRead):
        return b"".join(parts), True
    return b"".join(parts), False
