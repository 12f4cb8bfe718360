"""How `delivery.kubeapi` finds a cluster and logs in, on a real kube-apiserver."""

from __future__ import annotations

import asyncio
import base64
import json
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from secretsvc.core.errors import ConfigurationError, TargetForbidden, TargetUnreachable
from secretsvc.delivery.kubeapi import KubeApi, PodAccount, connect
from tests.rig.kube import KubeCluster, free_port

pytestmark = pytest.mark.rig

T = TypeVar("T")
_WHO = "/apis/authentication.k8s.io/v1/selfsubjectreviews"


async def username(api: KubeApi) -> str:
    """Ask the server who we are."""
    _, answer = await api.request("POST", _WHO, about="ourselves", body={"spec": {}})
    name: str = answer["status"]["userInfo"]["username"]
    return name


def talk(api: KubeApi, conversation: Callable[[KubeApi], Awaitable[T]]) -> T:
    async def run() -> T:
        try:
            return await conversation(api)
        finally:
            await api.close()

    return asyncio.run(run())


def who(kubeconfig: Path | None, context: str | None = None, **options: Any) -> str:
    return talk(connect("default", kubeconfig, context, **options), username)


def certificate_of(kube: KubeCluster, user: str, group: str = "") -> dict[str, str]:
    certificate, key = kube.ca.issue(user, group)
    return {"client-certificate": str(certificate), "client-key": str(key)}


