"""Registries that can not be had, and hostile ones, played by a real server of the tests.

The rows are those of the conformance table in the field notes; ``row`` in an id is its number there.
"""

from __future__ import annotations

import base64
import gzip
import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from secretsvc.core.model import (
    CredentialType,
    Login,
    Outcome,
    RegistryKind,
    RegistrySpec,
    Secret,
    Verdict,
)
from secretsvc.registries.generic import Prover
from secretsvc.registries.transport import MAX_ANSWER_BYTES, Transport
from tests.fakes import NOON, CountingEntropy, SettableClock
from tests.rig.scripted import Reply, ScriptedServer, Seen
from tests.rig.tokenserver import Authority

pytestmark = pytest.mark.rig

USER = "12345678|svc"
RIGHT = "right:ü€₪-4f9d1c"
BASIC = "Basic " + base64.b64encode(f"{USER}:{RIGHT}".encode()).decode()
UNAUTHORIZED = Reply(401, (("Content-Type", "application/json"),), b'{"errors":[{"code":"UNAUTHORIZED"}]}')
OK = Reply(200, (("Content-Type", "application/json"),), b"{}")
PAGE = Reply(403, (("Content-Type", "text/html"),), b"<html>denied</html>")


def document(status: int, content: object, *headers: tuple[str, str]) -> Reply:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return Reply(status, (("Content-Type", "application/json"), *headers), body)


def token(value: str) -> Reply:
    return document(200, {"token": value})


@dataclass
class Plays:
    """A registry with a token server, each answer replaceable. It knows one user."""

    challenge: tuple[str, ...] = ('Bearer realm="{base}/token",service="svc"',)
    ping: Reply | Iterable[bytes] | None = None
    refusal: Reply | Iterable[bytes] = UNAUTHORIZED
    grant: Reply | Iterable[bytes] = field(default_factory=lambda: token("good"))
    anonymous: Reply = UNAUTHORIZED
    made_up: Reply | None = None
    with_token: Callable[[str], Reply] = lambda value: OK if value == "good" else UNAUTHORIZED
    with_basic: Callable[[str], Reply] = lambda value: OK if value == BASIC else UNAUTHORIZED
    base: str = ""

    def __call__(self, seen: Seen) -> Reply | Iterable[bytes]:
        if seen.path == "/token":
            return self._token(seen)
        if seen.authorization.startswith("Bearer "):
            return self.with_token(seen.authorization.removeprefix("Bearer "))
        if seen.authorization:
            return self.with_basic(seen.authorization)
        if self.ping is not None:
            return self.ping
        lines = (("WWW-Authenticate", line.replace("{base}", self.base)) for line in self.challenge)
        return Reply(401, tuple(lines))

    def _token(self, seen: Seen) -> Reply | Iterable[bytes]:
        if seen.authorization == BASIC:
            return self.grant
        if not seen.authorization:
            return self.anonymous
        return self.made_up or self.refusal


@dataclass
class Bench:
    """A prover whose names resolve as the test says, and the servers it may meet."""

    names: dict[str, str]
    clock: SettableClock
    prover: Prover
    stack: ExitStack

    def server(self, script: Any, **options: Any) -> ScriptedServer:
        return self.stack.enter_context(ScriptedServer(script, **options))

    def registry(self, plays: Plays, **more: Any) -> tuple[ScriptedServer, RegistrySpec]:
        server = self.server(plays)
        plays.base = f"http://{server.host}"
        return server, spec(server.host, insecure=True, **more)

    def prove(self, registry: RegistrySpec, secret: str = RIGHT) -> Verdict:
        verdict = self.prover.prove(registry, Login(CredentialType.TOKEN, USER, Secret(secret)))
        assert secret not in repr(verdict)
        assert base64.b64encode(f"{USER}:{secret}".encode()).decode() not in repr(verdict)
        return verdict


def spec(host: str, **more: Any) -> RegistrySpec:
    base = RegistrySpec("u", "n", host, RegistryKind.GENERIC, NOON, "test", networks=("127.0.0.0/8",))
    return replace(base, **more)


@pytest.fixture
def bench() -> Iterator[Bench]:
    names: dict[str, str] = {}
    clock = SettableClock()

    def resolve(host: str, _port: int) -> list[str]:
        if host not in names and not host[0].isdigit():
            raise OSError(host)
        return names.get(host, host).split()

    with ExitStack() as stack:
        yield Bench(names, clock, Prover(Transport(resolve, time.monotonic), clock, CountingEntropy()), stack)


