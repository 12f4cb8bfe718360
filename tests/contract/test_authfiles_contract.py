"""The port `AuthFiles` on a real file system: what is merged, what is refused, what is left alone."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from secretsvc.core.dockerconfig import HUB_KEY, entries, parse
from secretsvc.core.errors import (
    TargetChanged,
    TargetForbidden,
    TargetMissing,
    TargetRefused,
    TargetUnreachable,
)
from secretsvc.core.model import Secret
from secretsvc.core.ports import AuthEntry, AuthFileWish
from secretsvc.core.rules import Dialect
from secretsvc.delivery.hosts import LocalAuthFiles
from secretsvc.delivery.safefile import Place, RenameAt2, Snapshot, kernel_rename, open_directory

ROOT = Path(__file__).parents[2]
NOBODY = 65534
FOREIGN = (
    '{\n    "HttpHeaders": {"X-Meta": "\\u00fc"},\n    "auths": {\n        "z.example": {\n'
    '            "auth": "eDp5",\n            "email": "z@z.example",\n            "x": 1.50\n        },\n'
    '        "a.example": {"auth": "eDp5"}\n    },\n    "detachKeys": "ctrl-e,e"\n}\n'
)
"""Somebody else's file: unknown fields, unsorted keys, four spaces, mixed layout, a line end at the end."""


def digest(entry: AuthEntry) -> str:
    return hashlib.sha256(f"{entry.username}:{entry.secret.reveal()}".encode()).hexdigest()


def entry(value: str = "hunter2", key: str = "quay.io", username: str = "robot$x") -> AuthEntry:
    return AuthEntry(key, username, Secret(value))


def wish(
    path: Path | str,
    *wanted: AuthEntry,
    known: tuple[AuthEntry, ...] = (),
    remove: tuple[str, ...] = (),
    dialect: Dialect = Dialect.CONTAINERS_AUTH,
) -> AuthFileWish:
    accepted: dict[str, frozenset[str]] = {}
    for one in known:
        accepted[one.key] = accepted.get(one.key, frozenset()) | {digest(one)}
    return AuthFileWish(str(path), dialect, wanted, accepted, digest, frozenset(remove))


def logins(path: Path) -> dict[str, tuple[str, str]]:
    return {e.key: (e.username, e.secret.reveal()) for e in entries(parse(path.read_bytes()))[0]}


def trace(path: Path) -> tuple[int, int, bytes]:
    status = path.stat()
    return status.st_ino, status.st_mtime_ns, path.read_bytes()


def _no_pause(_seconds: float) -> None:
    pass


def _no_exchange() -> RenameAt2 | None:
    """Do as on a system without ``renameat2``."""
    return None


renamers = pytest.mark.parametrize("renamer", [kernel_rename, _no_exchange], ids=["exchange", "replace"])


