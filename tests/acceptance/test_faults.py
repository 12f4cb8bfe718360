"""What the service depends on goes away, comes back, or is not as it must be (promises P18 and P24).

Nothing that was delivered is blanked, every answer says what to do, nothing is half-written, and when the
fault is gone it goes on by itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from secretsvc.cli.exits import Exit
from tests.acceptance.estate import ROOT, USER, Estate, Heard, estate, wait_for
from tests.rig.kube import KubeCluster
from tests.rig.service import Service

pytestmark = [pytest.mark.rig, pytest.mark.timeout(300)]

FIRST, SECOND, THIRD = "first-value", "second-value", "third-value"
LONG = 120.0
"""Longer than any pause between two tries."""


def opened(place: Estate) -> Estate:
    """Register the first value."""
    place.registry.set_password(USER, FIRST)
    place.add_registry()
    assert place.register("prod", FIRST).status == 201
    return place


def delivered(place: Estate, namespaces: list[str]) -> Path:
    """Deliver to namespaces and a file, and return the file."""
    path = place.folder / "auth.json"
    place.add_pull_secret(namespaces[0], "prod", namespaces)
    place.add_auth_file("file", "prod", path)
    assert place.all_synced(f"pull-secrets/{namespaces[0]}")
    assert place.in_file(path) == FIRST
    return path


def put_second(place: Estate, wait: int = 60) -> Heard:
    place.registry.set_password(USER, SECOND)
    return place.put("prod", SECOND, wait)


def assert_problem(heard: Heard, status: int) -> dict[str, Any]:
    """The answer is an error that says what to do, and whether to repeat it."""
    assert heard.status == status, heard.content
    assert heard.headers["Content-Type"] == "application/problem+json"
    problem: dict[str, Any] = heard.body
    assert problem["hint"]
    assert problem["retryable"] is (status == 503)
    return problem


# --- The store is sealed --------------------------------------------------------------------------


def test_a_sealed_vault_changes_nothing_and_afterwards_it_goes_on(tmp_path: Path, kube: KubeCluster) -> None:
    namespaces = [kube.create_namespace(f"sealed-{number}") for number in range(2)]
    with estate(tmp_path / "estate", kube, "vault") as place:
        path = delivered(opened(place), namespaces)
        before = targets(place, namespaces, path)
        assert place.bao is not None
        place.bao.seal()
        assert "sealed" in assert_problem(place.call("GET", "/credentials/prod"), 503)["detail"]
        assert_problem(put_second(place), 503)
        assert_problem(place.call("GET", "/readyz", root=True), 503)
        assert place.call("GET", "/livez", root=True).status == 200
        assert place.cli("status").returncode == Exit.REMOTE
        place.kube.ask("DELETE", f"/api/v1/namespaces/{namespaces[1]}/secrets/{namespaces[0]}")
        os.kill(place.child("work"), signal.SIGKILL)
        wait_for("work to find it sealed", lambda: "store.unavailable" in place.service.log())
        assert targets(place, namespaces[:1], path) == before[:1] + before[2:]
        place.bao.unseal()
        wait_for("the API", lambda: place.call("GET", "/readyz", root=True).status == 200)
        wait_for("a new value to be taken", lambda: put_second(place).status in (200, 202))
        wait_for("all to follow", lambda: holds(place, namespaces, path, SECOND), LONG)
        assert [row["number"] for row in place.items("/credentials/prod/generations")][-1] == 1
        wait_for("the list to know", lambda: listed(place, "prod")["deliveries"]["synced"] == 3)


def targets(place: Estate, namespaces: list[str], path: Path) -> list[str]:
    """Return what tells whether a target was written to."""
    found = [place.kube.get_secret(name, namespaces[0]) for name in namespaces]
    versions = [one["metadata"]["resourceVersion"] for one in found if one is not None]
    return [*versions, path.read_text()]


def holds(place: Estate, namespaces: list[str], path: Path, value: str) -> bool:
    held = {place.in_namespace(name, namespaces[0]) for name in namespaces} | {place.in_file(path)}
    return held == {value}


# --- The API server is away -----------------------------------------------------------------------


def test_a_cluster_that_is_away_holds_nothing_else_up(tmp_path: Path, kube: KubeCluster) -> None:
    namespaces = [kube.create_namespace(f"away-{number}") for number in range(2)]
    with estate(tmp_path / "estate", kube) as place:
        path = delivered(opened(place), namespaces)
        kube.stop_apiserver()
        try:
            assert place.register("other", FIRST).status == 201
            other = place.folder / "other.json"
            place.add_auth_file("other", "other", other)
            assert place.in_file(other) == FIRST
            assert put_second(place, 0).status == 202
            wait_for("the file to follow", lambda: place.in_file(path) == SECOND)
            rule = f"pull-secrets/{namespaces[0]}"
            wait_for(
                "the reason to be told",
                lambda: {state for state, _ in place.deliveries(rule).values()} == {"failed"},
            )
            done = place.cli("status")
            assert done.returncode == Exit.BAD_ANSWER
            assert b"Connection refused" in done.stdout
        finally:
            kube.start_apiserver()
        wait_for("all to follow", lambda: holds(place, namespaces, path, SECOND), LONG)
        wait_for("the operation to end", lambda: place.ok("GET", "/credentials/prod")["operation"] is None)


# --- The registry is away, and what is in the way of namespaces -----------------------------------


def test_a_registry_that_is_away_is_not_a_wrong_password(tmp_path: Path, kube: KubeCluster) -> None:
    namespace = kube.create_namespace("no-registry")
    with estate(tmp_path / "estate", kube) as place:
        path = delivered(opened(place), [namespace])
        before = targets(place, [namespace], path)
        place.registry.stop()
        refused = place.call("POST", "/credentials", credential("late"))
        assert assert_problem(refused, 503)["verdict"]["outcome"] == "UNAVAILABLE"
        assert place.call("GET", "/credentials/late").status == 404
        assert_problem(place.put("prod", SECOND), 503)
        place.ok("POST", "/credentials/prod/validate", wait=30)
        assert place.ok("GET", "/credentials/prod")["state"] == "active"
        kept = place.call("POST", "/credentials", credential("late", allow_unverified=True))
        assert (kept.status, kept.body["state"]) == (201, "unverified")
        late = place.folder / "late.json"
        place.add_auth_file("late", "late", late)
        assert not late.exists()
        assert place.deliveries("auth-files/late") == {str(late): ("pending", "CredentialNotReady")}
        assert targets(place, [namespace], path) == before
        place.registry.start()
        wait_for("it to be proved", lambda: place.ok("GET", "/credentials/late")["state"] == "active", LONG)
        wait_for("it to be delivered", lambda: late.exists() and place.in_file(late) == FIRST)


def credential(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "registry": "reg1", "username": USER, "secret": FIRST, **more}


def test_what_is_in_the_way_of_a_namespace_is_told_and_heals(tmp_path: Path, kube: KubeCluster) -> None:
    good, taken, ending = (kube.create_namespace(f"way-{name}") for name in ("good", "taken", "ending"))
    absent = "way-absent"
    by_hand = kube.create_secret(taken, good, {"a": "by hand"})
    finalizer = {"name": "stays", "finalizers": ["rig.example.com/stays"]}
    kube.create(f"/api/v1/namespaces/{ending}/configmaps", {"metadata": finalizer})
    kube.delete_namespace(ending)
    with estate(tmp_path / "estate", kube) as place:
        opened(place).add_pull_secret(good, "prod", [good, taken, ending, absent])
        rule = f"pull-secrets/{good}"
        found = place.deliveries(rule)
        assert found[good] == ("synced", "InSync")
        assert {name: found[name][0] for name in (taken, ending, absent)} == {
            taken: "conflict",
            ending: "pending",
            absent: "pending",
        }
        assert all(row["message"] for row in place.items(f"/{rule}/deliveries"))
        now = kube.get_secret(taken, good)
        assert now is not None
        assert now["metadata"]["resourceVersion"] == by_hand["metadata"]["resourceVersion"]
        kube.ask("DELETE", f"/api/v1/namespaces/{taken}/secrets/{good}")
        kube.create_namespace(absent)
        kube.patch(f"/api/v1/namespaces/{ending}/configmaps/stays", {"metadata": {"finalizers": None}})
        kube.wait_namespace_gone(ending)
        kube.create_namespace(ending)
        wait_for("all to be synced", lambda: place.all_synced(rule), LONG)
        assert {place.in_namespace(name, good) for name in (good, taken, ending, absent)} == {FIRST}
        wait_for("the list to count them", lambda: listed(place, "prod")["deliveries"]["synced"] == 4)


def listed(place: Estate, name: str) -> dict[str, Any]:
    """Return a credential's line in the list, which comes from what work last wrote."""
    return next(item for item in place.items("/credentials") if item["name"] == name)