def no_login_in(server: ScriptedServer) -> bool:
    return not [seen for seen in server.seen if seen.authorization] and RIGHT.encode() not in server.arrived


EVERY_LOGIN = Plays(anonymous=token("any"), made_up=token("any"), with_token=lambda _value: OK)
ROWS: list[tuple[str, Plays, Outcome]] = [
    ("row1-token-401", Plays(grant=UNAUTHORIZED), Outcome.INVALID),
    ("row2-control-401", Plays(), Outcome.VALID),
    (
        "row4-challenge-changes-after-a-login",
        Plays(grant=Reply(401, (("WWW-Authenticate", 'Basic realm="harbor"'),))),
        Outcome.INVALID,
    ),
    ("row5-nexus-takes-anything", EVERY_LOGIN, Outcome.UNVERIFIABLE),
    ("row5-takes-anything-but-nobody", Plays(made_up=token("good")), Outcome.UNVERIFIABLE),
    (
        "row5-basic-takes-anything",
        Plays(challenge=("Basic",), with_basic=lambda _value: OK),
        Outcome.UNVERIFIABLE,
    ),
    (
        "row6-token-to-anybody-but-strict",
        Plays(anonymous=token("any"), with_token=lambda _value: OK),
        Outcome.VALID,
    ),
    (
        "row6-token-to-anybody-that-the-registry-refuses",
        Plays(anonymous=token("nobody's")),
        Outcome.VALID,
    ),
    ("row7-open-and-basic-401", Plays(ping=OK, with_basic=lambda _value: UNAUTHORIZED), Outcome.INVALID),
    ("row8-open-and-basic-200", Plays(ping=OK), Outcome.UNVERIFIABLE),
    (
        "open-and-only-bearer-offered-to-a-login",
        Plays(ping=OK, with_basic=lambda _v: Reply(401, (("WWW-Authenticate", 'Bearer realm="/t"'),))),
        Outcome.UNVERIFIABLE,
    ),
    ("row9-access-token", Plays(grant=document(200, {"access_token": "good"})), Outcome.VALID),
    (
        "row9-both-differ",
        Plays(grant=document(200, {"token": "other", "access_token": "good"})),
        Outcome.VALID,
    ),
    ("row10-empty-object", Plays(grant=document(200, {})), Outcome.PROTOCOL_ERROR),
    ("row10-no-json", Plays(grant=document(200, b"token=good")), Outcome.PROTOCOL_ERROR),
    (
        "row10-page",
        Plays(grant=Reply(200, (("Content-Type", "text/html"),), b"<html>")),
        Outcome.PROTOCOL_ERROR,
    ),
    (
        "row10-a-token-and-then-too-much",
        Plays(grant=document(200, b'{"token":"good"}' + b" " * 200_000)),
        Outcome.PROTOCOL_ERROR,
    ),
    ("row10-large", Plays(grant=token("x" * 200_000)), Outcome.PROTOCOL_ERROR),
    ("row12-ghcr-403-denied", Plays(grant=document(403, {"errors": [{"code": "DENIED"}]})), Outcome.INVALID),
    ("row13-token-403-page", Plays(grant=PAGE), Outcome.FORBIDDEN_UNKNOWN),
    ("row13-ping-403-page", Plays(ping=PAGE), Outcome.FORBIDDEN_UNKNOWN),
    (
        "row14-ecr-expired",
        Plays(
            challenge=('Basic realm="https://123456789012.dkr.ecr.x.amazonaws.com/",service="ecr"',),
            with_basic=lambda _value: Reply(403, (), b"Your authorization token has expired."),
        ),
        Outcome.EXPIRED,
    ),
    ("row15-429", Plays(grant=Reply(429, (("Retry-After", "7"),))), Outcome.RATE_LIMITED),
    ("row15-ping-429", Plays(ping=Reply(429)), Outcome.RATE_LIMITED),
    ("row16-500", Plays(grant=Reply(500)), Outcome.UNAVAILABLE),
    ("row16-ping-502", Plays(ping=Reply(502)), Outcome.UNAVAILABLE),
    ("row16-reset", Plays(grant=[]), Outcome.UNAVAILABLE),
    (
        "row16-control-500-and-nothing-else",
        Plays(anonymous=Reply(500), made_up=Reply(500)),
        Outcome.UNAVAILABLE,
    ),
    (
        "row17-openshift-fault",
        Plays(grant=document(401, {"details": "unable to validate token: InternalError"})),
        Outcome.UNAVAILABLE,
    ),
    (
        "row18-two-lines",
        Plays(challenge=('Bearer realm="{base}/token",scope="*"', 'Basic realm="Gitea"')),
        Outcome.VALID,
    ),
    (
        "row18-joined",
        Plays(challenge=('Bearer realm="{base}/token",scope="*", Basic realm="Gitea"',)),
        Outcome.VALID,
    ),
    ("row19-negotiate-then-basic", Plays(challenge=("Negotiate", 'Basic realm="x"')), Outcome.VALID),
    ("row19-BASIC", Plays(challenge=("BASIC",)), Outcome.VALID),
    ("row19-bearer", Plays(challenge=('bearer realm="{base}/token"',)), Outcome.VALID),
    (
        "row20-blanks",
        Plays(challenge=('Bearer realm = "{base}/token" ,empty="",service=s, scope="a:b:pull,push"',)),
        Outcome.VALID,
    ),
    ("row21-unterminated", Plays(challenge=('Bearer realm="{base}/token',)), Outcome.PROTOCOL_ERROR),
    ("row21-no-realm", Plays(challenge=('Bearer service="x"',)), Outcome.PROTOCOL_ERROR),
    (
        "row21-no-challenge",
        Plays(challenge=(), with_basic=lambda _value: UNAUTHORIZED),
        Outcome.PROTOCOL_ERROR,
    ),
    ("no-challenge-but-basic-works", Plays(challenge=()), Outcome.VALID),
    ("only-digest", Plays(challenge=('Digest realm="x",nonce="y"',)), Outcome.PROTOCOL_ERROR),
    ("row23-relative", Plays(challenge=('Bearer realm="/token"',)), Outcome.VALID),
    ("token-not-taken", Plays(with_token=lambda _value: UNAUTHORIZED), Outcome.PROTOCOL_ERROR),
    (
        "token-taken-without-rights",
        Plays(
            with_token=lambda _v: Reply(401, (("WWW-Authenticate", 'Bearer error="insufficient_scope"'),)),
        ),
        Outcome.VALID,
    ),
    ("ping-404", Plays(ping=Reply(404)), Outcome.PROTOCOL_ERROR),
    ("ping-redirect", Plays(ping=Reply(302, (("Location", "/elsewhere"),))), Outcome.PROTOCOL_ERROR),
    ("ping-is-no-http", Plays(ping=[b"SSH-2.0-OpenSSH_9.2\r\n"]), Outcome.PROTOCOL_ERROR),
    ("token-400", Plays(grant=Reply(400)), Outcome.PROTOCOL_ERROR),
    ("token-404", Plays(grant=Reply(404)), Outcome.PROTOCOL_ERROR),
]


