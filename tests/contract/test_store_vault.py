"""The Vault store's own promises: on a real OpenBao, and behind a front that answers what Vault might."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from secretsvc.core.errors import (
    ConfigurationError,
    RecordDamaged,
    StoreConflict,
    StoreDenied,
    StoreError,
    StoreUnavailable,
)
from secretsvc.core.model import (
    CredentialState,
    Generation,
    History,
    Secret,
)
from secretsvc.store.bootstrap import bootstrap, policy_text
from secretsvc.store.vault import VaultStore
from secretsvc.store.vaultlink import VaultAddress
from secretsvc.store.vaultlogin import POLICY_AGE_SECONDS, REFUSED_PAUSE_SECONDS, AppRole, TokenFile
from tests.rig.openbao import Grant, OpenBao, bootstrapped, free_port, now, vault_store
from tests.rig.tokenserver import Authority
from tests.rig.vaultfront import Front, Reply, Request, Script

pytestmark = pytest.mark.rig

CANARY = "canary-91c2"
LOGIN = "auth/approle/login"
LOOKUP = "auth/token/lookup-self"
RENEW = "auth/token/renew-self"
MOUNT = "sys/internal/ui/mounts/secretsvc"


class Ticks:
    """Time that passes when a test says so; sleeping passes it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture(scope="module")
def bao(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenBao]:
    with OpenBao.dev(tmp_path_factory.mktemp("bao")) as running:
        yield running


@pytest.fixture(scope="module")
def grant(bao: OpenBao, tmp_path_factory: pytest.TempPathFactory) -> Grant:
    return bootstrapped(bao, tmp_path_factory.mktemp("grant"))


@pytest.fixture
def front(bao: OpenBao) -> Iterator[Front]:
    with Front(bao.address) as running:
        yield running


@pytest.fixture
def secret_id(tmp_path: Path) -> Path:
    return written(tmp_path / "secret-id", CANARY)


def written(path: Path, content: str) -> Path:
    path.touch(mode=0o600)
    path.write_text(f"{content}\n", encoding="ascii")
    return path


def state(name: str, epoch: int = 0) -> CredentialState:
    return CredentialState(f"uid-{name}", name, epoch=epoch)


def stub(kv: Callable[[Request], Reply | None]) -> Script:
    """Answer logins and the mount check well, and everything else by ``kv``."""

    def script(request: Request) -> Reply | None:
        if request.route == LOGIN:
            return Reply(
                body={"auth": {"client_token": f"s.{CANARY}", "lease_duration": 1200, "renewable": True}}
            )
        if request.route == MOUNT:
            return Reply(body={"data": {"type": "kv", "options": {"version": "2"}}})
        if request.route == LOOKUP:
            return Reply(body={"data": {"ttl": 1000, "renewable": True}})
        return kv(request)

    return script


def stub_store(front: Front, secret_id: Path, **options: Any) -> VaultStore:
    return VaultStore(VaultAddress(front.address), AppRole("role", secret_id), now, **options)


# --- What answers mean ---

UNAVAILABLE, DENIED, OTHER = StoreUnavailable, StoreDenied, StoreError
STATUSES = {
    301: UNAVAILABLE, 302: UNAVAILABLE, 303: UNAVAILABLE, 307: UNAVAILABLE, 308: UNAVAILABLE,
    400: OTHER, 401: DENIED, 403: DENIED, 405: OTHER, 406: OTHER, 408: UNAVAILABLE, 409: OTHER, 410: OTHER,
    412: UNAVAILABLE, 413: OTHER, 415: OTHER, 422: OTHER, 425: UNAVAILABLE, 429: UNAVAILABLE,
    472: UNAVAILABLE, 473: UNAVAILABLE, 474: UNAVAILABLE, 500: UNAVAILABLE, 501: UNAVAILABLE,
    502: UNAVAILABLE, 503: UNAVAILABLE, 504: UNAVAILABLE, 530: UNAVAILABLE,
}  # fmt: skip


def every_call(store: VaultStore) -> list[Callable[[], object]]:
    return [
        lambda: store.get(History, "name"),
        lambda: store.put("name", History("u"), 0),
        lambda: store.put("name", History("u"), 5),
        lambda: store.remove(History, "name", 5),
        lambda: store.names(History),
    ]


@pytest.mark.parametrize("as_json", [True, False], ids=["json", "html"])
@pytest.mark.parametrize(("status", "error"), STATUSES.items())
def test_no_status_is_mistaken(
    secret_id: Path, status: int, error: type[StoreError], *, as_json: bool
) -> None:
    body = {"errors": [CANARY]} if as_json else CANARY.encode()
    with Front(script=stub(lambda _: Reply(status, body))) as front:
        for call in every_call(stub_store(front, secret_id)):
            with pytest.raises(StoreError) as caught:
                call()
            assert type(caught.value) is error
            assert CANARY not in f"{caught.value} {caught.value.hint}"
            assert caught.value.__context__ is None