@pytest.fixture(params=[kernel_rename, _no_exchange], ids=["exchange", "replace"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> LocalAuthFiles:
    return LocalAuthFiles(tmp_path / "state", renamer=request.param, machine_configs=(), sleep=_no_pause)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    directory = tmp_path / "containers"
    directory.mkdir(mode=0o700)
    return directory / "auth.json"


@pytest.fixture(autouse=True)
def _leaves_nothing_beside(path: Path) -> Iterator[None]:
    yield
    if path.parent.is_dir():
        assert [p.name for p in path.parent.iterdir() if p.name.startswith(".secretsvc")] == []


# --- Merging --------------------------------------------------------------------------------------


def test_a_new_file_is_private_and_holds_the_logins(files: LocalAuthFiles, path: Path) -> None:
    os.umask(previous := os.umask(0))
    result = files.write(wish(path, entry(), entry("s", HUB_KEY)))
    assert os.umask(previous) == previous
    assert result.changed
    assert result.marks == {"quay.io": digest(entry()), HUB_KEY: digest(entry("s"))}
    assert result.foreign == ()
    assert logins(path) == {"quay.io": ("robot$x", "hunter2"), HUB_KEY: ("robot$x", "s")}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_nothing_is_written_when_nothing_changes(files: LocalAuthFiles, path: Path) -> None:
    first = files.write(wish(path, entry()))
    before = trace(path)
    again = files.write(wish(path, entry(), known=(entry(),)))
    assert not again.changed
    assert again.marks == first.marks
    assert trace(path) == before


def test_somebody_elses_parts_survive_byte_for_byte(files: LocalAuthFiles, path: Path) -> None:
    path.write_text(FOREIGN)
    files.write(wish(path, entry("one")))
    added = path.read_text()
    assert '"quay.io": {' in added
    files.write(wish(path, entry("two"), known=(entry("one"),)))
    assert logins(path)["quay.io"] == ("robot$x", "two")
    files.write(wish(path, known=(entry("two"),), remove=("quay.io",)))
    assert path.read_text() == FOREIGN


def test_an_entry_that_is_not_ours_is_left_and_reported(files: LocalAuthFiles, path: Path) -> None:
    path.write_text('{"auths":{"quay.io":{"auth":"eDp5"}}}')
    before = trace(path)
    result = files.write(wish(path, entry(), known=(entry("older"),)))
    assert not result.changed
    assert result.foreign == ("quay.io",)
    assert result.marks == {}
    assert any("quay.io is left alone" in note for note in result.notes)
    assert trace(path) == before


def test_a_wanted_entry_beside_a_foreign_one_is_still_written(files: LocalAuthFiles, path: Path) -> None:
    path.write_text('{"auths":{"quay.io":{"auth":"eDp5"}}}')
    result = files.write(wish(path, entry(), entry(key="b.example")))
    assert (result.changed, result.foreign, set(result.marks)) == (True, ("quay.io",), {"b.example"})
    assert logins(path)["quay.io"] == ("x", "y")


def test_the_wanted_login_that_is_already_there_counts_as_ours(files: LocalAuthFiles, path: Path) -> None:
    files.write(wish(path, entry()))
    before = trace(path)
    result = files.write(wish(path, entry()))
    assert (result.changed, set(result.marks)) == (False, {"quay.io"})
    assert trace(path) == before


@pytest.mark.parametrize("spelling", ["https://quay.io", "https://quay.io/v2/", "QUAY.IO"])
def test_another_spelling_of_a_key_occupies_it(files: LocalAuthFiles, path: Path, spelling: str) -> None:
    path.write_text(json.dumps({"auths": {spelling: {"auth": "eDp5"}}}))
    result = files.write(wish(path, entry()))
    assert (result.changed, result.foreign) == (False, ("quay.io",))
    assert any(spelling in note for note in result.notes)


def test_an_identity_token_over_our_login_makes_the_entry_somebody_elses(
    files: LocalAuthFiles, path: Path
) -> None:
    files.write(wish(path, entry()))
    document = json.loads(path.read_text())
    document["auths"]["quay.io"]["identitytoken"] = "t"
    path.write_text(json.dumps(document))
    assert files.write(wish(path, entry("new"), known=(entry(),))).foreign == ("quay.io",)


def test_removing_takes_only_what_is_ours(files: LocalAuthFiles, path: Path) -> None:
    path.write_text('{"auths":{"quay.io":{"auth":"eDp5"}}}')
    before = trace(path)
    result = files.write(wish(path, known=(entry(),), remove=("quay.io",)))
    assert not result.changed
    assert any("quay.io is not taken out" in note for note in result.notes)
    assert trace(path) == before


def test_a_file_that_we_made_goes_with_its_last_entry(files: LocalAuthFiles, path: Path) -> None:
    files.write(wish(path, entry()))
    result = files.write(wish(path, known=(entry(),), remove=("quay.io",)))
    assert (result.changed, result.marks) == (True, {})
    assert not path.exists()


def test_a_file_that_was_there_before_us_stays(files: LocalAuthFiles, path: Path) -> None:
    path.write_text('{"auths": {}}')
    files.write(wish(path, entry()))
    files.write(wish(path, known=(entry(),), remove=("quay.io",)))
    assert path.read_text() == '{"auths": {}}'


def test_a_file_that_replaced_ours_is_no_longer_ours(files: LocalAuthFiles, path: Path) -> None:
    files.write(wish(path, entry()))
    path.write_text('{"auths": {}}')
    files.write(wish(path, entry()))
    files.write(wish(path, known=(entry(),), remove=("quay.io",)))
    assert path.read_text() == '{"auths": {}}'


def test_a_file_that_we_made_stays_while_others_use_it(files: LocalAuthFiles, path: Path) -> None:
    files.write(wish(path, entry()))
    document = json.loads(path.read_text())
    document["credHelpers"] = {"gcr.io": "gcloud"}
    path.write_text(json.dumps(document))
    files.write(wish(path, known=(entry(),), remove=("quay.io",)))
    assert json.loads(path.read_text()) == {"auths": {}, "credHelpers": {"gcr.io": "gcloud"}}


def test_nothing_wanted_makes_no_file(files: LocalAuthFiles, path: Path) -> None:
    assert not files.write(wish(path, remove=("quay.io",))).changed
    assert not path.exists()


def test_an_empty_file_becomes_a_document(files: LocalAuthFiles, path: Path) -> None:
    path.touch()
    result = files.write(wish(path, entry()))
    assert logins(path) == {"quay.io": ("robot$x", "hunter2")}
    assert any("empty" in note for note in result.notes)


# --- What is not touched --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        b"null",
        b"\n",
        b"[]",
        b"\xef\xbb\xbf{}",
        b'{"auths":{}',
        b'{"AUTHS":{}}',
        b'{"auths":{},"Auths":{}}',
        b'{"auths":{"a":{"auth":"aHVudGVyMzI="},"a":{}}}',
        b'{"auths":[]}',
        b"[registry]\npassword = hunter32\n",
        b"\xff\xfe",
    ],
)
def test_a_file_that_can_not_be_understood_is_not_touched(
    files: LocalAuthFiles, path: Path, content: bytes
) -> None:
    path.write_bytes(content)
    before = trace(path)
    with pytest.raises(TargetRefused) as caught:
        files.write(wish(path, entry()))
    assert caught.value.code == "Unparseable"
    assert str(path) in caught.value.message
    assert "hunter32" not in repr(caught.value)
    assert "aHVu" not in repr(caught.value)
    assert trace(path) == before


