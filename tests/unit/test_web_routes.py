"""Every route does what it says, over the real workflows and a stand-in for work."""

from __future__ import annotations

import base64
import logging
import threading
from datetime import timedelta
from typing import Any

import pytest
from werkzeug.test import TestResponse

from secretsvc.core.errors import StoreUnavailable
from secretsvc.core.model import (
    CredentialSpec,
    Login,
    Outcome,
    RegistrySpec,
)
from secretsvc.core.rules import (
    Component,
    CredentialsView,
    Delivery,
    DeliveryState,
    DeliveryView,
    Observed,
    PullSecretRule,
)
from secretsvc.web.waiting import Patience
from secretsvc.workflows.report import CREDENTIALS_VIEW, view_name
from tests.serving import API, CANARY, Serving


@pytest.fixture
def serving() -> Serving:
    """An application that knows a registry."""
    made = Serving()
    assert made.add_registry().status_code == 201
    return made


def body(answer: TestResponse, status: int = 200) -> dict[str, Any]:
    """Return an answer's body; no answer ever holds a value."""
    text = answer.get_data(as_text=True)
    assert answer.status_code == status, text
    assert CANARY not in text
    found = answer.json
    assert isinstance(found, dict)
    return found


# --- Registries and clusters ----------------------------------------------------------------------


def test_registries_come_and_go(serving: Serving) -> None:
    added = serving.add_registry("reg2", "REG2.example.com:443", networks=["10.0.0.0/8"], kind="harbor")
    made = body(added, 201)
    assert (made["host"], made["kind"], made["networks"]) == ("reg2.example.com", "harbor", ["10.0.0.0/8"])
    assert added.headers["Location"] == f"{API}/registries/reg2"
    shown = serving.call("GET", "/registries/reg2")
    assert body(shown) == made
    assert shown.headers["ETag"] == added.headers["ETag"]
    listed = body(serving.call("GET", "/registries"))
    assert [item["name"] for item in listed["items"]] == ["reg1", "reg2"]
    assert (listed["next_cursor"], listed["age"]) == (None, "0s")
    changed = serving.call("PUT", "/registries/reg2", json={"host": "reg3.example.com", "insecure": True})
    assert body(changed)["insecure"] is True
    assert body(changed)["uid"] == made["uid"]
    assert serving.call("DELETE", "/registries/reg2").status_code == 204
    assert serving.call("GET", "/registries/reg2").status_code == 404


def test_a_taken_name_or_host_is_a_conflict(serving: Serving) -> None:
    assert body(serving.add_registry("reg1", "x.example.com"), 409)["code"] == "NameTaken"
    assert body(serving.add_registry("reg9", "reg1.example.com"), 409)["code"] == "HostTaken"


def test_a_body_about_another_record_is_refused(serving: Serving) -> None:
    same = {"name": "reg1", "host": "reg1.example.com"}
    assert serving.call("PUT", "/registries/reg1", json=same).status_code == 200
    other = body(serving.call("PUT", "/registries/reg1", json={**same, "name": "reg2"}), 422)
    assert other["errors"][0]["pointer"] == "/name"


def test_a_registry_is_pinged(serving: Serving) -> None:
    serving.prover.ping_answer = Outcome.UNAVAILABLE
    assert body(serving.call("POST", "/registries/reg1/ping"))["outcome"] == "UNAVAILABLE"
    assert serving.call("POST", "/registries/nobody/ping").status_code == 404


def test_clusters_are_listed_and_pinged(serving: Serving) -> None:
    assert [item["name"] for item in body(serving.call("GET", "/clusters"))["items"]] == ["away", "default"]
    assert body(serving.call("GET", "/clusters/default")) == {"name": "default"}
    up = body(serving.call("POST", "/clusters/default/ping"))
    assert (up["reachable"], up["version"]) == (True, "v1.36.3")
    down = body(serving.call("POST", "/clusters/away/ping"))
    assert (down["reachable"], down["reason"], down["hint"]) == (False, "TargetUnreachable", "is it running?")
    assert serving.call("POST", "/clusters/nobody/ping").status_code == 404


