"""The second line of defence: values that are in hand are struck out of every log line.

The first line is that nothing logs a value: a `Secret` does not show itself, and messages are written by us.
What foreign libraries write can not be promised, so serve remembers a value here while a request brings it
(`Redactor.holding`); work holds none, and writes no exception's message either. `Redactor.clean` strikes out
the forms in which a value may be written: as it is, quoted for a URL, escaped for JSON, and as the base64 of
itself and of ``username:value`` (an auth entry, a Basic header).

What it can not do: find a value inside some other encoding, such as the base64 of a whole file. Values of
fewer than 6 characters are not struck out, since that would blank ordinary words.
"""

from __future__ import annotations

import base64
import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import quote, quote_plus

from secretsvc.core.model import Secret

STRUCK_OUT = "***"
SHORTEST = 6
"""Characters that a value must have to be struck out."""


class Redactor:
    """Knows the values that are in hand just now, and strikes them out of text. Safe in threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._forms: Counter[str] = Counter()

    @contextmanager
    def holding(self, secret: Secret, username: str = "") -> Iterator[None]:
        """Strike out ``secret``, and its pair with ``username``, until the block ends."""
        forms = _forms(secret.reveal(), username)
        with self._lock:
            self._forms.update(forms)
        try:
            yield
        finally:
            with self._lock:
                self._forms.subtract(forms)
                self._forms = +self._forms

    def clean(self, text: str) -> str:
        """Return ``text`` with every form of every value in hand replaced by ``***``."""
        with self._lock:
            forms = [form for form in self._forms if form in text]
        for form in sorted(forms, key=len, reverse=True):
            text = text.replace(form, STRUCK_OUT)
        return text


def _forms(value: str, username: str) -> set[str]:
    """Return the ways in which a value may be written."""
    if len(value) < SHORTEST:
        return set()
    forms = {value, quote(value, safe=""), quote(value), quote_plus(value)}
    forms |= {json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1]}
    for text in (value, f"{username}:{value}"):
        data = text.encode()
        for encoded in (base64.b64encode(data), base64.urlsafe_b64encode(data)):
            forms |= {encoded.decode(), encoded.decode().rstrip("=")}
    return forms
