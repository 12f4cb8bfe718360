"""Names, ids and keyed digests: what the documents are called and compared by.

Pure: time and randomness are arguments. A name is flat, ``[a-z0-9-]``, so that it can be the last
segment of a store path without ever leaving its folder (hvac lets a path escape its mount).
"""

from __future__ import annotations

import hashlib
import hmac
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime

    from secretsvc.core.model import Secret

NAME_RULE = "1 to 40 characters of a-z, 0-9 and '-'"
_NAME = re.compile(r"[a-z0-9-]{1,40}\Z")
_DOCUMENT = re.compile(r"[a-z0-9-]{1,80}\Z")
_BASE32 = "0123456789abcdefghjkmnpqrstvwxyz"
_ULID = re.compile(f"[{_BASE32}]{{26}}\\Z")
_ENTROPY_BYTES = 10


def is_name(text: str) -> bool:
    """Whether ``text`` may name a registry, credential, rule or token."""
    return _NAME.match(text) is not None


def is_document_name(text: str) -> bool:
    """Whether ``text`` may be a store document's name (a name, an id, or two joined by ``-``)."""
    return _DOCUMENT.match(text) is not None


def is_ulid(text: str) -> bool:
    """Whether ``text`` is an id made by `ulid`."""
    return _ULID.match(text) is not None


def ulid(now: datetime, entropy: bytes) -> str:
    """Return a 26-character id that sorts by time: 48 bits of milliseconds, then 80 random bits.

    Crockford's base 32 in lower case (the ULID specification's alphabet), so that it is a valid name.

    Args:
        now: an aware time.
        entropy: at least 10 random bytes; the first 10 are used.
    """
    milliseconds = int(now.timestamp() * 1000)
    number = milliseconds << 80 | int.from_bytes(entropy[:_ENTROPY_BYTES], "big")
    return "".join(_BASE32[number >> shift & 31] for shift in range(125, -1, -5))


def keyed_digest(key: Secret, *parts: str) -> str:
    """Return the hex HMAC-SHA256 of ``parts``, each framed by its length so that none can run over.

    Used for content hashes, ownership marks and fingerprints: a plain hash of a short password could be
    guessed by whoever reads it.
    """
    mac = hmac.new(key.reveal().encode(), digestmod=hashlib.sha256)
    for part in parts:
        data = part.encode()
        mac.update(len(data).to_bytes(8, "big") + data)
    return mac.hexdigest()


def same_digest(one: str, other: str) -> bool:
    """Compare two digests in constant time."""
    return hmac.compare_digest(one.encode(), other.encode())