# --- Credentials ----------------------------------------------------------------------------------


def test_registering_answers_everything_but_the_value(serving: Serving) -> None:
    answer = serving.add_credential(labels={"team": "a"}, expires_at="2027-01-01T01:00:00+01:00")
    made = body(answer, 201)
    assert answer.headers["Location"] == f"{API}/credentials/prod"
    assert answer.headers["ETag"]
    assert (made["state"], made["generation"], made["registry_created"]) == ("unverified", 0, None)
    assert made["verdict"]["outcome"] == "VALID"
    assert made["expires_at"] == "2027-01-01T00:00:00Z"
    assert made["deliveries"]["total"] == 0
    assert made["operation"].endswith(made["uid"])
    assert serving.prover.asked[0][1].secret.reveal() == CANARY
    operation = body(serving.call("GET", f"/operations/{made['operation']}"))
    assert (operation["state"], operation["id"]) == ("pending", made["operation"])


def test_registering_waits_for_generation_1_when_asked(serving: Serving) -> None:
    answer = serving.add_credential(headers={"Prefer": "wait=10"})
    made = body(answer, 201)
    assert (made["state"], made["generation"]) == ("active", 1)
    assert answer.headers["Preference-Applied"] == "wait=10"
    assert serving.ticking.naps == 1


def test_an_operation_is_held_until_it_has_settled_when_asked(serving: Serving) -> None:
    made = body(serving.add_credential(), 201)
    path = f"/operations/{made['operation']}"
    assert body(serving.call("GET", path))["state"] == "pending"
    answer = serving.call("GET", path, headers={"Prefer": "wait=10"})
    assert body(answer)["state"] == "succeeded"
    assert answer.headers["Preference-Applied"] == "wait=10"
    assert serving.ticking.naps == 1
    assert body(serving.call("GET", path, headers={"Prefer": "wait=10"}))["state"] == "succeeded"
    assert serving.ticking.naps == 1


def test_an_operation_is_shown_as_it_is_when_the_wait_is_over(serving: Serving) -> None:
    serving.works = False
    made = body(serving.add_credential(), 201)
    answer = serving.call("GET", f"/operations/{made['operation']}", headers={"Prefer": "wait=3"})
    assert body(answer)["state"] == "pending"
    assert serving.ticking.seconds == pytest.approx(3, abs=0.11)


def test_waiting_ends_when_its_time_is_over(serving: Serving) -> None:
    serving.works = False
    made = body(serving.add_credential(headers={"Prefer": "wait=2"}), 201)
    assert made["generation"] == 0
    assert serving.ticking.seconds == pytest.approx(2, abs=0.11)


def test_an_unknown_host_is_registered_with_its_credential(serving: Serving) -> None:
    made = body(serving.add_credential(registry="fresh.example.com:5000"), 201)
    assert made["registry_created"] == made["registry"] == "fresh-example-com-5000"
    assert body(serving.call("GET", "/registries/fresh-example-com-5000"))["host"] == "fresh.example.com:5000"


def test_what_is_acknowledged_is_not_unsaid_when_the_store_fails_afterwards(serving: Serving) -> None:
    class FailingRing:
        def __call__(self) -> None:
            serving.store.failure = StoreUnavailable("gone just now")

    body(serving.add_credential(headers={"Prefer": "wait=5"}), 201)
    object.__setattr__(serving.desk, "ring", FailingRing())
    answer = serving.call("PUT", "/credentials/prod/secret", json={"secret": "another-value"})
    assert body(answer, 202)["state"] == "pending"


