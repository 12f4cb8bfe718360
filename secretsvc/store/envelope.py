"""The only door to cryptography: the key-encryption key, data keys, and sealed documents.

Rules:

- A key-encryption key (KEK) of 32 random bytes is in a file of its own, base64, mode 0600, never in the data
  directory. It seals data keys and nothing else.
- A data key seals documents with AES-256-GCM under a random 96-bit nonce, at most `KEY_USES` times
  (Kubernetes' aesgcm provider turns over at the same number), so that two equal nonces stay out of reach.
- The associated data bind a sealed document to its store, kind, name, version and data key: a blob that was
  changed, or moved to another row, does not open.

What this does not do: detect that a whole row, or the whole database, was put back to an older state, or that
rows were deleted; protect against whoever can read the key file, which root on the host can.
"""

from __future__ import annotations

import base64
import binascii
import errno
import hashlib
import hmac
import os
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from secretsvc.core.errors import ConfigurationError

KEY_USES = 200_000
"""How many documents one data key seals before a new one takes over."""

_KEY_BYTES = 32
_NONCE_BYTES = 12
_FORMAT = b"secretsvc/1"
_OPEN = os.O_CLOEXEC | os.O_NOFOLLOW


class SealBroken(Exception):
    """A sealed value does not open: it was changed, moved, or sealed under another key."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a sealed document belongs. Opening it anywhere else fails."""

    store: str
    kind: str
    name: str
    version: int


class DataKey:
    """Seals and opens documents. Shows nothing of itself."""

    __slots__ = ("_cipher", "id")

    def __init__(self, key_id: int, key: bytes) -> None:
        self.id = key_id
        self._cipher = AESGCM(key)

    def seal(self, place: Place, text: str) -> bytes:
        """Return nonce and ciphertext of ``text`` for that place only."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, text.encode(), self._bound(place))

    def open(self, place: Place, sealed: bytes) -> str:
        """Return the text, or raise `SealBroken`."""
        return _opened(self._cipher, sealed, self._bound(place)).decode()

    def _bound(self, place: Place) -> bytes:
        return _framed("document", place.store, place.kind, place.name, str(place.version), str(self.id))


class KeyEncryptionKey:
    """Seals data keys. Shows nothing of itself but `fingerprint`."""

    __slots__ = ("_cipher", "fingerprint")

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)
        self.fingerprint = hmac.new(key, b"secretsvc/1 key-encryption key", hashlib.sha256).hexdigest()[:16]
        """Tells keys apart without giving one away: 64 bits of a keyed digest of a fixed text."""

    def new_data_key(self, store: str, key_id: int) -> tuple[DataKey, bytes]:
        """Return a fresh data key, and the same sealed for keeping beside the data."""
        key = AESGCM.generate_key(_KEY_BYTES * 8)
        nonce = secrets.token_bytes(_NONCE_BYTES)
        sealed = nonce + self._cipher.encrypt(nonce, key, self._bound(store, key_id))
        return DataKey(key_id, key), sealed

    def open_data_key(self, store: str, key_id: int, sealed: bytes) -> DataKey:
        """Return the data key that was kept sealed, or raise `SealBroken`."""
        return DataKey(key_id, _opened(self._cipher, sealed, self._bound(store, key_id)))

    def _bound(self, store: str, key_id: int) -> bytes:
        return _framed("data key", store, str(key_id))


def _opened(cipher: AESGCM, sealed: bytes, bound: bytes) -> bytes:
    try:
        return cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], bound)
    except (InvalidTag, ValueError):
        raise SealBroken from None


def _framed(*parts: str) -> bytes:
    """Join parts so that no two different lists give the same bytes."""
    framed = [len(part.encode()).to_bytes(4, "big") + part.encode() for part in parts]
    return _FORMAT + b"".join(framed)


# --- The key file ---------------------------------------------------------------------------------


def create_key_file(path: Path, data_dir: Path) -> bool:
    """Make a key file with a new key, mode 0600; return False and change nothing when there is one.

    The file appears whole or not at all, and is on disk when this returns. A missing folder is made with
    mode 0700.
    """
    _refuse_inside(path, data_dir)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        made = not os.path.lexists(path) and _place_key(path)
    except OSError as exc:
        raise ConfigurationError(
            f"the key file {path} can not be made: {exc.strerror}",
            hint="Set SECRETSVC_KEY_FILE to a path that this user may write.",
        ) from exc
    return made


def load_key_file(path: Path, data_dir: Path) -> KeyEncryptionKey:
    """Read the key-encryption key, or raise `ConfigurationError` with what to do.

    Refused: a symbolic link, anything but a regular file, a file of another user (root's is accepted), one
    that group or others have any right to, one inside the data directory, and a wrong size.
    """
    _refuse_inside(path, data_dir)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | _OPEN)
    except OSError as exc:
        raise _unreadable(path, exc) from exc
    try:
        _check_file(path, os.fstat(descriptor))
        content = os.read(descriptor, 4096)
    finally:
        os.close(descriptor)
    try:
        key = base64.b64decode(content.strip(), validate=True)
    except binascii.Error:
        key = b""
    if len(key) != _KEY_BYTES:
        raise ConfigurationError(
            f"the key file {path} does not hold 32 bytes in base64",
            hint="Restore it from its backup. Without the right key the stored credentials can not be read.",
        )
    return KeyEncryptionKey(key)


def _place_key(path: Path) -> bool:
    """Write a new key beside ``path`` and link it there, which refuses to replace, unlike a rename."""
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _OPEN, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(base64.b64encode(secrets.token_bytes(_KEY_BYTES)) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        os.link(scratch, path)
    except FileExistsError:
        return False
    finally:
        scratch.unlink()
    _sync_folder(path.parent)
    return True


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _refuse_inside(path: Path, data_dir: Path) -> None:
    if path.parent.resolve().is_relative_to(data_dir.resolve()):
        raise ConfigurationError(
            f"the key file {path} is inside the data directory {data_dir}",
            hint="Keep it elsewhere (SECRETSVC_KEY_FILE): a copy of the data must not carry its key along.",
        )


def _check_file(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise ConfigurationError(f"the key file {path} is not a regular file", hint="Name the file itself.")
    if found.st_uid not in (os.geteuid(), 0):
        raise ConfigurationError(
            f"the key file {path} belongs to another user",
            hint=f"chown it to the user that runs secretsvc, then chmod 600 {path}",
        )
    if found.st_mode & 0o077:
        raise ConfigurationError(
            f"the key file {path} has mode {stat.S_IMODE(found.st_mode):04o}: others can get at it",
            hint=f"chmod 600 {path}; whoever could read it may have copied it.",
        )


def _unreadable(path: Path, exc: OSError) -> ConfigurationError:
    if exc.errno == errno.ELOOP:
        return ConfigurationError(f"the key file {path} is a symbolic link", hint="Name the file itself.")
    if exc.errno == errno.ENOENT:
        return ConfigurationError(
            f"there is no key file {path}",
            hint="Restore it from its backup, or set SECRETSVC_KEY_FILE to where it is. "
            "Without it the stored credentials can not be read.",
        )
    return ConfigurationError(
        f"the key file {path} can not be read: {exc.strerror}",
        hint=f"It must belong to the user that runs secretsvc, with mode 600: {path}",
    )
