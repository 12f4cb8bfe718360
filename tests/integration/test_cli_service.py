"""Every command against a really running service, a real registry and a real API server."""

from __future__ import annotations

import base64
import json
import os
import stat
import subprocess
import sys
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from secretsvc.cli.exits import Exit
from tests.rig.kube import KubeCluster, kube
from tests.rig.registry import Registry
from tests.rig.service import Service

pytestmark = pytest.mark.rig
__all__ = ["kube"]

USER = "robot$ci"
CANARY = 'c4nary/"first"+=:val ue'
SECOND = "c4nary-second-value"


@dataclass
class Shell:
    """Runs the command line as its user would; remembers everything it ever printed."""

    service: Service
    registry: Registry
    kubeconfig: str
    said: list[str] = field(default_factory=list)

    def run(
        self, *arguments: str, value: str | None = None, **environ: str
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "secretsvc", *arguments],
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(self.service.folder),
                "KUBECONFIG": self.kubeconfig,
                **self.service.client_environment,
                **environ,
            },
            cwd=self.service.folder,
            input=value if value is not None else "",
            capture_output=True,
            text=True,
            timeout=120,
        )
        self.said += [done.stdout, done.stderr]
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def ok(self, *arguments: str, value: str | None = None) -> str:
        done = self.run(*arguments, value=value)
        assert done.returncode == Exit.OK, f"{arguments}\n{done.stdout}\n{done.stderr}\n{self.service.log()}"
        return done.stdout

    def json(self, *arguments: str) -> Any:
        return json.loads(self.ok("-o", "json", *arguments))

    def fails(self, code: Exit, *arguments: str, value: str | None = None) -> str:
        done = self.run(*arguments, value=value)
        assert done.returncode == code, f"{arguments}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def add_credential(self, name: str) -> None:
        arguments = ("--registry", "reg1", "--username", USER, "--type", "token")
        self.ok("credential", "add", name, *arguments, value=f"{CANARY}\n")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, kube: KubeCluster) -> Iterator[Shell]:
    folder = tmp_path_factory.mktemp("cli")
    with Registry(folder / "registry") as registry:
        registry.set_password(USER, CANARY)
        kubeconfig = str(kube.kubeconfig)
        with Service(folder / "service", {"KUBECONFIG": kubeconfig}) as service:
            shell = Shell(service, registry, kubeconfig)
            shell.ok("registry", "add", "reg1", registry.host, "--insecure", "--network", "127.0.0.0/8")
            shell.add_credential("prod")
            yield shell


@pytest.fixture
def shell(shared: Shell) -> Shell:
    """The shared service, with the registry's password as the stored credentials have it."""
    shared.registry.set_password(USER, CANARY)
    return shared


def login(document: str, host: str) -> str:
    return base64.b64decode(json.loads(document)["auths"][host]["auth"]).decode()


# --- Registries -----------------------------------------------------------------------------------


def test_registries_are_described_listed_changed_and_forgotten(shell: Shell) -> None:
    shell.ok(
        "registry",
        "add",
        "other",
        "registry.example.com",
        "--kind",
        "harbor",
        "--realm",
        "https://auth.example.com/",
    )
    assert shell.json("registry", "get", "other")["kind"] == "harbor"
    shell.ok("registry", "set", "other", "--probe-repository", "team/app")
    found = shell.json("registry", "get", "other")
    assert (found["probe_repository"], found["kind"], found["realms"]) == (
        "team/app",
        "harbor",
        ["https://auth.example.com/"],
    )
    assert "registry.example.com" in shell.ok("registry", "list")
    shell.fails(Exit.CONFLICT, "registry", "add", "other", "registry2.example.com")
    shell.ok("registry", "delete", "other")
    shell.fails(Exit.NOT_FOUND, "registry", "get", "other")


def test_a_registry_is_asked_without_a_login(shell: Shell) -> None:
    assert "VALID" in shell.ok("registry", "ping", "reg1")
    shell.ok("registry", "add", "gone", "127.0.0.1:9", "--insecure", "--network", "127.0.0.0/8")
    assert "UNAVAILABLE" in shell.fails(Exit.BAD_ANSWER, "registry", "ping", "gone")
    shell.ok("registry", "delete", "gone")