@pytest.mark.parametrize(
    "reply",
    [
        Reply(404, b"<html>not found</html>"),
        Reply(404, {}),
        Reply(404, {"errors": ["something"]}),
        Reply(200, b"<html>log in</html>"),
        Reply(200, {}),
        Reply(200, {"data": None}),
        Reply(200, {"data": {"data": None}}),
        Reply(204, b""),
        Reply(drop=True),
    ],
    ids=lambda reply: f"{reply.status} {reply.body!r}",
)
def test_only_vaults_own_empty_404_is_absence(secret_id: Path, reply: Reply) -> None:
    with Front(script=stub(lambda _: reply)) as front:
        for call in every_call(stub_store(front, secret_id)):
            with pytest.raises(StoreUnavailable):
                call()


def test_an_empty_404_is_absence(secret_id: Path) -> None:
    with Front(script=stub(lambda _: Reply(404, {"errors": []}))) as front:
        store = stub_store(front, secret_id)
        assert store.get(History, "name") is None
        assert store.names(History) == []


@pytest.mark.parametrize(("status", "error"), [pair for pair in STATUSES.items() if pair[0] != 400])
def test_no_status_of_a_login_is_mistaken(secret_id: Path, status: int, error: type[StoreError]) -> None:
    with Front(script=lambda _: Reply(status, {"errors": [CANARY]})) as front:
        for _ in range(3):
            with pytest.raises(StoreError) as caught:
                stub_store(front, secret_id).get(History, "name")
            assert type(caught.value) is error
            assert CANARY not in f"{caught.value} {caught.value.hint}"


@pytest.mark.parametrize("status", [200, 429, 472, 473, 474, 500, 501, 503, 530])
def test_health_knows_standbys(secret_id: Path, status: int) -> None:
    def kv(request: Request) -> Reply:
        assert request.route == "sys/health"
        return Reply(status, {"version": "9.9.9", "sealed": status == 503})

    with Front(script=stub(kv)) as front:
        store = stub_store(front, secret_id)
        if status in (200, 429, 472, 473):
            assert "9.9.9" in store.probe()
        else:
            with pytest.raises(StoreUnavailable):
                store.probe()


def test_nobody_there_is_unavailable(secret_id: Path) -> None:
    where = VaultAddress(f"http://127.0.0.1:{free_port()}")
    store = VaultStore(where, AppRole("role", secret_id), now)
    for call in [*every_call(store), store.probe]:
        with pytest.raises(StoreUnavailable, match="can not be reached") as caught:
            call()
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__


def test_silence_is_unavailable(secret_id: Path) -> None:
    over = threading.Event()

    def kv(_: Request) -> Reply:
        over.wait(30)
        return Reply()

    with Front(script=stub(kv)) as front:
        try:
            with pytest.raises(StoreUnavailable, match="in time"):
                stub_store(front, secret_id, answer_seconds=0.3).get(History, "name")
        finally:
            over.set()


# --- Where the token goes ---


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("at", ["login", "mount", "document"])
def test_a_redirect_gets_nothing(secret_id: Path, status: int, at: str) -> None:
    with Front(script=lambda _: Reply()) as other:
        away = Reply(status, {}, {"Location": f"{other.address}/v1/secretsvc/data/history/name"})

        def script(request: Request) -> Reply | None:
            here = {LOGIN: "login", MOUNT: "mount"}.get(request.route, "document")
            return away if here == at else stub(lambda _: Reply())(request)

        with Front(script=script) as front:
            for call in every_call(stub_store(front, secret_id)):
                with pytest.raises(StoreUnavailable) as caught:
                    call()
                assert caught.value.code == "VaultRedirects"
        assert other.seen == []


def test_the_environment_is_not_obeyed(
    tmp_path: Path, secret_id: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password netrc-canary\n", encoding="ascii")
    (tmp_path / ".netrc").chmod(0o600)
    (tmp_path / ".vault-token").write_text("vault-token-canary", encoding="ascii")
    with Front(script=lambda _: Reply()) as proxy:
        for name in (
            "HTTP_PROXY",
            "http_proxy",
            "HTTPS_PROXY",
            "https_proxy",
            "ALL_PROXY",
            "all_proxy",
            "VAULT_ADDR",
        ):
            monkeypatch.setenv(name, proxy.address)
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("VAULT_TOKEN", "environment-canary")
        monkeypatch.setenv("VAULT_NAMESPACE", "environment-canary")
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "none.pem"))
        monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
        monkeypatch.setenv("HOME", str(tmp_path))
        with Front(script=stub(lambda _: Reply(404, {"errors": []}))) as front:
            assert stub_store(front, secret_id).get(History, "name") is None
            assert len(front.seen) == 3
            for request in front.seen:
                assert "canary" not in str(request.headers).replace(f"s.{CANARY}", "")
                assert "Authorization" not in request.headers
                assert "X-Vault-Namespace" not in request.headers
            assert "X-Vault-Token" not in front.seen[0].headers
        assert proxy.seen == []


