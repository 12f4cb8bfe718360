# ruff: noqa: T201  # the processes talk to the test over their output
"""Processes that write an auth file: ``python -m tests.rig.authwriters ROLE ...``, from the checkout.

``ours STATE PATH USER VALUE...``  our adapter: once for one value, else in turn until it is killed
``foreign PATH COUNT``             adds ``foreign-N.example`` as podman does: no lock, no compare
``reader PATH``                    reads until its input closes; fails when it ever sees a broken file
``lock FILE``                      holds our lock until its input closes

Each prints a line when it is ready. ``--user=UID`` before the role gives root up first.
"""

from __future__ import annotations

import itertools
import json
import os
import select
import sys
import tempfile
from pathlib import Path

import filelock

from secretsvc.core.errors import DeliveryError, TargetChanged
from secretsvc.core.model import Secret
from secretsvc.core.ports import AuthEntry, AuthFileWish
from secretsvc.core.rules import Dialect
from secretsvc.delivery.hosts import LocalAuthFiles

KEY = "quay.io"


def digest(entry: AuthEntry) -> str:
    return f"{entry.username}:{entry.secret.reveal()}"


def wish(path: str, user: str, value: str, known: tuple[str, ...] = ()) -> AuthFileWish:
    entry = AuthEntry(KEY, user, Secret(value))
    accepted = {KEY: frozenset(f"{user}:{one}" for one in (value, *known))}
    return AuthFileWish(path, Dialect.CONTAINERS_AUTH, (entry,), accepted, digest)


def ours(state: str, path: str, user: str, *values: str) -> None:
    files = LocalAuthFiles(Path(state))
    print("ready", flush=True)
    for value in itertools.cycle(values):
        try:
            result = files.write(wish(path, user, value, values))
        except TargetChanged:
            continue
        except DeliveryError as exc:
            print(json.dumps({"error": type(exc).__name__, "code": exc.code, "message": exc.message}))
            return
        if len(values) == 1:
            print(json.dumps({"changed": result.changed, "foreign": result.foreign}))
            return


def foreign(path: str, count: str) -> None:
    print("ready", flush=True)
    for number in range(int(count)):
        document = json.loads(Path(path).read_bytes())
        document["auths"][f"foreign-{number}.example"] = {"auth": "eDp5"}
        descriptor, temporary = tempfile.mkstemp(dir=Path(path).parent, prefix=".tmp-auth.json")
        with os.fdopen(descriptor, "w") as file:
            json.dump(document, file, indent="\t")
        Path(temporary).rename(path)


def reader(path: str) -> None:
    print("ready", flush=True)
    while not select.select([sys.stdin], [], [], 0)[0]:
        assert isinstance(json.loads(Path(path).read_bytes())["auths"], dict)


def lock(file: str) -> None:
    with filelock.FileLock(file):
        print("ready", flush=True)
        sys.stdin.read()


def become(user: int) -> None:
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


if __name__ == "__main__":
    arguments = sys.argv[1:]
    if arguments[0].startswith("--user="):
        become(int(arguments.pop(0).removeprefix("--user=")))
    {"ours": ours, "foreign": foreign, "reader": reader, "lock": lock}[arguments[0]](*arguments[1:])
