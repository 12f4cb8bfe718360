"""Finding a value wherever it may have got to, however it is written there.

A `Canary` is a value around a random core. The core alone is looked for too, so that an escape of the
characters around it which nobody thought of hides nothing. Base64 is found at any offset inside a longer
text, and inside base64 again, as in the data of a Secret.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import secrets
import string
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self
from urllib.parse import quote, quote_plus

_CORE = 24


@dataclass(frozen=True)
class Canary:
    """A value to look for, with the user it belongs to."""

    name: str
    value: str
    core: str
    user: str
    needles: dict[str, bytes] = field(repr=False)

    @classmethod
    def make(cls, name: str, user: str, shape: str = "{}") -> Self:
        """Return a new one; ``shape`` has ``{}`` where the random core goes."""
        core = "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(_CORE))
        value = shape.replace("{}", core)
        return cls(name, value, core, user, _needles(value, core, user))


def known(name: str, value: str) -> Canary:
    """Return a value that was made elsewhere, such as a token, as something to look for."""
    return Canary(name, value, value, "", _needles(value, value, ""))


def found_in(data: bytes, canaries: Iterable[Canary]) -> list[str]:
    """Return what is in ``data``: the canaries' names with how they are written."""
    return [
        f"{canary.name} as {how}"
        for canary in canaries
        for how, needle in canary.needles.items()
        if needle in data
    ]


def _needles(value: str, core: str, user: str) -> dict[str, bytes]:
    written = {
        "itself": value,
        "its core": core,
        "its core in lower case": core.lower(),
        "reversed": value[::-1],
        "its core reversed": core[::-1],
        "for a URL": quote(value, safe=""),
        "for a path": quote(value),
        "for a form": quote_plus(value),
        "JSON": json.dumps(value)[1:-1],
        "JSON in UTF-8": json.dumps(value, ensure_ascii=False)[1:-1],
        "JSON in JSON": json.dumps(json.dumps(value))[3:-3],
        "repr": repr(value)[1:-1],
        "its SHA-256": hashlib.sha256(value.encode()).hexdigest(),
    }
    found = {how: text.encode() for how, text in written.items()}
    for what, text in (("itself", value), ("its core", core), ("its pair", f"{user}:{value}")):
        data = text.encode()
        found |= {f"hex of {what}": data.hex().encode(), f"HEX of {what}": data.hex().upper().encode()}
        found |= {
            f"base64 of {what}": base64.b64encode(data),
            f"base64url of {what}": base64.urlsafe_b64encode(data),
        }
    for offset, inner in enumerate(_base64(core.encode())):
        found[f"base64 at {offset}"] = inner
        found |= {f"base64 at {offset} in base64 at {at}": outer for at, outer in enumerate(_base64(inner))}
    return found


def _base64(data: bytes) -> list[bytes]:
    """Return what all texts that hold ``data`` have in common when they are base64, for each offset."""
    return [
        base64.b64encode(b"\0" * offset + data)[-(-offset * 8 // 6) : (offset + len(data)) * 8 // 6]
        for offset in range(3)
    ]


# --- Where to look --------------------------------------------------------------------------------


def files(*folders: Path) -> Iterator[tuple[Path, bytes]]:
    """Return every regular file below these folders with what is in it."""
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and not path.is_symlink():
                with contextlib.suppress(FileNotFoundError):
                    yield path, path.read_bytes()


class ProcessWatch:
    """Keeps every command line and environment of this process's descendants while it is entered."""

    def __init__(self) -> None:
        self.seen: set[bytes] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            for pid in _descendants(os.getpid()):
                for name in ("cmdline", "environ"):
                    with contextlib.suppress(OSError):
                        self.seen.add(Path(f"/proc/{pid}/{name}").read_bytes())


def _descendants(root: int) -> list[int]:
    found: list[int] = []
    waiting = [root]
    while waiting:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{waiting.pop()}/task").iterdir():
                below = [int(pid) for pid in (task / "children").read_text().split()]
                found += below
                waiting += below
    return found
