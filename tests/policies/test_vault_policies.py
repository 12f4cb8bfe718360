"""What the shipped policies let each role do, asked of a real OpenBao: every path, every verb."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from secretsvc.core.access import (
    InstallationKeys,
    Principal,
    Role,
)
from secretsvc.core.errors import StoreConflict, StoreDenied
from secretsvc.core.model import (
    Binding,
    Candidate,
    CredentialSpec,
    CredentialState,
    CredentialType,
    Generation,
    History,
    InboxItem,
    Login,
    Outcome,
    RegistryKind,
    RegistrySpec,
    Secret,
    Verb,
    Verdict,
)
from secretsvc.core.ports import Record
from secretsvc.core.rules import (
    AuthFileRule,
    DeliveryView,
    Dialect,
    NamespaceSelection,
    Observed,
    PullSecretRule,
)
from secretsvc.store.bootstrap import SERVE, WORK, policy_text
from secretsvc.store.vault import VaultStore
from tests.records import STORED
from tests.rig.openbao import Grant, OpenBao, bootstrapped, vault_store

pytestmark = pytest.mark.rig

NOW = datetime(2026, 3, 1, tzinfo=UTC)
LOGIN = Login(CredentialType.TOKEN, "robot", Secret("value"))
BOUND = Binding("r.test", (), insecure=False, ca_digest="")

WISHES = ("registry", "credential", "pullsecret", "authfile")
CALLERS = ("principal",)
HANDED = ("candidate", "inbox")
FACTS = ("state", "observed", "view", "history")
KINDS = (*WISHES, *CALLERS, *HANDED, *FACTS, "generation", "key")

CREATE, READ, UPDATE, LIST, REMOVE = "create", "read", "update", "list", "remove"
"""Of a document: create (no version yet), read, update; list its folder; delete its metadata."""

MAY: dict[str, dict[str, set[str]]] = {
    SERVE: {
        **{kind: {CREATE, READ, UPDATE, LIST} for kind in (*WISHES, *CALLERS)},
        "candidate": {CREATE, LIST},
        "inbox": {CREATE, READ, LIST},
        **{kind: {READ, LIST} for kind in FACTS},
        "generation": set(),
        "key": set(),
    },
    WORK: {
        **{kind: {READ, UPDATE, LIST, REMOVE} for kind in WISHES},
        "principal": set(),
        **{kind: {READ, LIST, REMOVE} for kind in HANDED},
        **{kind: {CREATE, READ, UPDATE, LIST, REMOVE} for kind in FACTS},
        "generation": {CREATE, READ, LIST, REMOVE},
        "key": {CREATE, READ, LIST},
    },
}

NEVER = (
    ("POST", "metadata/{kind}/there", {"max_versions": 1}),
    ("GET", "metadata/{kind}/there", None),
    ("DELETE", "data/{kind}/there", None),
    ("POST", "delete/{kind}/there", {"versions": [1]}),
    ("POST", "undelete/{kind}/there", {"versions": [1]}),
    ("PUT", "destroy/{kind}/there", {"versions": [1]}),
    ("GET", "subkeys/{kind}/there", None),
    ("PATCH", "data/{kind}/there", {"data": {"x": 1}, "options": {"cas": 1}}),
    ("GET", "data/{kind}", None),
    ("GET", "data/{kind}/there/deeper", None),
    ("POST", "data/{kind}/deep/er", {"data": {}, "options": {"cas": 0}}),
    ("DELETE", "metadata/{kind}/there/deeper", None),
    ("DELETE", "metadata/{kind}", None),
    ("GET", "detailed-metadata/{kind}/?list=true", None),
)

ELSEWHERE = (
    ("GET", "secretsvc/config", None),
    ("POST", "secretsvc/config", {"cas_required": False}),
    ("GET", "secretsvc/metadata/?list=true", None),
    ("GET", "secretsvc/metadata/other/?list=true", None),
    ("POST", "secretsvc/data/other/x", {"data": {}, "options": {"cas": 0}}),
    ("POST", "secretsvc/data/x", {"data": {}, "options": {"cas": 0}}),
    ("GET", "secret/data/other-app", None),
    ("GET", "secret/metadata/?list=true", None),
    ("GET", "sys/mounts", None),
    ("POST", "sys/mounts/mine", {"type": "kv"}),
    ("DELETE", "sys/mounts/secretsvc", None),
    ("GET", "sys/policy", None),
    ("PUT", "sys/policy/secretsvc-work", {"policy": 'path "*" { capabilities = ["sudo"] }'}),
    ("GET", "sys/policies/acl/secretsvc-work", None),
    ("GET", "sys/auth", None),
    ("PUT", "sys/seal", None),
    ("GET", "sys/audit", None),
    ("GET", "sys/raw/x", None),
    ("POST", "auth/token/create", {}),
    ("POST", "auth/token/create-orphan", {}),
    ("GET", "auth/token/accessors/?list=true", None),
    ("GET", "auth/approle/role/secretsvc-work", None),
    ("GET", "auth/approle/role/secretsvc-work/role-id", None),
    ("POST", "auth/approle/role/secretsvc-work/secret-id", {}),
    ("POST", "auth/approle/role/secretsvc-serve", {"token_policies": "secretsvc-work"}),
    ("GET", "identity/entity/id/?list=true", None),
    ("GET", "cubbyhole/x", None),
)


@pytest.fixture(scope="module")
def bao(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenBao]:
    with OpenBao.dev(tmp_path_factory.mktemp("bao")) as running:
        yield running


@pytest.fixture(scope="module")
def grant(bao: OpenBao, tmp_path_factory: pytest.TempPathFactory) -> Grant:
    return bootstrapped(bao, tmp_path_factory.mktemp("grant"))


@pytest.fixture(scope="module", params=[SERVE, WORK])
def role(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def token(bao: OpenBao, grant: Grant, role: str) -> str:
    secret_id = grant.report.secret_id_files[role].read_text().strip()
    login = {"role_id": grant.report.role_ids[role], "secret_id": secret_id}
    made = bao.must("POST", "auth/approle/login", login)["auth"]
    assert made["token_policies"] == [role]  # not even "default"
    text: str = made["client_token"]
    return text


def make(bao: OpenBao, path: str) -> int:
    """Put something there as root, whatever was before; return its version."""
    bao.must("DELETE", path.replace("/data/", "/metadata/"))
    made = bao.must("POST", path, {"data": {"x": 1}, "options": {"cas": 0}})["data"]["version"]
    assert made == 1
    return 1


def allowed(bao: OpenBao, token: str, method: str, path: str, body: dict[str, object] | None = None) -> bool:
    status, answer = bao.call(method, path, body, token=token)
    assert status in (200, 204, 400, 403, 404, 405), (method, path, status, answer)
    return status in (200, 204)


@pytest.mark.parametrize("kind", KINDS)
def test_each_role_may_do_its_work_and_nothing_else(bao: OpenBao, token: str, role: str, kind: str) -> None:
    there, missing = f"secretsvc/data/{kind}/there", f"secretsvc/data/{kind}/missing"
    bao.must("DELETE", missing.replace("/data/", "/metadata/"))
    make(bao, there)
    new, more = {"data": {"x": 2}, "options": {"cas": 0}}, {"data": {"x": 3}, "options": {"cas": 1}}
    did = {
        CREATE: allowed(bao, token, "POST", missing, new),
        READ: allowed(bao, token, "GET", there),
        UPDATE: allowed(bao, token, "POST", there, more),
        LIST: allowed(bao, token, "GET", f"secretsvc/metadata/{kind}?list=true"),
        REMOVE: allowed(bao, token, "DELETE", f"secretsvc/metadata/{kind}/there"),
    }
    assert {verb for verb, worked in did.items() if worked} == MAY[role][kind]


@pytest.mark.parametrize("kind", KINDS)
def test_no_role_reaches_past_documents(bao: OpenBao, token: str, kind: str) -> None:
    make(bao, f"secretsvc/data/{kind}/there")
    for method, path, body in NEVER:
        status, _ = bao.call(method, f"secretsvc/{path.format(kind=kind)}", body, token=token)
        assert status == 403, (method, path, status)


@pytest.mark.parametrize(("method", "path", "body"), ELSEWHERE, ids=lambda value: str(value)[:60])
def test_no_role_reaches_anything_else(
    bao: OpenBao, token: str, method: str, path: str, body: dict[str, object] | None
) -> None:
    assert bao.call(method, path, body, token=token)[0] == 403


def test_a_role_looks_after_its_own_token(bao: OpenBao, grant: Grant, role: str) -> None:
    secret_id = grant.report.secret_id_files[role].read_text().strip()
    login = {"role_id": grant.report.role_ids[role], "secret_id": secret_id}
    own = bao.must("POST", "auth/approle/login", login)["auth"]["client_token"]
    assert allowed(bao, own, "GET", "auth/token/lookup-self")
    assert allowed(bao, own, "POST", "auth/token/renew-self", {})
    assert allowed(bao, own, "POST", "auth/token/revoke-self", {})
    assert not allowed(bao, own, "GET", "auth/token/lookup-self")


def test_the_policies_are_flat(role: str) -> None:
    text = policy_text(role, "secretsvc")
    paths = re.findall(r'^path "(.*)" {$', text, re.MULTILINE)
    assert len(paths) == len(set(paths)) > 10
    assert all(
        re.fullmatch(r"secretsvc/(data|metadata)/[a-z]+/\+?|auth/token/[a-z]+-self", path) for path in paths
    )
    assert "*" not in "".join(paths)
    assert "{{" not in text
    assert "sudo" not in text


def test_every_kind_of_document_is_ruled_on() -> None:
    assert {found.KIND for found in STORED} == set(KINDS)


# --- Through the store, as the two programs use it ---

RECORDS: dict[str, Record] = {
    "registry": RegistrySpec("u", "n", "r.test", RegistryKind.GENERIC, NOW, "ann"),
    "credential": CredentialSpec("u", "n", "r", CredentialType.TOKEN, "robot", NOW, "ann"),
    "pullsecret": PullSecretRule("u", "n", "pull", ("c",), NamespaceSelection(("a",)), NOW, "ann"),
    "authfile": AuthFileRule("u", "n", "/x", Dialect.DOCKER_CONFIG, ("c",), NOW, "ann"),
    "principal": Principal("n", "ann", Role.ADMIN, "digest", NOW, "system"),
    "candidate": Candidate(
        "n", "c", "u", LOGIN, Verdict(Outcome.VALID, "Valid", "ok", NOW), BOUND, NOW, "ann"
    ),
    "inbox": InboxItem("n", Verb.CHANGED, "credential", "c", "u", NOW, "ann"),
    "state": CredentialState("u", "n"),
    "observed": Observed("u", "n", "default", {}, {}, (), NOW),
    "view": DeliveryView("pullsecret", "n", "u", 0, 1, (), NOW),
    "history": History("u"),
    "generation": Generation("u", 1, LOGIN, BOUND, NOW, "f", "op"),
    "key": InstallationKeys("i", Secret("a"), Secret("b"), Secret("c"), NOW),
}


@pytest.fixture(scope="module")
def serve(bao: OpenBao, grant: Grant) -> VaultStore:
    return vault_store(bao, grant, SERVE)


@pytest.fixture(scope="module")
def work(bao: OpenBao, grant: Grant) -> VaultStore:
    return vault_store(bao, grant, WORK)


@pytest.mark.parametrize("kind", WISHES)
def test_a_wish_goes_from_serve_to_work(serve: VaultStore, work: VaultStore, kind: str) -> None:
    record = RECORDS[kind]
    version = serve.put("wish", record, 0)
    version = serve.put("wish", record, version)
    found = work.get(type(record), "wish")
    assert found is not None
    assert (found.record, found.version) == (record, version)
    with pytest.raises(StoreDenied):
        work.put("invented", record, 0)
    with pytest.raises(StoreDenied):
        serve.remove(type(record), "wish-2", serve.put("wish-2", record, 0))
    work.remove(type(record), "wish", version)
    assert serve.get(type(record), "wish") is None
    assert "wish" not in serve.names(type(record))


def test_who_may_call_is_serves_alone(serve: VaultStore, work: VaultStore) -> None:
    record = RECORDS["principal"]
    version = serve.put("caller", record, serve.put("caller", record, 0))
    for call in (
        lambda: work.get(Principal, "caller"),
        lambda: work.names(Principal),
        lambda: work.put("caller", record, version),
        lambda: work.put("intruder", record, 0),
        lambda: work.remove(Principal, "caller", version),
    ):
        with pytest.raises(StoreDenied):
            call()
    assert "caller" in serve.names(Principal)


@pytest.mark.parametrize("kind", HANDED)
def test_what_is_handed_over_is_work_s_from_then_on(serve: VaultStore, work: VaultStore, kind: str) -> None:
    record = RECORDS[kind]
    version = serve.put("handed", record, 0)
    assert "handed" in serve.names(type(record))
    with pytest.raises(StoreConflict):  # Vault says "denied", for an update it would be
        serve.put("handed", record, 0)
    with pytest.raises(StoreDenied):
        serve.remove(type(record), "handed", version)
    found = work.get(type(record), "handed")
    assert found is not None
    assert found.record == record
    with pytest.raises(StoreDenied):
        work.put("other", record, 0)
    work.remove(type(record), "handed", version)
    assert "handed" not in work.names(type(record))


def test_a_value_that_was_handed_over_can_not_be_read_back(serve: VaultStore) -> None:
    candidate, item = RECORDS["candidate"], RECORDS["inbox"]
    serve.put("value", candidate, 0)
    with pytest.raises(StoreDenied):
        serve.get(type(candidate), "value")
    serve.put("verb", item, 0)
    found = serve.get(type(item), "verb")
    assert found is not None
    assert found.record == item


@pytest.mark.parametrize("kind", FACTS)
def test_a_fact_goes_from_work_to_serve(serve: VaultStore, work: VaultStore, kind: str) -> None:
    record = RECORDS[kind]
    version = work.put("fact", record, work.put("fact", record, 0))
    found = serve.get(type(record), "fact")
    assert found is not None
    assert found.version == version
    assert "fact" in serve.names(type(record))
    for expected in (0, version):
        with pytest.raises((StoreDenied, StoreConflict)):
            serve.put("fact", record, expected)
    with pytest.raises(StoreDenied):
        serve.remove(type(record), "fact", version)
    work.remove(type(record), "fact", version)
    assert serve.get(type(record), "fact") is None


@pytest.mark.parametrize("kind", ["generation", "key"])
def test_values_are_works_alone_and_written_once(serve: VaultStore, work: VaultStore, kind: str) -> None:
    record = RECORDS[kind]
    work.put("value", record, 0)
    with pytest.raises(StoreConflict):
        work.put("value", record, 0)
    found = work.get(type(record), "value")
    assert found is not None
    assert found.record == record
    for call in (
        lambda: serve.get(type(record), "value"),
        lambda: serve.put("value", record, 0),
        lambda: serve.put("value-2", record, 0),
        lambda: serve.names(type(record)),
        lambda: serve.remove(type(record), "value", found.version),
    ):
        with pytest.raises(StoreDenied):
            call()


def test_one_process_with_both_policies_may_do_both(bao: OpenBao, grant: Grant) -> None:
    both = vault_store(bao, grant)
    for kind, record in RECORDS.items():
        name = f"both-{kind}"
        version = both.put(name, record, 0)
        assert both.get(type(record), name) is not None
        assert name in both.names(type(record))
        if kind not in {"key", "principal"}:
            both.remove(type(record), name, version)