def test_one_in_use_is_not_deleted_and_its_users_are_named(shell: Shell) -> None:
    assert "credential/prod" in shell.fails(Exit.CONFLICT, "registry", "delete", "reg1")


# --- Credentials ----------------------------------------------------------------------------------


def test_a_wrong_value_is_refused_step_by_step_and_nothing_is_kept(shell: Shell) -> None:
    arguments = ("credential", "add", "bad", "--registry", "reg1", "--username", USER, "--type", "token")
    said = shell.fails(Exit.BAD_ANSWER, *arguments, value="c4nary-wrong\n")
    assert "/v2/: 401" in said
    assert "INVALID" in said
    assert "c4nary" not in said
    shell.fails(Exit.NOT_FOUND, "credential", "get", "bad")


def test_an_unreachable_registry_is_kept_only_when_asked_for(shell: Shell) -> None:
    shell.ok("registry", "add", "down", "127.0.0.1:9", "--insecure", "--network", "127.0.0.0/8")
    arguments = ("credential", "add", "later", "--registry", "down", "--username", "u", "--type", "password")
    assert "UNAVAILABLE" in shell.fails(Exit.REMOTE, *arguments, value="c4nary-later")
    assert "not proved" in shell.run(*arguments, "--allow-unverified", value="c4nary-later").stderr
    assert shell.json("credential", "get", "later")["state"] == "unverified"
    said = shell.fails(Exit.BAD_ANSWER, "status")
    assert "credential later is unverified" in said
    assert "    the value is kept but not proved (ConnectionFailed)" in said
    assert "    do: `secretsvc registry ping down`" in said
    shell.ok("credential", "delete", "later")
    shell.ok("registry", "delete", "down")


def test_a_registered_credential_is_shown_without_its_value(shell: Shell) -> None:
    found = shell.json("credential", "get", "prod")
    assert (found["state"], found["generation"], found["username"]) == ("active", 1, USER)
    assert "prod" in shell.ok("credential", "list", "--state", "active", "--registry", "reg1")
    assert shell.json("credential", "list", "--label", "team=none")["items"] == []
    assert "VALID" in shell.ok("credential", "validate", "prod")
    assert "register" in shell.ok("credential", "history", "prod")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("add", "Bad_Name", "--registry", "reg1", "--username", "u", "--type", "token"), Exit.USAGE),
        (("add", "x", "--registry", "nowhere", "--username", "u", "--type", "token"), Exit.USAGE),
        (("add", "x", "--registry", "reg1", "--username", "a:b", "--type", "token"), Exit.USAGE),
        (("add", "prod", "--registry", "reg1", "--username", USER, "--type", "token"), Exit.CONFLICT),
        (("add", "x", "--registry", "reg1", "--username", "u", "--type", "cookie"), Exit.USAGE),
        (("rotate", "prod"), Exit.USAGE),
        (("rollback", "nobody"), Exit.NOT_FOUND),
        (("get", "nobody"), Exit.NOT_FOUND),
    ],
)
def test_bad_input_is_a_clear_error(shell: Shell, arguments: tuple[str, ...], code: Exit) -> None:
    said = shell.fails(code, "credential", *arguments, value=CANARY)
    assert "rror" in said


def test_a_new_value_reaches_every_target_and_can_be_taken_back(shell: Shell) -> None:
    shell.add_credential("turn")
    path = shell.service.folder / "turn.json"
    shell.ok(
        "authfile", "write", "--credential", "turn", "--path", "turn.json", "--dialect", "containers-auth"
    )
    assert login(path.read_text(), shell.registry.host) == f"{USER}:{CANARY}"
    wrong = shell.fails(Exit.BAD_ANSWER, "credential", "rotate", "turn", "--manual", value="c4nary-wrong-2")
    assert "INVALID" in wrong
    assert login(path.read_text(), shell.registry.host) == f"{USER}:{CANARY}"
    shell.registry.set_password(USER, SECOND)
    shell.ok("credential", "rotate", "turn", "--manual", value=f"{SECOND}\n")
    assert login(path.read_text(), shell.registry.host) == f"{USER}:{SECOND}"
    assert shell.json("credential", "get", "turn")["generation"] == 2
    refused = shell.fails(Exit.BAD_ANSWER, "credential", "rollback", "turn")
    assert "previous" in refused
    assert "active" not in refused
    shell.registry.set_password(USER, CANARY)
    shell.ok("credential", "rollback", "turn", "--force", "--reason", "the registry was put back")
    assert login(path.read_text(), shell.registry.host) == f"{USER}:{CANARY}"
    shell.fails(Exit.CONFLICT, "credential", "delete", "turn")
    shell.ok("authfile", "delete", "./turn.json")
    assert "./turn.json" not in shell.ok("authfile", "list")
    shell.ok("credential", "delete", "turn")


