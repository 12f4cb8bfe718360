"""Auth files among other processes and on real mounts, read by a real client."""

from __future__ import annotations

import json
import os
import random
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from secretsvc.core.dockerconfig import HUB_KEY, entries, parse
from secretsvc.core.errors import TargetChanged, TargetForbidden, TargetRefused, TargetUnreachable
from secretsvc.core.model import Secret
from secretsvc.core.ports import AuthEntry, AuthFileWish
from secretsvc.core.rules import Dialect
from secretsvc.delivery.hosts import LocalAuthFiles
from secretsvc.delivery.safefile import RenameAt2, kernel_rename
from tests.rig.authwriters import KEY, digest, wish
from tests.rig.build import crane

ROOT = Path(__file__).parents[2]
KILLS = 25
FOREIGN_WRITES = 300
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "containers").mkdir(mode=0o700)
    return tmp_path / "containers" / "auth.json"


@pytest.fixture
def files(tmp_path: Path) -> LocalAuthFiles:
    return LocalAuthFiles(tmp_path / "state", machine_configs=())


def logins(path: Path) -> dict[str, str]:
    return {e.key: f"{e.username}:{e.secret.reveal()}" for e in entries(parse(path.read_bytes()))[0]}


def start(*arguments: str | Path) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.rig.authwriters", *map(str, arguments)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


def end(process: subprocess.Popen[bytes]) -> int:
    """Close its input, wait until it ends by itself, and return its exit code."""
    process.communicate()
    return process.returncode


# --- Other writers --------------------------------------------------------------------------------


def test_our_entry_and_a_foreign_writers_survive_each_other(files: LocalAuthFiles, path: Path) -> None:
    """It locks nothing and compares nothing, and may throw our entry out; we bring it back."""
    path.write_text('{"auths": {}}')
    with ExitStack() as running:
        reader = running.enter_context(start("reader", path))
        foreign = running.enter_context(start("foreign", path, str(FOREIGN_WRITES)))
        rounds = 0
        while foreign.poll() is None:
            rounds += 1
            known = (f"v{rounds - 1}",)
            try:
                files.write(wish(str(path), "u", f"v{rounds}", known))
            except TargetChanged:
                continue
        assert end(foreign) == 0
        files.write(wish(str(path), "u", "last", tuple(f"v{n}" for n in range(rounds + 1))))
        assert end(reader) == 0
    expected = {f"foreign-{number}.example": "x:y" for number in range(FOREIGN_WRITES)} | {KEY: "u:last"}
    assert logins(path) == expected
    assert [p.name for p in path.parent.iterdir()] == ["auth.json"]


def test_two_of_our_own_processes_do_not_lose_each_others_entries(tmp_path: Path, path: Path) -> None:
    files = LocalAuthFiles(tmp_path / "state", machine_configs=())
    with start("ours", tmp_path / "state", path, "u", "one", "two") as other:
        for number in range(50):
            entry = AuthEntry(f"r{number}.example", "u", Secret("v"))
            files.write(AuthFileWish(str(path), Dialect.CONTAINERS_AUTH, (entry,), {}, digest))
        other.kill()
    found = logins(path)
    assert {f"r{number}.example" for number in range(50)} <= set(found)


def test_a_killed_writer_leaves_the_old_file_or_the_new_one(files: LocalAuthFiles, path: Path) -> None:
    values = ("first-value", "second-value" * 2000)
    foreign = {"auths": {"a.example": {"auth": "eDp5"}}, "psFormat": "x"}
    path.write_text(json.dumps(foreign))
    chance = random.Random(7)
    for _ in range(KILLS):
        with start("ours", path.parent.parent / "state", path, "u", *values) as writer:
            time.sleep(chance.uniform(0, 0.03))
            writer.kill()
        found = logins(path)
        assert found.pop("a.example") == "x:y"
        assert found in ({}, {KEY: f"u:{values[0]}"}, {KEY: f"u:{values[1]}"})
        assert json.loads(path.read_text())["psFormat"] == "x"
        for left in path.parent.iterdir():
            assert left.name == "auth.json" or stat.S_IMODE(left.stat().st_mode) == 0o600
    files.write(wish(str(path), "u", "third-value", values))
    assert [p.name for p in path.parent.iterdir()] == ["auth.json"]
    assert logins(path) == {"a.example": "x:y", KEY: "u:third-value"}


