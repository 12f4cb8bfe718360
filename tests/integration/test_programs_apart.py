"""``serve`` and ``work`` as two programs with their own logins: the web tier's stays blind."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.rig.openbao import OpenBao, bootstrapped
from tests.rig.registry import Registry
from tests.rig.service import Service

pytestmark = pytest.mark.rig

USER = "robot"


@contextmanager
def work(folder: Path, environment: dict[str, str]) -> Iterator[None]:
    """Run ``secretsvc work`` until the end of the block."""
    places = {"SECRETSVC_DATA_DIR": str(folder), "PATH": os.environ["PATH"]}
    with (folder.parent / "work.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "secretsvc", "work"], env=places | environment, stdout=log, stderr=log
        )
    try:
        yield
        assert process.poll() is None, (folder.parent / "work.log").read_text()
    finally:
        process.terminate()
        process.wait(30)


def test_serve_hands_over_what_it_can_not_read_and_work_delivers(tmp_path: Path) -> None:
    for name in ("bao", "ids"):
        (tmp_path / name).mkdir(mode=0o700)
    with OpenBao.dev(tmp_path / "bao") as bao, Registry(tmp_path / "registry") as registry:
        report = bootstrapped(bao, tmp_path / "ids").report

        def login(role: str) -> dict[str, str]:
            return {
                "SECRETSVC_STORE": "vault",
                "SECRETSVC_VAULT_ADDR": bao.address,
                "SECRETSVC_VAULT_ROLE_ID": report.role_ids[role],
                "SECRETSVC_VAULT_SECRET_ID_FILE": str(report.secret_id_files[role]),
            }

        with Service(tmp_path / "serve", login("secretsvc-serve"), ("serve",)) as service:

            def run(*arguments: str, value: str = "") -> str:
                done = subprocess.run(
                    [sys.executable, "-m", "secretsvc", *arguments],
                    env={"PATH": os.environ["PATH"], **service.client_environment},
                    input=value,
                    capture_output=True,
                    text=True,
                    timeout=120,
                    cwd=tmp_path,
                )
                assert done.returncode == 0, f"{arguments}: {done.stderr}\n{service.log()}"
                return done.stdout

            registry.set_password(USER, "one")
            run("registry", "add", "reg", registry.host, "--insecure", "--network", "127.0.0.0/8")
            add = "credential add prod --registry reg --type token --username"
            waiting = subprocess.Popen(
                [sys.executable, "-m", "secretsvc", *add.split(), USER],
                env={"PATH": os.environ["PATH"], **service.client_environment},
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            assert waiting.stdin is not None
            waiting.stdin.write("one")
            waiting.stdin.close()
            wait_for(lambda: "prod" in run("credential", "list"))
            assert waiting.poll() is None  # stored, and waiting for work, which does not run yet
            with work(tmp_path / "work", login("secretsvc-work")):
                assert waiting.wait(60) == 0
                run(
                    "authfile",
                    "write",
                    "--credential",
                    "prod",
                    "--path",
                    "auth.json",
                    "--dialect",
                    "docker-config",
                )
                assert value_in(tmp_path / "auth.json", registry.host) == f"{USER}:one"
                registry.set_password(USER, "two")
                run("credential", "rotate", "prod", "--manual", value="two")
                assert value_in(tmp_path / "auth.json", registry.host) == f"{USER}:two"
                assert json.loads(run("-o", "json", "status"))


def wait_for(met: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not met():
        assert time.monotonic() < end
        time.sleep(0.1)


def value_in(path: Path, key: str) -> str:
    return base64.b64decode(json.loads(path.read_text())["auths"][key]["auth"]).decode()