@pytest.mark.parametrize(("plays", "outcome"), [pytest.param(*row[1:], id=row[0]) for row in ROWS])
def test_a_registry_that_answers_so(bench: Bench, plays: Plays, outcome: Outcome) -> None:
    server, registry = bench.registry(plays)
    verdict = bench.prove(registry)
    assert verdict.outcome is outcome, verdict
    carrying = [seen for seen in server.seen if seen.authorization in {BASIC, "Bearer good"}]
    assert len(carrying) <= 3
    if outcome is Outcome.INVALID:
        assert len(carrying) == 1


def test_row3_harbor_is_not_asked_with_a_scope(bench: Bench) -> None:
    """With a scope Harbor gives anybody a token, so a wrong secret would look right."""

    def script(seen: Seen) -> Reply:
        if seen.path == "/token":
            return token("anybody's") if "scope" in seen.query else UNAUTHORIZED
        return Reply(401, (("WWW-Authenticate", 'Bearer realm="/token",scope="repository:a/b:pull"'),))

    server = bench.server(script)
    verdict = bench.prove(spec(server.host, insecure=True, kind=RegistryKind.HARBOR))
    assert verdict.outcome is Outcome.INVALID
    assert not [seen for seen in server.seen if "scope" in seen.query]


@pytest.mark.parametrize("recognised", [True, False])
def test_a_scope_is_sent_only_where_anybody_may_send_it_and_proves_nothing(
    bench: Bench, recognised: bool
) -> None:
    """A token server that wants a scope gives everybody a token; only the registry tells them apart."""

    def script(seen: Seen) -> Reply:
        if seen.path == "/token":
            mine = recognised and seen.authorization == BASIC
            return token("good" if mine else "anybody's") if "scope" in seen.query else Reply(400)
        if seen.authorization == "Bearer good":
            return OK
        return Reply(401, (("WWW-Authenticate", 'Bearer realm="/token",scope="registry:catalog:*"'),))

    server = bench.server(script)
    verdict = bench.prove(spec(server.host, insecure=True, kind=RegistryKind.HARBOR))
    assert verdict.outcome is (Outcome.VALID if recognised else Outcome.INVALID)
    assert len([seen for seen in server.seen if seen.authorization == BASIC]) == 2


