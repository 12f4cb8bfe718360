from __future__ import annotations

import contextlib
import os
import resource
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest

from secretsvc.core.errors import ConfigurationError, RecordDamaged, StoreConflict, StoreUnavailable
from secretsvc.core.model import (
    CredentialState,
    History,
)
from secretsvc.store import codec
from secretsvc.store.envelope import KeyEncryptionKey
from secretsvc.store.local import FILE_NAME, LocalStore, make_data_dir

KEK = KeyEncryptionKey(bytes(range(32)))
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def store(data_dir: Path) -> Iterator[LocalStore]:
    opened = LocalStore(data_dir, KEK)
    yield opened
    opened.close()


@contextlib.contextmanager
def raw(data_dir: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(data_dir / FILE_NAME)) as db, db:
        yield db


def state(name: str, epoch: int = 0) -> CredentialState:
    return CredentialState(f"uid-{name}", name, epoch=epoch)


# --- Files ---


def modes(data_dir: Path) -> dict[str, str]:
    return {path.name: f"{stat.S_IMODE(path.stat().st_mode):04o}" for path in data_dir.iterdir()}


def test_all_files_are_ours_alone_whatever_the_umask(data_dir: Path) -> None:
    before = os.umask(0)
    try:
        store = LocalStore(data_dir, KEK)
        store.put("a", state("a"), 0)
    finally:
        os.umask(before)
    assert modes(data_dir.parent)["data"] == "0700"
    assert modes(data_dir) == dict.fromkeys((FILE_NAME, f"{FILE_NAME}-wal", f"{FILE_NAME}-shm"), "0600")
    store.close()
    assert modes(data_dir) == {FILE_NAME: "0600"}


def test_a_full_sync_wal_is_in_use(store: LocalStore) -> None:
    with store._connection() as db:
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert db.execute("PRAGMA synchronous").fetchone() == (2,)


@pytest.mark.parametrize("mode", [0o750, 0o701, 0o705, 0o777])
def test_a_directory_that_others_can_enter_is_refused(data_dir: Path, mode: int) -> None:
    data_dir.mkdir()
    data_dir.chmod(mode)
    with pytest.raises(ConfigurationError, match=f"{mode:04o}") as caught:
        LocalStore(data_dir, KEK)
    assert f"chmod 700 {data_dir}" in caught.value.hint
    assert not list(data_dir.iterdir())


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm"])
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_files_that_others_can_read_are_refused(data_dir: Path, suffix: str, mode: int) -> None:
    keeper = LocalStore(data_dir, KEK)
    keeper.put("a", state("a"), 0)  # keeps -wal and -shm there
    (data_dir / f"{FILE_NAME}{suffix}").chmod(mode)
    with pytest.raises(ConfigurationError, match=f"{FILE_NAME}{suffix} has mode {mode:04o}"):
        LocalStore(data_dir, KEK)
    keeper.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("name", ["", FILE_NAME])
def test_other_users_files_are_refused(data_dir: Path, name: str) -> None:
    LocalStore(data_dir, KEK).close()
    os.chown(data_dir / name, 12345, 12345)
    with pytest.raises(ConfigurationError, match="another user"):
        LocalStore(data_dir, KEK)


def test_symbolic_links_are_refused(data_dir: Path, tmp_path: Path) -> None:
    LocalStore(data_dir, KEK).close()
    (tmp_path / "link").symlink_to(data_dir)
    with pytest.raises(ConfigurationError, match="not a directory"):
        make_data_dir(tmp_path / "link")
    (data_dir / FILE_NAME).rename(tmp_path / "elsewhere.db")
    (data_dir / FILE_NAME).symlink_to(tmp_path / "elsewhere.db")
    with pytest.raises(ConfigurationError, match="not a regular file"):
        LocalStore(data_dir, KEK)


def test_a_file_in_the_way_of_the_directory_is_an_error(data_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "data"):
        with pytest.raises(ConfigurationError):
            make_data_dir(path)


def test_existence_is_told_before_a_key_is_made(data_dir: Path) -> None:
    assert not LocalStore.exists(data_dir)
    LocalStore(data_dir, KEK).close()
    assert LocalStore.exists(data_dir)


# --- The key ---


def test_another_key_is_told_apart_from_damage(data_dir: Path, store: LocalStore) -> None:
    store.put("a", state("a"), 0)
    with pytest.raises(ConfigurationError, match="not the one") as caught:
        LocalStore(data_dir, KeyEncryptionKey(bytes(32)))
    assert "SECRETSVC_KEY_FILE" in caught.value.hint
    assert store.get(CredentialState, "a") is not None


