"""The local store: one SQLite file, every document sealed. The only door to sqlite3.

Rules:

- The database and its ``-wal`` and ``-shm`` are mode 0600 from the moment they exist, in a directory of ours
  with mode 0700; anything looser is refused, symbolic links too. SQLite never creates the file itself.
- WAL with ``synchronous=FULL``: what is acknowledged survives a power cut. Every write is one
  ``BEGIN IMMEDIATE`` transaction, so `serve` and `work` share the file and a compare-and-set has one winner.
- Versions come from one counter for the whole store, so a name that is removed and made again never shows
  a version it had before: whoever read the old document can not overwrite the new one by accident.
- Kind, name and version are in clear, for listing; the body is sealed (`secretsvc.store.envelope`).

What this does not do: notice that the whole file, or a row with its version, was put back to an older state,
or that a row was deleted; protect against root on this host, or against `serve`, which holds the key too.

A store may be used by many threads and must be made after a fork, never carried across one.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import quote

from secretsvc.core.errors import (
    ConfigurationError,
    RecordDamaged,
    StoreConflict,
    StoreError,
    StoreUnavailable,
)
from secretsvc.core.ident import is_document_name
from secretsvc.core.model import Secret
from secretsvc.core.ports import R, Record, Stored
from secretsvc.store import codec
from secretsvc.store.envelope import KEY_USES, DataKey, KeyEncryptionKey, Place, SealBroken

FILE_NAME: Final = "secretsvc.db"
"""The database's name in the data directory."""

_FORMAT = 1
_BUSY_SECONDS = 10.0
_BUSY_STEP = 0.0005
"""Seconds between two attempts to begin a write: about as long as another's write takes."""
_SCHEMA = """
CREATE TABLE store (id TEXT NOT NULL, sequence INTEGER NOT NULL);
CREATE TABLE data_key (
    id INTEGER PRIMARY KEY, kek TEXT NOT NULL, sealed BLOB NOT NULL, uses INTEGER NOT NULL);
CREATE TABLE document (
    kind TEXT NOT NULL, name TEXT NOT NULL, version INTEGER NOT NULL,
    key INTEGER NOT NULL, body BLOB NOT NULL, PRIMARY KEY (kind, name));
"""
_RESTORE = "Stop secretsvc, keep a copy of the data directory, and restore the database from a backup."
_UNAVAILABLE = {
    sqlite3.SQLITE_FULL: ("the disk is full", "Free space there; nothing was lost."),
    sqlite3.SQLITE_BUSY: ("another process held it for too long", "Try again."),
    sqlite3.SQLITE_LOCKED: ("another thread held it for too long", "Try again."),
    sqlite3.SQLITE_READONLY: ("it may not be written", "Check the file system's mount and rights."),
    sqlite3.SQLITE_CANTOPEN: ("it can not be opened", "Check that the data directory is there and ours."),
    sqlite3.SQLITE_PERM: ("it may not be opened", "Check the file's owner and mode."),
    sqlite3.SQLITE_IOERR: ("the disk failed to read or write", "Check the disk and the system log."),
    sqlite3.SQLITE_NOMEM: ("memory ran out", "Try again."),
}
_BROKEN = frozenset(
    {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_SCHEMA, sqlite3.SQLITE_ERROR}
)


def make_data_dir(data_dir: Path) -> None:
    """Make the data directory with mode 0700 if it is missing; refuse one that others can enter.

    Raises `ConfigurationError` when it is a symbolic link, another user's, or open to group or others.
    """
    try:
        data_dir.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            data_dir.mkdir(mode=0o700)
        found = data_dir.lstat()
    except OSError as exc:
        raise ConfigurationError(
            f"the data directory {data_dir} can not be made: {exc.strerror}",
            hint="Set SECRETSVC_DATA_DIR to a directory that this user may make.",
        ) from exc
    if not stat.S_ISDIR(found.st_mode):
        raise ConfigurationError(
            f"the data directory {data_dir} is not a directory", hint="Name the directory itself, not a link."
        )
    _check_ours(data_dir, found, "700")