def test_row15_a_date_in_retry_after(bench: Bench) -> None:
    when = "Fri, 02 Jan 2026 12:00:07 GMT"
    _server, registry = bench.registry(Plays(grant=Reply(429, (("Retry-After", when),))))
    verdict = bench.prove(registry)
    assert verdict.retry_at is not None
    assert 7 <= (verdict.retry_at - NOON).total_seconds() <= 8


def test_row25_the_realms_own_query_is_kept_and_ours_is_encoded(bench: Bench) -> None:
    realm = 'Bearer realm="{base}/token?a=b&service=spoofed&account=root",service="SUSE Registry"'
    server, registry = bench.registry(Plays(challenge=(realm,)))
    assert bench.prove(registry).outcome is Outcome.VALID
    asked = next(seen for seen in server.seen if seen.path == "/token" and seen.authorization)
    assert asked.query == {
        "a": ["b"],
        "service": ["SUSE Registry"],
        "client_id": ["secretsvc"],
        "account": [USER],
    }


@pytest.mark.parametrize("secret", ["a:b:c", "ü€₪", "x" * 4096, json.dumps({"a": "b\n"}, indent=1)])
def test_row26_any_secret_arrives_as_utf8(bench: Bench, secret: str) -> None:
    server, registry = bench.registry(Plays(challenge=("Basic",)))
    bench.prove(registry, secret)
    sent = server.seen[1].authorization.removeprefix("Basic ")
    assert base64.b64decode(sent) == f"{USER}:{secret}".encode()


def test_the_made_up_login_is_not_the_users_and_differs(bench: Bench) -> None:
    server, registry = bench.registry(Plays())
    bench.prove(registry)
    others = {seen.authorization for seen in server.seen} - {BASIC, "Bearer good", ""}
    assert len(others) == 1
    username, _, secret = base64.b64decode(others.pop().removeprefix("Basic ")).decode().partition(":")
    assert username.startswith("secretsvc-check-")
    assert secret not in {"", RIGHT}
    bench.clock.advance(hours=25)
    bench.prove(registry)
    assert len({seen.authorization for seen in server.seen} - {BASIC, "Bearer good", ""}) == 2


def test_an_unclear_control_is_asked_again_next_time(bench: Bench) -> None:
    plays = Plays(anonymous=Reply(503), made_up=Reply(503))
    _server, registry = bench.registry(plays)
    assert bench.prove(registry).outcome is Outcome.UNAVAILABLE
    plays.anonymous, plays.made_up = UNAUTHORIZED, UNAUTHORIZED
    assert bench.prove(registry).outcome is Outcome.VALID


def test_quay_answers_500_to_a_wrong_token(bench: Bench) -> None:
    part = base64.urlsafe_b64encode(b'{"sub":"x"}').decode().rstrip("=")
    _server, registry = bench.registry(Plays(refusal=Reply(500)), kind=RegistryKind.QUAY)
    verdict = bench.prove(registry, f"{part}.{part}.c2ln")
    assert (verdict.outcome, verdict.reason) == (Outcome.UNAVAILABLE, "ServerErrorLikeWrongToken")


# --- A login goes nowhere else --------------------------------------------------------------------

