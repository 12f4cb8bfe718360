"""A registry with token auth: a signing token server and a real registry behind one TLS front.

crane refuses an ``http`` realm behind a TLS registry and a realm on another loopback port, so the front
serves both on one port: ``/token`` itself, everything else from the registry behind it. Tokens are RS256
with the certificate in ``x5c``, the one form that every version of distribution takes.
"""

from __future__ import annotations

import base64
import datetime as dt
import hmac
import http.client
import ipaddress
import json
import secrets
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509.oid import NameOID

from tests.rig.registry import Registry, basic, free_port, push_image

SERVICE = "rig-registry"
_ISSUER = "rig-tokens"
_LIFE = 300
_HOP_BY_HOP = frozenset({"connection", "transfer-encoding", "keep-alive", "host"})


class Authority:
    """A certificate authority of the tests, written as PEM files under ``folder``."""

    def __init__(self, folder: Path, name: str = "rig CA") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = self._builder(self._name, self._key.public_key())
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        usage = x509.KeyUsage(
            digital_signature=True,
            key_cert_sign=True,
            crl_sign=True,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            encipher_only=False,
            decipher_only=False,
        )
        builder = builder.add_extension(usage, critical=True)
        self._certificate = builder.sign(self._key, hashes.SHA256())
        self.path = folder / "ca.crt"
        self.path.write_bytes(self._certificate.public_bytes(serialization.Encoding.PEM))

    @property
    def pem(self) -> str:
        """The CA bundle's text."""
        return self.path.read_text()

    def issue(self, *names: str) -> ssl.SSLContext:
        """Return a server's TLS context with a certificate for these names and addresses."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
        alternatives = x509.SubjectAlternativeName([_general_name(name) for name in names])
        builder = self._builder(subject, key.public_key()).add_extension(alternatives, critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        pair = self._folder / f"server-{secrets.token_hex(4)}.pem"
        pair.write_bytes(_pem_key(key) + certificate.public_bytes(serialization.Encoding.PEM))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pair)
        return context

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        now = dt.datetime.now(dt.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(days=2))
        )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _pem_key(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


class Signer:
    """Makes the tokens; its self-signed certificate is what the registry trusts."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._key = rsa.generate_private_key(65537, 2048)
        now = dt.datetime.now(dt.UTC)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, _ISSUER)])
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(days=2))
            .sign(self._key, hashes.SHA256())
        )
        self.bundle = folder / "tokens.crt"
        self.bundle.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        der = certificate.public_bytes(serialization.Encoding.DER)
        self._header = {"alg": "RS256", "typ": "JWT", "x5c": [base64.b64encode(der).decode()]}

    def token(self, subject: str, access: list[dict[str, Any]]) -> str:
        """Return a signed token for ``subject``."""
        now = int(time.time())
        claims = {
            "iss": _ISSUER,
            "sub": subject,
            "aud": SERVICE,
            "exp": now + _LIFE,
            "nbf": now - 5,
            "iat": now,
            "jti": secrets.token_hex(8),
            "access": access,
        }
        signed = f"{_b64(json.dumps(self._header).encode())}.{_b64(json.dumps(claims).encode())}"
        signature = self._key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
        return f"{signed}.{_b64(signature)}"


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class TokenRegistry:
    """The token-auth registry of the rig. A context manager; ``ca`` verifies its front."""

    def __init__(self, folder: Path, *, anonymous_tokens: bool = False) -> None:
        self.authority = Authority(folder / "ca")
        self.port = 0
        self._anonymous_tokens = anonymous_tokens
        self._folder = folder
        self._signer = Signer(folder / "signer")
        self._users: dict[str, str] = {}
        self._backend: Registry | None = None
        self._front: ThreadingHTTPServer | None = None

    @property
    def host(self) -> str:
        """``host:port``, as a registry is registered."""
        return f"127.0.0.1:{self.port}"

    @property
    def ca(self) -> str:
        """The PEM bundle that verifies it."""
        return self.authority.pem

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the registry and the front, on the port it had or a free one."""
        self.port = self.port or free_port()
        token = {
            "realm": f"https://{self.host}/token",
            "service": SERVICE,
            "issuer": _ISSUER,
            "rootcertbundle": str(self._signer.bundle),
        }
        self._backend = Registry(self._folder / "registry", {"token": token})
        self._backend.start()
        self._front = _front(self, self._backend)
        self._front.socket = self.authority.issue("127.0.0.1", "localhost").wrap_socket(
            self._front.socket, server_side=True, do_handshake_on_connect=False
        )
        threading.Thread(target=self._front.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        """Stop the front and the registry behind it."""
        if self._front is not None:
            self._front.shutdown()
            self._front.server_close()
            self._front = None
        if self._backend is not None:
            self._backend.stop()
            self._backend = None

    def set_password(self, user: str, password: str) -> None:
        """Add a user, or give it another password; the old one is refused at once."""
        self._users[user] = password

    def remove_user(self, user: str) -> None:
        """Forget a user."""
        del self._users[user]

    def push(self, repository: str, user: str, password: str, tag: str = "latest") -> str:
        """Push a small image as that user and return its reference."""
        if self._backend is None or not self.knows(basic(user, password)):
            raise ValueError(user)
        access = [{"type": "repository", "name": repository, "actions": ["pull", "push"]}]
        bearer = f"Bearer {self._signer.token(user, access)}"
        push_image(self._backend.ask, repository, tag, bearer)
        return f"{self.host}/{repository}:{tag}"

    def knows(self, authorization: str) -> str:
        """Return whose Basic login this is, or an empty text."""
        for user, password in self._users.items():
            if hmac.compare_digest(basic(user, password).encode(), authorization.encode()):
                return user
        return ""

    def answer_token(self, authorization: str | None, query: str) -> tuple[int, dict[str, Any]]:
        """Return status and body of a token request. Nobody gets a token without a login, unless set so."""
        user = self.knows(authorization) if authorization else ""
        if not user and not (authorization is None and self._anonymous_tokens):
            errors = [{"code": "UNAUTHORIZED", "message": "authentication required", "detail": None}]
            return 401, {"errors": errors}
        wanted = [_scope(scope) for scope in parse_qs(query).get("scope", [])] if user else []
        return 200, {"token": self._signer.token(user, wanted), "expires_in": _LIFE}


def _scope(text: str) -> dict[str, Any]:
    kind, _, rest = text.partition(":")
    name, _, actions = rest.rpartition(":")
    return {"type": kind, "name": name, "actions": actions.split(",")}


def _front(owner: TokenRegistry, backend: Registry) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 10

        def log_message(self, *_args: object) -> None:
            """Stay silent: request lines hold account names."""

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            parts = urlsplit(self.path)
            if parts.path == "/token":
                status, answer = owner.answer_token(self.headers.get("Authorization"), parts.query)
                self._reply(status, {"Content-Type": "application/json"}, json.dumps(answer).encode())
            else:
                self._forward(body)

        def _forward(self, body: bytes) -> None:
            headers = {k: v for k, v in self.headers.items() if k.lower() not in _HOP_BY_HOP}
            headers |= {"Host": owner.host, "X-Forwarded-Proto": "https"}
            try:
                status, found, content = backend.ask(self.command, self.path, body, headers)
            except (OSError, http.client.HTTPException):
                status, found, content = 502, {}, b""
            self._reply(status, found, content)

        def _reply(self, status: int, headers: dict[str, str], body: bytes) -> None:
            self.send_response_only(status)
            for name, value in headers.items():
                if name.lower() not in _HOP_BY_HOP | {"content-length"}:
                    self.send_header(name, value)
            length = headers.get("content-length", "0") if self.command == "HEAD" else str(len(body))
            self.send_header("Content-Length", length)
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _serve  # noqa: N815

    class Front(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_args: object) -> None:
            """A client that refuses our certificate is what some tests are about."""

    return Front(("127.0.0.1", owner.port), Handler)
