"""Every error is a problem, from one table."""

from __future__ import annotations

import inspect

import pytest

from secretsvc.core import errors
from secretsvc.core.errors import SecretsvcError
from secretsvc.core.model import Outcome
from secretsvc.web.problems import NOT_ASKED, STATUSES, status_of
from tests.fakes import verdict_of
from tests.serving import CANARY, Serving

CLASSES = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, SecretsvcError) and kind.__module__ == errors.__name__
]
FIELDS = {"type", "title", "status", "detail", "code", "request_id", "errors", "retryable", "hint"}


def test_the_table_names_every_class_of_errors_and_no_other() -> None:
    assert set(STATUSES) == set(CLASSES)
    assert len(CLASSES) > 15


@pytest.mark.parametrize("kind", CLASSES)
def test_every_class_becomes_a_whole_problem(kind: type[SecretsvcError]) -> None:
    serving = Serving()
    verdict = verdict_of(Outcome.INVALID)
    error = errors.NotProved("no", verdict) if kind is errors.NotProved else kind("what is wrong")
    serving.store.failure = error
    answer = serving.call("GET", "/tokens", who="admin")
    assert answer.status_code == STATUSES[kind]
    assert answer.content_type == "application/problem+json"
    assert answer.json is not None
    assert set(answer.json) >= FIELDS
    assert answer.json["status"] == answer.status_code
    assert answer.json["hint"]
    assert answer.json["code"] == error.code


@pytest.mark.parametrize("outcome", list(Outcome))
def test_a_refused_value_is_422_and_an_unasked_registry_503(outcome: Outcome) -> None:
    error = errors.NotProved("no", verdict_of(outcome))
    assert status_of(error) == (503 if outcome in NOT_ASKED else 422)


def test_a_subclass_has_its_parents_status() -> None:
    class TargetSulking(errors.TargetChanged):
        pass

    assert status_of(TargetSulking("x")) == STATUSES[errors.TargetChanged]


def test_what_nobody_foresaw_tells_and_logs_no_message() -> None:
    serving = Serving()
    serving.store.failure = RuntimeError(f"boom {CANARY}")  # type: ignore[assignment]
    answer = serving.call("GET", "/tokens")
    assert answer.status_code == 500
    assert answer.json is not None
    assert answer.json["code"] == "InternalError"
    assert CANARY not in answer.get_data(as_text=True)
    text = serving.logs.getvalue()
    assert '"event": "request.crashed"' in text
    assert "RuntimeError" in text
    assert answer.json["request_id"] in text
    assert CANARY not in text


def test_a_store_that_is_away_says_when_to_come_back() -> None:
    serving = Serving()
    serving.store.failure = errors.StoreUnavailable("sealed", hint="unseal it")
    answer = serving.call("GET", "/credentials")
    assert answer.status_code == 503
    assert answer.headers["Retry-After"] == "5"
    assert answer.json is not None
    assert answer.json["retryable"] is True


@pytest.mark.parametrize("kind", [errors.StoreUnavailable, errors.StoreDenied])
def test_callers_are_not_told_what_the_store_was_asked_and_the_log_is(kind: type[SecretsvcError]) -> None:
    serving = Serving()
    serving.store.failure = kind(
        "Vault at http://v:8200 is sealed: no answer about principal/327fe", hint="x8200"
    )
    answer = serving.call("GET", "/whoami")
    said = answer.get_data(as_text=True)
    assert "327fe" not in said
    assert "8200" not in said
    assert "principal/327fe" in serving.logs.getvalue()


def test_a_taken_name_says_how_to_change_what_has_it() -> None:
    serving = Serving()
    serving.add_registry()
    serving.add_credential()
    serving.add_pull_secret()
    serving.add_auth_file()
    hints = {
        "credential rotate NAME --manual": serving.add_credential(),
        "registry set NAME": serving.add_registry(),
        "pull-secret set NAME": serving.add_pull_secret(),
        "authfile write --name NAME": serving.add_auth_file(),
    }
    for hint, answer in hints.items():
        assert answer.status_code == 409
        assert answer.json is not None
        assert hint in answer.json["hint"]
        assert answer.json["hint"].startswith("choose another name, or ")


def test_a_rate_limited_registry_says_when_to_come_back() -> None:
    serving = Serving()
    serving.add_registry()
    later = serving.clock.now.replace(minute=2)
    serving.prover.answer = verdict_of(Outcome.RATE_LIMITED, retry_at=later)
    answer = serving.add_credential()
    assert answer.status_code == 503
    assert answer.headers["Retry-After"] == "120"


@pytest.mark.parametrize("odd", [CANARY, "Canary1", "canary-1", "é", "a b", "x" * 33])
def test_a_pointer_repeats_no_name_that_may_be_a_pasted_value(odd: str) -> None:
    serving = Serving()
    in_body = serving.call("POST", "/tokens", json={odd: 1, "nmae": 1})
    in_query = serving.call("GET", "/tokens", query_string={odd: "1", "lmit": "1"})
    for answer, known in ((in_body, "/nmae"), (in_query, "?lmit")):
        assert answer.json is not None
        shown = [row["pointer"] for row in answer.json["errors"]]
        assert {known, known[0] + "***"} <= set(shown)
        assert odd not in answer.get_data(as_text=True)