def test_cookies_are_not_kept(secret_id: Path) -> None:
    reply = Reply(404, {"errors": []}, {"Set-Cookie": "a=b; Path=/"})
    with Front(script=stub(lambda _: reply)) as front:
        store = stub_store(front, secret_id)
        for _ in range(3):
            store.get(History, "name")
        assert not any("Cookie" in request.headers for request in front.seen)


def test_a_namespace_goes_with_every_request_but_health(secret_id: Path) -> None:
    health = Reply(200, {"version": "1"})
    script = stub(lambda request: health if request.route == "sys/health" else Reply(404, {"errors": []}))
    with Front(script=script) as front:
        store = VaultStore(VaultAddress(front.address, namespace="team/a"), AppRole("role", secret_id), now)
        store.get(History, "name")
        store.probe()
        for request in front.seen:
            wanted = None if request.route == "sys/health" else "team/a"
            assert request.headers.get("X-Vault-Namespace") == wanted


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Front, VaultStore]]:
    path = written(tmp_path_factory.mktemp("recording") / "secret-id", CANARY)
    with Front(script=stub(lambda _: Reply(404, {"errors": []}))) as front:
        yield front, stub_store(front, path)


@settings(max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.one_of(
        st.text(), st.text("./%2e\\a-\x00", max_size=12), st.from_regex(r"[a-z0-9-]{1,80}", fullmatch=True)
    )
)
@example("..")
@example("../config")
@example("app/../../../sys/policies/acl/x")
@example("a//b")
@example("%2e%2e%2fconfig")
@example("\uff0e\uff0e/config")
@example("a\x00b")
@example("x" * 300)
@example("a?version=1")
@example("a#b")
def test_no_name_leaves_its_folder(recording: tuple[Front, VaultStore], name: str) -> None:
    front, store = recording
    before = len(front.seen)
    for call in (
        lambda: store.get(History, name),
        lambda: store.put(name, History("u"), 0),
        lambda: store.remove(History, name, 1),
    ):
        try:
            call()
        except StoreError:
            continue
    folders = {f"/v1/secretsvc/data/history/{name}", f"/v1/{MOUNT}", f"/v1/{LOGIN}"}
    assert {request.path for request in front.seen[before:]} <= folders
    assert "/" not in name or len(front.seen) == before


@pytest.mark.parametrize(
    "address",
    ["", "vault:8200", "ftp://vault", "http://vault.example.com:8200", "http://10.0.0.1", "https://u:p@vault",
     "https://vault/v1", "https://vault?x=1", "https://vault#x", "https://", "https://vault:port", "http://[::1"],
)  # fmt: skip
def test_unfit_addresses_are_refused(address: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        VaultAddress(address)
    assert "SECRETSVC_VAULT_ADDR" in caught.value.hint
    assert "u:p" not in str(caught.value)


@pytest.mark.parametrize(
    "address", ["https://vault", "https://vault:8200/", "http://127.0.0.1:1", "http://[::1]:1"]
)
def test_fit_addresses_are_taken(address: str) -> None:
    assert VaultAddress(address).address == address


@pytest.mark.parametrize("mount", ["", "..", "a/../b", "/a", "a/", "A", "a//b", "a b", "a/%2e"])
def test_unfit_mounts_are_refused(mount: str) -> None:
    with pytest.raises(ConfigurationError):
        VaultAddress("https://vault", mount)


def test_only_a_trusted_certificate_gets_the_token(tmp_path: Path, secret_id: Path) -> None:
    ours, theirs = Authority(tmp_path / "ours"), Authority(tmp_path / "theirs", "other CA")
    for name, authority in (("ours.pem", ours), ("theirs.pem", theirs)):
        (tmp_path / name).write_text(authority.pem, encoding="ascii")
    script = stub(lambda _: Reply(404, {"errors": []}))
    with Front(script=script, tls=ours.issue("127.0.0.1")) as front:
        for cacert, good in (("ours.pem", True), ("theirs.pem", False), ("", False)):
            before = len(front.seen)
            where = VaultAddress(front.address, cacert=str(tmp_path / cacert) if cacert else "")
            store = VaultStore(where, AppRole("role", secret_id), now)
            if good:
                assert store.get(History, "name") is None
                continue
            with pytest.raises(StoreUnavailable) as caught:
                store.get(History, "name")
            assert caught.value.code == "VaultCertificate"
            assert len(front.seen) == before


# --- Logging in ---


def in_threads(call: Callable[[], object], threads: int = 32) -> list[object]:
    """Call at once from many threads; return results or errors."""
    ready = threading.Barrier(threads)

    def run(_: int) -> object:
        ready.wait()
        try:
            return call()
        except StoreError as exc:
            return exc

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(run, range(threads)))