# --- Mounts ---------------------------------------------------------------------------------------


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    place = tmp_path / "mounted"
    place.mkdir(mode=0o700)
    command = ["mount", "-t", "tmpfs", "-o", "size=64k,mode=700", "tmpfs", str(place)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("this machine does not let us mount")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@needs_root
def test_a_full_disk_leaves_the_file_as_it_was_and_room_brings_the_rest(
    files: LocalAuthFiles, mounted: Path
) -> None:
    target = mounted / "auth.json"
    files.write(wish(str(target), "u", "v"))
    before = target.read_bytes()
    (mounted / "ballast").write_bytes(b"x" * 60 * 1024)
    with pytest.raises(TargetUnreachable, match="no room"):
        files.write(wish(str(target), "u", "w" * 9000, ("v",)))
    assert target.read_bytes() == before
    assert sorted(p.name for p in mounted.iterdir()) == ["auth.json", "ballast"]
    (mounted / "ballast").unlink()
    assert files.write(wish(str(target), "u", "w" * 9000, ("v",))).changed


@needs_root
def test_a_read_only_file_system_is_forbidden(files: LocalAuthFiles, mounted: Path) -> None:
    target = mounted / "auth.json"
    files.write(wish(str(target), "u", "v"))
    subprocess.run(["mount", "-o", "remount,ro", str(mounted)], check=True)
    assert not files.write(wish(str(target), "u", "v")).changed
    with pytest.raises(TargetForbidden, match="Read-only"):
        files.write(wish(str(target), "u", "w", ("v",)))
    assert logins(target) == {KEY: "u:v"}


@needs_root
@pytest.mark.parametrize("renamer", [kernel_rename, lambda: None], ids=["exchange", "replace"])
def test_a_file_that_is_a_mount_of_its_own_is_refused(
    tmp_path: Path, path: Path, renamer: Callable[[], RenameAt2 | None]
) -> None:
    source = tmp_path / "source"
    source.write_text("{}")
    path.touch()
    if subprocess.run(["mount", "--bind", str(source), str(path)], capture_output=True).returncode:
        pytest.skip("this machine does not let us mount")
    try:
        with pytest.raises(TargetRefused) as caught:
            LocalAuthFiles(tmp_path / "state", renamer=renamer, machine_configs=()).write(
                wish(str(path), "u", "v")
            )
        assert caught.value.code == "MountedFile"
        assert "Mount the directory" in caught.value.hint
        assert source.read_text() == "{}"
    finally:
        subprocess.run(["umount", str(path)], check=True)
    assert [p.name for p in path.parent.iterdir()] == ["auth.json"]


@needs_root
def test_an_immutable_file_is_forbidden(files: LocalAuthFiles, path: Path) -> None:
    files.write(wish(str(path), "u", "v"))
    if subprocess.run(["chattr", "+i", str(path)], capture_output=True).returncode:
        pytest.skip("this file system has no immutable files")
    try:
        with pytest.raises(TargetForbidden):
            files.write(wish(str(path), "u", "w", ("v",)))
    finally:
        subprocess.run(["chattr", "-i", str(path)], check=True)
    assert logins(path) == {KEY: "u:v"}
    assert [p.name for p in path.parent.iterdir()] == ["auth.json"]


# --- A real client --------------------------------------------------------------------------------


@pytest.mark.rig
@pytest.mark.parametrize("value", ["v", "with:colon", "ü€ \"quoted\" 'and' \\ spaced", "x" * 4000])
def test_crane_finds_the_very_login(files: LocalAuthFiles, path: Path, value: str) -> None:
    config = path.with_name("config.json")
    config.write_text('{"auths": {"a.example": {"auth": "eDp5"}}, "HttpHeaders": {"X": "y"}}')
    logins_wanted = tuple(
        AuthEntry(key, "robot$x", Secret(value)) for key in ("registry.example:5000", HUB_KEY)
    )
    files.write(AuthFileWish(str(config), Dialect.DOCKER_CONFIG, logins_wanted, {}, digest))
    environment = {
        "DOCKER_CONFIG": str(config.parent),
        "HOME": str(config.parent),
        "PATH": os.environ["PATH"],
    }
    for asked, login in {
        "registry.example:5000": ("robot$x", value),
        "index.docker.io": ("robot$x", value),
        "a.example": ("x", "y"),
    }.items():
        answer = subprocess.run(
            [crane(), "auth", "get", asked], env=environment, capture_output=True, text=True, check=True
        )
        found = json.loads(answer.stdout)
        assert (found["Username"], found["Secret"]) == login


@pytest.mark.rig
@pytest.mark.skipif(
    subprocess.run(["which", "skopeo"], capture_output=True).returncode != 0, reason="skopeo is not installed"
)
def test_skopeo_finds_the_login(files: LocalAuthFiles, path: Path) -> None:
    path.write_text('{"auths": {"broken.example": {"auth": "x"}}}')
    files.write(wish(str(path), "robot$x", "v"))
    command = ["skopeo", "login", "--get-login", "--authfile", str(path), KEY]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "robot$x"
