"""The contract of `core.ports.RegistryProver`, on real registries: htpasswd over HTTP, tokens over TLS."""

from __future__ import annotations

import base64
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

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
from secretsvc.registries.transport import Transport, system_resolver
from tests.rig.registry import Registry, pull
from tests.rig.tokenserver import Authority, TokenRegistry

pytestmark = pytest.mark.rig

USER = "robot$team+puller"
RIGHT = "right:pass wörd-4f9d1c"
REPOSITORY = "team/private"


@dataclass
class Subject:
    """A registry of the rig and how it is registered."""

    server: Registry | TokenRegistry
    spec: RegistrySpec


def spec(host: str) -> RegistrySpec:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    return RegistrySpec("u", "n", host, RegistryKind.GENERIC, now, "test", networks=("127.0.0.0/8",))


def subject_of(server: Registry | TokenRegistry) -> Subject:
    if isinstance(server, TokenRegistry):
        return Subject(server, replace(spec(server.host), ca=server.ca))
    return Subject(server, replace(spec(server.host), insecure=True))


def make_server(kind: str, folder: Path) -> Registry | TokenRegistry:
    if kind == "htpasswd":
        return Registry(folder)
    return TokenRegistry(folder, anonymous_tokens=kind == "token-to-anybody")


@pytest.fixture(scope="module", params=["htpasswd", "token", "token-to-anybody"])
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    server = make_server(request.param, tmp_path_factory.mktemp("registry"))
    server.set_password(USER, RIGHT)
    with server:
        yield subject_of(server)


@pytest.fixture
def prover() -> Prover:
    return Prover(Transport(system_resolver, time.monotonic), lambda: datetime.now(UTC), os.urandom)


def login(username: str = USER, secret: str = RIGHT) -> Login:
    return Login(CredentialType.TOKEN, username, Secret(secret))


def assert_tells_nothing(verdict: Verdict, username: str, secret: str) -> None:
    pair = f"{username}:{secret}".encode()
    for form in (secret, base64.b64encode(pair).decode(), base64.b64encode(secret.encode()).decode()):
        assert form not in repr(verdict)


def test_the_right_login_is_valid(prover: Prover, subject: Subject) -> None:
    verdict = prover.prove(subject.spec, login())
    assert verdict.outcome is Outcome.VALID
    assert verdict.accepted
    assert [step.status for step in verdict.steps[:2]] == [401, 200]
    assert_tells_nothing(verdict, USER, RIGHT)


@pytest.mark.parametrize(
    ("username", "secret"),
    [(USER, "wrong-password-77"), ("nobody", RIGHT), (USER.upper(), RIGHT), (USER, RIGHT + "x")],
)
def test_a_wrong_login_is_invalid_and_sent_once(
    prover: Prover, subject: Subject, username: str, secret: str
) -> None:
    verdict = prover.prove(subject.spec, login(username, secret))
    assert verdict.outcome is Outcome.INVALID
    assert verdict.refused
    assert len(verdict.steps) == 2
    assert_tells_nothing(verdict, username, secret)


def test_a_changed_password_is_seen_at_once(prover: Prover, subject: Subject) -> None:
    subject.server.set_password("changing", "old-password-1")
    assert prover.prove(subject.spec, login("changing", "old-password-1")).accepted
    subject.server.set_password("changing", "new-password-2")
    assert prover.prove(subject.spec, login("changing", "old-password-1")).outcome is Outcome.INVALID
    assert prover.prove(subject.spec, login("changing", "new-password-2")).accepted


def test_what_belongs_to_the_host_is_asked_once(prover: Prover, subject: Subject) -> None:
    first = prover.prove(subject.spec, login())
    second = prover.prove(subject.spec, login())
    assert second.outcome is first.outcome
    assert len(second.steps) < len(first.steps)
    assert not [step for step in second.steps if "made-up" in step.note or "control" in step.note]


def test_a_private_repository_confirms_the_pull(prover: Prover, subject: Subject) -> None:
    subject.server.push(REPOSITORY, USER, RIGHT)
    probing = replace(subject.spec, probe_repository=REPOSITORY)
    assert prover.prove(probing, login()).outcome is Outcome.VALID_PULL_CONFIRMED
    assert prover.prove(probing, login(secret="wrong-password-77")).outcome is Outcome.INVALID


def test_a_real_client_agrees(prover: Prover, subject: Subject, tmp_path: Path) -> None:
    reference = subject.server.push(REPOSITORY, USER, RIGHT)
    ca = subject.server.authority.path if isinstance(subject.server, TokenRegistry) else None
    for secret in (RIGHT, "wrong-password-77"):
        auth = base64.b64encode(f"{USER}:{secret}".encode()).decode()
        file = tmp_path / "auth.json"
        file.write_text(json.dumps({"auths": {subject.spec.host: {"auth": auth}}}))
        pulled = pull(reference, file, tmp_path / "pull", ca)
        accepted = prover.prove(subject.spec, login(secret=secret)).accepted
        assert accepted == (pulled.returncode == 0), pulled.stderr


def test_a_ping_needs_no_login(prover: Prover, subject: Subject) -> None:
    verdict = prover.ping(subject.spec)
    assert verdict.outcome is Outcome.VALID
    assert [step.note for step in verdict.steps] == ["anonymous"]


def test_loopback_that_is_not_listed_is_not_connected_to(prover: Prover, subject: Subject) -> None:
    unlisted = replace(subject.spec, networks=())
    for verdict in (prover.prove(unlisted, login()), prover.ping(unlisted)):
        assert (verdict.outcome, verdict.reason) == (Outcome.UNAVAILABLE, "AddressNotAllowed")
        assert [step.status for step in verdict.steps] == [None]


def test_malformed_logins_cost_no_request(prover: Prover, subject: Subject) -> None:
    verdict = prover.prove(subject.spec, login("a:b"))
    assert (verdict.outcome, verdict.steps) == (Outcome.MALFORMED, ())


@pytest.mark.parametrize("kind", ["htpasswd", "token"])
def test_a_stopped_registry_is_unavailable_and_then_back(prover: Prover, kind: str, tmp_path: Path) -> None:
    server = make_server(kind, tmp_path)
    server.set_password(USER, RIGHT)
    with server:
        stopped = subject_of(server).spec
    verdict = prover.prove(stopped, login())
    assert (verdict.outcome, verdict.reason) == (Outcome.UNAVAILABLE, "ConnectionFailed")
    with server:
        assert prover.prove(stopped, login()).accepted


def test_another_authority_is_a_tls_error_before_any_login(prover: Prover, tmp_path: Path) -> None:
    with TokenRegistry(tmp_path / "registry") as server:
        right = subject_of(server).spec
        for ca, reason in (
            ("", "CertificateUntrusted"),
            (Authority(tmp_path / "other").pem, "CertificateUntrusted"),
            ("not a certificate", "CaBundleUnreadable"),
        ):
            verdict = prover.prove(replace(right, ca=ca), login())
            assert (verdict.outcome, verdict.reason) == (Outcome.TLS_ERROR, reason)
            assert len(verdict.steps) == 1


def test_tls_against_a_plain_registry_is_a_tls_error(prover: Prover, tmp_path: Path) -> None:
    with Registry(tmp_path) as server:
        verdict = prover.prove(spec(server.host), login())
    assert (verdict.outcome, verdict.reason) == (Outcome.TLS_ERROR, "TlsFailed")