def test_labels_and_the_end_of_a_credential_can_be_changed(shell: Shell) -> None:
    shell.add_credential("tagged")
    shell.ok("credential", "set", "tagged", "--label", "team=shop", "--label", "env=lab")
    shell.ok("credential", "set", "tagged", "--remove-label", "env", "--label", "team=bills")
    shell.ok("credential", "set", "tagged", "--expires-at", "2099-01-31T00:00:00Z")
    found = shell.json("credential", "get", "tagged")
    assert (found["labels"], found["expires_at"]) == ({"team": "bills"}, "2099-01-31T00:00:00Z")
    shell.ok("credential", "set", "tagged", "--expires-at", "never")
    assert shell.json("credential", "get", "tagged")["expires_at"] is None
    assert "team=bills" in shell.ok("credential", "get", "tagged")
    shell.fails(Exit.USAGE, "credential", "set", "tagged")
    shell.fails(Exit.USAGE, "credential", "set", "tagged", "--expires-at", "soon")
    shell.ok("credential", "delete", "tagged")


def test_a_change_that_makes_credentials_stale_names_them(shell: Shell) -> None:
    said = shell.run("registry", "set", "reg1", "--secure").stderr
    assert "credential prod is stale now" in said
    assert "rotate prod --manual" in said
    assert shell.run("registry", "set", "reg1", "--secure").stderr == ""
    stale = shell.ok("credential", "get", "prod")
    assert "registry reg1 (its host, realms, CA or --insecure) changed" in stale
    assert "rotate prod --manual" in stale
    assert shell.run("registry", "set", "reg1", "--insecure").stderr == ""
    assert shell.json("credential", "get", "prod")["state"] == "active"


def test_a_name_that_is_taken_and_a_missing_reason_say_what_to_do(shell: Shell) -> None:
    arguments = ("prod", "--registry", "reg1", "--username", USER, "--type", "token")
    taken = shell.fails(Exit.CONFLICT, "credential", "add", *arguments, value=CANARY)
    assert "hint: choose another name, or put a new value with `secretsvc credential rotate NAME" in taken
    shell.add_credential("back")
    shell.registry.set_password(USER, SECOND)
    shell.ok("credential", "rotate", "back", "--manual", value=SECOND)
    missing = shell.fails(Exit.USAGE, "credential", "rollback", "back", "--force")
    shell.ok("credential", "delete", "back")
    assert "  --reason TEXT: " in missing
    assert "openapi" not in missing


def test_a_wait_that_ends_says_how_far_it_got(shell: Shell, kube: KubeCluster) -> None:
    kube.create_namespace("near")
    shell.add_credential("slow")
    rule = ("pull-secret", "add", "far", "--secret-name", "far", "--credential", "slow")
    shell.fails(Exit.PARTIAL, *rule, "--namespace", "near", "--namespace", "late")
    rotate = ("credential", "rotate", "slow", "--manual", "--timeout", "2")
    shell.registry.set_password(USER, SECOND)
    said = shell.fails(Exit.TIMED_OUT, *rotate, value=SECOND)
    assert "1 of 2 targets have it after 2 s" in said
    assert "`secretsvc credential get slow` says why" in said
    [under_way, *_] = shell.json("credential", "history", "slow")["operations"]
    assert under_way["state"] not in ("succeeded", "failed", "cancelled")
    assert "under way: 1 of 2 targets have it" in shell.ok("credential", "history", "slow")
    kube.create_namespace("late")
    shell.ok("operation", "wait", under_way["id"])
    shell.ok("pull-secret", "delete", "far")
    shell.ok("credential", "delete", "slow")


