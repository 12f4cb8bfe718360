"""The command line's conversation with the API: the only door to urllib3 in this room.

Rules:

- The API token goes to the configured URL and nowhere else: no redirects, no proxy from the environment, and
  never over plain HTTP to another machine unless that was asked for.
- An error of the API becomes an `ApiProblem`, no answer a `NoAnswer`, a wait that ended a `TimedOut`. Nothing
  is sent twice.

What it does not do: render anything, or know what a resource means.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import urllib3
from urllib3.exceptions import HTTPError, NewConnectionError, SSLError
from urllib3.exceptions import TimeoutError as UrllibTimeout

from secretsvc.cli.exits import ApiProblem, TimedOut
from secretsvc.cli.listener import ensure_trusted
from secretsvc.core.errors import ConfigurationError, SecretsvcError, Unauthenticated
from secretsvc.core.model import Secret
from secretsvc.settings import SYSTEM_DATA_DIR, Listen, is_loopback, version

Query = Mapping[str, str | Sequence[str]]
"""Parameters; one with several values is repeated."""

_API = "/api/v1"
_CONNECT_S = 5.0
_READ_S = 75.0
"""Longer than the longest ``Prefer: wait``, 60 s."""
_TOKEN_FILE_LIMIT = 4096
_PAGE = 200
_NO_CONTENT = 204
_HTTP_PORT = 80


class NoAnswer(SecretsvcError):
    """Nothing usable came back from the URL."""

    retryable = True


@dataclass(frozen=True, slots=True)
class Answer:
    """A successful answer."""

    status: int
    body: Any
    """The decoded JSON; None when there is none."""
    etag: str
    location: str


def segment(name: str) -> str:
    """Return a name as one segment of a path."""
    return quote(name, safe="")


class ApiClient:
    """Talks to one secretsvc.

    Args:
        url: where it is, with a path if it is behind one.
        token_file: holds the API token; read at the first call that needs it.
        cacert: CA bundle to verify it with instead of the system's.
        allow_http: send the token over plain HTTP to another machine, or to another user's program.
    """

    def __init__(
        self, url: str, token_file: Path | None, cacert: Path | None, *, allow_http: bool = False
    ) -> None:
        self.url = url
        self.token_file = token_file
        self._allow_http = allow_http
        self._token: Secret | None = None
        if cacert is not None and not cacert.is_file():
            raise ConfigurationError(
                f"there is no CA bundle {cacert}", hint="see --cacert and SECRETSVC_CACERT"
            )
        self._pool = urllib3.PoolManager(
            cert_reqs="CERT_REQUIRED",
            ca_certs=str(cacert) if cacert else None,
            retries=False,
            timeout=urllib3.Timeout(connect=_CONNECT_S, read=_READ_S),
        )

    def get(self, path: str, query: Query | None = None, *, wait: int = 0) -> Answer:
        """Read one resource under the API."""
        return self.call("GET", path, query=query, wait=wait)

    def call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        query: Query | None = None,
        etag: str = "",
        wait: int = 0,
    ) -> Answer:
        """Make one call under the API and return its answer, or raise what is wrong.

        Args:
            method: an HTTP method.
            path: below ``/api/v1``, with names already made segments.
            body: sent as JSON; `Secret` values are revealed here, at the socket.
            query: parameters.
            etag: sent as If-Match.
            wait: seconds the service may hold the answer until the operation has settled.
        """
        headers = {"Authorization": f"Bearer {self._read_token().reveal()}", "Accept": "application/json"}
        if etag:
            headers["If-Match"] = etag
        if wait:
            headers["Prefer"] = f"wait={wait}"
        data = None
        if body is not None:
            headers["Content-Type"] = "application/json"
            data = json.dumps(body, default=_revealed).encode()
        target = f"{_API}{path}" + (f"?{urlencode(query, doseq=True)}" if query else "")
        return self._answer(self._send(method, target, headers, data))

    def items(self, path: str, query: Query | None = None) -> Iterator[dict[str, Any]]:
        """Yield a list's items, page by page."""
        asked: dict[str, str | Sequence[str]] = {"limit": str(_PAGE), **(query or {})}
        while True:
            page = self.get(path, asked).body
            yield from page["items"]
            if not page.get("next_cursor"):
                return
            asked["cursor"] = page["next_cursor"]

    def ready(self) -> tuple[bool, str]:
        """Ask ``/readyz``, which needs no token; return whether it is and what it said."""
        response = self._send("GET", "/readyz", {"Accept": "application/json"}, None)
        document = _decoded(response)
        said = document if isinstance(document, dict) else {}
        return response.status == 200, str(said.get("detail") or said.get("status") or response.status)  # noqa: PLR2004

    def _send(
        self, method: str, target: str, headers: Mapping[str, str], data: bytes | None
    ) -> urllib3.BaseHTTPResponse:
        sent = {"User-Agent": f"secretsvc/{version()}", **headers}
        try:
            return self._pool.request(method, self.url + target, body=data, headers=sent, redirect=False)
        except SSLError:
            raise NoAnswer(
                f"{self.url} can not be trusted: its certificate does not verify",
                hint="name the CA that signed it with --cacert or SECRETSVC_CACERT",
            ) from None
        except NewConnectionError:  # urllib3 counts a refused connection among the timeouts
            raise self._no_answer() from None
        except UrllibTimeout:
            raise TimedOut(f"{self.url} did not answer in time", hint="see `secretsvc doctor`") from None
        except HTTPError:
            # The exception may hold the request, whose header is the token.
            raise self._no_answer() from None

    def _no_answer(self) -> NoAnswer:
        return NoAnswer(
            f"nothing answers at {self.url}",
            hint="start it (`make run`, or `secretsvc serve --with-worker`), or set SECRETSVC_URL",
        )

    def _answer(self, response: urllib3.BaseHTTPResponse) -> Answer:
        document = _decoded(response)
        if not 200 <= response.status < 300:  # noqa: PLR2004  # HTTP's classes
            raise ApiProblem(response.status, document if isinstance(document, dict) else {})
        if document is None and response.status != _NO_CONTENT:
            raise NoAnswer(f"{self.url} does not answer like secretsvc", hint="check SECRETSVC_URL or --url")
        return Answer(
            response.status,
            document,
            response.headers.get("ETag", ""),
            response.headers.get("Location", ""),
        )

    def _read_token(self) -> Secret:
        """Return the token, to be sent now."""
        self._refuse_clear_text()
        if self._token is None:
            self._token = read_token(self.token_file)
        return self._token

    def _refuse_clear_text(self) -> None:
        """Raise unless whoever gets the token over plain HTTP is on this machine, and not a stranger."""
        parts = urlsplit(self.url)
        host = parts.hostname or ""
        if parts.scheme != "http" or self._allow_http:
            return
        if not is_loopback(host):
            raise ConfigurationError(
                f"{self.url} is plain HTTP to another machine: the API token would travel in clear",
                hint="use https://, or --allow-http if the way there is protected otherwise",
            )
        trusted = {0, os.geteuid(), *_owner(self.token_file), *_owner(SYSTEM_DATA_DIR)}
        ensure_trusted(Listen(host, parts.port or _HTTP_PORT), trusted)