def test_a_credential_is_shown_listed_and_filtered(serving: Serving) -> None:
    for name, team in (("a", "x"), ("b", "y"), ("c", "x")):
        body(serving.add_credential(name, labels={"team": team, "env": "prod"}), 201)
    shown = serving.call("GET", "/credentials/b")
    assert body(shown)["labels"] == {"team": "y", "env": "prod"}

    def names(query: str) -> list[str]:
        return [item["name"] for item in body(serving.call("GET", f"/credentials?{query}"))["items"]]

    assert names("") == ["a", "b", "c"]
    assert names("label=team=x") == ["a", "c"]
    assert names("label=team=x&label=env=dev") == []
    assert names("registry=reg1&state=unverified") == ["a", "b", "c"]
    assert names("registry=reg2") == []
    assert names("state=active") == []


def test_lists_come_in_pages(serving: Serving) -> None:
    for name in "dacbe":
        body(serving.add_credential(name), 201)
    seen: list[str] = []
    cursor = ""
    for _ in range(3):
        page = body(serving.call("GET", f"/credentials?limit=2&cursor={cursor}"))
        seen += [item["name"] for item in page["items"]]
        cursor = page["next_cursor"]
    assert seen == ["a", "b", "c", "d", "e"]
    assert cursor is None


def test_a_list_says_how_old_it_is(serving: Serving) -> None:
    made = body(serving.add_credential(), 201)
    assert made["name"] == "prod"
    written = serving.clock.now - timedelta(seconds=7)
    serving.store.put(view_name(CREDENTIALS_VIEW, 0), CredentialsView(0, 1, (), written), 0)
    assert body(serving.call("GET", "/credentials"))["age"] == "7s"


def test_labels_and_expiry_change_and_nothing_else(serving: Serving) -> None:
    body(serving.add_credential(labels={"a": "1"}, expires_at="2027-01-01T00:00:00Z"), 201)
    changed = serving.call("PATCH", "/credentials/prod", json={"labels": {"b": "2"}})
    assert body(changed)["labels"] == {"b": "2"}
    assert body(changed)["expires_at"] == "2027-01-01T00:00:00Z"
    assert body(serving.call("PATCH", "/credentials/prod", json={"expires_at": None}))["expires_at"] is None
    for field in ("username", "registry", "secret", "name", "uid"):
        assert serving.call("PATCH", "/credentials/prod", json={field: "x"}).status_code == 422


def test_a_new_value_is_an_operation_with_its_verdict(serving: Serving) -> None:
    body(serving.add_credential(headers={"Prefer": "wait=5"}), 201)
    answer = serving.call("PUT", "/credentials/prod/secret", json={"secret": CANARY + "2"})
    asked = body(answer, 202)
    assert asked["verdict"]["outcome"] == "VALID"
    assert answer.headers["Location"] == f"{API}/operations/{asked['id']}"
    assert serving.prover.asked[-1][1].username == "robot$x"
    done = serving.call(
        "PUT",
        "/credentials/prod/secret",
        json={"secret": CANARY + "3", "username": "robot$y"},
        headers={"Prefer": "wait=5"},
    )
    assert body(done)["state"] == "succeeded"
    shown = body(serving.call("GET", "/credentials/prod"))
    assert (shown["generation"], shown["username"]) == (3, "robot$y")


def test_a_bad_new_value_changes_nothing(serving: Serving) -> None:
    body(serving.add_credential(headers={"Prefer": "wait=5"}), 201)
    before = serving.store.documents()
    serving.prover.answer = Outcome.INVALID
    answer = serving.call("PUT", "/credentials/prod/secret", json={"secret": "wrong-value"})
    assert body(answer, 422)["verdict"]["outcome"] == "INVALID"
    assert serving.store.documents() == before


