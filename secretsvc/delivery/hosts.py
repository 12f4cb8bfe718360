"""Auth files on this machine: our logins merged into files that belong to others too.

Rules:

- What is there is read first and never lost: foreign entries, unknown fields and layout stay, and a file
  that can not be understood is not touched. ``core.authfile`` decides what the file becomes, ``safefile``
  puts it there; here the two meet, and every failure becomes one of ours.
- Nothing is written when nothing changes, but others lose the right to read a file that holds a login.
- A path that OpenShift's machine-config daemon owns is refused: another byte there makes the node Degraded
  and blocks updates.
- A file that we created, and that holds nothing any more, goes with our last entry: even an empty one would
  hide the kubelet's next one. Who created it is remembered by a stamp beside the locks.

It keeps no backup copies (they would be secrets in another place; an exchange needs none), makes no
directories, and does not watch files: whoever reconciles asks again.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import filelock

from secretsvc.core.authfile import Plan, plan
from secretsvc.core.dockerconfig import MAX_BYTES, Document, parse
from secretsvc.core.errors import (
    DeliveryError,
    InvalidInput,
    TargetChanged,
    TargetForbidden,
    TargetMissing,
    TargetRefused,
    TargetUnreachable,
)
from secretsvc.core.ports import AuthFileResult, AuthFileWish, Entropy
from secretsvc.delivery.safefile import (
    Place,
    RenameAt2,
    Snapshot,
    kernel_rename,
    open_directory,
    private_mode,
)

MACHINE_CONFIGS = (Path("/etc/machine-config-daemon/currentconfig"), Path("/etc/mcd-currentconfig.json"))
"""Where OpenShift (and HyperShift) nodes list the files that the machine-config daemon owns."""

_ATTEMPTS = 5
_SETTLE = 0.1
"""Seconds that a writer in place is given to finish."""

_FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class LocalAuthFiles:
    """The `AuthFiles` of this machine.

    Args:
        state_directory: where locks and stamps are; made 0700 if it is not there. All processes that write
            the same auth files must be given the same one.
        entropy: for the names of temporary files.
        machine_configs: lists of files that are not ours to write.
        renamer: finds the kernel's exchanging rename, or None to do without (see `safefile`).
        lock_timeout: seconds to wait for another process of ours.
        sleep: pauses for so many seconds, before a file that can not be parsed, or is empty, is read
            again: somebody may be in the middle of writing it in place.
    """

    def __init__(
        self,
        state_directory: Path,
        *,
        entropy: Entropy = os.urandom,
        machine_configs: Sequence[Path] = MACHINE_CONFIGS,
        renamer: Callable[[], RenameAt2 | None] = kernel_rename,
        lock_timeout: float = 10.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._state = state_directory
        self._entropy = entropy
        self._machine_configs = tuple(machine_configs)
        self._rename = renamer()
        self._lock_timeout = lock_timeout
        self._sleep = sleep

    def write(self, wish: AuthFileWish) -> AuthFileResult:
        """Bring the file to ``wish`` by merging, atomically; no write when nothing changes.

        Raises:
            TargetRefused: the path or what is there is not for us to write, or the wish does not fit it.
            TargetForbidden: permissions, or a read-only file system.
            TargetMissing: there is no such directory.
            TargetChanged: somebody else keeps writing the file; retryable.
            TargetUnreachable: the disk is full or failing, or the lock is taken by us; retryable.
        """
        directory = _directory_of(wish.path)
        self._check_machine_configs(wish.path)
        try:
            with self._locked(wish.path), open_directory(directory, os.geteuid()) as descriptor:
                return self._write(self._place(wish.path, descriptor), wish)
        except InvalidInput as exc:
            raise TargetRefused(f"{wish.path}: {exc.message}", hint=exc.hint, code=exc.code) from exc
        except FileNotFoundError as exc:
            if not wish.entries:
                return AuthFileResult(changed=False, marks={})
            raise _translated(wish.path, exc) from exc
        except OSError as exc:
            raise _translated(wish.path, exc) from exc

    def _write(self, place: Place, wish: AuthFileWish) -> AuthFileResult:
        place.sweep()
        for _ in range(_ATTEMPTS):
            if (result := self._attempt(place, wish)) is not None:
                return result
        raise _unsettled(wish.path)

    def _attempt(self, place: Place, wish: AuthFileWish) -> AuthFileResult | None:
        """Try once; return None when somebody else wrote meanwhile."""
        snapshot, document = self._read(place)
        todo = plan(document, wish)
        if todo.changed:
            done = self._commit(place, snapshot, todo)
        else:
            done = snapshot is None or not _too_open(snapshot, todo) or place.tighten(snapshot)
        if not done:
            return None
        notes = (*_file_notes(snapshot, todo), *todo.notes)
        return AuthFileResult(todo.changed, todo.marks, todo.foreign, notes)

    def _commit(self, place: Place, snapshot: Snapshot | None, todo: Plan) -> bool:
        content = todo.text.encode()
        if len(content) > place.limit:
            message = f"{place.path} would grow over {place.limit} bytes"
            raise TargetRefused(message, hint="Take entries out of it.", code="TooLarge")
        stamp = self._state / f"{_path_digest(place.path)}.created"
        if snapshot is None:
            stamp.touch(0o600)
        elif not todo.held:
            stamp.unlink(missing_ok=True)
        elif stamp.exists() and _is_bare(todo):
            return place.withdraw(snapshot)
        if not place.replace(content, snapshot):
            return False
        written = place.snapshot()
        return written is not None and written.content == content

    def _read(self, place: Place) -> tuple[Snapshot | None, Document | None]:
        """Read the file. Broken or empty counts only when it stays so: it may be half written."""
        before: bytes | None = None
        for _ in range(_ATTEMPTS):
            snapshot = place.snapshot()
            if snapshot is None:
                return None, None
            document, problem = _understood(snapshot)
            if document is not None:
                return snapshot, document
            if snapshot.content == before:
                if problem is not None:
                    raise problem
                return snapshot, None
            before = snapshot.content
            self._sleep(_SETTLE)
        raise _unsettled(place.path)

    def _place(self, path: str, descriptor: int) -> Place:
        # The state directory is in the prefix: what begins with it was made under this very lock.
        own = hashlib.sha256(os.fsencode(self._state.resolve() / path)).hexdigest()[:16]
        prefix = f".secretsvc-{own}-"
        return Place(descriptor, path, os.geteuid(), MAX_BYTES, prefix, self._entropy, self._rename)

    @contextlib.contextmanager
    def _locked(self, path: str) -> Iterator[None]:
        self._state.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = filelock.FileLock(
            self._state / f"{_path_digest(path)}.lock", timeout=self._lock_timeout, mode=0o600
        )
        try:
            lock.acquire()
        except filelock.Timeout as exc:
            message = f"another process of secretsvc has been writing {path} for {self._lock_timeout:g} s"
            raise TargetUnreachable(message, hint="Try again later.", code="AuthFileBusy") from exc
        try:
            yield
        finally:
            lock.release()

    def _check_machine_configs(self, path: str) -> None:
        for listing in self._machine_configs:
            owned = _machine_files(listing)
            if owned is None or {path, os.path.realpath(path)} & owned:
                what = "may belong" if owned is None else "belongs"
                raise TargetRefused(
                    f"{path} {what} to this OpenShift node's machine-config daemon ({listing})",
                    hint="Deliver to the cluster's global pull secret, openshift-config/pull-secret, which "
                    "the daemon writes to every node. Another byte in the file makes the node Degraded.",
                    code="MachineConfigOwned",
                )


def _directory_of(path: str) -> str:
    """Return the directory of a path that names one file in one way only."""
    directory, name = os.path.split(path)
    if (
        "\0" in path
        or not path.startswith("/")
        or path.startswith("//")
        or not name
        or path != os.path.normpath(path)
    ):
        hint = "Give an absolute path without '.', '..' and doubled slashes."
        raise TargetRefused("the auth file's path is not absolute and plain", hint=hint, code="BadPath")
    return directory


def _path_digest(path: str) -> str:
    return hashlib.sha256(os.fsencode(path)).hexdigest()


def _machine_files(listing: Path) -> frozenset[str] | None:
    """Return the paths that a MachineConfig lists; None when it is there and can not be understood."""
    try:
        config = json.loads(listing.read_bytes())
        files = config["spec"]["config"]["storage"]["files"]
        return frozenset(file["path"] for file in files)
    except (FileNotFoundError, NotADirectoryError):
        return frozenset()
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def _understood(snapshot: Snapshot) -> tuple[Document | None, InvalidInput | None]:
    """Return the document, or what is wrong with it; neither when the file is empty."""
    try:
        return (parse(snapshot.content) if snapshot.content else None), None
    except InvalidInput as exc:
        return None, exc


def _too_open(snapshot: Snapshot, todo: Plan) -> bool:
    return bool(todo.marks) and snapshot.mode & ~private_mode(snapshot.mode) != 0


def _is_bare(todo: Plan) -> bool:
    document = parse(todo.text)
    return not document.auths and not document.others


def _file_notes(snapshot: Snapshot | None, todo: Plan) -> list[str]:
    if snapshot is None:
        return []
    notes = []
    if not snapshot.content:
        notes.append("the file was empty, which its readers take for an error")
    if snapshot.status.st_nlink > 1 and todo.changed:
        notes.append("the file had hard links: its other names keep the old content")
    if _too_open(snapshot, todo):
        notes.append(f"the file's mode was {snapshot.mode:04o}: others have lost their rights to it")
    return notes


def _unsettled(path: str) -> TargetChanged:
    return TargetChanged(f"{path} is being written by somebody else all the time", hint="Find out by whom.")


def _translated(path: str, exc: OSError) -> DeliveryError:
    """Turn what the file system said into one of our errors. File names are all that it quotes."""
    why = os.strerror(exc.errno) if exc.errno else type(exc).__name__
    if exc.errno == errno.ENOENT:
        directory = Path(path).parent
        hint = f"Make it first, for the user that reads it: install -d -m 0700 {directory}"
        return TargetMissing(f"the directory of {path} is not there", hint=hint)
    if exc.errno == errno.EBUSY:
        hint = "Mount the directory that it is in instead of the file."
        return TargetRefused(
            f"{path} is a mount point, which can not be replaced", hint=hint, code="MountedFile"
        )
    if exc.errno in {errno.ENOTDIR, errno.ENAMETOOLONG, errno.EISDIR}:
        return TargetRefused(f"{path}: {why}", hint="Name another path.", code="BadPath")
    if exc.errno in _FORBIDDEN:
        hint = "Give the service's user the right to write in that directory, or name another path."
        return TargetForbidden(f"{path} may not be written: {why}", hint=hint)
    if exc.errno in _FULL:
        return TargetUnreachable(f"no room to write {path}: {why}", hint="Make room; the file is as it was.")
    return TargetUnreachable(f"{path} can not be written: {why}", hint="The file is as it was.")
