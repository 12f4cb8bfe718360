"""Who may call what: every route x every kind of caller, taken from the application's own map."""

from __future__ import annotations

import json
import re
from datetime import timedelta

import pytest

from secretsvc.core.access import LOCAL_ACTOR
from secretsvc.core.errors import StoreDenied, StoreUnavailable
from secretsvc.core.model import Secret
from secretsvc.core.tokens import make_token, token_digest, token_id
from secretsvc.web.auth import Known, Throttle
from tests.fakes import SettableClock
from tests.serving import Serving

PUBLIC = {"/livez", "/readyz", "/metrics"}


def routes() -> list[tuple[str, str]]:
    """Return every method and path of the application, with names filled in."""
    found = []
    for rule in Serving().app.url_map.iter_rules():
        path = re.sub(r"<[^>]+>", "nobody", rule.rule)
        found += [(method, path) for method in sorted(rule.methods or ())]
    return sorted(found)


API_ROUTES = [(method, path) for method, path in routes() if path not in PUBLIC]


def open_path(serving: Serving, method: str, path: str, token: str | None) -> int:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    body = {"json": {}} if method in ("POST", "PUT", "PATCH") else {}
    return serving.app.test_client().open(path, method=method, headers=headers, **body).status_code


@pytest.fixture(scope="module")
def shared() -> Serving:
    """One application for the matrix; no call of it stores anything."""
    return Serving()


def test_there_are_routes_to_check() -> None:
    assert len(API_ROUTES) > 50
    assert ("POST", "/api/v1/credentials") in API_ROUTES
    assert ("GET", "/openapi.json") in API_ROUTES
    assert not [path for _, path in API_ROUTES if not path.startswith(("/api/v1/", "/openapi.json"))]


@pytest.mark.parametrize(("method", "path"), API_ROUTES)
def test_nobody_gets_in_without_a_living_token(shared: Serving, method: str, path: str) -> None:
    shared.clock.advance(minutes=2)
    unknown = make_token(b"\x07" * 32).reveal()
    for token in (None, shared.tokens["expired"], shared.tokens["revoked"], unknown, "x"):
        assert open_path(shared, method, path, token) == 401


@pytest.mark.parametrize(("method", "path"), API_ROUTES)
def test_a_viewer_reads_and_an_admin_does_all(shared: Serving, method: str, path: str) -> None:
    writes = method not in ("GET", "HEAD")
    status = open_path(shared, method, path, shared.tokens["viewer"])
    assert (status == 403) == writes
    assert open_path(shared, method, path, shared.tokens["admin"]) not in (401, 403)


@pytest.mark.parametrize(
    "path", ["/api", "/api/", "/api/v1/nothing", "/api/v2/x", "/", "/docs", "//api/v1/whoami"]
)
def test_unknown_routes_are_401_then_404(path: str) -> None:
    serving = Serving()
    assert open_path(serving, "GET", path, None) == 401
    assert open_path(serving, "GET", path, serving.tokens["viewer"]) == 404


def test_a_wrong_method_is_405_with_allow_once_the_token_is_right() -> None:
    serving = Serving()
    assert serving.call("DELETE", "/credentials", who=None).status_code == 401
    answer = serving.call("DELETE", "/credentials")
    assert answer.status_code == 405
    assert set(answer.headers["Allow"].split(", ")) >= {"GET", "POST"}
    assert answer.json is not None
    assert answer.json["code"] == "MethodNotAllowed"


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Bearer ", "Basic {}", "{}", "Token {}", "Bearer x{}", "Bearer {}x"],
)
def test_a_token_comes_as_bearer_only(header: str) -> None:
    serving = Serving()
    headers = {"Authorization": header.format(serving.tokens["admin"])}
    answer = serving.app.test_client().get("/api/v1/whoami", headers=headers)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"


def test_a_token_in_the_query_is_no_token() -> None:
    serving = Serving()
    path = f"/whoami?token={serving.tokens['admin']}&access_token={serving.tokens['admin']}"
    assert serving.call("GET", path, who=None).status_code == 401


def test_a_revoked_token_ends_with_the_next_request() -> None:
    serving = Serving()
    assert serving.call("GET", "/whoami", who="viewer").status_code == 200
    assert serving.call("DELETE", "/tokens/viewer").status_code == 204
    assert serving.call("GET", "/whoami", who="viewer").status_code == 401


