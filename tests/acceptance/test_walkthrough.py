"""The README's walk-through, executed line by line on both stores against real servers."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rig.__main__ import NAMESPACES, USER, servers
from tests.rig.service import Service

ROOT = Path(__file__).resolve().parents[2]
_PART = re.compile(r"<!-- walk-through.*?-->(.*)<!-- end of walk-through -->", re.DOTALL)
_BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.DOTALL | re.MULTILINE)

pytestmark = pytest.mark.rig


def walk_through() -> list[str]:
    part = _PART.search((ROOT / "README.md").read_text())
    assert part is not None
    blocks = _BLOCK.findall(part[1])
    assert len(blocks) >= 5
    return blocks


def without_refusals(block: str) -> tuple[str, list[str]]:
    """Part a block's lines that start with ``!`` from it: bash does not look at their status under ``-e``."""
    lines = block.splitlines()
    refused = [line.removeprefix("! ") for line in lines if line.startswith("! ")]
    return "\n".join(line for line in lines if not line.startswith("! ")), refused


@pytest.fixture(params=["local", "vault"])
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[dict[str, str], Service]]:
    """The servers of `make rig`, and a service on the store under test."""
    with servers(tmp_path / "rig") as found:
        environment = {"KUBECONFIG": found["KUBECONFIG"]}
        if request.param == "vault":
            environment |= {
                "SECRETSVC_STORE": "vault",
                "SECRETSVC_VAULT_ADDR": found["BAO_ADDRESS"],
                "SECRETSVC_VAULT_ROLE_ID": found["BAO_ROLE_ID"],
                "SECRETSVC_VAULT_SECRET_ID_FILE": found["BAO_SECRET_ID_FILE"],
            }
        with Service(tmp_path / "service", environment) as service:
            yield found, service


def test_the_walk_through(rig: tuple[dict[str, str], Service], tmp_path: Path) -> None:
    found, service = rig
    place = tmp_path / "place"
    place.mkdir()
    (place / "tests").symlink_to(ROOT / "tests")
    environment = {
        **found,
        **service.client_environment,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(place),
        "PYTHONPATH": str(ROOT),
    }
    for block in walk_through():
        steps, refused = without_refusals(block)
        for step in refused:
            answer = subprocess.run(
                ["bash", "-c", step], cwd=place, env=environment, capture_output=True, text=True
            )
            assert answer.returncode == 1, f"{step}\n{answer.stderr}"
            assert "INVALID" in answer.stdout + answer.stderr
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", steps],
            cwd=place,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"{block}\n--- said\n{done.stdout}\n{done.stderr}\n{service.log()}"
    assert_followed(found, environment, place)


def assert_followed(found: dict[str, str], environment: dict[str, str], place: Path) -> None:
    """Every target has the second value, and none the first."""
    first, second = (Path(found[name]).read_text().strip() for name in ("FIRST", "SECOND"))
    documents = [json.loads((place / "auth.json").read_text())]
    for namespace in NAMESPACES:
        answer = subprocess.run(
            ["kubectl", "get", "secret", "pull-secret", "-n", namespace, "-o", "json"],
            env=environment,
            capture_output=True,
            check=True,
        )
        data = json.loads(answer.stdout)["data"][".dockerconfigjson"]
        documents.append(json.loads(base64.b64decode(data)))
    for document in documents:
        login = base64.b64decode(document["auths"][found["REGISTRY"]]["auth"]).decode()
        assert login == f"{USER}:{second}"
        assert first not in login