def test_generations_and_history_newest_first(serving: Serving) -> None:
    body(serving.add_credential(headers={"Prefer": "wait=5"}), 201)
    for number in (2, 3):
        serving.clock.advance(minutes=1)
        value = {"secret": f"{CANARY}{number}"}
        body(serving.call("PUT", "/credentials/prod/secret", json=value, headers={"Prefer": "wait=5"}))
    rows = body(serving.call("GET", "/credentials/prod/generations"))["items"]
    assert [(row["number"], row["stage"]) for row in rows] == [
        (3, "current"),
        (2, "previous"),
        (1, None),
    ]
    first = body(serving.call("GET", "/credentials/prod/history?limit=2"))
    assert [item["generation"] for item in first["items"]] == [3, 2]
    rest = body(serving.call("GET", f"/credentials/prod/history?cursor={first['next_cursor']}"))
    assert [(item["generation"], item["kind"]) for item in rest["items"]] == [(1, "register")]
    found = body(serving.call("GET", f"/operations/{first['items'][0]['id']}"))
    assert found == first["items"][0]


def test_validate_and_rollback_are_operations(serving: Serving) -> None:
    body(serving.add_credential(headers={"Prefer": "wait=5"}), 201)
    asked = serving.call("POST", "/credentials/prod/validate")
    assert body(asked, 202)["kind"] == "validate"
    assert serving.call("GET", asked.headers["Location"].removeprefix(API)).status_code == 200
    assert body(serving.call("POST", "/credentials/prod/rollback"), 409)["code"] == "NoPrevious"
    put = {"secret": CANARY + "2"}
    body(serving.call("PUT", "/credentials/prod/secret", json=put, headers={"Prefer": "wait=5"}))
    forced = body(serving.call("POST", "/credentials/prod/rollback", json={"force": True}), 422)
    assert forced["errors"][0]["pointer"] == "/reason"
    answer = serving.call("POST", "/credentials/prod/rollback", json={"force": True, "reason": "bad build"})
    assert body(answer, 202)["kind"] == "rollback"
    done = serving.call("POST", "/credentials/prod/validate", headers={"Prefer": "wait=5"})
    assert body(done)["state"] == "succeeded"


def test_a_credential_in_use_is_not_deleted(serving: Serving) -> None:
    body(serving.add_credential(), 201)
    body(serving.add_pull_secret(), 201)
    refused = body(serving.call("DELETE", "/credentials/prod"), 409)
    assert refused["users"] == ["pull-secret/pull"]
    assert body(serving.call("DELETE", "/registries/reg1"), 409)["users"] == ["credential/prod"]
    assert serving.call("DELETE", "/pull-secrets/pull").status_code == 202
    assert serving.call("DELETE", "/credentials/prod").status_code == 204
    assert serving.call("GET", "/credentials/prod").status_code == 404
    assert body(serving.add_credential(), 409)["code"] == "BeingRemoved"


def test_validations_are_counted_by_outcome(serving: Serving) -> None:
    serving.add_credential()
    serving.prover.answer = Outcome.INVALID
    serving.add_credential("other")
    text = serving.call("GET", "/metrics", who=None).get_data(as_text=True)
    assert 'secretsvc_validations_total{outcome="VALID"} 1.0' in text
    assert 'secretsvc_validations_total{outcome="INVALID"} 1.0' in text
    assert 'route="/api/v1/credentials",status="422"' in text
    assert "robot$x" not in text


# --- Rules ----------------------------------------------------------------------------------------


def test_pull_secrets_come_and_go(serving: Serving) -> None:
    body(serving.add_credential(), 201)
    answer = serving.add_pull_secret(keep=True)
    made = body(answer, 201)
    assert answer.headers["Location"] == f"{API}/pull-secrets/pull"
    assert made["namespaces"] == {"names": ["team-a", "team-b"]}
    assert (made["cluster"], made["keep"], made["secret_name"]) == ("default", True, "pull-secret")
    shown = serving.call("GET", "/pull-secrets/pull")
    assert body(shown) == {key: value for key, value in made.items() if key != "operation"}
    assert shown.headers["ETag"] == answer.headers["ETag"]
    change = {
        "secret_name": "pull-secret",
        "credentials": ["prod"],
        "namespaces": {"names": ["team-c"]},
    }
    changed = serving.call("PUT", "/pull-secrets/pull", json=change, headers={"Prefer": "wait=5"})
    assert body(changed)["namespaces"] == {"names": ["team-c"]}
    ended = body(serving.call("GET", f"/operations/{body(changed)['operation']}"))
    assert ended["state"] == "succeeded"
    moved = serving.call("PUT", "/pull-secrets/pull", json={**change, "secret_name": "other"})
    assert body(moved, 409)["code"] == "Immutable"
    assert [item["name"] for item in body(serving.call("GET", "/pull-secrets"))["items"]] == ["pull"]
    assert body(serving.call("POST", "/pull-secrets/pull/sync"), 202)["kind"] == "sync"
    gone = serving.call("DELETE", "/pull-secrets/pull", headers={"Prefer": "wait=5"})
    assert body(gone)["state"] == "succeeded"
    assert serving.call("GET", "/pull-secrets/pull").status_code == 404