def rewritten(kubeconfig: Path, path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Write a changed copy of a kubeconfig to ``path``."""
    document = json.loads(kubeconfig.read_text())
    change(document)
    path.write_text(json.dumps(document))
    return path


def cluster_entry(**entries: object) -> Callable[[dict[str, Any]], None]:
    return lambda document: document["clusters"][0]["cluster"].update(entries)


@pytest.fixture
def token(kube: KubeCluster) -> str:
    return kube.service_account_token("default")


SERVICE_ACCOUNT = "system:serviceaccount:default:default"

# --- Kubeconfigs ---


def test_the_current_context_or_the_named_one_is_used(kube: KubeCluster) -> None:
    users = {name: certificate_of(kube, name) for name in ("anna", "bert", "carl")}
    path = kube.write_kubeconfig("contexts", users, current="bert")
    assert who(path) == "bert"
    assert who(path, "carl") == "carl"


def test_inline_certificates_work_and_leave_no_key_file_behind(
    kube: KubeCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def inline(document: dict[str, Any]) -> None:
        for entry in (document["clusters"][0]["cluster"], document["users"][0]["user"]):
            for key in [key for key in entry if key != "server"]:
                entry[f"{key}-data"] = base64.b64encode(Path(entry.pop(key)).read_bytes()).decode()

    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    kubeconfig = rewritten(
        kube.write_kubeconfig("inline", {"dora": certificate_of(kube, "dora")}), tmp_path / "k", inline
    )
    for _ in range(2):  # the official loader remembers the files it has written
        assert who(kubeconfig) == "dora"
        assert list(scratch.iterdir()) == []


def test_a_token_is_used(kube: KubeCluster, token: str) -> None:
    assert who(kube.write_kubeconfig("token", {"sa": {"token": token}})) == SERVICE_ACCOUNT


def test_several_files_are_merged_as_kubectl_does(kube: KubeCluster, tmp_path: Path) -> None:
    first = kube.write_kubeconfig("merged-1", {"emil": certificate_of(kube, "emil")})
    second = kube.write_kubeconfig("merged-2", {"fritz": certificate_of(kube, "fritz")})
    joined = Path(f"{first}:{tmp_path / 'absent'}:{second}")
    assert who(joined, "emil") == "emil"
    assert who(joined, "fritz") == "fritz"


@pytest.fixture
def other_token(kube: KubeCluster) -> str:
    """The token of another service account than `token`'s."""
    return kube.service_account_token("kube-public")


OTHER_ACCOUNT = "system:serviceaccount:kube-public:default"


def talk_over_minutes(api: KubeApi, *between: Callable[[], object]) -> list[str]:
    """Ask who we are; then again after each step, with a minute gone by on the event loop's clock."""

    async def ask(api: KubeApi) -> list[str]:
        loop = asyncio.get_running_loop()
        started, minutes = loop.time, 0
        loop.time = lambda: started() + 61 * minutes  # type: ignore[method-assign]
        names = [await username(api)]
        for step in between:
            step()
            names.append(await username(api))
            minutes += 1
            names.append(await username(api))
        return names

    return talk(api, ask)


def test_a_rotated_token_file_is_read_again_within_a_minute(
    kube: KubeCluster, token: str, other_token: str, tmp_path: Path
) -> None:
    token_file = tmp_path / "token"
    token_file.write_text(f"{token}\n")
    api = connect("default", kube.write_kubeconfig("file", {"sa": {"tokenFile": str(token_file)}}), None)
    names = talk_over_minutes(api, lambda: token_file.write_text(f"{other_token}\n"))
    assert names == [SERVICE_ACCOUNT, SERVICE_ACCOUNT, OTHER_ACCOUNT]


def test_a_refused_token_is_read_again_at_once(kube: KubeCluster, token: str, tmp_path: Path) -> None:
    token_file = tmp_path / "token"
    token_file.write_text("expired\n")
    api = connect("default", kube.write_kubeconfig("file", {"sa": {"tokenFile": str(token_file)}}), None)

    async def rotate(api: KubeApi) -> str:
        with pytest.raises(TargetForbidden):
            await username(api)
        token_file.write_text(token)
        return await username(api)

    assert talk(api, rotate) == SERVICE_ACCOUNT


def test_a_renewed_client_certificate_is_picked_up(kube: KubeCluster, tmp_path: Path) -> None:
    users = {"user": certificate_of(kube, "fred")}
    kubeconfig = rewritten(kube.write_kubeconfig("renewed", users), tmp_path / "k", lambda _: None)
    renewed = certificate_of(kube, "gerd")

    def renew() -> None:
        rewritten(kubeconfig, kubeconfig, lambda document: document["users"][0].update(user=renewed))

    names = talk_over_minutes(connect("default", kubeconfig, None), renew)
    assert names == ["fred", "fred", "gerd"]


def test_a_broken_reload_keeps_the_last_login(kube: KubeCluster, token: str, tmp_path: Path) -> None:
    users = {"sa": {"token": token}}
    kubeconfig = rewritten(kube.write_kubeconfig("broken", users), tmp_path / "k", lambda _: None)
    api = connect("default", kubeconfig, None)
    names = talk_over_minutes(api, lambda: kubeconfig.write_text("{"), kubeconfig.unlink)
    assert names == [SERVICE_ACCOUNT] * 5


def test_a_refused_login_is_told_as_such(kube: KubeCluster) -> None:
    path = kube.write_kubeconfig("refused", {"sa": {"token": "canary-token"}})
    with pytest.raises(TargetForbidden, match="login is not accepted") as caught:
        who(path)
    assert caught.value.code == "LoginRefused"
    assert "canary" not in f"{caught.value}{caught.value.hint}"


# --- Login plugins ---


def plugin(kube: KubeCluster, tmp_path: Path, program: str) -> Path:
    """Return a kubeconfig whose user comes from a Python program, which also counts its runs."""
    script = tmp_path / "plugin.py"
    script.write_text(f"open({str(tmp_path / 'runs')!r}, 'a').write('x')\n{program}\n")
    command = {"apiVersion": "client.authentication.k8s.io/v1", "command": sys.executable}
    return kube.write_kubeconfig("plugin", {"p": {"exec": {**command, "args": [str(script)]}}})


def runs(tmp_path: Path) -> int:
    path = tmp_path / "runs"
    return len(path.read_text()) if path.exists() else 0


def credential(**status: str) -> str:
    document = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "kind": "ExecCredential",
        "status": status,
    }
    return f"print({json.dumps(document)!r})"