def test_a_file_over_a_mebibyte_is_not_touched(files: LocalAuthFiles, path: Path) -> None:
    path.write_bytes(b'{"x":"' + b"x" * 1024 * 1024 + b'"}')
    with pytest.raises(TargetRefused, match="more than 1048576 bytes"):
        files.write(wish(path, entry()))


def test_a_file_is_not_made_larger_than_a_mebibyte(files: LocalAuthFiles, path: Path) -> None:
    path.write_bytes(b'{"x":"' + b"x" * (1024 * 1024 - 20) + b'"}')
    before = trace(path)
    with pytest.raises(TargetRefused, match="would grow"):
        files.write(wish(path, entry()))
    assert trace(path) == before


def _symlink(path: Path) -> None:
    path.with_name("real").write_text("{}")
    path.symlink_to("real")


def _dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def _socket(path: Path) -> None:
    os.mknod(path, stat.S_IFSOCK | 0o600)


@pytest.mark.parametrize("make", [_symlink, _dangling, os.mkfifo, Path.mkdir, _socket])
def test_only_a_regular_file_is_written(
    files: LocalAuthFiles, path: Path, make: Callable[[Path], None]
) -> None:
    make(path)
    before = path.lstat()
    with pytest.raises(TargetRefused) as caught:
        files.write(wish(path, entry()))
    assert caught.value.code in {"SymbolicLink", "NotAFile"}
    after = path.lstat()
    assert (after.st_ino, after.st_mode, after.st_mtime_ns) == (
        before.st_ino,
        before.st_mode,
        before.st_mtime_ns,
    )


def test_a_directory_behind_a_link_is_refused_with_the_real_path(files: LocalAuthFiles, path: Path) -> None:
    link = path.parent.with_name("link")
    link.symlink_to(path.parent)
    with pytest.raises(TargetRefused) as caught:
        files.write(wish(link / "auth.json", entry()))
    assert str(path.parent) in caught.value.hint
    assert not path.exists()