class LocalStore:
    """`CredentialStore` over SQLite.

    Args:
        data_dir: made with mode 0700 if it is missing.
        kek: seals the data keys; the one the store was made with.
        key_uses: how many documents one data key seals before a new one takes over.
        busy_seconds: how long a write waits for others' writes before it gives up.

    Raises `ConfigurationError` when the directory, a file's mode or the key is not right, and
    `RecordDamaged` when the database is.
    """

    def __init__(
        self,
        data_dir: Path,
        kek: KeyEncryptionKey,
        *,
        key_uses: int = KEY_USES,
        busy_seconds: float = _BUSY_SECONDS,
    ) -> None:
        self._path = data_dir / FILE_NAME
        self._kek = kek
        self._key_uses = key_uses
        self._busy_seconds = busy_seconds
        self._lock = threading.Lock()
        self._idle: list[sqlite3.Connection] = []
        self._closed = False
        self._keys: dict[int, DataKey] = {}
        self._id = ""
        make_data_dir(data_dir)
        with self._translated():
            if not self.exists(data_dir):
                _create(self._path, kek)
            self._file = _check_files(self._path)
            try:
                self._open()
            except BaseException:
                self.close()
                raise

    @staticmethod
    def exists(data_dir: Path) -> bool:
        """Whether a database is there. If so, only the key it was made with opens it: never make another."""
        return os.path.lexists(data_dir / FILE_NAME)

    def get(self, kind: type[R], name: str) -> Stored[R] | None:
        """Return the document, or None when there is none."""
        codec.check_name(kind, name)
        with self._connection() as db:
            row = db.execute(
                "SELECT version, key, body FROM document WHERE kind = ? AND name = ?", (kind.KIND, name)
            ).fetchone()
            if row is None:
                return None
            return self._opened(db, kind, name, row)

    def put(self, name: str, record: Record, expected: int) -> int:
        """Write if the document is still at version ``expected`` (0: none); return the new version."""
        codec.check_write(name, record, expected)
        text = codec.encode(name, record)
        with self._writing() as db:
            self._expect(db, record.KIND, name, expected)
            version: int = db.execute("SELECT sequence + 1 FROM store").fetchone()[0]
            key = self._sealing_key(db)
            sealed = key.seal(Place(self._id, record.KIND, name, version), text.reveal())
            db.execute("UPDATE store SET sequence = ?", (version,))
            db.execute(
                "INSERT INTO document (kind, name, version, key, body) VALUES (?, ?, ?, ?, ?) "
                "ON CONFLICT (kind, name) DO UPDATE SET version = excluded.version, key = excluded.key, "
                "body = excluded.body",
                (record.KIND, name, version, key.id, sealed),
            )
        return version

    def remove(self, kind: type[Record], name: str, expected: int) -> None:
        """Remove the document if it is still at ``expected``; absent is success."""
        codec.check_name(kind, name)
        with self._writing() as db:
            if _version(db, kind.KIND, name) == 0:
                return
            self._expect(db, kind.KIND, name, expected)
            db.execute("DELETE FROM document WHERE kind = ? AND name = ?", (kind.KIND, name))

    def names(self, kind: type[Record]) -> list[str]:
        """Return the sorted names of all documents of the kind."""
        with self._connection() as db:
            rows = db.execute("SELECT name FROM document WHERE kind = ?", (kind.KIND,)).fetchall()
        names = [row[0] for row in rows]
        if not all(isinstance(name, str) and is_document_name(name) for name in names):
            raise RecordDamaged(f"a document of kind {kind.KIND} has a damaged name", hint=_RESTORE)
        return sorted(names)

    def probe(self) -> str:
        """Return one line about the store's health, or raise."""
        self._check_same_file()
        with self._connection() as db:
            documents = db.execute("SELECT count(*) FROM document").fetchone()[0]
        return f"local store {self._path} answers: {documents} documents"

    def close(self) -> None:
        """Close all connections; a call under way finishes first."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for db in idle:
            db.close()

    # --- Sealing ---

    def _opened(
        self, db: sqlite3.Connection, kind: type[R], name: str, row: tuple[object, object, object]
    ) -> Stored[R]:
        version, key_id, body = row
        if not (isinstance(version, int) and isinstance(key_id, int) and isinstance(body, bytes)):
            raise codec.damaged(kind, name, "has damaged columns")
        try:
            text = self._data_key(db, key_id).open(Place(self._id, kind.KIND, name, version), body)
        except SealBroken:
            raise codec.damaged(kind, name, "does not open: it was changed, or moved here") from None
        return Stored(codec.decode(kind, name, Secret(text)), version)

    def _sealing_key(self, db: sqlite3.Connection) -> DataKey:
        """Return the newest data key, or a new one when that is used up. Inside a write transaction."""
        key_id, uses = db.execute("SELECT id, uses FROM data_key ORDER BY id DESC LIMIT 1").fetchone()
        if uses >= self._key_uses:
            key_id += 1
            _, sealed = self._kek.new_data_key(self._id, key_id)
            _keep_key(db, key_id, self._kek, sealed)
        db.execute("UPDATE data_key SET uses = uses + 1 WHERE id = ?", (key_id,))
        return self._data_key(db, key_id, remember=uses < self._key_uses)

    def _data_key(self, db: sqlite3.Connection, key_id: int, *, remember: bool = True) -> DataKey:
        """Return a data key. One that is not committed yet is not remembered: it may be rolled back."""
        key = self._keys.get(key_id)
        if key is not None:
            return key
        row = db.execute("SELECT kek, sealed FROM data_key WHERE id = ?", (key_id,)).fetchone()
        if row is None:
            raise SealBroken
        if row[0] != self._kek.fingerprint:
            raise _wrong_kek(self._path)
        try:
            key = self._kek.open_data_key(self._id, key_id, row[1])
        except (SealBroken, TypeError):
            raise RecordDamaged(f"data key {key_id} of {self._path} is damaged", hint=_RESTORE) from None
        if remember:
            self._keys[key_id] = key
        return key

    # --- Connections ---

    def _open(self) -> None:
        """Check what is there, and that the key is the right one."""
        with self._connection() as db:
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version > _FORMAT:
                raise ConfigurationError(
                    f"{self._path} was made by a newer secretsvc", hint="Upgrade, or restore an older backup."
                )
            healthy = db.execute("PRAGMA quick_check(1)").fetchone()[0] == "ok"
            row = db.execute("SELECT id, (SELECT max(id) FROM data_key) FROM store").fetchone()
            if version != _FORMAT or not healthy or row is None or not isinstance(row[1], int):
                raise RecordDamaged(f"the database {self._path} is damaged", hint=_RESTORE)
            self._id = str(row[0])
            self._data_key(db, row[1])

    @contextlib.contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """Lend a connection. After an error of SQLite's it is thrown away."""
        with self._lock:
            if self._closed:
                raise StoreUnavailable(f"the local store {self._path} is closed")
            db = self._idle.pop() if self._idle else None
        with self._translated():
            if db is None:
                self._check_same_file()
                db = _connect(self._path)
            try:
                yield db
            except sqlite3.Error:
                db.close()
                raise
            except BaseException:
                self._give_back(db)
                raise
            self._give_back(db)

    def _give_back(self, db: sqlite3.Connection) -> None:
        with self._lock:
            if not self._closed:
                self._idle.append(db)
                return
        db.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction: committed and on disk when the block ends, rolled back when it raises."""
        with self._connection() as db:
            self._check_same_file()
            _begin(db, self._busy_seconds)
            try:
                yield db
                db.execute("COMMIT")
            finally:
                if db.in_transaction:
                    db.execute("ROLLBACK")

    def _expect(self, db: sqlite3.Connection, kind: str, name: str, expected: int) -> None:
        if _version(db, kind, name) != expected:
            raise StoreConflict(f"{kind}/{name} was written by somebody else first", hint="Read it again.")

    def _check_same_file(self) -> None:
        """Refuse to go on when the file was replaced: writes would go to a file nobody finds again."""
        try:
            found = self._path.stat(follow_symlinks=False)
        except OSError as exc:
            raise StoreUnavailable(
                f"the database {self._path} can not be reached: {exc.strerror}",
                hint="Put the file back from a backup, then restart secretsvc.",
            ) from exc
        if (found.st_dev, found.st_ino) != self._file:
            raise StoreUnavailable(
                f"the database {self._path} was replaced by another file", hint="Restart secretsvc."
            )

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as exc:
            raise _ours(self._path, exc) from exc


# --- Files ----------------------------------------------------------------------------------------


def _create(path: Path, kek: KeyEncryptionKey) -> None:
    """Make a database that appears whole or not at all; another process may be doing the same."""
    if os.path.lexists(path.with_name(path.name + "-wal")):
        raise RecordDamaged(f"the database {path} is gone, but its -wal file is there", hint=_RESTORE)
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        os.close(os.open(scratch, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
        with contextlib.closing(_connect(scratch)) as db:
            _fill(db, kek)
        _sync(scratch)
        os.link(scratch, path)  # refuses to replace, unlike a rename
        _sync(path.parent)
    except FileExistsError:
        return
    except OSError as exc:
        raise StoreUnavailable(f"the database {path} can not be made: {exc.strerror}") from exc
    finally:
        for suffix in ("", "-wal", "-shm"):
            scratch.with_name(scratch.name + suffix).unlink(missing_ok=True)


def _fill(db: sqlite3.Connection, kek: KeyEncryptionKey) -> None:
    store = secrets.token_hex(16)
    _, sealed = kek.new_data_key(store, 1)
    db.execute("PRAGMA journal_mode = WAL")
    db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {_FORMAT}; COMMIT;")
    db.execute("INSERT INTO store (id, sequence) VALUES (?, 0)", (store,))
    _keep_key(db, 1, kek, sealed)


def _keep_key(db: sqlite3.Connection, key_id: int, kek: KeyEncryptionKey, sealed: bytes) -> None:
    db.execute(
        "INSERT INTO data_key (id, kek, sealed, uses) VALUES (?, ?, ?, 0)", (key_id, kek.fingerprint, sealed)
    )


def _connect(path: Path) -> sqlite3.Connection:
    uri = f"file:{quote(str(path.absolute()))}?mode=rw"  # rw: a missing file is an error, not a new database
    db = sqlite3.connect(uri, uri=True, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        for pragma in (
            "synchronous = FULL",
            "fullfsync = ON",
            "checkpoint_fullfsync = ON",
            "secure_delete = ON",
            "trusted_schema = OFF",
            "cell_size_check = ON",
            "temp_store = MEMORY",
            "mmap_size = 0",
        ):
            db.execute(f"PRAGMA {pragma}")
    except BaseException:
        db.close()
        raise
    return db


def _begin(db: sqlite3.Connection, patience: float) -> None:
    """Begin a write as soon as nobody else writes; raise SQLite's error after ``patience`` seconds.

    SQLite's own waiting sleeps longer each time, up to 100 ms, so a request of serve would lose the race
    against the many short writes of work again and again.
    """
    end = time.monotonic() + patience
    _be_patient(db, 0)
    try:
        while True:
            try:
                db.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as exc:
                if _primary_code(exc) != sqlite3.SQLITE_BUSY or time.monotonic() >= end:
                    raise
                time.sleep(_BUSY_STEP)
            else:
                return
    finally:
        _be_patient(db, _BUSY_SECONDS)


def _be_patient(db: sqlite3.Connection, seconds: float) -> None:
    """Say how long SQLite itself waits for others, such as one that recovers the log."""
    db.execute(f"PRAGMA busy_timeout = {int(1000 * seconds)}")


def _version(db: sqlite3.Connection, kind: str, name: str) -> int:
    row = db.execute("SELECT version FROM document WHERE kind = ? AND name = ?", (kind, name)).fetchone()
    return row[0] if row else 0


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_files(path: Path) -> tuple[int, int]:
    """Refuse files that others can get at; return what identifies the database file."""
    for suffix in ("-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):  # they come and go with the connections
            _check_file(path.with_name(path.name + suffix))
    found = _check_file(path)
    if found.st_size == 0:
        raise RecordDamaged(f"the database {path} is empty: it was cut off", hint=_RESTORE)
    return found.st_dev, found.st_ino


def _check_file(path: Path) -> os.stat_result:
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode):
        raise ConfigurationError(f"{path} is not a regular file", hint="Put the database file itself there.")
    _check_ours(path, found, "600")
    return found


def _check_ours(path: Path, found: os.stat_result, mode: str) -> None:
    if found.st_uid != os.geteuid():
        raise ConfigurationError(
            f"{path} belongs to another user", hint=f"Run secretsvc as its owner, or chown it: {path}"
        )
    if found.st_mode & 0o077:
        raise ConfigurationError(
            f"{path} has mode {stat.S_IMODE(found.st_mode):04o}: others can get at it",
            hint=f"chmod {mode} {path}",
        )


# --- Errors ---------------------------------------------------------------------------------------


def _ours(path: Path, exc: sqlite3.Error) -> StoreError:
    code = _primary_code(exc)
    if code in _UNAVAILABLE:
        what, hint = _UNAVAILABLE[code]
        known_as = "DiskFull" if code == sqlite3.SQLITE_FULL else ""
        return StoreUnavailable(f"the database {path} does not answer: {what}", hint=hint, code=known_as)
    if code in _BROKEN:
        return RecordDamaged(f"the database {path} is damaged, or is not one of ours", hint=_RESTORE)
    return StoreError(f"the database {path} failed: {exc.__class__.__name__}")


def _primary_code(exc: sqlite3.Error) -> int:
    code: int = getattr(exc, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    return code & 0xFF  # the low byte


def _wrong_kek(path: Path) -> ConfigurationError:
    return ConfigurationError(
        f"the key file is not the one that {path} was made with",
        hint="Point SECRETSVC_KEY_FILE at the right key, or restore it from its backup.",
    )