def test_many_threads_log_in_once(front: Front, bao: OpenBao, grant: Grant) -> None:
    store = vault_store(bao, grant, address=front.address)
    assert in_threads(lambda: store.get(History, "name")) == [None] * 32
    assert front.count("POST", LOGIN) == 1


def test_a_revoked_token_costs_one_login_for_all(front: Front, bao: OpenBao, grant: Grant) -> None:
    store = vault_store(bao, grant, address=front.address)
    version = store.put("revoked", state("revoked"), 0)
    token = front.seen[-1].headers["X-Vault-Token"]
    bao.must("POST", "auth/token/revoke", {"token": token})
    found = in_threads(lambda: store.get(CredentialState, "revoked"))
    assert all(getattr(one, "version", None) == version for one in found)
    assert front.count("POST", LOGIN) == 2


def test_a_wrong_secret_id_is_tried_once_and_a_new_one_at_once(
    front: Front, bao: OpenBao, grant: Grant, tmp_path: Path
) -> None:
    path = written(tmp_path / "secret-id", "00000000-1111-2222-3333-444444444444")
    ticks = Ticks()
    method = AppRole(grant.report.role_ids["secretsvc"], path)
    store = VaultStore(VaultAddress(front.address), method, now, ticks=ticks)
    answers = in_threads(lambda: store.get(History, "name"))
    for _ in range(10):
        answers += in_threads(store.probe, 2)
        ticks.now += 60
    assert all(isinstance(answer, StoreDenied) for answer in answers)
    assert all(str(path) in answer.hint for answer in answers if isinstance(answer, StoreDenied))
    assert front.count("POST", LOGIN) == 1
    written(path, grant.report.secret_id_files["secretsvc"].read_text().strip())
    assert store.get(History, "name") is None
    assert front.count("POST", LOGIN) == 2


def test_a_refused_login_is_tried_again_after_a_long_pause(secret_id: Path) -> None:
    ticks = Ticks()
    with Front(script=lambda _: Reply(400, {"errors": ["invalid role or secret ID"]})) as front:
        store = stub_store(front, secret_id, ticks=ticks)
        for _ in range(3):
            with pytest.raises(StoreDenied):
                store.get(History, "name")
        assert len(front.seen) == 1
        ticks.now += REFUSED_PAUSE_SECONDS
        with pytest.raises(StoreDenied):
            store.get(History, "name")
        assert len(front.seen) == 2


def test_an_unreachable_login_is_not_a_refused_one(secret_id: Path) -> None:
    answers = [Reply(503, {"errors": []}), Reply(drop=True), None]
    script = stub(lambda _: Reply(404, {"errors": []}))
    with Front(
        script=lambda request: answers.pop(0) or script(request) if answers else script(request)
    ) as front:
        store = stub_store(front, secret_id)
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                store.get(History, "name")
        assert store.get(History, "name") is None


def test_a_policys_refusal_does_not_log_in_again_and_again(front: Front, bao: OpenBao, grant: Grant) -> None:
    ticks = Ticks()
    store = vault_store(bao, grant, "secretsvc-serve", address=front.address, ticks=ticks)
    for _ in range(5):
        with pytest.raises(StoreDenied, match="generation/u-1"):
            store.get(Generation, "u-1")
    assert front.count("POST", LOGIN) == 1
    ticks.now += POLICY_AGE_SECONDS
    for _ in range(5):
        with pytest.raises(StoreDenied):
            store.get(Generation, "u-1")
    assert front.count("POST", LOGIN) == 2  # its policies might have changed


def test_a_token_is_renewed_on_use_before_it_ends(front: Front, bao: OpenBao, grant: Grant) -> None:
    ticks = Ticks()
    store = vault_store(bao, grant, address=front.address, ticks=ticks)
    for renewals in range(4):
        store.get(History, "name")
        assert front.count("POST", RENEW) == renewals
        ticks.now += 1200 * 0.6
        store.get(History, "name")
        assert front.count("POST", RENEW) == renewals  # not before two thirds
        ticks.now += 1200 * 0.2
        in_threads(lambda: store.get(History, "name"), 8)
        assert front.count("POST", RENEW) == renewals + 1
    assert front.count("POST", LOGIN) == 1