@pytest.mark.parametrize("mode", [0o777, 0o722, 0o1777 if os.geteuid() else 0o757])
def test_a_directory_that_others_may_write_is_refused(files: LocalAuthFiles, path: Path, mode: int) -> None:
    path.parent.chmod(mode)
    with pytest.raises(TargetRefused, match="can be written by others") as caught:
        files.write(wish(path, entry()))
    assert caught.value.code == "UnsafeDirectory"
    path.parent.chmod(0o700)
    assert not path.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory to a group")
def test_a_directory_that_its_owners_own_group_may_write_is_good_and_another_groups_is_not(
    files: LocalAuthFiles, path: Path
) -> None:
    """Root's group is root's own where nobody else is in it, as a user's is with umask 002."""
    path.parent.chmod(0o770)
    assert files.write(wish(path, entry())).changed
    os.chown(path.parent, 0, NOBODY)
    with pytest.raises(TargetRefused, match="can be written by others"):
        files.write(wish(path, entry("new"), known=(entry(),)))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make root's sticky directory")
def test_a_sticky_directory_of_root_is_good_but_not_somebody_elses_file_in_it(
    files: LocalAuthFiles, path: Path
) -> None:
    path.parent.chmod(0o1777)
    files.write(wish(path, entry()))
    os.chown(path, NOBODY, NOBODY)
    with pytest.raises(TargetRefused) as caught:
        files.write(wish(path, entry("new"), known=(entry(),)))
    assert caught.value.code == "ForeignOwner"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_directory_of_another_user_is_refused(files: LocalAuthFiles, path: Path) -> None:
    os.chown(path.parent, NOBODY, NOBODY)
    with pytest.raises(TargetRefused, match=f"belongs to user {NOBODY}"):
        files.write(wish(path, entry()))


def test_a_directory_that_is_not_there_is_missing_and_not_made(files: LocalAuthFiles, path: Path) -> None:
    absent = path.parent / "absent" / "auth.json"
    with pytest.raises(TargetMissing) as caught:
        files.write(wish(absent, entry()))
    assert f"install -d -m 0700 {absent.parent}" in caught.value.hint
    assert not files.write(wish(absent, known=(entry(),), remove=("quay.io",))).changed
    assert not absent.parent.exists()


def test_a_file_in_the_place_of_a_directory_is_refused(files: LocalAuthFiles, path: Path) -> None:
    path.write_text("{}")
    with pytest.raises(TargetRefused):
        files.write(wish(path / "auth.json", entry()))


@pytest.mark.parametrize(
    "bad", ["auth.json", "", "/", "//tmp/a", "/tmp/../a", "/tmp/./a", "/tmp//a", "/tmp/", "/tmp/a\0b", "./a"]
)
def test_only_an_absolute_plain_path_is_taken(files: LocalAuthFiles, bad: str) -> None:
    with pytest.raises(TargetRefused) as caught:
        files.write(wish(bad, entry()))
    assert caught.value.code == "BadPath"


@pytest.mark.parametrize("listing", [True, False], ids=["listed", "unreadable list"])
def test_what_the_machine_config_daemon_owns_is_refused(tmp_path: Path, path: Path, listing: bool) -> None:
    config = tmp_path / "currentconfig"
    listed = {"spec": {"config": {"storage": {"files": [{"path": "/etc/x"}, {"path": str(path)}]}}}}
    config.write_text(json.dumps(listed) if listing else "{")
    files = LocalAuthFiles(tmp_path / "state", machine_configs=(tmp_path / "absent", config))
    with pytest.raises(TargetRefused) as caught:
        files.write(wish(path, entry()))
    assert caught.value.code == "MachineConfigOwned"
    assert "openshift-config/pull-secret" in caught.value.hint
    assert not path.exists()


def test_other_files_of_such_a_node_may_be_written(tmp_path: Path, path: Path) -> None:
    config = tmp_path / "currentconfig"
    config.write_text('{"spec":{"config":{"storage":{"files":[{"path":"/var/lib/kubelet/config.json"}]}}}}')
    assert LocalAuthFiles(tmp_path / "state", machine_configs=(config,)).write(wish(path, entry())).changed