# --- Targets --------------------------------------------------------------------------------------


def test_a_pull_secret_is_delivered_changed_and_removed(shell: Shell, kube: KubeCluster) -> None:
    for name in ("shop", "bills"):
        kube.create_namespace(name)
    said = shell.ok(
        *("pull-secret", "add", "apps", "--secret-name", "pull-secret", "--credential", "prod"),
        *("--namespace", "shop", "--namespace", "bills"),
    )
    assert "default/shop" in said
    found = kube.get_secret("shop", "pull-secret")
    assert found is not None
    assert login(found["data"][".dockerconfigjson"], shell.registry.host) == f"{USER}:{CANARY}"
    shell.ok("pull-secret", "set", "apps", "--remove-namespace", "bills")
    assert kube.get_secret("bills", "pull-secret") is None
    assert "shop" in shell.ok("pull-secret", "get", "apps")
    shell.ok("pull-secret", "sync", "apps")
    assert "apps" in shell.ok("pull-secret", "list")
    shell.ok("pull-secret", "delete", "apps")
    assert kube.get_secret("shop", "pull-secret") is None


def test_a_target_that_can_not_be_is_partial_with_its_reason(shell: Shell, kube: KubeCluster) -> None:
    kube.create_namespace("good")
    rule = ("pull-secret", "add", "half", "--secret-name", "half", "--credential", "prod")
    said = shell.fails(Exit.PARTIAL, *rule, "--namespace", "good", "--namespace", "nowhere")
    assert "default/nowhere" in said
    assert "1 of 2 targets" in said
    assert "targets" in shell.fails(Exit.BAD_ANSWER, "status")
    shell.ok("pull-secret", "set", "half", "--namespace", "good")
    shell.ok("pull-secret", "delete", "half")


def test_an_auth_file_keeps_what_is_not_ours_and_adds_up(shell: Shell) -> None:
    path = shell.service.folder / "auth.json"
    path.write_text('{"auths": {"quay.io": {"auth": "dTpw"}}, "mine": 1}')
    write = ("authfile", "write", "--credential", "prod", "--path", "./auth.json", "--dialect")
    shell.ok(*write, "containers-auth")
    shell.ok(*write, "containers-auth")
    found = json.loads(path.read_text())
    assert (found["auths"]["quay.io"], found["mine"]) == ({"auth": "dTpw"}, 1)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    [rule] = [item for item in shell.json("authfile", "list")["items"] if item["path"] == str(path)]
    assert shell.json("authfile", "get", rule["name"])["targets"][0]["state"] == "synced"
    shell.fails(Exit.CONFLICT, *write, "docker-config")
    shell.ok("authfile", "delete", rule["name"])
    assert json.loads(path.read_text())["auths"] == {"quay.io": {"auth": "dTpw"}}


def test_an_unparseable_auth_file_is_left_alone(shell: Shell) -> None:
    path = shell.service.folder / "broken.json"
    path.write_text("{broken")
    write = ("authfile", "write", "--credential", "prod", "--path", str(path), "--dialect", "containers-auth")
    said = shell.fails(Exit.BAD_ANSWER, *write, "--name", "broken")
    assert str(path) in said
    assert path.read_text() == "{broken"
    shell.ok("authfile", "delete", "broken")


# --- Import ---------------------------------------------------------------------------------------


def _auth_file(shell: Shell, value: str) -> str:
    auth = base64.b64encode(f"{USER}:{value}".encode()).decode()
    return json.dumps({"auths": {shell.registry.host: {"auth": auth}, "ghcr.io": {"identitytoken": "t"}}})