def test_a_plugin_gives_the_token_and_is_asked_once(kube: KubeCluster, token: str, tmp_path: Path) -> None:
    api = connect("default", plugin(kube, tmp_path, credential(token=token)), None)
    assert runs(tmp_path) == 0

    async def twice(api: KubeApi) -> list[str]:
        return [await username(api), await username(api)]

    assert talk(api, twice) == [SERVICE_ACCOUNT] * 2
    assert runs(tmp_path) == 1


def test_a_plugin_can_give_a_certificate(kube: KubeCluster, tmp_path: Path) -> None:
    certificate, key = kube.ca.issue("hanna")
    program = credential(clientCertificateData=certificate.read_text(), clientKeyData=key.read_text())
    assert who(plugin(kube, tmp_path, program)) == "hanna"


def test_a_refused_plugin_token_makes_the_plugin_run_again(
    kube: KubeCluster, token: str, tmp_path: Path
) -> None:
    (tmp_path / "runs").touch()
    program = f"first = len(open({str(tmp_path / 'runs')!r}).read()) == 1\n"
    program += f"if first: {credential(token='expired')}\nelse: {credential(token=token)}"
    assert who(plugin(kube, tmp_path, program)) == SERVICE_ACCOUNT
    assert runs(tmp_path) == 2


def test_a_failing_plugin_is_an_unreachable_cluster_not_a_crash(kube: KubeCluster, tmp_path: Path) -> None:
    api = connect("default", plugin(kube, tmp_path, "raise SystemExit('canary-stderr')"), None)
    with pytest.raises(TargetUnreachable, match="login plugin") as caught:
        talk(api, username)
    assert "canary" not in str(caught.value)


# --- The pod's service account ---


def pod(kube: KubeCluster, folder: Path, token: str) -> PodAccount:
    """Lay out a service account as a pod has it: files, and two environment variables."""
    folder.mkdir(exist_ok=True)
    (folder / "token").write_text(token)
    (folder / "ca.crt").write_bytes(kube.ca.path.read_bytes())
    environ = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(kube.port)}
    return PodAccount(folder / "token", folder / "ca.crt", environ)


def test_without_a_kubeconfig_the_pods_account_is_used(kube: KubeCluster, token: str, tmp_path: Path) -> None:
    assert who(None, account=pod(kube, tmp_path, token)) == SERVICE_ACCOUNT


def test_the_pods_rotated_token_is_read_again(
    kube: KubeCluster, token: str, other_token: str, tmp_path: Path
) -> None:
    api = connect("default", None, None, account=pod(kube, tmp_path, f"{token}\n"))
    names = talk_over_minutes(api, lambda: pod(kube, tmp_path, other_token))
    assert names == [SERVICE_ACCOUNT, SERVICE_ACCOUNT, OTHER_ACCOUNT]


def test_outside_a_pod_the_error_says_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="not a pod") as caught:
        connect("default", None, None, account=PodAccount(tmp_path / "token", tmp_path / "ca.crt", {}))
    assert "SECRETSVC_KUBECONFIG" in caught.value.hint


# --- What is wrong with a kubeconfig ---


def test_a_missing_file_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no such file") as caught:
        connect("prod", tmp_path / "absent", None)
    assert "prod" in str(caught.value)
    assert caught.value.hint


def test_an_unknown_context_names_the_known_ones(kube: KubeCluster) -> None:
    path = kube.write_kubeconfig("known", {"left": {"token": "x"}, "right": {"token": "x"}})
    with pytest.raises(ConfigurationError, match="no context middle; it has left, right"):
        connect("default", path, "middle")