# --- Mode, owner, attributes ----------------------------------------------------------------------


def test_a_file_that_others_may_read_is_closed_even_when_nothing_changes(
    files: LocalAuthFiles, path: Path
) -> None:
    files.write(wish(path, entry()))
    path.chmod(0o644)
    before = trace(path)
    result = files.write(wish(path, entry(), known=(entry(),)))
    assert not result.changed
    assert any("0644" in note for note in result.notes)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert trace(path) == before


def test_a_file_that_holds_nothing_of_ours_keeps_its_mode(files: LocalAuthFiles, path: Path) -> None:
    path.write_text('{"auths":{"quay.io":{"auth":"eDp5"}}}')
    path.chmod(0o644)
    files.write(wish(path, entry()))
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


@pytest.mark.parametrize(
    ("before", "after"), [(0o644, 0o600), (0o600, 0o600), (0o400, 0o400), (0o4755, 0o600)]
)
def test_a_written_file_is_never_looser_than_private(
    files: LocalAuthFiles, path: Path, before: int, after: int
) -> None:
    path.write_text("{}")
    path.chmod(before)
    files.write(wish(path, entry()))
    assert stat.S_IMODE(path.stat().st_mode) == after


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_root_leaves_a_file_to_its_owner(files: LocalAuthFiles, path: Path) -> None:
    path.write_text("{}")
    os.chown(path, 1234, 4321)
    files.write(wish(path, entry()))
    assert (path.stat().st_uid, path.stat().st_gid) == (1234, 4321)


def test_extended_attributes_are_kept(files: LocalAuthFiles, path: Path) -> None:
    path.write_text("{}")
    try:
        os.setxattr(path, "user.note", b"kept")
    except OSError:
        pytest.skip("this file system has no user attributes")
    files.write(wish(path, entry()))
    assert os.getxattr(path, "user.note") == b"kept"


def test_a_hard_link_keeps_the_old_content_and_is_reported(files: LocalAuthFiles, path: Path) -> None:
    path.write_text("{}")
    other = path.with_name("other")
    other.hardlink_to(path)
    result = files.write(wish(path, entry()))
    assert any("hard link" in note for note in result.notes)
    assert other.read_text() == "{}"


# --- Dialects -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dialect", "refused"),
    [(Dialect.DOCKER_CONFIG, True), (Dialect.CONTAINERS_AUTH, False), (Dialect.KUBELET_CONFIG, False)],
)
def test_docker_gets_no_path_keys(files: LocalAuthFiles, path: Path, dialect: Dialect, refused: bool) -> None:
    asked = wish(path, entry(key="quay.io/team"), dialect=dialect)
    if not refused:
        assert files.write(asked).changed
        return
    with pytest.raises(TargetRefused, match="has a path"):
        files.write(asked)
    assert not path.exists()


@pytest.mark.parametrize("bad", [entry("two\nlines"), entry(key="docker.io"), entry(username="a:b")])
def test_what_readers_would_misread_is_refused(files: LocalAuthFiles, path: Path, bad: AuthEntry) -> None:
    with pytest.raises(TargetRefused) as caught:
        files.write(wish(path, entry("good", "b.example"), bad))
    assert caught.value.code == "EntryRefused"
    assert not path.exists()


@pytest.mark.parametrize(
    ("dialect", "foreign", "note"),
    [
        (Dialect.DOCKER_CONFIG, {"auths": {"b.example": {"auth": "x"}}}, "will not use any entry"),
        (
            Dialect.KUBELET_CONFIG,
            {"auths": {"b.example": {"auth": "bm9jb2xvbg=="}}},
            "will not use any entry",
        ),
        (Dialect.CONTAINERS_AUTH, {"auths": {"b.example": {"auth": 5}}}, "will not use any entry"),
        (Dialect.CONTAINERS_AUTH, {"credHelpers": []}, "will not use this file"),
        (Dialect.DOCKER_CONFIG, {"credsStore": "pass"}, "credsStore is set"),
        (Dialect.CONTAINERS_AUTH, {"credHelpers": {"quay.io": "x"}}, "names a program for quay.io"),
        (Dialect.CONTAINERS_AUTH, {"auths": {"quay.io/team": {"auth": "eDp5"}}}, "goes before quay.io"),
        (
            Dialect.DOCKER_CONFIG,
            {"auths": {"quay.io/team": {"auth": "eDp5"}}},
            "may use it for all of quay.io",
        ),
    ],
)
def test_what_hides_or_breaks_our_entry_is_told_and_ours_is_written(
    files: LocalAuthFiles, path: Path, dialect: Dialect, foreign: dict[str, object], note: str
) -> None:
    path.write_text(json.dumps(foreign))
    result = files.write(wish(path, entry(), dialect=dialect))
    assert result.changed
    assert any(note in one for one in result.notes)
    assert logins(path)["quay.io"] == ("robot$x", "hunter2")


