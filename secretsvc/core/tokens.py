"""API tokens: ``ssvc_`` + 43 base-62 digits (256 random bits) + 6 base-62 digits of a CRC-32.

The prefix lets scanners find a leaked one, the checksum lets us refuse a mistyped one without a look-up
(GitHub's format of 2021). Stored is the SHA-256 alone: 256 random bits need no slow hash (ASVS 6.5.2).
"""

from __future__ import annotations

import binascii
import hashlib
import re
import string

from secretsvc.core.model import Secret

PREFIX = "ssvc_"
ENTROPY_BYTES = 32
_DIGITS = string.digits + string.ascii_uppercase + string.ascii_lowercase
_BODY, _CHECK = 43, 6
_SHAPE = re.compile(f"{PREFIX}[0-9A-Za-z]{{{_BODY + _CHECK}}}\\Z")
_ID_DIGITS = 32


def make_token(entropy: bytes) -> Secret:
    """Return the token for 32 random bytes."""
    body = _base62(int.from_bytes(entropy[:ENTROPY_BYTES], "big"), _BODY)
    return Secret(PREFIX + body + _checksum(body))


def is_well_formed(token: Secret) -> bool:
    """Whether the text has the shape and checksum of a token of ours."""
    text = token.reveal()
    if _SHAPE.match(text) is None:
        return False
    return _checksum(text[len(PREFIX) : -_CHECK]) == text[-_CHECK:]


def token_digest(token: Secret) -> str:
    """Return what is stored instead of the token."""
    return hashlib.sha256(token.reveal().encode()).hexdigest()


def token_id(digest: str) -> str:
    """Return the public id under which the token's principal is stored."""
    return digest[:_ID_DIGITS]


def _checksum(body: str) -> str:
    return _base62(binascii.crc32(body.encode()), _CHECK)


def _base62(number: int, width: int) -> str:
    digits = []
    for _ in range(width):
        number, rest = divmod(number, len(_DIGITS))
        digits.append(_DIGITS[rest])
    return "".join(reversed(digits))