def test_a_token_whose_life_no_longer_grows_is_replaced(front: Front, bao: OpenBao, grant: Grant) -> None:
    ticks = Ticks()

    def script(request: Request) -> Reply | None:
        if request.route == RENEW:
            return Reply(200, {"auth": {"lease_duration": 200, "renewable": True}})
        return None

    front.script = script
    store = vault_store(bao, grant, address=front.address, ticks=ticks)
    store.get(History, "name")
    ticks.now += 1000
    store.get(History, "name")
    assert (front.count("POST", RENEW), front.count("POST", LOGIN)) == (1, 2)


def test_a_token_serves_on_while_renewal_fails(front: Front, bao: OpenBao, grant: Grant) -> None:
    ticks = Ticks()
    front.script = lambda request: Reply(503, {"errors": []}) if request.route == RENEW else None
    store = vault_store(bao, grant, address=front.address, ticks=ticks)
    store.get(History, "name")
    ticks.now += 1000
    for _ in range(20):
        assert store.get(History, "name") is None
    assert front.count("POST", RENEW) == 1  # not with every request
    front.script = None
    ticks.now += 10
    store.get(History, "name")
    assert (front.count("POST", RENEW), front.count("POST", LOGIN)) == (2, 1)


def test_after_a_long_sleep_we_log_in_again(front: Front, bao: OpenBao, grant: Grant) -> None:
    ticks = Ticks()
    store = vault_store(bao, grant, address=front.address, ticks=ticks)
    store.get(History, "name")
    ticks.now += 100_000
    assert in_threads(lambda: store.get(History, "name"), 8) == [None] * 8
    assert (front.count("POST", RENEW), front.count("POST", LOGIN)) == (0, 2)


def test_very_short_tokens_under_load_fail_nobody(front: Front, bao: OpenBao, grant: Grant) -> None:
    role = "auth/approle/role/secretsvc-short"
    bao.must("POST", role, {"token_policies": "secretsvc-work", "token_ttl": 1, "token_max_ttl": 2})
    role_id = bao.must("GET", f"{role}/role-id")["data"]["role_id"]
    secret = bao.must("POST", f"{role}/secret-id")["data"]["secret_id"]
    path = written(grant.report.secret_id_files["secretsvc"].with_name("short"), secret)
    store = VaultStore(VaultAddress(front.address), AppRole(role_id, path), now)
    version = store.put("short", state("short"), 0)
    end = time.monotonic() + 6

    def load() -> int:
        done = 0
        while time.monotonic() < end:
            found = store.get(CredentialState, "short")
            assert found is not None
            assert found.version == version
            done += 1
        return done

    results = in_threads(load, 8)
    assert all(isinstance(done, int) and done > 0 for done in results), results
    assert front.count("POST", LOGIN) > 1


def test_closing_ends_our_token(front: Front, bao: OpenBao, grant: Grant) -> None:
    store = vault_store(bao, grant, address=front.address)
    store.get(History, "name")
    token = front.seen[-1].headers["X-Vault-Token"]
    store.close()
    assert bao.call("GET", LOOKUP, token=token)[0] == 403


def test_a_token_file_is_used_renewed_and_not_revoked(
    front: Front, bao: OpenBao, tmp_path: Path, grant: Grant
) -> None:
    assert grant.mount == "secretsvc"

    def token() -> str:
        made = bao.must("POST", "auth/token/create", {"policies": ["secretsvc-work"], "period": "1h"})
        text: str = made["auth"]["client_token"]
        return text

    first, ticks = token(), Ticks()
    path = written(tmp_path / "token", first)
    store = VaultStore(VaultAddress(front.address), TokenFile(path), now, ticks=ticks)
    version = store.put("by-token", state("by-token"), 0)
    ticks.now += 3000
    assert store.get(CredentialState, "by-token") is not None
    assert front.count("POST", RENEW) == 1
    bao.must("POST", "auth/token/revoke", {"token": first})
    for _ in range(3):
        with pytest.raises(StoreDenied) as caught:
            store.get(CredentialState, "by-token")
        assert first not in f"{caught.value}{caught.value.hint}"
    second = written(path, token())
    found = store.get(CredentialState, "by-token")
    assert found is not None
    assert found.version == version
    store.close()
    assert bao.call("GET", LOOKUP, token=second.read_text().strip())[0] == 200


@pytest.mark.parametrize("content", ["", " ", "two words", "two\nlines", "x" * 9000, "caf\u00e9"])
def test_a_login_file_holds_one_word(tmp_path: Path, content: str) -> None:
    path = tmp_path / "file"
    path.touch(mode=0o600)
    path.write_text(content, encoding="utf-8")
    with Front(script=lambda _: Reply(500)) as front:
        for method in (AppRole("role", path), TokenFile(path), TokenFile(tmp_path / "missing")):
            with pytest.raises(StoreDenied) as caught:
                VaultStore(VaultAddress(front.address), method, now).get(History, "name")
            assert caught.value.hint
        assert front.seen == []