# --- The disk is full -----------------------------------------------------------------------------


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """Mount 2 MiB at ``folder``, of which 4 KiB blocks can be had, or skip."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m,mode=0700", "secretsvc-rig", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small disk needs root's rights")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path) -> Path:
    """Leave no byte free, and return what takes the place."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"\0" * 4096)
        except OSError:
            return filler


def test_a_full_disk_is_told_and_nothing_is_half_written(tmp_path: Path, kube: KubeCluster) -> None:
    namespace = kube.create_namespace("full-disk")
    with (
        small_disk(tmp_path / "estate" / "service" / "data") as disk,
        estate(tmp_path / "estate", kube) as place,
    ):
        path = delivered(opened(place), [namespace])
        before = targets(place, [namespace], path)
        filler = fill(disk)
        refused = wait_full(place)
        assert "full" in refused["detail"]
        assert "space" in refused["hint"].lower()
        for name in ("late", "later", "latest"):
            assert place.call("GET", f"/credentials/{name}").status == 404
        assert_problem(put_second(place), 503)
        assert place.ok("GET", "/credentials/prod")["generation"] == 1
        assert targets(place, [namespace], path) == before
        filler.unlink()
        wait_for("a new value to be taken", lambda: put_second(place).status in (200, 202))
        wait_for("all to follow", lambda: holds(place, [namespace], path, SECOND), LONG)
        assert place.register("late", SECOND).status == 201


