"""The rules: what is refused without a request, and what an answer means."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secretsvc.core import dockerconfig
from secretsvc.core import verdict as rules
from secretsvc.core.model import (
    CredentialType,
    Login,
    Outcome,
    Secret,
)
from secretsvc.core.ports import AuthEntry

NOW = datetime(2026, 1, 2, 12, 0, 0, tzinfo=UTC)


def login(username: str, secret: str) -> Login:
    return Login(CredentialType.TOKEN, username, Secret(secret))


def jwt(**claims: Any) -> str:
    def part(document: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(document).encode()).rstrip(b"=").decode()

    return f"{part({'alg': 'RS256'})}.{part(claims)}.c2ln"


def answer(status: int, body: object = b"", media: str = "application/json", retry: str = "") -> rules.Answer:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return rules.summarise(status, media, retry, raw, NOW)


@pytest.mark.parametrize(
    ("username", "secret", "reason"),
    [
        ("", "x", "UsernameEmpty"),
        ("a:b", "x", "UsernameHasColon"),
        ("a b", "x", "UsernameHasBlank"),
        ("a\n", "x", "UsernameHasBlank"),
        ("a\x00", "x", "UsernameHasBlank"),
        ("a\ud800", "x", "UsernameHasBlank"),
        ("a" * 513, "x", "UsernameTooLong"),
        ("a", "", "SecretEmpty"),
        ("a", '{"a":\n["b"]', "SecretHasControlCharacter"),
        ("a", '["b",\n"c"]', "SecretHasControlCharacter"),
        ("a", '{"a":\n"b\x00"}', "SecretHasControlCharacter"),
        ("a", "x\n", "SecretHasOuterBlank"),
        ("a", " x", "SecretHasOuterBlank"),
        ("a", "x\u00a0", "SecretHasOuterBlank"),
        ("a", "x\ny", "SecretHasControlCharacter"),
        ("a", "x\x00y", "SecretHasControlCharacter"),
        ("a", "x\r\ny", "SecretHasControlCharacter"),
        ("a", "x\ud800y", "SecretHasControlCharacter"),
        ("a", "x" * 40_000, "SecretTooLong"),
    ],
)
def test_malformed_logins_cost_no_request(username: str, secret: str, reason: str) -> None:
    decision = rules.check_login(login(username, secret), NOW)
    assert decision is not None
    assert (decision.outcome, decision.reason) == (Outcome.MALFORMED, reason)


@pytest.mark.parametrize(
    ("username", "secret"),
    [
        ("robot$p+x", "pass:with:colons"),
        ("12345678|svc", "two words"),
        ("jane", "ü€₪"),
        ("_json_key", json.dumps({"type": "service_account", "private_key": "a\nb"}, indent=2)),
        ("jane", jwt(sub="x")),
        ("jane", jwt(exp=(NOW + timedelta(days=1)).timestamp())),
        ("jane", jwt(exp=(NOW - timedelta(seconds=30)).timestamp())),
        ("jane", jwt(exp="soon")),
        ("jane", jwt(exp=1e300)),
        ("jane", jwt(exp=True)),
        ("jane", "a.b.c"),
    ],
)
def test_logins_that_only_the_registry_can_judge(username: str, secret: str) -> None:
    assert rules.check_login(login(username, secret), NOW) is None


def test_a_jwt_past_its_time_is_expired_without_a_request() -> None:
    secret = jwt(exp=(NOW - timedelta(days=1)).timestamp())
    decision = rules.check_login(login("jane", secret), NOW)
    assert decision is not None
    assert decision.outcome is Outcome.EXPIRED
    assert secret not in repr(decision)


anything = st.text(max_size=40)
key_files = st.builds(
    lambda document, indent, end: json.dumps(document, indent=indent).replace("\n", end),
    st.dictionaries(anything, anything, max_size=4),
    st.sampled_from([None, 0, 2, "\t"]),
    st.sampled_from(["\n", "\r\n", "\r"]),
)


@given(
    st.one_of(anything, st.text(st.characters(codec="ascii"), max_size=20)),
    st.one_of(anything, key_files, st.text(st.sampled_from('{}":\n\r\t\0\x85 a'), max_size=12)),
    st.sampled_from([dockerconfig.HUB_KEY, "r.example.com:5000", "r.example.com/a/b"]),
)
def test_what_is_accepted_can_be_delivered(username: str, secret: str, key: str) -> None:
    given = login(username, secret)
    if rules.check_login(given, NOW) is None:
        wanted = AuthEntry(key, given.username, given.secret)
        text = dockerconfig.render([wanted]).reveal()
        assert dockerconfig.entries(dockerconfig.parse(text)) == ((wanted,), ())
        assert dockerconfig.entries(dockerconfig.parse(dockerconfig.merge(None, [wanted])))[0] == (wanted,)


@given(st.text(), st.text())
def test_any_login_is_judged_and_never_quoted(username: str, secret: str) -> None:
    decision = rules.check_login(login(username, secret), NOW)
    if decision is not None and len(secret) > 8:
        assert secret not in repr(decision)


@given(st.binary(max_size=300), st.sampled_from(["application/json", "text/html", "text/plain", "", ";"]))
def test_any_body_is_summarised(body: bytes, media: str) -> None:
    assert rules.summarise(401, media, "", body, NOW).status == 401
    token = rules.bearer_token(body)
    assert token is None or token.reveal().isascii()


def test_deeply_nested_json_is_no_answer() -> None:
    deep = b"[" * 30_000 + b"]" * 30_000
    assert rules.bearer_token(deep) is None
    assert rules.on_login("h", rules.summarise(403, "application/json", "", deep, NOW)) == rules.on_login(
        "h", answer(403, {})
    )


@pytest.mark.parametrize(
    ("given", "outcome"),
    [
        (answer(401), Outcome.INVALID),
        (answer(401, b"<html>expired</html>", "text/html"), Outcome.INVALID),
        (answer(401, {"details": "personal access token is expired"}), Outcome.EXPIRED),
        (answer(401, {"details": "incorrect username or password"}), Outcome.INVALID),
        (answer(401, {"details": "unable to validate token: InternalError"}), Outcome.UNAVAILABLE),
        (answer(401, {"details": "unable to validate token: Unauthorized"}), Outcome.INVALID),
        (answer(403, {"errors": [{"code": "DENIED", "message": "denied"}]}), Outcome.INVALID),
        (answer(403, {"errors": [{"code": "denied"}]}), Outcome.INVALID),
        (answer(403, b"<html>", "text/html"), Outcome.FORBIDDEN_UNKNOWN),
        (answer(403, {}), Outcome.FORBIDDEN_UNKNOWN),
        (answer(403, b"Your authorization token has expired.", "text/plain"), Outcome.EXPIRED),
        (answer(429, retry="7"), Outcome.RATE_LIMITED),
        (answer(408), Outcome.UNAVAILABLE),
        (answer(500), Outcome.UNAVAILABLE),
        (answer(502), Outcome.UNAVAILABLE),
        (answer(302), Outcome.REALM_REJECTED),
        (answer(400), Outcome.PROTOCOL_ERROR),
        (answer(404), Outcome.PROTOCOL_ERROR),
        (answer(405), Outcome.PROTOCOL_ERROR),
        (answer(201), Outcome.PROTOCOL_ERROR),
    ],
)
def test_an_answer_to_a_login(given: rules.Answer, outcome: Outcome) -> None:
    decision = rules.on_login("registry.test", given)
    assert decision is not None
    assert decision.outcome is outcome
    assert decision.reason.isalnum()
    assert decision.message.endswith(".")


@given(st.integers(100, 599), st.binary(max_size=60))
def test_only_a_clear_refusal_is_invalid_and_a_200_is_left_to_be_doubted(status: int, body: bytes) -> None:
    decision = rules.on_login("h", rules.summarise(status, "application/json", "", body, NOW))
    assert (decision is None) == (status == 200)
    if decision is not None and decision.outcome is Outcome.INVALID:
        assert status in {401, 403}
    assert decision is None or decision.outcome not in {Outcome.VALID, Outcome.VALID_PULL_CONFIRMED}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("7", 8),
        ("0", 1),
        ("999999", 3600),
        ("9" * 400, 3600),
        ("Fri, 02 Jan 2026 12:00:30 GMT", 31),
        ("Fri, 02 Jan 2015 12:00:30 GMT", 1),
        ("Fri, 02 Jan 9999 12:00:30 GMT", 3600),
        ("", None),
        ("soon", None),
        ("-5", None),
        ("\u0667", None),
    ],
)
def test_retry_after(text: str, seconds: int | None) -> None:
    expected = None if seconds is None else NOW + timedelta(seconds=seconds)
    assert answer(429, retry=text).retry_at == expected


@given(st.text(max_size=40))
def test_any_retry_after_is_at_most_an_hour(text: str) -> None:
    at = answer(429, retry=text).retry_at
    assert at is None or NOW < at <= NOW + timedelta(hours=1)


@pytest.mark.parametrize(
    ("body", "token"),
    [
        ({"token": "a"}, "a"),
        ({"access_token": "b"}, "b"),
        ({"token": "a", "access_token": "b"}, "b"),
        ({}, None),
        ({"token": ""}, None),
        ({"token": 5}, None),
        ({"token": "a\r\nX: y"}, None),
        ({"token": "a b"}, None),
        ([], None),
    ],
)
def test_the_token_of_an_answer(body: object, token: str | None) -> None:
    found = rules.bearer_token(json.dumps(body).encode())
    assert (found.reveal() if found else None) == token


@pytest.mark.parametrize(
    ("anonymous_refused", "made_up_refused", "outcome"),
    [
        (True, None, Outcome.VALID),
        (True, True, Outcome.VALID),
        (True, False, Outcome.UNVERIFIABLE),
        (False, True, Outcome.VALID),
        (False, False, Outcome.UNVERIFIABLE),
        (False, None, Outcome.UNAVAILABLE),
    ],
)
def test_a_yes_is_worth_what_others_are_refused(
    anonymous_refused: bool, made_up_refused: bool | None, outcome: Outcome
) -> None:
    assert rules.on_yes("h", rules.Doubts(anonymous_refused, made_up_refused)).outcome is outcome


@pytest.mark.parametrize(
    ("status", "outcome"),
    [(403, Outcome.FORBIDDEN_UNKNOWN), (404, Outcome.PROTOCOL_ERROR), (301, Outcome.PROTOCOL_ERROR),
     (429, Outcome.RATE_LIMITED), (503, Outcome.UNAVAILABLE), (204, Outcome.PROTOCOL_ERROR)],
)  # fmt: skip
def test_a_ping_that_no_registry_answers_like(status: int, outcome: Outcome) -> None:
    decision = rules.on_ping("h", answer(status))
    assert decision is not None
    assert decision.outcome is outcome
    assert rules.on_ping("h", answer(200)) is None
    assert rules.on_ping("h", answer(401)) is None


VALID = rules.on_yes("h", rules.Doubts(anonymous_refused=True, made_up_refused=True))
LENIENT = rules.on_yes("h", rules.Doubts(anonymous_refused=False, made_up_refused=False))


@pytest.mark.parametrize(
    ("base", "granted", "anonymous", "outcome"),
    [
        (VALID, 200, 401, Outcome.VALID_PULL_CONFIRMED),
        (LENIENT, 200, 404, Outcome.VALID_PULL_CONFIRMED),
        (VALID, 200, 200, Outcome.VALID),
        (LENIENT, 200, 200, Outcome.UNVERIFIABLE),
        (VALID, 200, 500, Outcome.VALID),
        (VALID, 403, None, Outcome.VALID_NO_ACCESS),
        (VALID, 401, None, Outcome.VALID_NO_ACCESS),
        (LENIENT, 401, None, Outcome.UNVERIFIABLE),
        (VALID, 404, None, Outcome.VALID),
        (VALID, 503, None, Outcome.VALID),
    ],
)
def test_the_probe_repository(
    base: rules.Decision, granted: int, anonymous: int | None, outcome: Outcome
) -> None:
    without = None if anonymous is None else answer(anonymous)
    assert rules.on_probe("h", base, answer(granted), without).outcome is outcome