def test_auth_files_come_and_go(serving: Serving) -> None:
    body(serving.add_credential(), 201)
    made = body(serving.add_auth_file(), 201)
    assert (made["path"], made["dialect"]) == ("/srv/auth.json", "containers-auth")
    assert made["hosts"] == {"names": ["local"]}
    shown = body(serving.call("GET", "/auth-files/file"))
    assert shown == {key: value for key, value in made.items() if key != "operation"}
    change = {"path": "/srv/auth.json", "dialect": "containers-auth", "credentials": ["prod"], "keep": True}
    assert body(serving.call("PUT", "/auth-files/file", json=change))["keep"] is True
    assert [item["name"] for item in body(serving.call("GET", "/auth-files"))["items"]] == ["file"]
    assert body(serving.add_auth_file("twin"), 409)["code"] == "PathTaken"
    assert body(serving.call("POST", "/auth-files/file/sync"), 202)["kind"] == "sync"
    assert body(serving.call("DELETE", "/auth-files/file"), 202)["kind"] in ("remove", "sync")
    assert serving.call("GET", "/auth-files/file").status_code == 404


def observe(serving: Serving) -> None:
    """Let work have seen one synced namespace and one that is missing."""
    stored = serving.store.get(PullSecretRule, "pull")
    assert stored is not None
    rule, now = stored.record, serving.clock.now
    part = (Component("prod", 1, 1),)
    rows = (
        Delivery("team-a", DeliveryState.SYNCED, "Applied", "as wished", now, part),
        Delivery("team-b", DeliveryState.FAILED, "NamespaceMissing", "there is no such namespace", now),
    )
    serving.store.put(
        view_name(rule.uid, 0), DeliveryView(rule.KIND, rule.name, rule.uid, 0, 1, rows, now), 0
    )
    counts = {"synced": 1, "failed": 1}
    seen = Observed(rule.uid, rule.name, "default", {}, counts, ("team-b",), now)
    serving.store.put(rule.uid, seen, 0)


