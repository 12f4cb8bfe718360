"""How many requests the store gets while nothing happens: 300 credentials, an auth file and a pull secret.

The service reaches OpenBao through a server that counts; the credentials are written before it starts, past
that server, as register and intake leave them. The window is the period in which a settled pull secret is
compared with its namespaces, so that it holds one of everything.
"""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import pytest

from secretsvc.core import rotation
from secretsvc.core.ident import ulid
from secretsvc.core.model import (
    Binding,
    Candidate,
    CredentialSpec,
    CredentialState,
    CredentialType,
    Generation,
    History,
    Login,
    Outcome,
    Progress,
    RegistryKind,
    RegistrySpec,
    Secret,
    Verdict,
)
from secretsvc.core.ports import CredentialStore
from secretsvc.workflows.reconcile import VIEW_S
from secretsvc.workflows.rounds import DRIFT_S
from tests.bench.measuring import Caller, Report, wait_until
from tests.rig.kube import KubeCluster
from tests.rig.openbao import Grant, OpenBao, bootstrapped, now, vault_store
from tests.rig.service import Service
from tests.rig.vaultfront import Front

pytestmark = pytest.mark.bench

_CREDENTIALS = 300
_NAMESPACES = ("bench-a", "bench-b", "bench-c")
_GOAL_PER_MINUTE = 300


def test_settled(report: Report, tmp_path: Path) -> None:
    for name in ("bao", "kube"):
        (tmp_path / name).mkdir()
    with (
        OpenBao.dev(tmp_path / "bao") as bao,
        KubeCluster(tmp_path / "kube") as kube,
        Front(bao.address) as front,
    ):
        grant = bootstrapped(bao, tmp_path / "bao")
        fill(bao, grant)
        environment = settings(front, grant) | {"SECRETSVC_KUBECONFIG": str(kube.kubeconfig)}
        with Service(tmp_path / "service", environment) as service, Caller(service) as caller:
            add_rules(kube, caller, tmp_path)
            assert count_active(caller) == _CREDENTIALS
            time.sleep(2 * VIEW_S)
            before = len(front.seen)
            time.sleep(DRIFT_S)
            seen = front.seen[before:]
    tell(report, Counter(f"{request.method} {kind(request.route)}" for request in seen))


def settings(front: Front, grant: Grant) -> dict[str, str]:
    """What the service needs to reach OpenBao through the counting server."""
    return {
        "SECRETSVC_LOG_LEVEL": "info",
        "SECRETSVC_STORE": "vault",
        "SECRETSVC_VAULT_ADDR": front.address,
        "SECRETSVC_VAULT_ROLE_ID": grant.report.role_ids["secretsvc"],
        "SECRETSVC_VAULT_SECRET_ID_FILE": str(grant.report.secret_id_files["secretsvc"]),
    }


def fill(bao: OpenBao, grant: Grant) -> None:
    """Write one registry and the credentials, each published."""
    store = vault_store(bao, grant)
    try:
        registry = RegistrySpec(
            ulid(now(), bytes(10)), "bench", "registry.example.com", RegistryKind.GENERIC, now(), "bench"
        )
        store.put(registry.name, registry, 0)
        for number in range(_CREDENTIALS):
            publish(store, f"bench-{number}", registry.binding(), number)
    finally:
        store.close()


def publish(store: CredentialStore, name: str, binding: Binding, number: int) -> None:
    """Write what registering and publishing one credential leaves behind."""
    entropy = number.to_bytes(10, "big")
    at, uid = now(), ulid(now(), entropy)
    login = Login(CredentialType.TOKEN, "robot$bench", Secret(f"value-{number}"))
    verdict = Verdict(Outcome.VALID, "Accepted", "The registry accepted the login.", at)
    candidate = Candidate(ulid(at, entropy[::-1]), name, uid, login, verdict, binding, at, "bench")
    generation = Generation(uid, 1, login, binding, at, f"print-{number}", candidate.id)
    state = rotation.claim(CredentialState(uid, name), candidate, at)
    state, ended = rotation.settle(rotation.promote(state, generation, at), at, Progress())
    store.put(name, CredentialSpec(uid, name, "bench", login.type, login.username, at, "bench"), 0)
    store.put(generation.document_name, generation, 0)
    store.put(uid, state, 0)
    store.put(uid, rotation.appended(History(uid), ended), 0)


def add_rules(kube: KubeCluster, caller: Caller, folder: Path) -> None:
    """Add an auth file and a pull secret, and wait until both are as wanted."""
    for name in _NAMESPACES:
        kube.create_namespace(name)
    auth_file = {
        "name": "bench",
        "path": str(folder / "auth.json"),
        "dialect": "containers-auth",
        "credentials": ["bench-1"],
    }
    pull_secret = {
        "name": "bench",
        "secret_name": "pull-secret",
        "credentials": ["bench-1"],
        "namespaces": {"names": list(_NAMESPACES)},
    }
    caller.must("POST", "/auth-files", auth_file)
    caller.must("POST", "/pull-secrets", pull_secret)
    for path, targets in (("/auth-files/bench", 1), ("/pull-secrets/bench", len(_NAMESPACES))):
        wait_until(
            path, lambda path=path, n=targets: caller.must("GET", path)["deliveries"]["synced"] == n, 0.5
        )


def count_active(caller: Caller) -> int:
    """Return how many credentials the service calls active."""
    return len(caller.must("GET", "/credentials?state=active&limit=500")["items"])


def kind(route: str) -> str:
    """Return what a request is about without its name: ``data/credential``, ``metadata/inbox``."""
    return "/".join(route.removeprefix("secretsvc/").split("/")[:2])


def tell(report: Report, counts: Counter[str]) -> None:
    """Report requests a minute, in all and of each kind."""
    minutes = DRIFT_S / 60
    total = counts.total() / minutes
    assert total > 0
    for name, count in counts.most_common():
        report.tell(f"settled: {name}", f"{count / minutes:.0f} a minute", per_minute=count / minutes)
    report.goal("store requests when settled", total, _GOAL_PER_MINUTE, "a minute")