@pytest.mark.parametrize("source", ["file", "cluster"])
def test_logins_are_imported_each_proved(shell: Shell, kube: KubeCluster, source: str) -> None:
    where = _source(shell, kube, source, CANARY)
    listed = json.loads(shell.ok("credential", "import", *where, "-o", "json"))["items"]
    assert {row["key"]: row["result"] for row in listed} == {
        shell.registry.host: "usable",
        "ghcr.io": "unusable",
    }
    shell.fails(Exit.USAGE, "credential", "import", *where, "--all")
    shell.fails(Exit.USAGE, "credential", "import", *where, "--select", "quay.io", "--type", "token")
    name = f"from-{source}"
    chosen = ("--select", shell.registry.host, "--type", "token", "--name", name)
    assert name in shell.ok("credential", "import", *where, *chosen)
    assert shell.json("credential", "get", name)["registry"] == "reg1"
    assert "exists" in shell.fails(Exit.BAD_ANSWER, "credential", "import", *where, *chosen)
    shell.ok("credential", "delete", name)


def test_an_imported_login_that_is_refused_is_not_kept(shell: Shell, kube: KubeCluster) -> None:
    where = _source(shell, kube, "file", "c4nary-wrong-3")
    said = shell.fails(Exit.BAD_ANSWER, "credential", "import", *where, "--all", "--type", "token")
    assert "refused" in said


def test_a_file_that_is_no_auth_file_is_named(shell: Shell) -> None:
    (shell.service.folder / "notes.md").write_text("# notes")
    said = shell.fails(Exit.USAGE, "credential", "import", "--authfile", "notes.md")
    assert said.startswith("error: notes.md: ")


def _source(shell: Shell, kube: KubeCluster, source: str, value: str) -> tuple[str, str]:
    text = _auth_file(shell, value)
    if source == "file":
        (shell.service.folder / "config.json").write_text(text)
        return "--authfile", "config.json"
    kube.create_namespace("legacy")
    body = {
        "metadata": {"name": "regcred"},
        "type": "kubernetes.io/dockerconfigjson",
        "data": {".dockerconfigjson": base64.b64encode(text.encode()).decode()},
    }
    kube.create("/api/v1/namespaces/legacy/secrets", body)
    return "--k8s-secret", "legacy/regcred"


# --- Seeing and access ----------------------------------------------------------------------------


def test_status_is_the_same_in_every_format(shell: Shell) -> None:
    assert "prod" in shell.ok("status")
    found = shell.json("status")
    assert [item["name"] for item in found["credentials"]] == ["prod"]
    assert found["unhealthy"] == []
    assert "credentials:" in shell.ok("status", "-o", "yaml")


def test_doctor_is_content_with_a_working_service(shell: Shell) -> None:
    folder = shell.service.folder
    places = {
        "SECRETSVC_DATA_DIR": str(folder / "data"),
        "SECRETSVC_KEY_FILE": str(folder / "kek"),
    }
    done = shell.run("-o", "json", "doctor", **places)
    assert done.returncode == Exit.OK, done.stdout
    found = {row["check"]: row["severity"] for row in json.loads(done.stdout)["items"]}
    assert set(found.values()) == {"ok"}
    assert {"store", "key file", "API token", "cluster rights", "registry reg1"} <= set(found)


def test_doctor_names_the_rights_that_the_account_lacks(shell: Shell, kube: KubeCluster) -> None:
    rules = [{"apiGroups": [""], "resources": ["secrets", "namespaces"], "verbs": ["get", "list"]}]
    environ = {"SECRETSVC_KUBECONFIG": str(kube.user(rules)), "SECRETSVC_DATA_DIR": "/nonexistent"}
    done = shell.run("-o", "json", "doctor", "--local", **environ)
    [found] = [row for row in json.loads(done.stdout)["items"] if row["check"] == "cluster rights"]
    assert found["severity"] == "warning"
    assert "may not create, patch, delete Secrets" in found["message"]


def test_doctor_finds_a_service_that_is_away(shell: Shell) -> None:
    done = shell.run("doctor", SECRETSVC_URL="http://127.0.0.1:9", SECRETSVC_DATA_DIR="/nonexistent")
    assert done.returncode == Exit.BAD_ANSWER
    assert "nothing answers at http://127.0.0.1:9" in done.stdout