def test_deliveries_are_shown_for_rules_and_credentials(serving: Serving) -> None:
    body(serving.add_credential(), 201)
    body(serving.add_pull_secret(), 201)
    body(serving.add_auth_file(), 201)
    observe(serving)
    rows = body(serving.call("GET", "/pull-secrets/pull/deliveries"))["items"]
    assert [(row["target"], row["state"], row["generation"]) for row in rows] == [
        ({"cluster": "default", "namespace": "team-a"}, "synced", 1),
        ({"cluster": "default", "namespace": "team-b"}, "failed", None),
    ]
    assert rows[0]["rule_kind"] == "pull-secret"
    assert rows[1]["reason"] == "NamespaceMissing"
    assert body(serving.call("GET", "/credentials/prod/deliveries"))["items"] == rows
    assert body(serving.call("GET", "/auth-files/file/deliveries"))["items"] == []
    counts = body(serving.call("GET", "/pull-secrets/pull"))["deliveries"]
    assert (counts["total"], counts["synced"], counts["failed"], counts["pending"]) == (2, 1, 1, 0)
    assert body(serving.call("GET", "/credentials/prod"))["deliveries"]["total"] == 2
    page = body(serving.call("GET", "/pull-secrets/pull/deliveries?limit=1"))
    rest = body(serving.call("GET", f"/pull-secrets/pull/deliveries?cursor={page['next_cursor']}"))
    assert page["items"] + rest["items"] == rows


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/registries/nobody"),
        ("PUT", "/registries/nobody"),
        ("DELETE", "/registries/nobody"),
        ("GET", "/credentials/nobody"),
        ("PATCH", "/credentials/nobody"),
        ("DELETE", "/credentials/nobody"),
        ("PUT", "/credentials/nobody/secret"),
        ("POST", "/credentials/nobody/validate"),
        ("POST", "/credentials/nobody/rollback"),
        ("GET", "/credentials/nobody/generations"),
        ("GET", "/credentials/nobody/deliveries"),
        ("GET", "/credentials/nobody/history"),
        ("GET", "/pull-secrets/nobody"),
        ("DELETE", "/pull-secrets/nobody"),
        ("POST", "/pull-secrets/nobody/sync"),
        ("GET", "/pull-secrets/nobody/deliveries"),
        ("GET", "/auth-files/nobody"),
        ("DELETE", "/auth-files/nobody"),
        ("POST", "/auth-files/nobody/sync"),
        ("GET", "/auth-files/nobody/deliveries"),
        ("GET", "/clusters/nobody"),
    ],
)
def test_what_is_not_there_is_404_with_a_hint(serving: Serving, method: str, path: str) -> None:
    fields = {
        "/registries/nobody": {"host": "x.example.com"},
        "/credentials/nobody/secret": {"secret": "value"},
    }
    options = {"json": fields.get(path, {})} if method in ("PUT", "PATCH", "POST") else {}
    assert body(serving.call(method, path, **options), 404)["hint"]


# --- ETags ----------------------------------------------------------------------------------------

TAGGED = [
    ("/registries/reg1", "PUT", {"host": "reg1.example.com", "probe_repository": "a"}),
    ("/credentials/prod", "PATCH", {"labels": {"a": "b"}}),
    ("/credentials/prod/secret", "PUT", {"secret": "another-value", "username": "other"}),
    (
        "/pull-secrets/pull",
        "PUT",
        {"secret_name": "pull-secret", "credentials": ["prod"], "namespaces": {"names": ["x"]}},
    ),
    (
        "/auth-files/file",
        "PUT",
        {"path": "/srv/auth.json", "dialect": "containers-auth", "credentials": ["prod"], "keep": True},
    ),
]


@pytest.mark.parametrize(("path", "method", "change"), TAGGED)
def test_a_write_with_a_stale_tag_is_refused(
    serving: Serving, path: str, method: str, change: dict[str, Any]
) -> None:
    for made in (serving.add_credential(), serving.add_pull_secret(), serving.add_auth_file()):
        assert made.status_code == 201
    record = path.removesuffix("/secret")
    tag = serving.call("GET", record).headers["ETag"]
    before = serving.store.documents()
    for stale in (
        '"v1"',
        '"v999"',
        f"W/{tag}",
        '"other"',
        f'{tag}, "v1"',
        '""',
        '"v-1"',
        "",
        "v",
        '"',
        tag.strip('"'),
        "*, *",
    ):
        answer = serving.call(method, path, json=change, headers={"If-Match": stale})
        assert answer.status_code == 412, stale
        assert body(answer, 412)["code"] == "PreconditionFailed"
    assert serving.store.documents() == before
    changed = serving.call(method, path, json=change, headers={"If-Match": tag})
    assert changed.status_code in (200, 202)
    assert changed.headers["ETag"] not in (tag, None)
    assert serving.call(method, path, json=change, headers={"If-Match": tag}).status_code == 412
    if not path.endswith("/secret"):
        assert serving.call("DELETE", path, headers={"If-Match": tag}).status_code in (409, 412)
    assert serving.call(method, path, json=change, headers={"If-Match": "*"}).status_code in (200, 202)


