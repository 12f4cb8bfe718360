"""The grammar of ``WWW-Authenticate`` (RFC 9110 section 11, RFC 7617, RFC 6750), complete and pure.

Rules:

- The input is the list of header *lines* as received: joining repeated lines first is what makes other
  clients mistake one challenge's parameters for another's. A joined line is understood nevertheless.
- Schemes and parameter names are case-insensitive and come out in lower case; values keep their case.
- Tolerated beyond the grammar, because registries in the field send it: empty list elements, blanks around
  ``=``, and unquoted values with characters that are no token characters (``realm=https://h/t``).
- Anything else is a `ChallengeError`, and that is the only exception; the work is linear in the input.

It does not decide which challenge to use, nor whether a realm may be trusted (`registries.realm`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

MAX_CHARACTERS = 16_384
"""More than this in all lines together is refused unread."""

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_TOKEN68 = re.compile(r"([A-Za-z0-9\-._~+/]+=*)[ \t]*(?=,|\Z)")
_PARAMETER = re.compile(r"([!#$%&'*+\-.^_`|~0-9A-Za-z]+)[ \t]*=[ \t]*")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
_BARE = re.compile(r'[^\s,"]*')
_SEPARATORS = re.compile(r"[ \t,]*")
_BLANKS = re.compile(r"[ \t]+")
_BLANKS_THEN_COMMA_OR_END = re.compile(r"[ \t]*(?=,|\Z)")
_FOLD = re.compile(r"\r?\n[ \t]+")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_PAIR = re.compile(r"\\(.)")


class ChallengeError(ValueError):
    """The header is not a list of challenges. The message says why and never quotes the header."""


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way of authenticating that a server offers."""

    scheme: str
    """In lower case: ``basic``, ``bearer``, ``negotiate`` ..."""
    params: Mapping[str, str] = field(default_factory=dict)
    """Names in lower case."""
    token68: str = ""
    """The single opaque value some schemes carry instead of parameters."""


def parse_challenges(lines: Sequence[str]) -> tuple[Challenge, ...]:
    """Return every challenge of every line, in order.

    Args:
        lines: the values of all ``WWW-Authenticate`` header lines, one item each.

    Raises:
        ChallengeError: a line does not follow the grammar, or repeats a parameter with another value.
    """
    if sum(map(len, lines)) > MAX_CHARACTERS:
        msg = "the challenge is too long"
        raise ChallengeError(msg)
    return tuple(challenge for line in lines for challenge in _Line(line).challenges())


class _Line:
    """A cursor over one header line."""

    def __init__(self, text: str) -> None:
        self._text = _FOLD.sub(" ", text).strip(" \t\r\n")
        self._at = 0
        if _CONTROL.search(self._text):
            msg = "the challenge holds a control character"
            raise ChallengeError(msg)

    def challenges(self) -> list[Challenge]:
        found: list[Challenge] = []
        self._skip(_SEPARATORS)
        while self._at < len(self._text):
            found.append(self._challenge())
            self._skip(_SEPARATORS)
        return found

    def _challenge(self) -> Challenge:
        scheme = self._take(_TOKEN, "a scheme was expected").group().lower()
        if self._matches(_BLANKS_THEN_COMMA_OR_END):
            return Challenge(scheme)
        self._take(_BLANKS, "a blank must follow a scheme")
        opaque = _TOKEN68.match(self._text, self._at)
        if opaque is not None:
            self._at = opaque.end()
            return Challenge(scheme, {}, opaque.group(1))
        return Challenge(scheme, self._parameters())

    def _parameters(self) -> dict[str, str]:
        """Read parameters until the line ends or what follows a comma is not ``name =``."""
        params: dict[str, str] = {}
        while not params or self._matches(_PARAMETER):
            name = self._take(_PARAMETER, "a parameter was expected").group(1).lower()
            value = self._value()
            if params.setdefault(name, value) != value:
                msg = "a parameter is given twice with different values"
                raise ChallengeError(msg)
            if not self._matches(_BLANKS_THEN_COMMA_OR_END):
                msg = "a comma was expected after a parameter"
                raise ChallengeError(msg)
            self._skip(_SEPARATORS)
        return params

    def _value(self) -> str:
        if self._text[self._at : self._at + 1] == '"':
            quoted = self._take(_QUOTED, "a quoted value does not end").group(1)
            return _PAIR.sub(r"\1", quoted)
        return self._take(_BARE, "a value was expected").group()

    def _matches(self, pattern: re.Pattern[str]) -> bool:
        return pattern.match(self._text, self._at) is not None

    def _skip(self, pattern: re.Pattern[str]) -> None:
        match = pattern.match(self._text, self._at)
        if match is not None:
            self._at = match.end()

    def _take(self, pattern: re.Pattern[str], expectation: str) -> re.Match[str]:
        match = pattern.match(self._text, self._at)
        if match is None:
            raise ChallengeError(expectation)
        self._at = match.end()
        return match