def test_a_damaged_data_key_is_damage(data_dir: Path) -> None:
    LocalStore(data_dir, KEK).close()
    with raw(data_dir) as db:
        db.execute("UPDATE data_key SET sealed = zeroblob(60)")
    with pytest.raises(RecordDamaged, match="data key 1"):
        LocalStore(data_dir, KEK)


def test_data_keys_take_turns(data_dir: Path) -> None:
    store = LocalStore(data_dir, KEK, key_uses=3)
    for number in range(8):
        store.put(f"doc-{number}", state(f"doc-{number}"), 0)
    other = LocalStore(data_dir, KEK, key_uses=3)
    for number in range(8, 10):
        (store if number % 2 else other).put(f"doc-{number}", state(f"doc-{number}"), 0)
    with raw(data_dir) as db:
        assert db.execute("SELECT id, uses FROM data_key ORDER BY id").fetchall() == [
            (1, 3),
            (2, 3),
            (3, 3),
            (4, 1),
        ]
        assert len(set(db.execute("SELECT sealed FROM data_key").fetchall())) == 4
    for reader in (store, other):
        assert all(reader.get(CredentialState, f"doc-{number}") for number in range(10))
        reader.close()


def test_a_lost_write_does_not_leave_a_key_behind(data_dir: Path) -> None:
    """A data key made in a transaction that failed must not seal anything later."""
    store = LocalStore(data_dir, KEK, key_uses=1)
    store.put("a", state("a"), 0)
    with raw(data_dir) as db:
        db.execute("CREATE TRIGGER refuse BEFORE INSERT ON document BEGIN SELECT RAISE(ABORT, 'no'); END")
    with pytest.raises(Exception, match="failed"):
        store.put("b", state("b"), 0)
    with raw(data_dir) as db:
        db.execute("DROP TRIGGER refuse")
        assert db.execute("SELECT max(id) FROM data_key").fetchone() == (1,)
    store.put("b", state("b"), 0)
    store.close()
    fresh = LocalStore(data_dir, KEK)
    assert fresh.get(CredentialState, "b") is not None
    fresh.close()


def test_nothing_in_the_files_shows_a_value(data_dir: Path, store: LocalStore) -> None:
    for number in range(20):
        store.put(f"n-{number}", History(f"canary-7d1e-{number}"), 0)
    for path in data_dir.iterdir():
        assert b"canary-7d1e" not in path.read_bytes()
        assert b"operations" not in path.read_bytes()


# --- Damage ---


def test_every_flipped_byte_of_a_body_is_refused(data_dir: Path, store: LocalStore) -> None:
    store.put("a", state("a"), 0)
    with raw(data_dir) as db:
        body = db.execute("SELECT body FROM document").fetchone()[0]
    for position in range(len(body)):
        changed = body[:position] + bytes([body[position] ^ 0xFF]) + body[position + 1 :]
        with raw(data_dir) as db:
            db.execute("UPDATE document SET body = ?", (changed,))
        with pytest.raises(RecordDamaged, match="state/a"):
            store.get(CredentialState, "a")
    with raw(data_dir) as db:
        db.execute("UPDATE document SET body = ?", (body,))
    assert store.get(CredentialState, "a") is not None


@pytest.mark.parametrize(
    "change",
    [
        "version = version + 1", "version = version - 1", "version = 'x'", "version = NULL", "key = key + 1",
        "key = 'x'", "body = ''", "body = x''", "body = 'text'", "body = 1",
        "body = (SELECT body FROM document WHERE name = 'b')",
        "(body, version) = (SELECT body, version FROM document WHERE name = 'b')",
        "(body, version) = (SELECT body, version FROM document WHERE kind = 'history')",
    ],
)  # fmt: skip
def test_a_changed_or_swapped_row_is_refused(data_dir: Path, store: LocalStore, change: str) -> None:
    store.put("a", state("a"), 0)
    store.put("b", state("b"), 0)
    store.put("a", History("a"), 0)
    with raw(data_dir) as db:
        try:
            db.execute(f"UPDATE document SET {change} WHERE kind = 'state' AND name = 'a'")
        except sqlite3.IntegrityError:
            return  # the schema refused it before we had to
    with pytest.raises(RecordDamaged, match="state/a"):
        store.get(CredentialState, "a")
    assert store.get(CredentialState, "b") is not None


def test_a_renamed_row_is_refused(data_dir: Path, store: LocalStore) -> None:
    store.put("a", state("a"), 0)
    with raw(data_dir) as db:
        db.execute("UPDATE document SET name = 'b'")
    assert store.get(CredentialState, "a") is None
    with pytest.raises(RecordDamaged):
        store.get(CredentialState, "b")