def test_a_denial_and_who_did_what_are_recorded() -> None:
    serving = Serving()
    serving.call("DELETE", "/credentials/prod", who="viewer")
    denied = [act for act in serving.audit.acts if act.action == "access.denied"]
    assert [(act.subject, act.actor) for act in denied] == [
        ("DELETE /api/v1/credentials/<name:name>", "viewer")
    ]


def test_no_token_is_named_like_who_acts_on_the_machine() -> None:
    refused = Serving().call("POST", "/tokens", json={"name": LOCAL_ACTOR, "role": "admin"})
    assert refused.status_code == 422
    assert refused.json is not None
    assert refused.json["errors"][0]["pointer"] == "/name"


def test_lines_tell_principals_of_one_name_apart_and_only_for_their_request() -> None:
    serving = Serving()
    token = serving.tokens["viewer"]
    serving.call("GET", "/whoami", who="viewer")
    serving.call("GET", "/whoami", who=None)
    lines = [json.loads(line) for line in serving.logs.getvalue().splitlines()]
    mine, nobody = [line for line in lines if line["event"] == "http.request"]
    assert mine["actor_id"] == token_id(token_digest(Secret(token)))
    assert mine["request_id"]
    assert "actor_id" not in nobody
    assert token not in serving.logs.getvalue()


def test_wrong_tokens_are_slowed_down_and_those_in_use_never() -> None:
    serving = Serving()
    assert open_path(serving, "GET", "/api/v1/whoami", serving.tokens["viewer"]) == 200
    wrong = make_token(b"\x09" * 32).reveal()
    statuses = [open_path(serving, "GET", "/api/v1/whoami", wrong) for _ in range(12)]
    assert statuses == [401] * 10 + [429] * 2
    assert open_path(serving, "GET", "/api/v1/whoami", None) == 401
    assert open_path(serving, "GET", "/api/v1/whoami", serving.tokens["viewer"]) == 200
    answer = serving.app.test_client().get("/api/v1/whoami", headers={"Authorization": f"Bearer {wrong}"})
    assert int(answer.headers["Retry-After"]) == 60
    assert answer.json is not None
    assert answer.json["retryable"] is True
    serving.clock.advance(seconds=61)
    assert open_path(serving, "GET", "/api/v1/whoami", wrong) == 401
    assert open_path(serving, "GET", "/api/v1/whoami", serving.tokens["admin"]) == 200


def test_past_the_limit_tokens_we_do_not_know_are_not_looked_up() -> None:
    serving = Serving()
    serving.store.reads.clear()
    statuses = [
        open_path(serving, "GET", "/api/v1/whoami", make_token(bytes([number]) * 32).reveal())
        for number in range(30)
    ]
    assert statuses == [401] * 10 + [429] * 20
    assert len(serving.store.reads) == 10


def test_a_token_in_use_that_is_revoked_is_slowed_down_like_any_other() -> None:
    serving = Serving()
    assert serving.call("GET", "/whoami", who="viewer").status_code == 200
    assert serving.call("DELETE", "/tokens/viewer").status_code == 204
    statuses = [serving.call("GET", "/whoami", who="viewer").status_code for _ in range(12)]
    assert statuses == [401] * 10 + [429] * 2


def test_a_throttle_remembers_a_bounded_number_of_sources() -> None:
    throttle = Throttle(SettableClock(), allowed=1, window=timedelta(minutes=1), sources=2)
    assert throttle.pause("one") == 0
    throttle.failed("one")
    assert throttle.pause("one") == 60
    throttle.failed("two")
    throttle.failed("three")
    assert throttle.pause("three") == 60
    assert throttle.pause("one") == 0


def test_known_tokens_are_bounded_and_the_least_used_goes_first() -> None:
    known = Known(most=2)
    for digest in ("a", "b", "a", "c"):
        known.add(digest)
    assert [digest for digest in "abc" if digest in known] == ["a", "c"]
    known.discard("a")
    assert "a" not in known