def _owner(path: Path | None) -> set[int]:
    """Return whose a file is, if that can be told."""
    with suppress(OSError):
        return {path.stat().st_uid} if path is not None else set()
    return set()


def read_token(path: Path | None) -> Secret:
    """Return the API token that a file holds."""
    if path is None:
        raise Unauthenticated(
            "there is no API token to call with",
            hint="name its file with --token-file or SECRETSVC_TOKEN_FILE; the service says where it is",
        )
    try:
        with path.open("rb") as file:
            text = file.read(_TOKEN_FILE_LIMIT).decode("ascii").strip()
    except OSError as exc:
        raise Unauthenticated(
            f"the token file {path} can not be read: {exc.strerror}", hint="see --token-file"
        ) from exc
    except UnicodeDecodeError:
        text = ""
    if not text or any(character.isspace() for character in text):
        raise Unauthenticated(f"the token file {path} does not hold one token", hint="see --token-file")
    return Secret(text)


def _revealed(value: object) -> str:
    if isinstance(value, Secret):
        return value.reveal()
    raise TypeError(f"{type(value).__name__} is not JSON")


def _decoded(response: urllib3.BaseHTTPResponse) -> Any:  # noqa: ANN401  # JSON
    try:
        return json.loads(response.data) if response.data else None
    except (ValueError, UnicodeDecodeError):
        return None