def test_a_login_file_that_others_can_read_is_refused(secret_id: Path) -> None:
    secret_id.chmod(0o644)
    with Front(script=lambda _: Reply(500)) as front:
        with pytest.raises(StoreDenied, match="0644"):
            stub_store(front, secret_id).get(History, "name")
        assert front.seen == []


# --- Sealing, restarting ---


def test_sealed_then_unsealed_then_restarted(tmp_path: Path) -> None:
    with OpenBao.durable(tmp_path) as durable:
        grant = bootstrapped(durable, tmp_path)
        store = vault_store(durable, grant)
        version = store.put("kept", state("kept"), 0)
        durable.seal()
        for call in [*every_call(store), store.probe]:
            with pytest.raises(StoreUnavailable):
                call()
        durable.unseal()
        assert store.put("kept", state("kept", 1), version) == version + 1
        durable.restart()
        for call in [*every_call(store), store.probe, *every_call(vault_store(durable, grant))]:
            with pytest.raises(StoreUnavailable):
                call()
        durable.unseal()
        for reader in (store, vault_store(durable, grant)):
            found = reader.get(CredentialState, "kept")
            assert found is not None
            assert (found.record.epoch, found.version) == (1, version + 1)
        durable.stop()
        for call in [*every_call(store), store.probe]:
            with pytest.raises(StoreUnavailable):
                call()


# --- Absence, damage, staleness ---


def test_what_was_deleted_by_hand_is_not_absent(bao: OpenBao, grant: Grant) -> None:
    store = vault_store(bao, grant)
    version = store.put("by-hand", state("by-hand"), 0)
    bao.must("DELETE", "secretsvc/data/state/by-hand")
    for call in (
        lambda: store.get(CredentialState, "by-hand"),
        lambda: vault_store(bao, grant).get(CredentialState, "by-hand"),
        lambda: vault_store(bao, grant).remove(CredentialState, "by-hand", version),
    ):
        with pytest.raises(RecordDamaged) as caught:
            call()
        assert "undelete" in caught.value.hint
    with pytest.raises(StoreConflict):
        store.put("by-hand", state("by-hand"), 0)
    bao.must("POST", "secretsvc/undelete/state/by-hand", {"versions": [1]})
    assert store.get(CredentialState, "by-hand") is not None
    bao.must("PUT", "secretsvc/destroy/state/by-hand", {"versions": [1]})
    with pytest.raises(RecordDamaged):
        store.get(CredentialState, "by-hand")


@pytest.mark.parametrize(
    "fields",
    [
        {}, {"document": CANARY}, {"base": 1}, {"base": "1", "document": "{}"},
        {"base": True, "document": "{}"},
        {"base": 1, "document": {"a": 1}}, {"base": -5, "document": "{}"},
        {"base": 1, "document": "{}", "more": CANARY},
        {"base": 1, "removed_at": "yesterday"}, {"password": CANARY},
    ],
    ids=str,
)  # fmt: skip
def test_what_we_did_not_write_is_damaged(bao: OpenBao, grant: Grant, fields: dict[str, Any]) -> None:
    name = f"foreign-{abs(hash(str(fields)))}"
    bao.must("POST", f"secretsvc/data/history/{name}", {"data": fields, "options": {"cas": 0}})
    with pytest.raises(RecordDamaged, match=f"history/{name}") as caught:
        vault_store(bao, grant).get(History, name)
    assert CANARY not in f"{caught.value}{caught.value.hint}"


def test_a_missing_mount_is_never_absence(tmp_path: Path) -> None:
    with OpenBao.dev(tmp_path) as own:
        grant = bootstrapped(own, tmp_path)
        store = vault_store(own, grant)
        assert store.get(History, "name") is None
        own.must("DELETE", "sys/mounts/secretsvc")
        for each in (store, vault_store(own, grant)):
            for call in [*every_call(each), each.probe]:
                with pytest.raises(StoreError) as caught:
                    call()
                assert caught.value.code == "MountMissing"
                assert "vault bootstrap" in caught.value.hint
        bootstrapped(own, tmp_path)
        assert store.get(History, "name") is None


def test_a_mount_of_another_version_is_refused(bao: OpenBao, tmp_path: Path) -> None:
    bao.must("POST", "sys/mounts/first", {"type": "kv", "options": {"version": "1"}})
    path = written(tmp_path / "token", bao.root_token)
    store = VaultStore(VaultAddress(bao.address, "first"), TokenFile(path), now)
    for call in [*every_call(store), store.probe]:
        with pytest.raises(StoreError, match="not a KV engine of version 2"):
            call()
    with pytest.raises(StoreError, match="not a KV engine of version 2"):
        bootstrap(VaultAddress(bao.address, "first"), Secret(bao.root_token))