def wait_full(place: Estate) -> dict[str, Any]:
    """Register until the store has no place left: its files have some inside."""
    last: list[Heard] = []

    def refused() -> bool:
        last[:] = [place.call("POST", "/credentials", credential("late", labels={"pad": "x" * 255}))]
        return last[0].status == 503

    wait_for("the disk to be full", refused)
    return assert_problem(last[0], 503)


# --- Starts that are refused ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a service that ran once."""
    folder = tmp_path_factory.mktemp("stopped") / "service"
    with Service(folder, {}):
        pass
    return folder


def start(folder: Path) -> subprocess.CompletedProcess[str]:
    """Start a service that is expected to end by itself."""
    return subprocess.run(
        [sys.executable, "-m", "secretsvc", "serve", "--with-worker"],
        cwd=ROOT,
        env={
            "PATH": os.environ["PATH"],
            "SECRETSVC_DATA_DIR": str(folder / "data"),
            "SECRETSVC_KEY_FILE": str(folder / "kek"),
            "SECRETSVC_LISTEN": f"127.0.0.1:{Service(folder, {}).port}",
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def overwrite(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def open_key(folder: Path) -> None:
    (folder / "kek").chmod(0o640)


def other_key(folder: Path) -> None:
    (folder / "kek").write_bytes(b"A" * 43 + b"=\n")


def no_key(folder: Path) -> None:
    (folder / "kek").write_bytes(b"not a key\n")


def open_data(folder: Path) -> None:
    (folder / "data").chmod(0o755)


def broken_head(folder: Path) -> None:
    overwrite(folder / "data" / "secretsvc.db", 0, b"SQLite? no")


def broken_pages(folder: Path) -> None:
    path = folder / "data" / "secretsvc.db"
    overwrite(path, 4096, bytes(0x5A for _ in range(path.stat().st_size - 4096)))


def flipped_bits(folder: Path) -> None:
    path = folder / "data" / "secretsvc.db"
    flipped = bytes(byte ^ 0xFF for byte in path.read_bytes()[100:140])
    overwrite(path, 100, flipped)


def cut_off(folder: Path) -> None:
    path = folder / "data" / "secretsvc.db"
    os.truncate(path, path.stat().st_size // 2)


def emptied(folder: Path) -> None:
    os.truncate(folder / "data" / "secretsvc.db", 0)


@pytest.mark.parametrize(
    ("damage", "code", "told"),
    [
        (open_key, Exit.USAGE, "chmod 600"),
        (other_key, Exit.USAGE, "not the one"),
        (no_key, Exit.USAGE, "32 bytes"),
        (open_data, Exit.USAGE, "chmod 700"),
        (broken_head, Exit.REMOTE, "damaged"),
        (broken_pages, Exit.REMOTE, "damaged"),
        (flipped_bits, Exit.REMOTE, "damaged"),
        (cut_off, Exit.REMOTE, "damaged"),
        (emptied, Exit.REMOTE, "empty"),
    ],
)
def test_a_start_is_refused_and_everything_left_as_it_is(
    stopped: Path, tmp_path: Path, damage: Callable[[Path], None], code: Exit, told: str
) -> None:
    folder = tmp_path / "service"
    shutil.copytree(stopped, folder)
    damage(folder)
    before = snapshot(folder)
    done = start(folder)
    assert done.returncode == code, done.stderr
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert snapshot(folder) == before


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Return every file with its mode and content."""
    found = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_mode, path.read_bytes()) for path in found}


def test_one_damaged_record_stops_nothing_else(tmp_path: Path, kube: KubeCluster) -> None:
    """A flipped byte of one credential is told where it is used, and what it delivered stays."""
    namespace = kube.create_namespace("damaged")
    with estate(tmp_path / "estate", kube) as place:
        path = delivered(opened(place), [namespace])
        before = targets(place, [namespace], path)
        assert place.register("sound", FIRST).status == 201
        place.service.stop()
        flip_credential(place.service.folder / "data" / "secretsvc.db", "prod")
        place.service.start()
        problem = place.call("GET", "/credentials/prod")
        assert problem.status == 500
        assert "backup" in json.dumps(problem.body).lower()
        assert place.ok("GET", "/credentials/sound")["state"] == "active"
        rule = f"pull-secrets/{namespace}"
        wait_for("it to be told", lambda: place.deliveries(rule)[namespace] == ("failed", "ValueUnreadable"))
        assert targets(place, [namespace], path) == before


def flip_credential(database: Path, name: str) -> None:
    """Change one byte of a sealed record, as a bad disk would."""
    where = "WHERE kind = 'credential' AND name = ?"
    with contextlib.closing(sqlite3.connect(database)) as db, db:
        [body] = db.execute(f"SELECT body FROM document {where}", (name,)).fetchone()
        flipped = body[:-1] + bytes([body[-1] ^ 1])
        db.execute(f"UPDATE document SET body = ? {where}", (flipped, name))
