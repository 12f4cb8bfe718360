"""What bad input gets: a problem that names the field, nothing stored, and nothing of the input."""

from __future__ import annotations

import gzip
import io
import json
from typing import Any

import pytest
from werkzeug.test import TestResponse

from secretsvc.core.model import Outcome
from secretsvc.web.schemas import LONGEST_SECRET, pointers
from tests.fakes import verdict_of
from tests.serving import CANARY, Serving

REGISTRY = {"name": "reg1", "host": "reg1.example.com"}
CREDENTIAL = {"name": "prod", "registry": "reg1", "username": "u", "secret": CANARY}
PULL_SECRET = {
    "name": "pull",
    "secret_name": "pull-secret",
    "credentials": ["prod"],
    "namespaces": {"names": ["team-a"]},
}
AUTH_FILE = {
    "name": "file",
    "path": "/srv/auth.json",
    "dialect": "containers-auth",
    "credentials": ["prod"],
}
TOKEN = {"name": "ci", "role": "viewer"}
KEY = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"

BAD: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    ("/registries", REGISTRY, {"name": "Reg"}, "/name"),
    ("/registries", REGISTRY, {"name": "a" * 41}, "/name"),
    ("/registries", REGISTRY, {"name": ""}, "/name"),
    ("/registries", REGISTRY, {"name": "a\n"}, "/name"),
    ("/registries", REGISTRY, {"name": "a/../b"}, "/name"),
    ("/registries", REGISTRY, {"name": 5}, "/name"),
    ("/registries", REGISTRY, {"name": None}, "/name"),
    ("/registries", REGISTRY, {"host": "https://reg1.example.com"}, "/host"),
    ("/registries", REGISTRY, {"host": "u:p@reg1.example.com"}, "/host"),
    ("/registries", REGISTRY, {"host": "reg1.example.com:99999"}, "/host"),
    ("/registries", REGISTRY, {"host": "[::]:"}, "/host"),
    ("/registries", REGISTRY, {"host": "-bad-.example.com"}, "/host"),
    ("/registries", REGISTRY, {"kind": "floppy"}, "/kind"),
    ("/registries", REGISTRY, {"kind": []}, "/kind"),
    ("/registries", REGISTRY, {"insecure": "true"}, "/insecure"),
    ("/registries", REGISTRY, {"insecure": 1}, "/insecure"),
    ("/registries", REGISTRY, {"ca": "no certificate"}, "/ca"),
    ("/registries", REGISTRY, {"ca": KEY}, "/ca"),
    ("/registries", REGISTRY, {"realms": ["ftp://x"]}, "/realms/0"),
    ("/registries", REGISTRY, {"realms": ["https://u:p@x.example.com"]}, "/realms/0"),
    ("/registries", REGISTRY, {"realms": "https://x.example.com"}, "/realms"),
    ("/registries", REGISTRY, {"networks": ["10.0.0.1/8"]}, "/networks/0"),
    ("/registries", REGISTRY, {"networks": ["all"]}, "/networks/0"),
    ("/registries", REGISTRY, {"probe_repository": "UPPER"}, "/probe_repository"),
    ("/registries", REGISTRY, {"rotation": {}}, "/rotation"),
    ("/credentials", CREDENTIAL, {"username": "a:b"}, "/username"),
    ("/credentials", CREDENTIAL, {"username": "a\r\nb"}, "/username"),
    ("/credentials", CREDENTIAL, {"username": ""}, "/username"),
    ("/credentials", CREDENTIAL, {"username": "a" * 513}, "/username"),
    ("/credentials", CREDENTIAL, {"secret": ""}, "/secret"),
    ("/credentials", CREDENTIAL, {"secret": CANARY + "\0"}, "/secret"),
    ("/credentials", CREDENTIAL, {"secret": CANARY * 2000}, "/secret"),
    ("/credentials", CREDENTIAL, {"secret": "é" * (LONGEST_SECRET // 2 + 1)}, "/secret"),
    ("/credentials", CREDENTIAL, {"secret": [CANARY]}, "/secret"),
    ("/credentials", CREDENTIAL, {"type": "robot"}, "/type"),
    ("/credentials", CREDENTIAL, {"registry": "unknown"}, "/registry"),
    ("/credentials", CREDENTIAL, {"registry": "a b"}, "/registry"),
    ("/credentials", CREDENTIAL, {"allow_unverified": "yes"}, "/allow_unverified"),
    ("/credentials", CREDENTIAL, {"expires_at": "2027-01-01T00:00:00"}, "/expires_at"),
    ("/credentials", CREDENTIAL, {"expires_at": "0001-01-01T00:00:00+23:00"}, "/expires_at"),
    ("/credentials", CREDENTIAL, {"expires_at": "9999-12-31T23:59:59-23:00"}, "/expires_at"),
    ("/credentials", CREDENTIAL, {"expires_at": 1e300}, "/expires_at"),
    ("/credentials", CREDENTIAL, {"labels": {"a": 1}}, "/labels/a"),
    ("/credentials", CREDENTIAL, {"labels": {"a b": "x"}}, "/labels/***"),
    ("/credentials", CREDENTIAL, {"labels": {"a": "x\n"}}, "/labels/a"),
    ("/credentials", CREDENTIAL, {"labels": {f"l{n}": "" for n in range(33)}}, "/labels"),
    ("/credentials", CREDENTIAL, {"rotation": {"interval": "30d"}}, "/rotation"),
    ("/credentials", CREDENTIAL, {"value": 1}, "/value"),
    ("/pull-secrets", PULL_SECRET, {"secret_name": "Upper"}, "/secret_name"),
    ("/pull-secrets", PULL_SECRET, {"cluster": "nowhere"}, "/cluster"),
    ("/pull-secrets", PULL_SECRET, {"credentials": []}, "/credentials"),
    ("/pull-secrets", PULL_SECRET, {"credentials": ["nobody"]}, "/credentials/0"),
    ("/pull-secrets", PULL_SECRET, {"credentials": ["prod", "prod"]}, "/credentials/1"),
    ("/pull-secrets", PULL_SECRET, {"namespaces": ["team-a"]}, "/namespaces"),
    ("/pull-secrets", PULL_SECRET, {"namespaces": {}}, "/namespaces/names"),
    ("/pull-secrets", PULL_SECRET, {"namespaces": {"names": ["UP"]}}, "/namespaces/names/0"),
    ("/pull-secrets", PULL_SECRET, {"namespaces": {"names": [], "patterns": ["*"]}}, "/namespaces/patterns"),
    ("/pull-secrets", PULL_SECRET, {"service_accounts": "all"}, "/service_accounts"),
    ("/pull-secrets", PULL_SECRET, {"mode": "merge"}, "/mode"),
    ("/pull-secrets", PULL_SECRET, {"on_conflict": "adopt"}, "/on_conflict"),
    ("/pull-secrets", PULL_SECRET, {"production": True}, "/production"),
    ("/auth-files", AUTH_FILE, {"path": "relative"}, "/path"),
    ("/auth-files", AUTH_FILE, {"path": "/srv/../etc/shadow"}, "/path"),
    ("/auth-files", AUTH_FILE, {"path": "/srv/a\0b"}, "/path"),
    ("/auth-files", AUTH_FILE, {"path": "/" + "a" * 5000}, "/path"),
    ("/auth-files", AUTH_FILE, {"dialect": "netrc"}, "/dialect"),
    ("/auth-files", AUTH_FILE, {"hosts": {"names": ["elsewhere"]}}, "/hosts/names"),
    ("/tokens", TOKEN, {"role": "root"}, "/role"),
    ("/tokens", TOKEN, {"expires_in": "forever"}, "/expires_in"),
    ("/tokens", TOKEN, {"expires_in": "999999999d"}, "/expires_in"),
    ("/tokens", TOKEN, {"expires_in": "1s"}, "/expires_in"),
    ("/tokens", TOKEN, {"expires_in": 90}, "/expires_in"),
]


@pytest.fixture(scope="module")
def shared() -> tuple[Serving, dict[tuple[str, str], Any]]:
    made = Serving()
    assert made.add_registry("other", "other.example.com").status_code == 201
    body = {"name": "prod", "registry": "other", "username": "u", "secret": "v"}
    assert made.call("POST", "/credentials", json=body).status_code == 201
    return made, made.store.documents()


@pytest.fixture
def serving(shared: tuple[Serving, dict[tuple[str, str], Any]]) -> Serving:
    """One application, with the same records at the beginning of every test."""
    made, documents = shared
    made.store.reset(documents)
    made.prover.answer = Outcome.VALID
    made.logs.seek(0)
    made.logs.truncate()
    return made


def assert_quiet(serving: Serving, answer: TestResponse) -> None:
    """The input is neither in the answer nor in the log."""
    for text in (answer.get_data(as_text=True), serving.logs.getvalue()):
        assert CANARY not in text
        assert "AAAA" not in text


@pytest.mark.parametrize(("path", "good", "bad", "pointer"), BAD)
def test_bad_fields_are_named_and_store_nothing(
    serving: Serving, path: str, good: dict[str, Any], bad: dict[str, Any], pointer: str
) -> None:
    body = {**good, **bad}
    if path == "/credentials" and "registry" not in bad:
        body["registry"] = "other"
    if path == "/credentials":
        body["name"] = "new"
    answer = serving.call("POST", path, json=body)
    assert answer.status_code == 422, answer.get_data(as_text=True)
    assert answer.json is not None
    assert pointer in [row["pointer"] for row in answer.json["errors"]]
    assert answer.json["hint"]
    assert serving.store.writes == []
    assert_quiet(serving, answer)


@pytest.mark.parametrize(
    ("data", "content_type", "status"),
    [
        (b"{", "application/json", 400),
        (b'{"secret": "' + CANARY.encode() + b'"', "application/json", 400),
        (b"[]", "application/json", 400),
        (b'"text"', "application/json", 400),
        (b'{"name": "\xff"}', "application/json", 400),
        (gzip.compress(b"{}"), "application/json", 400),
        (b"name=prod", "application/x-www-form-urlencoded", 415),
        (b"{}", "text/plain", 415),
        (b"{}", "", 415),
        (b"{}", "application/merge-patch+json", 415),
        (b" " * (64 * 1024 + 1), "application/json", 413),
    ],
)
def test_bad_bodies(serving: Serving, data: bytes, content_type: str, status: int) -> None:
    for method, path in (
        ("POST", "/credentials"),
        ("PATCH", "/credentials/prod"),
        ("PUT", "/credentials/prod/secret"),
    ):
        answer = serving.call(method, path, data=data, content_type=content_type)
        assert answer.status_code == status
        assert answer.content_type == "application/problem+json"
        assert_quiet(serving, answer)
    assert serving.store.writes == []


@pytest.mark.parametrize(("size", "status"), [(60_000, 422), (64 * 1024, 413), (70_000, 413)])
def test_a_chunked_body_has_the_same_limit(serving: Serving, size: int, status: int) -> None:
    answer = serving.call(
        "POST",
        "/credentials",
        input_stream=io.BytesIO(b"{}" + b" " * (size - 2)),
        content_type="application/json",
        headers={"Transfer-Encoding": "chunked"},
        environ_overrides={"wsgi.input_terminated": True},
    )
    assert answer.status_code == status


def test_a_registry_may_bring_a_bundle_but_nothing_else_may_be_that_large(serving: Serving) -> None:
    body = json.dumps({**REGISTRY, "ca": "x" * 100_000})
    assert serving.call("POST", "/registries", data=body, content_type="application/json").status_code == 422
    huge = json.dumps({**REGISTRY, "ca": "x" * 1_100_000})
    assert (
        serving.call("PUT", "/registries/reg1", data=huge, content_type="application/json").status_code == 413
    )


def test_an_empty_body_misses_its_fields(serving: Serving) -> None:
    answer = serving.call("POST", "/credentials")
    assert answer.status_code == 422
    assert answer.json is not None
    assert {row["pointer"] for row in answer.json["errors"]} == {"/name", "/registry", "/username", "/secret"}


@pytest.mark.parametrize("name", ["UPPER", "a" * 41, "a.b", "..", "%2e%2e", "a b", "é"])
def test_a_path_with_a_bad_name_is_told_so(serving: Serving, name: str) -> None:
    for method, path in (
        ("GET", f"/credentials/{name}"),
        ("DELETE", f"/registries/{name}"),
        ("POST", f"/pull-secrets/{name}/sync"),
    ):
        answer = serving.call(method, path)
        assert answer.status_code == 422
        assert answer.json is not None
        assert answer.json["errors"][0]["pointer"] == "/name"
    assert serving.store.writes == []


@pytest.mark.parametrize("identifier", ["x", "a" * 200, "..", "UP", "01-02", "é"])
def test_an_operation_that_can_not_be_is_404(serving: Serving, identifier: str) -> None:
    assert serving.call("GET", f"/operations/{identifier}").status_code == 404


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=501",
        "limit=x",
        "limit=1.5",
        "cursor=!",
        "cursor=_w",
        "state=odd",
        "label=x",
        "registry=UP",
        "page=1",
    ],
)
def test_bad_queries_name_the_parameter(serving: Serving, query: str) -> None:
    answer = serving.call("GET", f"/credentials?{query}")
    assert answer.status_code == 422
    assert answer.json is not None
    assert answer.json["errors"][0]["pointer"].startswith("?" + query.partition("=")[0])


