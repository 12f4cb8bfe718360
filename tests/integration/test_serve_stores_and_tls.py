"""The service on Vault, prepared by its own command, and over TLS; the command line follows."""

from __future__ import annotations

import json
import os
import ssl
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from secretsvc.cli import vault as cli_vault
from secretsvc.cli.exits import Exit
from secretsvc.store import bootstrap
from tests.rig.kube import CertificateAuthority
from tests.rig.openbao import OpenBao
from tests.rig.service import Service

pytestmark = pytest.mark.rig


def run(*arguments: str, value: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "secretsvc", *arguments],
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", **environ},
        input=value,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_vault_is_prepared_and_then_all_the_configuration_it_takes(tmp_path: Path) -> None:
    with OpenBao.dev(tmp_path) as bao:
        ids = tmp_path / "ids"
        ids.mkdir(mode=0o700)
        command = ("-o", "json", "vault", "bootstrap", "--address", bao.address, "--secret-id-dir", str(ids))
        done = run(*command, value=f"{bao.root_token}\n")
        assert done.returncode == Exit.OK, done.stderr
        assert bao.root_token not in done.stdout + done.stderr
        found = json.loads(done.stdout)
        assert list(found["secret_id_files"]) == ["secretsvc"]
        secret_id = Path(found["secret_id_files"]["secretsvc"])
        assert stat.S_IMODE(secret_id.stat().st_mode) == 0o600
        more = run(*command, "--role", "secretsvc-work", value=bao.root_token)
        assert list(json.loads(more.stdout)["secret_id_files"]) == ["secretsvc-work"]
        nowhere = run("vault", "bootstrap", "--address", bao.address, "--role", "secretsvc-work", value="x")
        assert nowhere.returncode == Exit.USAGE, nowhere.stderr
        again = run("-o", "json", "vault", "bootstrap", "--address", bao.address, value=bao.root_token)
        assert json.loads(again.stdout)["role_ids"] == found["role_ids"]
        denied = run("vault", "bootstrap", "--address", bao.address, value="s.wrong")
        assert denied.returncode == Exit.FORBIDDEN, denied.stderr
        settings = {
            "SECRETSVC_STORE": "vault",
            "SECRETSVC_VAULT_ADDR": bao.address,
            "SECRETSVC_VAULT_ROLE_ID": found["role_ids"]["secretsvc"],
            "SECRETSVC_VAULT_SECRET_ID_FILE": str(secret_id),
        }
        with Service(tmp_path / "service", settings) as service:
            assert run("whoami", **service.client_environment).returncode == Exit.OK
            assert not (service.folder / "kek").exists()
            assert not (service.folder / "data" / "secretsvc.db").exists()


def test_a_secret_id_can_be_asked_for_every_role_and_no_other() -> None:
    assert set(cli_vault.ROLES) == set(bootstrap.ROLES)


def test_the_admin_token_of_another_store_is_not_overwritten(tmp_path: Path) -> None:
    with Service(tmp_path, {}) as service:
        token = service.token_file.read_text()
    (service.folder / "data" / "secretsvc.db").rename(tmp_path / "other.db")
    done = run(
        "serve",
        "--with-worker",
        SECRETSVC_DATA_DIR=str(service.folder / "data"),
        SECRETSVC_KEY_FILE=str(service.folder / "kek"),
        SECRETSVC_LISTEN=f"127.0.0.1:{service.port}",
    )
    assert done.returncode == Exit.USAGE, done.stderr
    assert "another store" in done.stderr
    assert service.token_file.read_text() == token


def test_a_vault_that_is_away_at_the_first_start_is_a_clear_error(tmp_path: Path) -> None:
    secret_id = tmp_path / "secret-id"
    secret_id.write_text("x")
    secret_id.chmod(0o600)
    done = run(
        "serve",
        "--with-worker",
        SECRETSVC_STORE="vault",
        SECRETSVC_VAULT_ADDR="http://127.0.0.1:9",
        SECRETSVC_VAULT_ROLE_ID="x",
        SECRETSVC_VAULT_SECRET_ID_FILE=str(secret_id),
        SECRETSVC_DATA_DIR=str(tmp_path / "data"),
        SECRETSVC_LISTEN=f"127.0.0.1:{Service(tmp_path, {}).port}",
    )
    assert done.returncode == Exit.REMOTE, done.stderr
    assert "hint:" in done.stderr


def test_https_and_a_ca_of_ones_own(tmp_path: Path) -> None:
    certificate, key = CertificateAuthority(tmp_path).issue("serve", server=True)
    ca = str(tmp_path / "ca.crt")
    port = Service(tmp_path, {}).port
    places = {
        "SECRETSVC_DATA_DIR": str(tmp_path / "data"),
        "SECRETSVC_KEY_FILE": str(tmp_path / "kek"),
        "SECRETSVC_LISTEN": f"127.0.0.1:{port}",
        "SECRETSVC_TLS_CERT": str(certificate),
        "SECRETSVC_TLS_KEY": str(key),
    }
    log = tmp_path / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "secretsvc", "serve", "--with-worker"],
            env={"PATH": os.environ["PATH"], **places},
            stdout=out,
            stderr=out,
        )
    try:
        end = time.monotonic() + 40
        while "is ready at" not in log.read_text():
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.1)
        client = {
            "SECRETSVC_URL": f"https://127.0.0.1:{port}",
            "SECRETSVC_TOKEN_FILE": str(tmp_path / "data" / "admin.token"),
        }
        untrusted = run("whoami", **client)
        assert untrusted.returncode == Exit.REMOTE
        assert "--cacert" in untrusted.stderr
        assert run("--cacert", ca, "whoami", **client).returncode == Exit.OK
        with pytest.raises(ssl.SSLError):
            _connect_with_tls_1_1(port)
    finally:
        process.terminate()
        process.wait(40)


def _connect_with_tls_1_1(port: int) -> None:
    import socket
    import warnings

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with socket.create_connection(("127.0.0.1", port)) as plain, context.wrap_socket(plain):
        pass