def test_another_stores_row_is_refused(data_dir: Path, store: LocalStore, tmp_path: Path) -> None:
    other = LocalStore(tmp_path / "other", KEK)
    for opened in (store, other):
        opened.put("a", state("a"), 0)
    with raw(tmp_path / "other") as db:
        keys = db.execute("SELECT id, kek, sealed, uses FROM data_key").fetchone()
        body = db.execute("SELECT body FROM document").fetchone()[0]
    other.close()
    with raw(data_dir) as db:
        db.execute("UPDATE document SET body = ?", (body,))
    with pytest.raises(RecordDamaged):
        store.get(CredentialState, "a")
    store.close()
    with raw(data_dir) as db:
        db.execute("UPDATE data_key SET id = ?, kek = ?, sealed = ?, uses = ?", keys)
    with pytest.raises(RecordDamaged):
        LocalStore(data_dir, KEK)


@pytest.mark.parametrize("name", ["..", "a/b", "UPPER", "", "x" * 81])
def test_a_damaged_name_is_not_listed_as_if_it_were_one(data_dir: Path, store: LocalStore, name: str) -> None:
    store.put("a", state("a"), 0)
    with raw(data_dir) as db:
        db.execute("UPDATE document SET name = ?", (name,))
    with pytest.raises(RecordDamaged):
        store.names(CredentialState)


@pytest.mark.parametrize(
    "content", [b"", b"x", b"not a database, but long enough to look at" * 50, bytes(8192)]
)
def test_a_file_that_is_no_database_is_damage(data_dir: Path, content: bytes) -> None:
    LocalStore(data_dir, KEK).close()
    (data_dir / FILE_NAME).write_bytes(content)
    with pytest.raises(RecordDamaged) as caught:
        LocalStore(data_dir, KEK)
    assert "backup" in caught.value.hint
    assert (data_dir / FILE_NAME).read_bytes() == content


def test_a_foreign_database_is_refused_and_left_alone(data_dir: Path) -> None:
    data_dir.mkdir(mode=0o700)
    with raw(data_dir) as db:
        db.execute("CREATE TABLE theirs (x)")
    (data_dir / FILE_NAME).chmod(0o600)
    with pytest.raises(RecordDamaged):
        LocalStore(data_dir, KEK)
    with raw(data_dir) as db:
        assert db.execute("SELECT name FROM sqlite_master").fetchall() == [("theirs",)]


def test_a_cut_off_database_is_damage(data_dir: Path) -> None:
    store = LocalStore(data_dir, KEK)
    for number in range(200):
        store.put(f"doc-{number}", state(f"doc-{number}"), 0)
    store.close()
    whole = (data_dir / FILE_NAME).read_bytes()
    (data_dir / FILE_NAME).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RecordDamaged):
        LocalStore(data_dir, KEK)


def test_a_newer_store_is_not_touched(data_dir: Path) -> None:
    LocalStore(data_dir, KEK).close()
    with raw(data_dir) as db:
        db.execute("PRAGMA user_version = 2")
    with pytest.raises(ConfigurationError, match="newer secretsvc"):
        LocalStore(data_dir, KEK)


def test_a_log_without_its_database_is_damage(data_dir: Path, store: LocalStore) -> None:
    store.put("a", state("a"), 0)
    (data_dir / FILE_NAME).unlink()
    with pytest.raises(RecordDamaged, match="-wal"):
        LocalStore(data_dir, KEK)


# --- Availability ---


def test_a_replaced_file_is_noticed_before_anything_is_acknowledged(
    data_dir: Path, store: LocalStore
) -> None:
    version = store.put("a", state("a"), 0)
    (data_dir / FILE_NAME).rename(data_dir / "moved")
    for act in (store.probe, lambda: store.put("a", state("a"), version)):
        with pytest.raises(StoreUnavailable, match="can not be reached"):
            act()
    (data_dir / FILE_NAME).write_bytes((data_dir / "moved").read_bytes())
    with pytest.raises(StoreUnavailable, match="replaced"):
        store.put("a", state("a"), version)


def test_a_locked_store_is_unavailable_not_damaged(data_dir: Path) -> None:
    with (
        contextlib.closing(LocalStore(data_dir, KEK, busy_seconds=0.05)) as store,
        contextlib.closing(sqlite3.connect(data_dir / FILE_NAME, isolation_level=None)) as other,
    ):
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable, match="another process"):
            store.put("a", state("a"), 0)
        other.execute("ROLLBACK")
        store.put("a", state("a"), 0)