def test_a_refused_value_brings_its_verdict_and_leaves_nothing(serving: Serving) -> None:
    serving.prover.answer = Outcome.INVALID
    body = {**CREDENTIAL, "name": "new", "registry": "fresh.example.com"}
    answer = serving.call("POST", "/credentials", json=body)
    assert answer.status_code == 422
    assert answer.json is not None
    assert answer.json["verdict"]["outcome"] == "INVALID"
    assert answer.json["code"] == "Invalid"
    assert answer.json["retryable"] is False
    assert serving.store.writes == []
    assert_quiet(serving, answer)


def test_an_unreachable_registry_is_503_unless_the_caller_keeps_the_value(serving: Serving) -> None:
    serving.prover.answer = verdict_of(Outcome.UNAVAILABLE)
    body = {**CREDENTIAL, "name": "new", "registry": "other"}
    answer = serving.call("POST", "/credentials", json=body)
    assert answer.status_code == 503
    assert answer.json is not None
    assert answer.json["verdict"]["outcome"] == "UNAVAILABLE"
    assert answer.json["retryable"] is True
    assert serving.store.writes == []
    kept = serving.call("POST", "/credentials", json={**body, "allow_unverified": True})
    assert kept.status_code == 201
    assert kept.json is not None
    assert kept.json["state"] == "unverified"
    assert_quiet(serving, kept)


def test_pointers_follow_rfc_6901() -> None:
    assert pointers({"a/b": {0: ["x"]}, "_schema": ["y"]}) == [("/a~1b/0", "x"), ("", "y")]
    assert pointers({"value": ["x"]}) == [("/value", "x")]
    assert pointers({"labels": {"k": {"value": ["x"]}}}) == [("/labels/k", "x")]