ELSEWHERE = [
    "http://{other}/token",
    "https://{other}/token",
    "http://127.0.0.1:{otherport}/token",
    "http://localhost:{otherport}/token",
    "http://evil.test:{otherport}/token",
    "http://registry.test.evil.test:{otherport}/token",
    "http://registry.test@{other}/token",
    "http://u:p@registry.test:{ownport}/token",
    "http://{other}#@registry.test:{ownport}/token",
    "http://{other}\\@registry.test:{ownport}/token",
    "//{other}/token",
    "http://auth.registry.test:{otherport}/token",
    "http://169.254.169.254/latest/meta-data",
    "http://[::]:{otherport}/token",
    "http://2130706434:{otherport}/token",
    "http://0x7f.0.0.2:{otherport}/token",
    "ftp://registry.test/token",
    "http://registry.test:{ownport}/../token",
    "http://registry.test:{ownport}/%2e%2e/token",
    "http:///token",
    "token",
]


@pytest.mark.parametrize("realm", ELSEWHERE)
def test_row22_a_realm_elsewhere_gets_no_byte_of_a_login(bench: Bench, realm: str) -> None:
    other = bench.server(lambda _seen: token("stolen"), address="127.0.0.2")
    plays = Plays()
    own = bench.server(plays)
    bench.names |= dict.fromkeys(
        ("evil.test", "registry.test.evil.test", "auth.registry.test", "localhost"), "127.0.0.2"
    )
    bench.names["registry.test"] = "127.0.0.1"
    named = realm.format(other=other.host, otherport=other.port, ownport=own.port)
    plays.challenge = (f'Bearer realm="{named}"'.replace("\\", "\\\\"),)
    verdict = bench.prove(spec(f"registry.test:{own.port}", insecure=True))
    assert verdict.outcome is Outcome.REALM_REJECTED, verdict
    assert no_login_in(own)
    assert other.arrived == b""


def test_row22_a_realm_of_the_domain_that_resolves_to_loopback_gets_nothing(
    bench: Bench, tmp_path: Path
) -> None:
    """The registry's own network is listed; the realm's name leads to another one."""
    plays = Plays()
    own = bench.server(plays, address="127.0.0.1")
    other = bench.server(lambda _seen: token("stolen"), address="127.0.0.2")
    bench.names |= {"registry.example.com": "127.0.0.1", "auth.example.com": "127.0.0.2"}
    listed = (f"http://auth.example.com:{other.port}/",)
    plays.challenge = (f'Bearer realm="http://auth.example.com:{other.port}/token"',)
    registry = spec(
        f"registry.example.com:{own.port}", insecure=True, realms=listed, networks=("127.0.0.1/32",)
    )
    verdict = bench.prove(registry)
    assert (verdict.outcome, verdict.reason) == (Outcome.REALM_REJECTED, "AddressNotAllowed")
    assert no_login_in(own)
    assert other.arrived == b""


@pytest.mark.parametrize(
    "addresses",
    [
        "169.254.169.254",
        "10.0.0.1",
        "127.0.0.1 169.254.169.254",
        "127.0.0.1 ::ffff:127.0.0.1",
        "64:ff9b::7f00:1",
    ],
)
def test_one_bad_address_among_those_of_a_name_is_enough(bench: Bench, addresses: str) -> None:
    own = bench.server(Plays(), address="127.0.0.1")
    bench.names["registry.test"] = addresses
    verdict = bench.prove(spec(f"registry.test:{own.port}", insecure=True))
    assert (verdict.outcome, verdict.reason) == (Outcome.UNAVAILABLE, "AddressNotAllowed")
    assert own.arrived == b""


def test_a_listed_realm_and_one_of_the_domain_are_used(bench: Bench, tmp_path: Path) -> None:
    """TLS on both: the name is checked although the connection goes to the address."""
    authority = Authority(tmp_path)
    plays = Plays()
    tls = authority.issue("registry.example.com", "auth.example.com")
    own = bench.server(plays, tls=tls)
    tokens = bench.server(plays, tls=tls, address="127.0.0.2")
    bench.names |= {"registry.example.com": "127.0.0.1", "auth.example.com": "127.0.0.2"}
    plays.challenge = (f'Bearer realm="https://auth.example.com:{tokens.port}/token"',)
    registry = spec(f"registry.example.com:{own.port}", ca=authority.pem)
    assert bench.prove(registry).outcome is Outcome.REALM_REJECTED  # another port
    listed = replace(registry, realms=(f"https://auth.example.com:{tokens.port}/token",))
    assert bench.prove(listed).outcome is Outcome.VALID
    assert tokens.seen[0].headers["host"] == f"auth.example.com:{tokens.port}"
    plays.challenge = (f'Bearer realm="http://registry.example.com:{own.port}/token"',)
    assert bench.prove(registry).outcome is Outcome.REALM_REJECTED  # not https