def test_an_older_answer_than_seen_is_unavailable(front: Front, bao: OpenBao, grant: Grant) -> None:
    store = vault_store(bao, grant, address=front.address)
    first = store.put("lag", state("lag", 1), 0)
    old = bao.must("GET", "secretsvc/data/state/lag")
    second = store.put("lag", state("lag", 2), first)
    front.script = lambda request: Reply(200, old) if request.method == "GET" else None
    with pytest.raises(StoreUnavailable) as caught:
        store.get(CredentialState, "lag")
    assert caught.value.code == "StaleAnswer"
    front.script = None
    found = store.get(CredentialState, "lag")
    assert found is not None
    assert found.version == second


def test_a_lagging_standby_does_not_lose_a_write(front: Front, bao: OpenBao, grant: Grant) -> None:
    ticks = Ticks()
    store = vault_store(bao, grant, address=front.address, ticks=ticks, sleep=ticks.sleep)
    store.put("fresh", state("fresh"), 0)
    missing = 5

    def script(request: Request) -> Reply | None:
        nonlocal missing
        if request.method == "GET" and missing:
            missing -= 1
            return Reply(404, {"errors": []})
        return None

    front.script = script
    assert store.get(CredentialState, "fresh") is not None
    assert missing == 0
    ticks.now += 10
    missing = 1
    assert store.get(CredentialState, "fresh") is None  # what was seen long ago may be gone by now


def test_readers_and_writers_at_once_are_not_called_stale(bao: OpenBao, grant: Grant) -> None:
    store = vault_store(bao, grant)
    version = store.put("busy", state("busy"), 0)
    over = threading.Event()

    def read() -> int:
        seen = 0
        while not over.is_set():
            found = store.get(CredentialState, "busy")
            assert found is not None
            seen = max(seen, found.version)
        return seen

    with ThreadPoolExecutor(6) as pool:
        readers = [pool.submit(read) for _ in range(6)]
        try:
            for epoch in range(60):
                version = store.put("busy", state("busy", epoch), version)
        finally:
            over.set()
        assert all(reader.result() <= version for reader in readers)


# --- Removal ---


def is_delete(request: Request) -> bool:
    return request.method == "DELETE"


def test_a_removal_that_stops_halfway_leaves_no_document_and_can_be_made_again(
    front: Front, bao: OpenBao, grant: Grant
) -> None:
    store = vault_store(bao, grant, address=front.address)
    version = store.put("half", state("half"), 0)
    front.script = lambda request: Reply(drop=True) if is_delete(request) else None
    with pytest.raises(StoreUnavailable):
        store.remove(CredentialState, "half", version)
    front.script = None
    fresh = vault_store(bao, grant)
    for reader in (store, fresh):
        assert reader.get(CredentialState, "half") is None
        with pytest.raises(StoreConflict):
            reader.put("half", state("half", 7), version)
        with pytest.raises(StoreConflict):  # its author may still be about to delete it
            reader.put("half", state("half", 7), 0)
        reader.remove(CredentialState, "half", version)
    later = vault_store(bao, grant, clock=lambda: now() + timedelta(minutes=11))
    assert later.get(CredentialState, "half") is None
    again = later.put("half", state("half", 9), 0)
    assert again > version
    found = fresh.get(CredentialState, "half")
    assert found is not None
    assert (found.record.epoch, found.version) == (9, again)


def test_a_held_up_remover_does_not_delete(front: Front, bao: OpenBao, grant: Grant) -> None:
    ticks = Ticks()
    store = vault_store(bao, grant, address=front.address, ticks=ticks)
    version = store.put("held", state("held"), 0)

    def script(request: Request) -> None:
        if request.method == "POST" and b"removed_at" in request.body:
            ticks.now += 31

    front.script = script
    store.remove(CredentialState, "held", version)
    assert not any(is_delete(request) for request in front.seen)
    assert vault_store(bao, grant).get(CredentialState, "held") is None


def test_an_old_mark_that_is_deleted_meanwhile_does_not_block_the_name(bao: OpenBao, grant: Grant) -> None:
    long_ago: datetime = now() - timedelta(hours=1)
    mark = {"data": {"removed_at": long_ago.isoformat(), "base": 5}, "options": {"cas": 0}}
    bao.must("POST", "secretsvc/data/state/mark", mark)
    store = vault_store(bao, grant)
    assert store.get(CredentialState, "mark") is None
    bao.must("DELETE", "secretsvc/metadata/state/mark")
    with pytest.raises(StoreConflict):
        store.put("mark", state("mark"), 0)
    assert store.get(CredentialState, "mark") is None
    assert store.put("mark", state("mark"), 0) > 5


