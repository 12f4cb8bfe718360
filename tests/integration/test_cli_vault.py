"""Vault at the command line: what bootstrap ends with, and what doctor says of a sealed server."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from secretsvc.cli.exits import Exit
from tests.rig.openbao import OpenBao

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


def exported(text: str) -> dict[str, str]:
    """Return the settings that a shell would have after pasting the last lines of an output."""
    lines = [shlex.split(line)[1] for line in text.splitlines() if line.startswith("  export ")]
    return dict(line.split("=", 1) for line in lines)


def test_bootstrap_ends_with_settings_that_work_and_doctor_knows_a_sealed_server(tmp_path: Path) -> None:
    with OpenBao.durable(tmp_path) as bao:
        ids = tmp_path / "ids"
        bare = run("vault", "bootstrap", "--address", bao.address, value=bao.root_token)
        assert "made with --secret-id-dir DIR" in bare.stdout
        made = run(
            *("vault", "bootstrap", "--address", bao.address, "--secret-id-dir", str(ids)),
            value=bao.root_token,
        )
        assert made.returncode == Exit.OK, made.stderr
        before, _, after = made.stdout.partition("next, for `secretsvc serve --with-worker`:")
        path = str(ids / "secretsvc.secret-id")
        assert len(re.findall(re.escape(path), before)) == 1
        settings = exported(after)
        assert settings["SECRETSVC_VAULT_SECRET_ID_FILE"] == path
        places = {"SECRETSVC_DATA_DIR": str(tmp_path / "data"), **settings}
        (tmp_path / "data").mkdir(mode=0o700)
        store = _store(run("doctor", "--local", "-o", "json", **places))
        assert store["severity"] == "ok"
        bao.seal()
        store = _store(run("doctor", "--local", "-o", "json", **places))
        assert store["severity"] == "error"
        assert "sealed" in store["message"]
        assert "bao operator unseal" in store["hint"]


def _store(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    found: dict[str, str] = next(row for row in json.loads(done.stdout)["items"] if row["check"] == "store")
    return found