@pytest.mark.parametrize(
    ("dialect", "foreign"),
    [
        (Dialect.CONTAINERS_AUTH, {"auths": {"b.example": {"auth": "x"}}, "credsStore": "pass"}),
        (Dialect.KUBELET_CONFIG, {"credHelpers": {"quay.io": "x"}, "credsStore": "pass"}),
        (Dialect.KUBELET_CONFIG, {"auths": {"b.example": {"auth": "dTpwcA"}}}),
        (Dialect.DOCKER_CONFIG, {"auths": {"b.example": {}}, "credHelpers": {"c.example": "x"}}),
    ],
)
def test_what_the_reader_does_not_mind_is_not_told(
    files: LocalAuthFiles, path: Path, dialect: Dialect, foreign: dict[str, object]
) -> None:
    path.write_text(json.dumps(foreign))
    path.chmod(0o600)
    assert files.write(wish(path, entry(), dialect=dialect)).notes == ()


# --- Other writers --------------------------------------------------------------------------------


def _add_foreign(path: Path) -> None:
    document = json.loads(path.read_text())
    document["auths"]["late.example"] = {"auth": "eDp5"}
    other = path.with_name("other")
    other.write_text(json.dumps(document))
    other.rename(path)


@renamers
def test_a_write_between_snapshot_and_commit_is_merged(
    tmp_path: Path, path: Path, renamer: Callable[[], RenameAt2 | None]
) -> None:
    """Entropy is asked for when the new file is named, which is after the snapshot."""
    asked = []

    def entropy(count: int) -> bytes:
        asked.append(count)
        if len(asked) == 1:
            _add_foreign(path)
        return os.urandom(count)

    path.write_text(FOREIGN)
    files = LocalAuthFiles(tmp_path / "state", entropy=entropy, renamer=renamer, machine_configs=())
    assert files.write(wish(path, entry())).changed
    assert logins(path) == {
        "z.example": ("x", "y"),
        "a.example": ("x", "y"),
        "late.example": ("x", "y"),
        "quay.io": ("robot$x", "hunter2"),
    }


@renamers
def test_a_file_made_between_snapshot_and_commit_is_merged(
    tmp_path: Path, path: Path, renamer: Callable[[], RenameAt2 | None]
) -> None:
    def entropy(count: int) -> bytes:
        if not path.exists():
            path.write_text('{"auths":{"late.example":{"auth":"eDp5"}}}')
        return os.urandom(count)

    files = LocalAuthFiles(tmp_path / "state", entropy=entropy, renamer=renamer, machine_configs=())
    files.write(wish(path, entry()))
    assert set(logins(path)) == {"late.example", "quay.io"}


def test_somebody_who_never_stops_writing_is_reported(tmp_path: Path, path: Path) -> None:
    def entropy(count: int) -> bytes:
        _add_foreign(path)
        return os.urandom(count)

    path.write_text(FOREIGN)
    with pytest.raises(TargetChanged) as caught:
        LocalAuthFiles(tmp_path / "state", entropy=entropy, machine_configs=()).write(wish(path, entry()))
    assert caught.value.retryable
    assert "quay.io" not in logins(path)