def test_probes_and_metrics_need_no_token() -> None:
    serving = Serving()
    for path in sorted(PUBLIC):
        answer = serving.call("GET", path, who=None)
        assert answer.status_code == 200
        assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_livez_never_touches_the_store_and_readyz_tells_only_a_code() -> None:
    serving = Serving()
    where = "/etc/secretsvc/secret-id"
    serving.store.failure = StoreDenied(f"refused {where}", hint=f"correct {where}", code="LoginRefused")
    assert serving.call("GET", "/livez", who=None).status_code == 200
    answer = serving.call("GET", "/readyz", who=None)
    assert answer.status_code == 503
    assert answer.json is not None
    assert answer.json["code"] == "LoginRefused"
    assert where not in answer.text
    assert serving.logs.getvalue().count(f"correct {where}") == 1
    assert serving.call("GET", "/whoami").status_code == 503


def test_readyz_asks_the_store_once_a_second_whoever_calls() -> None:
    serving = Serving()
    assert serving.call("GET", "/readyz", who=None).status_code == 200
    serving.store.failure = StoreUnavailable("sealed")
    assert serving.call("GET", "/readyz", who=None).status_code == 200
    for _ in range(3):
        serving.ticking.seconds += 1
        for _ in range(5):
            assert serving.call("GET", "/readyz", who=None).status_code == 503
    assert serving.logs.getvalue().count("store.not_ready") == 3
    serving.store.failure = None
    serving.ticking.seconds += 1
    assert serving.call("GET", "/readyz", who=None).status_code == 200


@pytest.mark.parametrize(
    ("path", "who"),
    [
        ("/livez", None),
        ("/whoami", "admin"),
        ("/whoami", None),
        ("/nothing", "admin"),
        ("/openapi.json", "admin"),
    ],
)
def test_every_answer_has_the_headers_that_protect_it(path: str, who: str | None) -> None:
    headers = Serving().call("GET", path, who=who).headers
    assert headers["Cache-Control"] == "no-store"
    assert headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Strict-Transport-Security"].startswith("max-age=31536000")
    assert headers["X-Request-ID"]


def test_a_request_id_is_taken_over_or_made() -> None:
    serving = Serving()
    given = serving.call("GET", "/whoami", headers={"X-Request-ID": "ci-run.42"})
    assert given.headers["X-Request-ID"] == "ci-run.42"
    for bad in ("a b", "x" * 65, "<script>", ""):
        made = serving.call("GET", "/nothing", headers={"X-Request-ID": bad})
        assert made.headers["X-Request-ID"] != bad
        assert made.json is not None
        assert made.json["request_id"] == made.headers["X-Request-ID"]


def test_the_access_line_has_no_query_and_no_path_that_routing_did_not_know() -> None:
    serving = Serving()
    serving.call("GET", "/credentials?state=active&cursor=c2VjcmV0LXF1ZXJ5")
    serving.call("GET", "/credentials/pasted-Secret!")
    serving.call("GET", "/pasted-secret-path")
    text = serving.logs.getvalue()
    assert '"event": "http.request"' in text
    assert '"route": "/api/v1/credentials"' in text
    assert "c2VjcmV0" not in text
    assert "pasted" not in text


def test_tokens_are_made_shown_once_and_revoked() -> None:
    serving = Serving()
    made = serving.call("POST", "/tokens", json={"name": "ci", "role": "viewer", "expires_in": "12h"})
    assert made.status_code == 201
    assert made.json is not None
    token = made.json["token"]
    assert made.json["expires_at"] == "2026-01-03T00:00:00Z"
    serving.tokens["ci"] = token
    who = serving.call("GET", "/whoami", who="ci").json
    assert who == {key: value for key, value in made.json.items() if key != "token"}
    listed = serving.call("GET", "/tokens")
    assert token not in listed.get_data(as_text=True)
    assert [item["name"] for item in (listed.json or {})["items"]] == ["admin", "ci", "expired", "viewer"]
    assert serving.call("GET", "/tokens/ci").json == who
    assert serving.call("GET", "/tokens/nobody").status_code == 404
    again = serving.call("POST", "/tokens", json={"name": "ci", "role": "viewer"})
    assert again.status_code == 409
    assert serving.call("DELETE", "/tokens/ci").status_code == 204
    assert serving.call("DELETE", "/tokens/ci").status_code == 404
    assert token not in serving.logs.getvalue()


def test_a_token_lives_90_days_unless_it_is_said_otherwise() -> None:
    made = Serving().call("POST", "/tokens", json={"name": "ci", "role": "admin"}).json
    assert made is not None
    assert made["expires_at"] == "2026-04-02T12:00:00Z"