def broken(kube: KubeCluster, path: Path, change: Callable[[dict[str, Any]], None]) -> str:
    """Return the error that a changed kubeconfig gives."""
    base = kube.write_kubeconfig("base", {"sa": {"token": "canary-token"}})
    with pytest.raises(ConfigurationError) as caught:
        connect("default", rewritten(base, path, change), None)
    chain = [caught.value, caught.value.__cause__]
    assert "canary" not in " ".join(map(str, chain)) + caught.value.hint
    return str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.update({"current-context": ""}), "no current context"),
        (lambda d: d.update({"users": []}), "does not define"),
        (lambda d: d.update({"clusters": []}), "does not define"),
        (lambda d: d.update({"contexts": [{"name": "sa", "token": "canary-token"}]}), "does not define"),
        (lambda d: d["users"][0].update(user=None), "does not define"),
        (cluster_entry(server="http://203.0.113.7:6443"), "can not be used"),
        (cluster_entry(server="https://u:canary-token@127.0.0.1"), "can not be used"),
        (cluster_entry(server="127.0.0.1:6443"), "can not be used"),
        (cluster_entry(**{"certificate-authority": "/absent/ca.crt"}), "can not be used"),
        (cluster_entry(**{"certificate-authority-data": "canary-token"}), "can not be used"),
    ],
)
def test_an_unusable_kubeconfig_is_refused_without_quoting_it(
    kube: KubeCluster, tmp_path: Path, change: Callable[[dict[str, Any]], None], words: str
) -> None:
    assert words in broken(kube, tmp_path / "k", change)


@pytest.mark.parametrize("text", ["", "- a", "x: [canary-token", '"canary-token"', "\x00"])
def test_a_file_that_is_no_kubeconfig_is_refused_without_quoting_it(tmp_path: Path, text: str) -> None:
    path = tmp_path / "k"
    path.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        connect("default", path, None)
    assert "canary" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_an_encrypted_client_key_is_refused_without_asking_for_its_password(
    kube: KubeCluster, tmp_path: Path
) -> None:
    encrypted = tmp_path / "key"
    encrypted.write_text(
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\n"
        "MIHsMFcGCSqGSIb3DQEFDTBKMCkGCSqGSIb3DQEFDDAcBAj5X6mbL1Y5SwICCAAw\n"
        "DAYIKoZIhvcNAgkFADAdBglghkgBZQMEASoEEJ7oXJr1sqq1Ndt7ZvBgCWoEgZBq\n"
        "-----END ENCRYPTED PRIVATE KEY-----\n"
    )
    user = {**certificate_of(kube, "ida"), "client-key": str(encrypted)}
    with pytest.raises(ConfigurationError):
        connect("default", kube.write_kubeconfig("encrypted", {"ida": user}), None)


# --- TLS and proxies ---


def test_another_ca_is_a_tls_error(kube: KubeCluster, tmp_path: Path) -> None:
    other = KubeCluster(tmp_path)  # not started: only its CA is used
    change = cluster_entry(**{"certificate-authority": str(other.ca.path)})
    kubeconfig = rewritten(kube.kubeconfig, tmp_path / "k", change)
    with pytest.raises(TargetUnreachable) as caught:
        who(kubeconfig)
    assert caught.value.code == "TlsError"


@pytest.mark.parametrize(("expected", "works"), [("localhost", True), ("other.example", False)])
def test_the_kubeconfigs_server_name_is_what_the_certificate_must_have(
    kube: KubeCluster, tmp_path: Path, *, expected: str, works: bool
) -> None:
    kubeconfig = rewritten(kube.kubeconfig, tmp_path / "k", cluster_entry(**{"tls-server-name": expected}))
    if works:
        assert who(kubeconfig) == "rig-admin"
    else:
        with pytest.raises(TargetUnreachable) as caught:
            who(kubeconfig)
        assert caught.value.code == "TlsError"


def test_skipped_verification_is_allowed_and_told(kube: KubeCluster, tmp_path: Path) -> None:
    def skip(document: dict[str, Any]) -> None:
        entry = document["clusters"][0]["cluster"]
        del entry["certificate-authority"]
        entry["insecure-skip-tls-verify"] = True

    api = connect("default", rewritten(kube.kubeconfig, tmp_path / "k", skip), None)
    assert not api.verifies_server
    assert talk(api, username) == "rig-admin"
    assert connect("default", kube.kubeconfig, None).verifies_server


def test_proxies_of_the_environment_are_not_used_but_the_kubeconfigs_is(
    kube: KubeCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, nowhere)
    assert who(kube.kubeconfig) == "rig-admin"
    kubeconfig = rewritten(kube.kubeconfig, tmp_path / "k", cluster_entry(**{"proxy-url": nowhere}))
    with pytest.raises(TargetUnreachable):
        who(kubeconfig)