def test_tokens_are_made_used_and_ended(shell: Shell) -> None:
    token = shell.ok("token", "create", "eyes", "--role", "viewer", "--expires-in", "1h").strip()
    file = shell.service.folder / "eyes.token"
    file.write_text(token)
    viewer = {"SECRETSVC_TOKEN_FILE": str(file)}
    assert "viewer" in shell.run("whoami", **viewer).stdout
    assert shell.run("credential", "list", **viewer).returncode == Exit.OK
    assert shell.run("registry", "delete", "reg1", **viewer).returncode == Exit.FORBIDDEN
    assert "eyes" in shell.ok("token", "list")
    shell.ok("token", "revoke", "eyes")
    assert shell.run("whoami", **viewer).returncode == Exit.FORBIDDEN
    shell.said[:] = [text.replace(token, "") for text in shell.said]


def test_the_last_admin_is_not_ended_by_accident(shell: Shell) -> None:
    assert "'admin' is the last of an admin" in shell.fails(Exit.USAGE, "token", "revoke", "admin")
    token = shell.ok("token", "create", "second", "--role", "admin").strip()
    assert "you are calling with" in shell.fails(Exit.USAGE, "token", "revoke", "admin")
    file = shell.service.folder / "second.token"
    file.write_text(token)
    second = {"SECRETSVC_TOKEN_FILE": str(file)}
    assert shell.run("token", "revoke", "second", "--force", **second).returncode == Exit.OK
    refused = shell.run("whoami", **second)
    assert refused.returncode == Exit.FORBIDDEN
    assert str(file) in refused.stderr
    assert "token reset --local" in refused.stderr
    shell.said[:] = [text.replace(token, "") for text in shell.said]


def test_a_lost_admin_token_is_replaced_locally(shell: Shell) -> None:
    folder = shell.service.folder
    old = shell.service.token_file.read_text()
    places = {
        "SECRETSVC_DATA_DIR": str(folder / "data"),
        "SECRETSVC_KEY_FILE": str(folder / "kek"),
    }
    done = shell.run("token", "reset", "--local", **places)
    assert done.returncode == Exit.OK, done.stderr
    assert shell.service.token_file.read_text() != old
    assert stat.S_IMODE(shell.service.token_file.stat().st_mode) == 0o600
    assert "admin" in shell.ok("whoami")
    (folder / "old.token").write_text(old)
    assert shell.run("whoami", SECRETSVC_TOKEN_FILE=str(folder / "old.token")).returncode == Exit.FORBIDDEN


def test_an_operation_can_be_looked_at_and_waited_for(shell: Shell) -> None:
    [ended, *_] = json.loads(shell.ok("-o", "json", "credential", "history", "prod"))["operations"]
    assert "succeeded" in shell.ok("operation", "get", ended["id"])
    assert "succeeded" in shell.ok("operation", "wait", ended["id"])
    shell.fails(Exit.NOT_FOUND, "operation", "get", "nothing")


# --- Nothing leaks --------------------------------------------------------------------------------


def _forms(value: str) -> Iterator[bytes]:
    for text in (value, f"{USER}:{value}"):
        yield base64.b64encode(text.encode())
    yield from (form(value).encode() for form in _SPELLINGS)


_SPELLINGS: tuple[Callable[[str], str], ...] = (
    str,
    urllib.parse.quote,
    urllib.parse.quote_plus,
    lambda text: json.dumps(text)[1:-1],
)


def test_a_value_is_in_no_output_log_process_or_page(shell: Shell) -> None:
    shell.add_credential("leak")
    shell.registry.set_password(USER, SECOND)
    shell.ok("credential", "rotate", "leak", "--manual", value=SECOND)
    shell.ok("credential", "delete", "leak")
    service = shell.service
    places = {
        "output": "\n".join(shell.said).encode(),
        "log": service.log().encode(),
    }
    for path in (service.folder / "data").rglob("*"):
        if path.is_file():
            places[str(path)] = path.read_bytes()
    for pid in [service.pid, *service.children()]:
        for name in ("cmdline", "environ"):
            places[f"{pid}/{name}"] = Path(f"/proc/{pid}/{name}").read_bytes()
    for value in (CANARY, SECOND):
        for form in _forms(value):
            assert [place for place, content in places.items() if form in content] == []