def _place(directory: int, path: Path, before_rename: Callable[[], None]) -> Place:
    kernel = kernel_rename()
    if kernel is None:
        pytest.skip("this C library has no renameat2")

    def rename(where: int, source: bytes, target: bytes, flags: int) -> None:
        before_rename()
        kernel(where, source, target, flags)

    return Place(directory, str(path), os.geteuid(), 4096, ".secretsvc-test-", os.urandom, rename)


def _snapshot(place: Place) -> Snapshot:
    snapshot = place.snapshot()
    assert snapshot is not None
    return snapshot


def test_a_write_just_before_the_exchange_gets_its_version_back(path: Path) -> None:
    writes = iter([b"theirs"])

    def late_writer() -> None:
        for content in writes:
            path.with_name("other").write_bytes(content)
            path.with_name("other").rename(path)

    path.write_bytes(b"old")
    with open_directory(str(path.parent), os.geteuid()) as directory:
        place = _place(directory, path, late_writer)
        assert not place.replace(b"ours", _snapshot(place))
        assert path.read_bytes() == b"theirs"
        assert place.replace(b"ours", _snapshot(place))
    assert path.read_bytes() == b"ours"


def test_the_newest_of_several_late_writes_wins(path: Path) -> None:
    writes = iter([b"first", b"second", b"third"])

    def late_writer() -> None:
        if (content := next(writes, None)) is not None:
            path.with_name("other").write_bytes(content)
            path.with_name("other").rename(path)

    path.write_bytes(b"old")
    with open_directory(str(path.parent), os.geteuid()) as directory:
        place = _place(directory, path, late_writer)
        assert not place.replace(b"ours", _snapshot(place))
    assert path.read_bytes() == b"third"


def test_a_late_write_in_place_is_noticed(path: Path) -> None:
    writes = iter([b"new"])
    path.write_bytes(b"old")
    with open_directory(str(path.parent), os.geteuid()) as directory:
        place = _place(directory, path, lambda: [path.write_bytes(content) for content in writes] and None)
        assert not place.replace(b"ours", _snapshot(place))
    assert path.read_bytes() == b"new"


def test_a_late_link_is_given_back_and_then_refused(path: Path) -> None:
    links = iter(["elsewhere"])

    def late_link() -> None:
        for target in links:
            path.unlink()
            path.symlink_to(target)

    path.write_bytes(b"old")
    with open_directory(str(path.parent), os.geteuid()) as directory:
        place = _place(directory, path, late_link)
        assert not place.replace(b"ours", _snapshot(place))
        assert path.is_symlink()
        with pytest.raises(TargetRefused):
            place.snapshot()


def test_a_late_write_keeps_a_file_from_being_withdrawn(path: Path) -> None:
    path.write_bytes(b"old")
    with open_directory(str(path.parent), os.geteuid()) as directory:
        place = _place(directory, path, lambda: None)
        old = _snapshot(place)
        path.write_bytes(b"theirs")
        assert not place.withdraw(old)
        assert path.read_bytes() == b"theirs"
        assert place.withdraw(_snapshot(place))
    assert not path.exists()


def test_a_write_between_the_look_and_the_withdrawal_is_given_back(path: Path) -> None:
    """Entropy is asked for when the file's new name is made up, just before it is moved aside."""

    def entropy(count: int) -> bytes:
        path.with_name("other").write_bytes(b"theirs")
        path.with_name("other").rename(path)
        return os.urandom(count)

    path.write_bytes(b"old")
    with open_directory(str(path.parent), os.geteuid()) as directory:
        place = replace(_place(directory, path, lambda: None), entropy=entropy)
        assert not place.withdraw(_snapshot(place))
    assert path.read_bytes() == b"theirs"


def test_a_stale_write_right_after_ours_is_merged(tmp_path: Path, path: Path) -> None:
    """It read the file before we wrote and puts its version over ours, as podman may."""
    kernel = kernel_rename()
    if kernel is None:
        pytest.skip("this C library has no renameat2")
    stale = iter(['{"auths":{"late.example":{"auth":"eDp5"}}}'])

    def rename(where: int, source: bytes, target: bytes, flags: int) -> None:
        kernel(where, source, target, flags)
        for content in stale:
            path.unlink()
            path.write_text(content)

    path.write_text('{"auths":{}}')
    files = LocalAuthFiles(tmp_path / "state", renamer=lambda: rename, machine_configs=())
    files.write(wish(path, entry()))
    assert set(logins(path)) == {"late.example", "quay.io"}


