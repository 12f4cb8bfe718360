"""A secret id that Vault refuses: the service stays up, keeps its account, and notices the right one."""

from __future__ import annotations

import http.client
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from secretsvc.cli.exits import Exit
from tests.rig.openbao import OpenBao, bootstrapped
from tests.rig.ports import free_port
from tests.rig.service import Service

pytestmark = pytest.mark.rig

PATIENCE = 40.0
WRONG = "00000000-0000-0000-0000-000000000000"


def eventually(true: Callable[[], object], log: Path) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.1)


def readiness(port: int) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status
    except OSError:
        return 0
    finally:
        connection.close()


def test_a_start_with_a_refused_login_waits_for_the_right_one(tmp_path: Path) -> None:
    with OpenBao.dev(tmp_path) as bao:
        report = bootstrapped(bao, tmp_path).report
        secret_id = report.secret_id_files["secretsvc"]
        settings = {
            "SECRETSVC_STORE": "vault",
            "SECRETSVC_VAULT_ADDR": bao.address,
            "SECRETSVC_VAULT_ROLE_ID": report.role_ids["secretsvc"],
            "SECRETSVC_VAULT_SECRET_ID_FILE": str(secret_id),
        }
        with Service(tmp_path / "service", settings):
            pass
        right = secret_id.read_text()
        secret_id.write_text(f"{WRONG}\n")
        port = free_port()
        places = {
            "SECRETSVC_DATA_DIR": str(tmp_path / "service" / "data"),
            "SECRETSVC_LISTEN": f"127.0.0.1:{port}",
        }
        log = tmp_path / "second.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "secretsvc", "serve", "--with-worker"],
                env={"PATH": os.environ["PATH"], **settings, **places},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )
        try:
            eventually(lambda: process.poll() is not None or readiness(port) == 503, log)
            eventually(lambda: process.poll() is not None or "store.unavailable" in log.read_text(), log)
            assert process.poll() is None, log.read_text()
            assert "LoginRefused" in log.read_text()
            secret_id.write_text(right)
            eventually(lambda: readiness(port) == 200, log)
            eventually(lambda: "work.loaded" in log.read_text(), log)
            assert "child.died" not in log.read_text()
        finally:
            process.terminate()
            assert process.wait(PATIENCE) == Exit.OK