def test_deleting_minds_its_tag(serving: Serving) -> None:
    tag = serving.call("GET", "/registries/reg1").headers["ETag"]
    assert serving.call("DELETE", "/registries/reg1", headers={"If-Match": '"v999"'}).status_code == 412
    assert serving.call("DELETE", "/registries/reg1", headers={"If-Match": tag}).status_code == 204


def test_what_is_known_already_is_304(serving: Serving) -> None:
    tag = serving.call("GET", "/registries/reg1").headers["ETag"]
    for known in (tag, f"W/{tag}", f'"x", {tag}', "*"):
        answer = serving.call("GET", "/registries/reg1", headers={"If-None-Match": known})
        assert answer.status_code == 304
        assert answer.headers["ETag"] == tag
        assert answer.data == b""
    for other in ('"v999"', '""', "", "v", tag + "x"):
        answer = serving.call("GET", "/registries/reg1", headers={"If-None-Match": other})
        assert answer.status_code == 200


def test_facts_do_not_change_the_tag(serving: Serving) -> None:
    tag = serving.add_credential().headers["ETag"]
    serving.work()
    assert serving.call("GET", "/credentials/prod").headers["ETag"] == tag
    stored = serving.store.get(CredentialSpec, "prod")
    assert stored is not None
    assert tag == f'"v{stored.version}"'


# --- The description ------------------------------------------------------------------------------


def test_the_description_is_of_3_1_and_names_no_value_in_an_answer(serving: Serving) -> None:
    described = body(serving.call("GET", "/openapi.json"))
    assert described["openapi"].startswith("3.1")
    assert described["security"] == [{"token": []}]
    components = described["components"]["schemas"]
    for name, schema in components.items():
        if name.endswith(("Answer", "List")):
            assert not {"secret", "password", "value", "digest"} & set(schema["properties"])
    assert [name for name, schema in components.items() if "token" in schema["properties"]] == [
        "IssuedTokenAnswer"
    ]
    assert components["NewCredential"]["properties"]["secret"]["writeOnly"] is True
    identifiers = [
        call["operationId"]
        for path in described["paths"].values()
        for call in path.values()
        if isinstance(call, dict)
    ]
    assert len(set(identifiers)) == len(identifiers)
    served = {rule.rule for rule in serving.app.url_map.iter_rules() if rule.rule.startswith(API)}
    assert len(described["paths"]) == len(served)


# --- While a request is being answered ------------------------------------------------------------


@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_a_library_that_logs_the_value_while_it_is_proved_is_struck_out(
    serving: Serving, method: str
) -> None:
    body(serving.add_credential(), 201)

    def chatty(_registry: RegistrySpec, login: Login) -> Outcome:
        pair = base64.b64encode(f"{login.username}:{login.secret.reveal()}".encode()).decode()
        logging.getLogger("urllib3.connectionpool").warning(
            "sent %s as Basic %s", login.secret.reveal(), pair
        )
        return Outcome.VALID

    serving.prover.answer = chatty
    if method == "POST":
        body(serving.add_credential("chatty"), 201)
    else:
        body(serving.call("PUT", "/credentials/prod/secret", json={"secret": CANARY}), 202)
    assert "sent *** as Basic ***" in serving.logs.getvalue()
    assert CANARY not in serving.logs.getvalue()


def test_only_some_may_wait_at_once_and_a_seat_is_given_back() -> None:
    seconds = [0.0]

    def sleep(pause: float) -> None:
        seconds[0] += pause

    patience = Patience(sleep, lambda: seconds[0], threading.BoundedSemaphore(1))
    answers: list[bool] = []

    def done() -> bool:
        answers.append(patience.until(lambda: True, 5))
        return True

    assert patience.until(done, 5)
    assert answers == [False]
    assert patience.until(lambda: True, 5)
    assert not patience.until(lambda: False, 1)
    assert patience.until(lambda: True, 5)