def test_a_write_waits_for_anothers_write(data_dir: Path, store: LocalStore) -> None:
    other = sqlite3.connect(data_dir / FILE_NAME, isolation_level=None, check_same_thread=False)
    with contextlib.closing(other):
        other.execute("BEGIN IMMEDIATE")
        release = threading.Timer(0.1, other.execute, ("ROLLBACK",))
        release.start()
        assert store.put("a", state("a"), 0) == 1
        release.join()


def test_a_closed_store_says_so(store: LocalStore) -> None:
    store.close()
    with pytest.raises(StoreUnavailable, match="closed"):
        store.get(CredentialState, "a")


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from tests.unit.test_store_local import KEK, state
from secretsvc.core.errors import StoreUnavailable
from secretsvc.core.model import CredentialState
from secretsvc.store.local import LocalStore
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = LocalStore(Path(sys.argv[1]), KEK)
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))
done = 0
try:
    while done < 100_000:
        store.put(f"doc-{done}", state(f"doc-{done}"), 0)
        done += 1
except StoreUnavailable as exc:
    assert exc.hint, exc
    assert all(store.get(CredentialState, f"doc-{n}") for n in range(done))
    print(done)
"""


def run(program: str, data_dir: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", program, str(data_dir)]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env={"PYTHONPATH": str(ROOT)}
    )


def test_a_full_disk_loses_nothing_that_was_acknowledged(data_dir: Path) -> None:
    """The limit on a file's size stands for the full disk: the system refuses the write in the same place."""
    output, _ = run(FULL_DISK, data_dir).communicate(timeout=120)
    done = int(output)
    assert done > 0
    store = LocalStore(data_dir, KEK)
    assert store.names(CredentialState) == sorted(f"doc-{number}" for number in range(done))
    store.put("more", state("more"), 0)
    store.close()


WRITER = """
import sys
from pathlib import Path
from tests.unit.test_store_local import KEK, state
from secretsvc.core.errors import StoreConflict
from secretsvc.core.model import CredentialState
from secretsvc.store.local import LocalStore
store = LocalStore(Path(sys.argv[1]), KEK)
while True:
    found = store.get(CredentialState, "counter")
    try:
        store.put("counter", state("counter", found.record.epoch + 1), found.version)
    except StoreConflict:
        continue
    print(found.record.epoch + 1, flush=True)
"""


def test_killed_writers_lose_nothing_that_was_acknowledged(data_dir: Path, store: LocalStore) -> None:
    """Two processes count together and are killed at any moment, again and again."""
    store.put("counter", state("counter", 0), 0)
    last = 0
    for attempt in range(6):
        writers = [run(WRITER, data_dir) for _ in range(2)]
        seen = []
        for writer in writers:
            assert writer.stdout is not None
            seen += [int(writer.stdout.readline()) for _ in range(3 + attempt * 5)]
        for writer in writers:
            writer.send_signal(signal.SIGKILL)
            rest, _ = writer.communicate()
            seen += [int(line) for line in rest.splitlines() if line]
        assert len(seen) == len(set(seen))  # no count was handed out twice
        found = store.get(CredentialState, "counter")
        assert found is not None
        assert found.record.epoch >= max(seen) > last
        last = found.record.epoch
    with pytest.raises(StoreConflict):
        store.put("counter", state("counter"), 0)


def test_starting_together_makes_one_store(data_dir: Path) -> None:
    ready, stores = threading.Barrier(8), []

    def start() -> None:
        ready.wait()
        stores.append(LocalStore(data_dir, KEK))

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(stores) == 8
    version = stores[0].put("a", state("a"), 0)
    for opened in stores:
        found = opened.get(CredentialState, "a")
        assert found is not None
        assert found.version == version
    for opened in stores:
        opened.close()
    assert [path.name for path in data_dir.iterdir()] == [FILE_NAME]


def test_errors_do_not_hold_values(data_dir: Path, store: LocalStore) -> None:
    store.put("a", History("canary-55aa"), 0)
    with pytest.raises(RecordDamaged) as caught:
        codec.decode(CredentialState, "a", codec.encode("a", History("canary-55aa")))
    shown = "".join(traceback.format_exception_only(caught.value)) + caught.value.hint
    assert "canary" not in shown
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_the_limit_of_open_files_does_not_leak(store: LocalStore) -> None:
    """Connections are reused, also after errors of ours."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, soft), hard))
    try:
        for _ in range(600):
            with pytest.raises(StoreConflict):
                store.put("nobody", state("nobody"), 5)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
