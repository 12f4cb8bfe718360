"""A whole installation for one test: a registry, a cluster, a store, the service, and ways to talk to it.

Everything that is answered or printed is remembered in ``said``. The cluster is the session's, so a test
names its own namespaces and Secrets.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.rig.kube import KubeCluster
from tests.rig.openbao import Grant, OpenBao, bootstrapped
from tests.rig.registry import Registry
from tests.rig.service import Service

ROOT = Path(__file__).resolve().parents[2]
API = "/api/v1"
USER = "robot$pull"
_PATIENCE = 60.0


def wait_for(what: str, holds: Callable[[], object], within: float = _PATIENCE) -> None:
    """Wait until ``holds()``; fails with ``what`` when that takes longer than anything should."""
    deadline = time.monotonic() + within
    while not holds():
        assert time.monotonic() < deadline, f"gave up waiting for: {what}"
        time.sleep(0.1)


@dataclass(frozen=True)
class Heard:
    """An answer of the API."""

    status: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def body(self) -> Any:
        """The JSON in it, None when it is empty."""
        return json.loads(self.content) if self.content else None


@dataclass
class Estate:
    """One installation."""

    folder: Path
    kube: KubeCluster
    registry: Registry
    service: Service
    bao: OpenBao | None = None
    grant: Grant | None = None
    said: list[bytes] = field(default_factory=list)

    # --- The API ----------------------------------------------------------------------------------

    @property
    def token(self) -> str:
        """The admin's."""
        return self.service.token_file.read_text().strip()

    def call(
        self,
        method: str,
        path: str,
        body: object = None,
        headers: Mapping[str, str] | None = None,
        **how: Any,
    ) -> Heard:
        """Send one request; `OSError` or `http.client.HTTPException` when there is no answer.

        Args:
            method: of HTTP.
            path: below the API's prefix unless ``root`` is set.
            body: sent as JSON, bytes as they are.
            headers: beyond, or instead of, the usual ones.
            how: ``wait`` seconds for ``Prefer``, ``root`` for a path outside the API.
        """
        sent = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        if how.get("wait"):
            sent["Prefer"] = f"wait={how['wait']}"
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        connection = http.client.HTTPConnection("127.0.0.1", self.service.port, timeout=90)
        try:
            target = path if how.get("root") else API + path
            connection.request(method, target, data, sent | dict(headers or {}))
            answer = connection.getresponse()
            heard = Heard(answer.status, dict(answer.getheaders()), answer.read())
        finally:
            connection.close()
        self.said += [repr(heard.headers).encode(), heard.content]
        return heard

    def send_raw(self, data: bytes) -> Heard:
        """Send what may be no HTTP at all; what comes back must be."""
        with socket.create_connection(("127.0.0.1", self.service.port), timeout=30) as connection:
            connection.sendall(data)
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            heard = Heard(answer.status, dict(answer.getheaders()), answer.read())
        self.said += [repr(heard.headers).encode(), heard.content]
        return heard

    def ok(self, method: str, path: str, body: object = None, **how: Any) -> Any:
        """Send one request that must succeed; return its body."""
        heard = self.call(method, path, body, **how)
        assert heard.status < 400, (method, path, heard.status, heard.content, self.service.log()[-3000:])
        return heard.body

    def items(self, path: str) -> list[dict[str, Any]]:
        """Return a list of the API."""
        found: list[dict[str, Any]] = self.ok("GET", path)["items"]
        return found

    def add_registry(self, name: str = "reg1", host: str = "") -> None:
        """Describe the registry."""
        body = {
            "name": name,
            "host": host or self.registry.host,
            "insecure": True,
            "networks": ["127.0.0.0/8"],
        }
        self.ok("POST", "/registries", body)

    def register(self, name: str, value: str, **more: Any) -> Heard:
        """Register a credential at ``reg1`` and wait until it is published."""
        body = {"name": name, "registry": "reg1", "username": USER, "secret": value, **more}
        return self.call("POST", "/credentials", body, wait=30)

    def put(self, name: str, value: str, wait: int = 60) -> Heard:
        """Put a new value."""
        return self.call("PUT", f"/credentials/{name}/secret", {"secret": value}, wait=wait)

    def add_pull_secret(self, name: str, credential: str, namespaces: list[str], wait: int = 60) -> Heard:
        """Deliver to namespaces, in Secrets named as the rule."""
        body = {
            "name": name,
            "secret_name": name,
            "credentials": [credential],
            "namespaces": {"names": namespaces},
        }
        return self.call("POST", "/pull-secrets", body, wait=wait)

    def add_auth_file(self, name: str, credential: str, path: Path, wait: int = 60) -> Heard:
        """Deliver to a file."""
        body = {
            "name": name,
            "path": str(path),
            "dialect": "containers-auth",
            "credentials": [credential],
        }
        return self.call("POST", "/auth-files", body, wait=wait)

    def deliveries(self, rule: str) -> dict[str, tuple[str, str]]:
        """Return target to (state, reason) of ``pull-secrets/NAME`` or ``auth-files/NAME``."""
        return {
            row["target"].get("namespace") or row["target"]["path"]: (row["state"], row["reason"])
            for row in self.items(f"/{rule}/deliveries")
        }

    def all_synced(self, rule: str) -> bool:
        """Whether every target of a rule has what it should."""
        return {state for state, _ in self.deliveries(rule).values()} == {"synced"}

    # --- The command line -------------------------------------------------------------------------

    def cli(self, *arguments: str, value: str = "", **environ: str) -> subprocess.CompletedProcess[bytes]:
        """Run a command as its user would."""
        done = subprocess.run(
            [sys.executable, "-m", "secretsvc", *arguments],
            cwd=ROOT,
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(self.folder),
                "TMPDIR": str(self.folder / "tmp"),
                "KUBECONFIG": str(self.kube.kubeconfig),
                **self.service.client_environment,
                **environ,
            },
            input=value.encode(),
            capture_output=True,
            timeout=120,
            check=False,
        )
        self.said += [done.stdout, done.stderr]
        return done

    # --- The targets ------------------------------------------------------------------------------

    def in_namespace(self, namespace: str, secret: str) -> str:
        """Return the value that a namespace has, empty when it has none of ours."""
        found = self.kube.get_secret(namespace, secret)
        return "" if found is None else self.value_in(found["data"][".dockerconfigjson"])

    def in_file(self, path: Path) -> str:
        """Return the value that an auth file has."""
        return self.value_in(path.read_text())

    def value_in(self, document: str) -> str:
        """Return the value for our registry in a dockerconfigjson."""
        login = base64.b64decode(json.loads(document)["auths"][self.registry.host]["auth"]).decode()
        user, _, value = login.partition(":")
        assert user == USER
        return value

    # --- The processes ----------------------------------------------------------------------------

    def child(self, name: str) -> int:
        """Return the process id of the parent's child ``serve`` or ``work``, 0 when there is none."""
        below = Path(f"/proc/{self.service.pid}/task/{self.service.pid}/children").read_text().split()
        for pid in below:
            try:
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            except (FileNotFoundError, ProcessLookupError):
                continue
            if name.encode() in words and b"--with-worker" not in words:
                return int(pid)
        return 0


@contextmanager
def estate(
    folder: Path, kube: KubeCluster, store: str = "local", *, audit: Path | None = None
) -> Iterator[Estate]:
    """Start an installation on a store, ``local`` or ``vault``; OpenBao keeps an audit log if told where."""
    (folder / "tmp").mkdir(parents=True)
    environment = {"KUBECONFIG": str(kube.kubeconfig), "TMPDIR": str(folder / "tmp")}
    with ExitStack() as stack:
        bao = grant = None
        if store == "vault":
            (folder / "openbao").mkdir()
            bao = stack.enter_context(OpenBao.durable(folder / "openbao", audit=audit))
            grant = bootstrapped(bao, folder / "openbao")
            environment |= {
                "SECRETSVC_STORE": "vault",
                "SECRETSVC_VAULT_ADDR": bao.address,
                "SECRETSVC_VAULT_ROLE_ID": grant.report.role_ids["secretsvc"],
                "SECRETSVC_VAULT_SECRET_ID_FILE": str(grant.report.secret_id_files["secretsvc"]),
            }
        registry = stack.enter_context(Registry(folder / "registry"))
        service = stack.enter_context(Service(folder / "service", environment))
        yield Estate(folder, kube, registry, service, bao, grant)