def test_a_file_that_is_half_written_is_read_again(tmp_path: Path, path: Path) -> None:
    """A writer in place has truncated the file, and goes on in two steps."""
    steps = iter(['{"auths":{"late.exam', '{"auths":{"late.example":{"auth":"eDp5"}}}'])
    path.touch()
    files = LocalAuthFiles(
        tmp_path / "state", machine_configs=(), sleep=lambda _: path.write_text(next(steps)) and None
    )
    files.write(wish(path, entry()))
    assert set(logins(path)) == {"late.example", "quay.io"}


def test_what_a_killed_process_left_is_removed_and_others_temporary_files_are_not(
    tmp_path: Path, path: Path
) -> None:
    files = LocalAuthFiles(tmp_path / "state", machine_configs=())
    files.write(wish(path, entry()))
    prefix = files._place(str(path), 0).prefix
    left = path.with_name(f"{prefix}0101")
    left.write_text("old")
    others = path.with_name(".tmp-auth.json123")
    others.write_text("theirs")
    assert not files.write(wish(path, entry(), known=(entry(),))).changed
    assert not left.exists()
    assert others.exists()


def test_a_lock_that_is_held_is_reported_as_retryable(tmp_path: Path, path: Path) -> None:
    files = LocalAuthFiles(tmp_path / "state", machine_configs=(), lock_timeout=0.1)
    files.write(wish(path, entry()))
    (lock,) = (tmp_path / "state").glob("*.lock")
    holder = subprocess.Popen(
        [sys.executable, "-m", "tests.rig.authwriters", "lock", str(lock)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"ready\n"
        with pytest.raises(TargetUnreachable) as caught:
            files.write(wish(path, entry("new"), known=(entry(),)))
        holder.communicate()
    assert (caught.value.code, caught.value.retryable) == ("AuthFileBusy", True)
    assert files.write(wish(path, entry("new"), known=(entry(),))).changed


# --- Permissions and room -------------------------------------------------------------------------


def run_ours(state: Path, path: Path, *, user: int | None = None, file_size: int = 0) -> dict[str, object]:
    """Write once in another process, as another user or with room for so many KiB; return what it says."""
    command = [sys.executable, "-m", "tests.rig.authwriters"]
    command += [] if user is None else [f"--user={user}"]
    command += ["ours", str(state), str(path), "u", "v"]
    limit = f"ulimit -f {file_size} && " if file_size else ""
    done = subprocess.run(
        ["bash", "-c", f'{limit}exec "$@"', "bash", *command], cwd=ROOT, stdout=subprocess.PIPE, check=True
    )
    answer: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return answer


def test_a_directory_that_we_may_not_write_is_forbidden() -> None:
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        top.chmod(0o755)
        state = top / "state"
        state.mkdir()
        target = top / "closed"
        target.mkdir()
        target.chmod(0o555)
        user = None
        if os.geteuid() == 0:
            os.chown(state, user := NOBODY, NOBODY)
        answer = run_ours(state, target / "auth.json", user=user)
        assert answer["error"] == TargetForbidden.__name__
        assert list(target.iterdir()) == []


def test_a_file_that_we_may_not_read_is_forbidden_or_somebody_elses() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can make a file that we may not read")
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        os.chown(top, NOBODY, NOBODY)
        target = top / "auth.json"
        target.write_text("{}")
        target.chmod(0o600)
        answer = run_ours(top / "state", target, user=NOBODY)
        assert answer["code"] == "ForeignOwner"
        assert target.read_text() == "{}"


def test_no_room_leaves_the_file_as_it_was(path: Path) -> None:
    path.write_text(json.dumps({"auths": {}, "x": "x" * 3000}))
    before = trace(path)
    answer = run_ours(path.parent.parent / "state", path, file_size=2)
    assert answer["error"] == TargetUnreachable.__name__
    assert "no room" in str(answer["message"])
    assert trace(path) == before