def test_a_certificate_for_another_name_gets_nothing(bench: Bench, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    own = bench.server(Plays(), tls=authority.issue("other.example.com", "127.0.0.1"))
    bench.names["registry.example.com"] = "127.0.0.1"
    verdict = bench.prove(spec(f"registry.example.com:{own.port}", ca=authority.pem))
    assert (verdict.outcome, verdict.reason) == (Outcome.TLS_ERROR, "CertificateForAnotherName")
    assert own.arrived == b""


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("place", ["http://{other}/token", "//{other}/token", "/other-token"])
def test_row24_redirects_are_not_followed(bench: Bench, status: int, place: str) -> None:
    other = bench.server(lambda _seen: token("stolen"), address="127.0.0.2")
    to = ("Location", place.format(other=other.host))
    server, registry = bench.registry(Plays(grant=Reply(status, (to,)), anonymous=token("x")))
    assert bench.prove(registry).outcome is Outcome.REALM_REJECTED
    assert other.arrived == b""
    assert [seen.path for seen in server.seen] == ["/v2/", "/token"]


def test_the_environment_names_no_proxy(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = bench.server(lambda _seen: token("stolen"), address="127.0.0.2")
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, f"http://{proxy.host}")
    _server, registry = bench.registry(Plays())
    assert bench.prove(registry).outcome is Outcome.VALID
    assert proxy.arrived == b""


# --- Bounds ---------------------------------------------------------------------------------------


def endless(counter: list[int], start: bytes, chunk: bytes) -> Iterator[bytes]:
    yield start
    while True:
        counter[0] += len(chunk)
        yield chunk


HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("start", "chunk"),
    [
        (HEAD, b"X-Filler: " + b"x" * 500 + b"\r\n"),
        (HEAD + b"X-Filler: ", b"x" * 1000),
        (HEAD + b"Content-Type: application/json\r\n\r\n", b" " * 4096),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1000\r\n" + b" " * 4096 + b"\r\n"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 100 Continue\r\nX: y\r\n\r\n"),
    ],
)
def test_an_endless_answer_is_cut_off(bench: Bench, start: bytes, chunk: bytes) -> None:
    counter = [0]
    _server, registry = bench.registry(Plays(grant=endless(counter, start, chunk)))
    assert bench.prove(registry).outcome is Outcome.PROTOCOL_ERROR
    assert counter[0] > MAX_ANSWER_BYTES // 2  # it would have gone on


def test_a_compressed_answer_is_not_unpacked(bench: Bench) -> None:
    bomb = gzip.compress(json.dumps({"token": "good", "filler": " " * 4_000_000}).encode())
    _server, registry = bench.registry(Plays(grant=document(200, bomb, ("Content-Encoding", "gzip"))))
    verdict = bench.prove(registry)
    assert (verdict.outcome, verdict.reason) == (Outcome.PROTOCOL_ERROR, "AnswerUnreadable")


class HurriedClock:
    """A monotonic clock that goes forward by itself whenever it is read."""

    def __init__(self, step: float) -> None:
        self.now = 0.0
        self._step = step

    def __call__(self) -> float:
        self.now += self._step
        return self.now


@pytest.mark.parametrize(
    "drip",
    [endless([0], HEAD, b"X"), endless([0], HEAD + b"Content-Length: 60000\r\n\r\n", b" ")],
    ids=["headers", "body"],
)
def test_a_dripping_answer_ends_with_the_deadline(bench: Bench, drip: Iterator[bytes]) -> None:
    """Each byte comes in time for a socket's time-out; the clock of the whole check runs out all the same."""
    plays = Plays(grant=drip)
    _server, registry = bench.registry(plays)

    def resolve(host: str, _port: int) -> list[str]:
        return [host]

    hurried = Prover(Transport(resolve, HurriedClock(0.4)), bench.clock, CountingEntropy())
    verdict = hurried.prove(registry, Login(CredentialType.TOKEN, USER, Secret(RIGHT)))
    assert (verdict.outcome, verdict.reason) == (Outcome.UNAVAILABLE, "NoAnswerInTime")