def test_a_number_of_the_old_document_does_not_fit_its_namesake(bao: OpenBao, grant: Grant) -> None:
    """KV counts from 1 again: a reader of the old number 1 must not overwrite the new number 1."""
    ticks = Ticks()
    late = vault_store(bao, grant, ticks=ticks)
    other = vault_store(bao, grant)
    old = late.put("namesake", state("namesake", 1), 0)
    other.remove(CredentialState, "namesake", old)
    new = other.put("namesake", state("namesake", 2), 0)
    number = bao.must("GET", "secretsvc/data/state/namesake")["data"]["metadata"]["version"]
    assert number == 1
    assert new > old
    ticks.now += 31  # what it saw is no longer fresh, so it reads before it writes
    with pytest.raises(StoreConflict):
        late.put("namesake", state("namesake", 666), old)
    assert other.get(CredentialState, "namesake") is not None


# --- Bootstrap ---


def test_bootstrap_says_what_it_did_and_changes_nothing_twice(bao: OpenBao, grant: Grant) -> None:
    again = bootstrap(VaultAddress(bao.address), Secret(bao.root_token))
    assert all(line.endswith("unchanged") for line in again.lines)
    assert again.role_ids == grant.report.role_ids
    assert again.secret_id_files == {}
    assert set(again.role_ids) == {"secretsvc", "secretsvc-serve", "secretsvc-work"}


def test_bootstrap_corrects_what_drifted(bao: OpenBao, grant: Grant) -> None:
    bao.must("POST", "secretsvc/config", {"cas_required": False})
    bao.must(
        "PUT",
        "sys/policy/secretsvc-work",
        {"policy": policy_text("secretsvc-work", "secretsvc") + "# more\n"},
    )
    bao.must("POST", "auth/approle/role/secretsvc", {"token_policies": "default"})
    lines = bootstrap(VaultAddress(bao.address), Secret(bao.root_token)).lines
    changed = [line for line in lines if not line.endswith("unchanged")]
    assert [line.split(":")[0] for line in changed] == [
        "settings of mount secretsvc", "policy secretsvc-work", "role secretsvc",
    ]  # fmt: skip
    status, _ = bao.call("POST", "secretsvc/data/state/no-cas", {"data": {}})
    assert status == 400
    assert grant.mount == "secretsvc"


def test_bootstrap_does_not_take_another_installations_policies(bao: OpenBao, grant: Grant) -> None:
    with pytest.raises(ConfigurationError, match="another mount"):
        bootstrap(VaultAddress(bao.address, "other"), Secret(bao.root_token))
    assert bao.must("GET", "sys/policy/secretsvc-serve")["rules"] == policy_text(
        "secretsvc-serve", grant.mount
    )


def test_bootstrap_needs_an_admin(bao: OpenBao) -> None:
    token = bao.must("POST", "auth/token/create", {"policies": ["default"]})["auth"]["client_token"]
    for bad in (token, "nonsense"):
        with pytest.raises(StoreDenied, match="admin's token") as caught:
            bootstrap(VaultAddress(bao.address), Secret(bad))
        assert bad not in f"{caught.value}{caught.value.hint}"


def test_secret_ids_go_to_files_of_ours_alone(grant: Grant) -> None:
    for role, path in grant.report.secret_id_files.items():
        assert path.name == f"{role}.secret-id"
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.read_text().strip() not in "".join(grant.report.lines)


@pytest.mark.parametrize(
    ("options", "roles"),
    [
        ({}, ["secretsvc"]),
        ({"secret_id_roles": ("secretsvc-work", "secretsvc-serve", "secretsvc-work")},
         ["secretsvc-work", "secretsvc-serve"]),
    ],
)  # fmt: skip
def test_secret_ids_are_made_for_the_roles_asked_for_and_expire(
    bao: OpenBao, tmp_path: Path, front: Front, options: dict[str, tuple[str, ...]], roles: list[str]
) -> None:
    where = VaultAddress(front.address)
    report = bootstrap(where, Secret(bao.root_token), secret_id_dir=tmp_path, **options)
    assert list(report.secret_id_files) == roles
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"{role}.secret-id" for role in roles)
    for role in ("secretsvc", "secretsvc-serve", "secretsvc-work"):
        made = front.count("POST", f"auth/approle/role/{role}/secret-id")
        assert made == (role in roles)
    for role, path in report.secret_id_files.items():
        asked = {"secret_id": path.read_text().strip()}
        told = bao.must("POST", f"auth/approle/role/{role}/secret-id/lookup", asked)["data"]
        assert told["secret_id_ttl"] == 90 * 86400
        assert [line for line in report.lines if f"secret id of {role}:" in line and "90 days" in line]


def test_a_secret_id_that_can_not_be_kept_is_not_made(bao: OpenBao, tmp_path: Path, front: Front) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError):
        bootstrap(VaultAddress(front.address), Secret(bao.root_token), secret_id_dir=tmp_path / "file")
    assert front.count("POST", "auth/approle/role/secretsvc/secret-id") == 0
