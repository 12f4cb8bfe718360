"""One file in one directory, replaced whole and only if it is still what was read.

Rules (each has the failure it prevents):

- The directory is opened component by component without following links, and everything later goes through
  its descriptor: nobody can lead us elsewhere by renaming a parent.
- New content goes to a file of its own in the same directory, 0600 from its first moment, and is on disk
  before it gets the name: a reader, and a machine that loses power, sees the old file or the new one.
- Where the kernel can (``renameat2``), old and new are *exchanged*, and what comes out is compared with
  what was read: a writer that came in between is noticed, and gets its version back. Elsewhere the
  comparison comes before the rename, and a write in the microseconds between them is lost.
- Foreign tools lock nothing, so a lock only serialises ourselves; it is the caller's.

It does not know what the file holds. It raises `OSError`, and `TargetRefused` for what is not a plain file
in a safe place; the caller translates the former.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import grp
import os
import pwd
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from secretsvc.core.errors import TargetRefused
from secretsvc.core.ports import Entropy

PRIVATE = 0o600
_NOREPLACE = 1
_EXCHANGE = 2
_UNSUPPORTED = frozenset({errno.ENOSYS, errno.EINVAL, errno.ENOTSUP})
_NOT_COPIED = frozenset({"security.ima", "security.evm", "security.capability"})
"""Extended attributes that sign or empower one content and would be wrong on another."""
_MAX_SWAPS = 10

RenameAt2 = Callable[[int, bytes, bytes, int], None]
"""Renames inside one directory with ``renameat2`` flags; raises `OSError`."""


def kernel_rename() -> RenameAt2 | None:
    """Return the C library's ``renameat2``, or None where there is none (glibc before 2.28)."""
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is None:
        return None
    function.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    function.restype = ctypes.c_int

    def rename(directory: int, source: bytes, target: bytes, flags: int) -> None:
        if function(directory, source, directory, target, flags) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))

    return rename


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A file as it was read."""

    content: bytes = field(repr=False)
    status: os.stat_result

    @property
    def mode(self) -> int:
        """Permission bits."""
        return stat.S_IMODE(self.status.st_mode)

    def is_at(self, status: os.stat_result | None) -> bool:
        """Whether ``status`` is of this very file, not written since."""
        return status is not None and _identity(status) == _identity(self.status)


@contextlib.contextmanager
def open_directory(path: str, uid: int) -> Iterator[int]:
    """Open an absolute, normalised directory path safely; yield its descriptor.

    Args:
        path: the directory.
        uid: who we are. Every component must belong to that user or to root, and only its owner may rename
            what is in it: not writable by others, or sticky and root's, as ``/tmp`` is.

    Raises:
        TargetRefused: a component is a link, or somebody else could replace what is below it.
        OSError: a component is not there, or may not be entered.
    """
    with contextlib.ExitStack() as opened:
        done, descriptor = "/", os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        opened.callback(os.close, descriptor)
        _check_component(done, os.fstat(descriptor), uid)
        for name in filter(None, path.split("/")):
            done = f"{done.rstrip('/')}/{name}"
            descriptor = _descend(descriptor, name, done)
            opened.callback(os.close, descriptor)
            _check_component(done, os.fstat(descriptor), uid)
        # The descriptors so far only lead the way; to list and sync it takes one with read permission.
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        descriptor = os.open(".", flags, dir_fd=descriptor)
        opened.callback(os.close, descriptor)
        yield descriptor


@dataclass(frozen=True, slots=True)
class Place:
    """A name in an opened directory."""

    directory: int
    """The directory's descriptor."""
    path: str
    """The file's, whose last component is its name in the directory."""
    uid: int
    """Who we are."""
    limit: int
    """The most bytes the file may have."""
    prefix: str
    """What our own new files in the directory begin with; who shares it must be kept out by a lock."""
    entropy: Entropy
    rename: RenameAt2 | None
    """The kernel's exchanging rename, or None to do without."""

    @property
    def name(self) -> str:
        """The file's name in the directory."""
        return self.path.rpartition("/")[2]

    def sweep(self) -> None:
        """Remove what an earlier process of ours left behind when it was killed."""
        for name in os.listdir(self.directory):  # noqa: PTH208  # a descriptor, not a path
            if name.startswith(self.prefix):
                # In a shared directory it may be somebody else's, which is then not ours to remove.
                with contextlib.suppress(OSError):
                    os.unlink(name, dir_fd=self.directory)

    def snapshot(self) -> Snapshot | None:
        """Read the file, or return None when there is none.

        Raises:
            TargetRefused: a link, not a regular file, too large, or somebody else's.
        """
        before = self._status(self.name)
        if before is None:
            return None
        self._check_regular(before)
        self._check_owner(before)
        try:
            return self._read(self.name)
        except FileNotFoundError:
            return None

    def tighten(self, old: Snapshot) -> bool:
        """Make the file `private_mode`, if it is still ``old``; return whether it is."""
        try:
            descriptor = self._open(self.name)
        except FileNotFoundError:
            return False
        try:
            if not old.is_at(os.fstat(descriptor)):
                return False
            os.fchmod(descriptor, private_mode(old.mode))
        finally:
            os.close(descriptor)
        return True

    def replace(self, content: bytes, old: Snapshot | None) -> bool:
        """Put ``content`` there if the file is still ``old``; return whether it was.

        Owner and extended attributes of ``old`` are kept, its mode without what others may do.
        When this returns, the new content survives a power cut.
        """
        temporary = self._stage(content, old)
        try:
            done = self._create(temporary) if old is None else self._exchange(temporary, old)
        except BaseException:
            self._discard(temporary)
            raise
        self._discard(temporary)
        if done:
            os.fsync(self.directory)
        return done

    def withdraw(self, old: Snapshot) -> bool:
        """Remove the file if it is still ``old``; return whether it was."""
        if not old.is_at(self._status(self.name)):
            return False
        aside = self._temporary_name()
        os.rename(self.name, aside, src_dir_fd=self.directory, dst_dir_fd=self.directory)
        same = self._is_same(aside, old)
        if not same:
            # When there is a newer one by now, that is what its writer wants.
            with contextlib.suppress(FileExistsError):
                self._rename_exclusive(aside)
        self._discard(aside)
        os.fsync(self.directory)
        return same

    def _create(self, temporary: str) -> bool:
        try:
            self._rename_exclusive(temporary)
        except FileExistsError:
            return False
        return True

    def _rename_exclusive(self, source: str) -> None:
        """Give ``source`` the file's name; raise `FileExistsError` when that is taken."""
        if self._flagged(source, _NOREPLACE):
            return
        if self._status(self.name) is not None:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        os.rename(source, self.name, src_dir_fd=self.directory, dst_dir_fd=self.directory)

    def _exchange(self, temporary: str, old: Snapshot) -> bool:
        if not old.is_at(self._status(self.name)):
            return False
        ours = self._inode(temporary)
        try:
            if not self._flagged(temporary, _EXCHANGE):
                os.replace(temporary, self.name, src_dir_fd=self.directory, dst_dir_fd=self.directory)
                return True
        except FileNotFoundError:
            return False
        if self._is_same(temporary, old):
            return True
        self._give_back(temporary, ours)
        return False

    def _give_back(self, temporary: str, ours: tuple[int, int]) -> None:
        """Somebody wrote just before we exchanged: swap until what comes out is what we put in last."""
        placed, held = ours, self._inode(temporary)
        for _ in range(_MAX_SWAPS):
            try:
                self._flagged(temporary, _EXCHANGE)
            except FileNotFoundError:
                return  # they removed it: so be it
            out = self._inode(temporary)
            if out == placed:
                return
            placed, held = held, out

    def _flagged(self, source: str, flags: int) -> bool:
        """Rename with ``flags``; return False where kernel or file system can not."""
        if self.rename is None:
            return False
        try:
            self.rename(self.directory, os.fsencode(source), os.fsencode(self.name), flags)
        except OSError as exc:
            if exc.errno in _UNSUPPORTED:
                return False
            raise
        return True

    def _stage(self, content: bytes, like: Snapshot | None) -> str:
        name = self._temporary_name()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(name, flags, PRIVATE, dir_fd=self.directory)
        try:
            try:
                self._check_permissions(descriptor)
                _write_all(descriptor, content)
                self._dress(descriptor, like)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except BaseException:
            self._discard(name)
            raise
        return name

    def _check_permissions(self, descriptor: int) -> None:
        if stat.S_IMODE(os.fstat(descriptor).st_mode) & ~PRIVATE:
            message = f"the file system of {self.path} does not keep permissions, so others could read it"
            raise TargetRefused(message, hint="Name a path on another file system.", code="NoPermissions")

    def _dress(self, descriptor: int, like: Snapshot | None) -> None:
        """Give the new file the old one's owner, attributes and mode, never a looser one than 0600."""
        mode = PRIVATE
        if like is not None:
            own = os.fstat(descriptor)
            owner = like.status.st_uid, like.status.st_gid
            if owner != (own.st_uid, own.st_gid):
                os.fchown(descriptor, *owner)
            self._copy_attributes(descriptor)
            mode = private_mode(like.mode)
        # Last, because an access list among the attributes widens the mode; this narrows its mask again.
        os.fchmod(descriptor, mode)

    def _copy_attributes(self, descriptor: int) -> None:
        source = self._open(self.name)
        try:
            # Not every file system has them and not everyone may set each: what can not be copied is left.
            with contextlib.suppress(OSError):
                for name in set(os.listxattr(source)) - _NOT_COPIED:
                    with contextlib.suppress(OSError):
                        os.setxattr(descriptor, name, os.getxattr(source, name))
        finally:
            os.close(source)

    def _check_regular(self, status: os.stat_result) -> None:
        hint = "Name another path."
        if stat.S_ISLNK(status.st_mode):
            hint = "Name the file that it leads to."
            raise TargetRefused(f"{self.path} is a symbolic link", hint=hint, code="SymbolicLink")
        if not stat.S_ISREG(status.st_mode):
            raise TargetRefused(f"{self.path} is not a regular file", hint=hint, code="NotAFile")
        if status.st_size > self.limit:
            message = f"{self.path} has more than {self.limit} bytes, so it is no auth file"
            raise TargetRefused(message, hint=hint, code="TooLarge")

    def _check_owner(self, status: os.stat_result) -> None:
        """Refuse somebody else's file: its owner would read what we write.

        Only root may write for others, and only where nobody else could have put the file.
        """
        shared = os.fstat(self.directory).st_mode & stat.S_ISVTX
        if status.st_uid != self.uid and (self.uid != 0 or shared):
            message = f"{self.path} belongs to user {status.st_uid}, and we are {self.uid}"
            raise TargetRefused(message, hint="Run as its owner, or name another path.", code="ForeignOwner")

    def _read(self, name: str) -> Snapshot:
        with os.fdopen(self._open(name), "rb") as file:
            status = os.fstat(file.fileno())
            self._check_regular(status)
            return Snapshot(file.read(self.limit + 1), status)

    def _open(self, name: str) -> int:
        # NONBLOCK: a pipe put there since the last look must not hold us.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        return os.open(name, flags, dir_fd=self.directory)

    def _is_same(self, name: str, old: Snapshot) -> bool:
        """Whether ``name`` is the old file, not written since; only its ctime may differ, by the rename."""
        status = self._status(name)
        if status is None or _identity(status)[:-1] != _identity(old.status)[:-1]:
            return False
        return self._read(name).content == old.content

    def _status(self, name: str) -> os.stat_result | None:
        try:
            return os.stat(name, dir_fd=self.directory, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def _inode(self, name: str) -> tuple[int, int]:
        status = os.stat(name, dir_fd=self.directory, follow_symlinks=False)
        return status.st_dev, status.st_ino

    def _temporary_name(self) -> str:
        return f"{self.prefix}{self.entropy(8).hex()}"

    def _discard(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self.directory)


def private_mode(mode: int) -> int:
    """Return 0400 for a file that only its owner may read and not write, else 0600."""
    return stat.S_IRUSR if mode & PRIVATE == stat.S_IRUSR else PRIVATE


def _write_all(descriptor: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _descend(parent: int, name: str, path: str) -> int:
    flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(name, flags, dir_fd=parent)
    except NotADirectoryError as exc:
        if not stat.S_ISLNK(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
            raise
        hint = f"Name the real path: it leads to {os.path.realpath(path)}."
        raise TargetRefused(f"{path} is a symbolic link", hint=hint, code="SymbolicLink") from exc


def _check_component(path: str, status: os.stat_result, uid: int) -> None:
    shared = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if shared == stat.S_IWGRP and _is_own_group(status):
        shared = 0
    fenced = status.st_mode & stat.S_ISVTX and status.st_uid == 0
    if status.st_uid not in {0, uid}:
        problem = f"belongs to user {status.st_uid}, who could replace what is in it"
    elif shared and not fenced:
        problem = "can be written by others"
    else:
        return
    hint = f"Run as its owner, or take the rights of others away: chmod go-w {path}"
    raise TargetRefused(f"the directory {path} {problem}", hint=hint, code="UnsafeDirectory")


def _is_own_group(status: os.stat_result) -> bool:
    """Whether the group is its owner's private one (``useradd -U``), for which umask 002 is usual."""
    try:
        owner, group = pwd.getpwuid(status.st_uid), grp.getgrgid(status.st_gid)
    except KeyError:
        return False
    return (owner.pw_gid, owner.pw_name) == (group.gr_gid, group.gr_name) and not set(group.gr_mem) - {
        owner.pw_name
    }
