"""Killed at any moment, as a whole or in part, it converges and nothing that was acknowledged is lost (P22).

While the service is killed again and again, one thread follows every change of every Secret and another
reads the auth file all the time: what they hold may only ever be a value that was sent, newer and newer.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pytest

from secretsvc.core.model import Candidate, InboxItem
from secretsvc.core.ports import CredentialStore
from secretsvc.store.envelope import load_key_file
from secretsvc.store.local import LocalStore
from tests.acceptance.estate import USER, Estate, Heard, estate, wait_for
from tests.rig.kube import KubeCluster
from tests.rig.openbao import vault_store

pytestmark = [pytest.mark.rig, pytest.mark.timeout(300)]

NAMESPACES = 20
LONGEST_S = 0.8
"""A replacement takes less than this when nothing is in its way."""
VICTIMS = ("all", "work", "serve")


def value_of(number: int) -> str:
    return f"value-{number:03}"


def number_in(place: Estate, document: str) -> int:
    """Return which value a document holds, in the order in which they were sent."""
    value = place.value_in(document)
    assert value.startswith("value-")
    return int(value.removeprefix("value-"))


# --- Onlookers ------------------------------------------------------------------------------------


@dataclass
class Onlooker:
    """A thread that looks again and again while it is entered, and keeps what it must not see."""

    place: Estate
    wrong: list[str] = field(default_factory=list)
    looks: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def look(self) -> None:
        raise NotImplementedError

    def _run(self) -> None:
        while not self._stop.is_set() and len(self.wrong) < 10:
            try:
                self.look()
            except Exception as exc:  # noqa: BLE001  # an onlooker reports whatever it stumbles over
                self.wrong.append(repr(exc))
            self.looks += 1


@dataclass
class FileReader(Onlooker):
    """Reads the auth file: always whole, never an older value."""

    path: Path = Path()
    newest: int = 0

    def look(self) -> None:
        time.sleep(0.002)
        number = number_in(self.place, self.path.read_text())
        if number < self.newest:
            self.wrong.append(f"the file fell from {self.newest} to {number}")
        self.newest = max(self.newest, number)


@dataclass
class SecretWatcher(Onlooker):
    """Follows every change of every Secret: the same object for ever, never gone, publications never fall."""

    name: str = ""
    version: str = ""
    uids: dict[str, str] = field(default_factory=dict)
    held: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Namespace to publication and value."""

    def list(self) -> list[dict[str, Any]]:
        answer = self.place.kube.ask("GET", f"/api/v1/secrets?fieldSelector=metadata.name={self.name}").json()
        self.version = self.version or answer["metadata"]["resourceVersion"]
        found: list[dict[str, Any]] = answer["items"]
        return found

    def look(self) -> None:
        if not self.version:
            for secret in self.list():
                self.see("LISTED", secret)
        query = (
            f"watch=1&timeoutSeconds=1&resourceVersion={self.version}&fieldSelector=metadata.name={self.name}"
        )
        for line in self.place.kube.ask("GET", f"/api/v1/secrets?{query}").text.splitlines():
            event = json.loads(line)
            self.see(event["type"], event["object"])
            self.version = event["object"]["metadata"]["resourceVersion"]

    def see(self, kind: str, secret: dict[str, Any]) -> None:
        meta = secret["metadata"]
        namespace = meta["namespace"]
        if self.uids.setdefault(namespace, meta["uid"]) != meta["uid"] or kind in ("DELETED", "ERROR"):
            self.wrong.append(f"{kind} {namespace}: it is another object, or gone")
        [pub] = json.loads(meta["annotations"]["secretsvc.io/components"])["pubs"].values()
        held = (pub, number_in(self.place, document_of(secret)))
        before = self.held.get(namespace, (0, 0))
        if held[0] < before[0] or held[1] < before[1]:
            self.wrong.append(f"{namespace} fell from {before} to {held}")
        self.held[namespace] = held


def document_of(secret: dict[str, Any]) -> str:
    return base64.b64decode(secret["data"][".dockerconfigjson"]).decode()


# --- The story ------------------------------------------------------------------------------------


class Story:
    """What is done while the service is killed."""

    def __init__(self, place: Estate, namespaces: list[str], seed: int) -> None:
        self.place = place
        self.namespaces = namespaces
        self.rule = f"kill-{namespaces[0]}"
        self.path = place.folder / "host" / "auth.json"
        self.path.parent.mkdir()
        self.acknowledged = 0
        self.generations = 0
        self._random = random.Random(seed)

    def begin(self) -> None:
        """Register and deliver, killed in the middle of each step."""
        place = self.place
        place.registry.set_password(USER, value_of(0))
        place.add_registry()
        steps: list[tuple[str, Callable[[], Heard]]] = [
            ("/credentials/prod", lambda: place.register("prod", value_of(0))),
            (
                f"/pull-secrets/{self.rule}",
                lambda: place.add_pull_secret(self.rule, "prod", self.namespaces, 0),
            ),
            ("/auth-files/file", lambda: place.add_auth_file("file", "prod", self.path, 0)),
        ]
        for (path, request), victim in zip(steps, VICTIMS, strict=True):
            self.interrupted(request, victim)
            if place.call("GET", path).status == 404:
                assert request().status == 201
        self.assert_converges(0)

    def replace(self, number: int, victim: str) -> None:
        """Put the next value, and kill while it is on its way."""
        place = self.place
        place.registry.set_password(USER, value_of(number))
        heard = self.interrupted(lambda: place.put("prod", value_of(number), 0), victim)
        if heard is not None:
            assert heard.status == 202, heard.content
            self.acknowledged = number
        self.assert_converges(number)

    def interrupted(self, request: Callable[[], Heard], victim: str) -> Heard | None:
        """Send a request, kill at some moment, see to it that the service runs; return what was answered."""
        heard: list[Heard] = []

        def send() -> None:
            try:
                heard.append(request())
            except (OSError, http.client.HTTPException, ValueError):
                return

        sender = threading.Thread(target=send)
        sender.start()
        time.sleep(self._random.uniform(0, LONGEST_S))
        self.kill(victim)
        sender.join()
        return heard[0] if heard else None

    def kill(self, victim: str) -> None:
        service = self.place.service
        if victim == "all":
            service.kill()
            service.start()
            return
        pid = self.place.child(victim)
        below = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        os.kill(pid, signal.SIGKILL)
        wait_for(f"another {victim}", lambda: self.place.child(victim) not in (0, pid))
        # gunicorn's worker process goes on for a moment, and may still answer.
        wait_for(
            "the end of what it had started", lambda: not any(Path(f"/proc/{one}").exists() for one in below)
        )
        wait_for("the API", lambda: answers(self.place))

    # --- what must hold ---------------------------------------------------------------------------

    def assert_converges(self, sent: int) -> None:
        """Every target comes to hold one value: the newest acknowledged one, or a newer one that was sent."""
        wait_for(f"convergence on {self.acknowledged}..{sent}", lambda: self.value_everywhere() is not None)
        found = self.value_everywhere()
        assert found is not None
        assert self.acknowledged <= found <= sent
        self.acknowledged = found
        numbers = [row["number"] for row in self.place.items("/credentials/prod/generations")]
        assert numbers == list(range(len(numbers), 0, -1))
        assert len(numbers) >= self.generations
        self.generations = len(numbers)

    def value_everywhere(self) -> int | None:
        """Return the value that all targets hold when everything is settled and nothing is left over."""
        place = self.place
        credential = place.ok("GET", "/credentials/prod")
        settled = credential["operation"] is None and credential["generation"] == len(
            place.items("/credentials/prod/generations")
        )
        rules = (f"pull-secrets/{self.rule}", "auth-files/file")
        if not (
            settled and self.path.exists() and all(map(place.all_synced, rules)) and not self.left_over()
        ):
            return None
        query = f"fieldSelector=metadata.name={self.rule}"
        secrets = place.kube.ask("GET", f"/api/v1/secrets?{query}").json()["items"]
        assert {one["metadata"]["namespace"] for one in secrets} == set(self.namespaces)
        held = {number_in(place, document_of(one)) for one in secrets}
        held.add(number_in(place, self.path.read_text()))
        return held.pop() if len(held) == 1 else None

    def left_over(self) -> list[str]:
        with opened(self.place) as store:
            return [*store.names(Candidate), *store.names(InboxItem)]


@contextmanager
def opened(place: Estate) -> Iterator[CredentialStore]:
    """The store that the service uses, from beside it."""
    if place.bao is not None and place.grant is not None:
        store: CredentialStore = vault_store(place.bao, place.grant)
    else:
        data = place.service.folder / "data"
        store = LocalStore(data, load_key_file(place.service.folder / "kek", data))
    try:
        yield store
    finally:
        store.close()


def answers(place: Estate) -> bool:
    try:
        return place.call("GET", "/readyz", root=True).status == 200
    except (OSError, http.client.HTTPException):
        return False


@pytest.mark.parametrize(("store", "rounds"), [("local", 6), ("vault", 3)])
def test_killed_anywhere_it_converges(tmp_path: Path, kube: KubeCluster, store: str, rounds: int) -> None:
    namespaces = [kube.create_namespace(f"kill-{store}-{number:02}") for number in range(NAMESPACES)]
    with estate(tmp_path / "estate", kube, store) as place:
        story = Story(place, namespaces, seed=rounds)
        story.begin()
        watcher = SecretWatcher(place, name=story.rule)
        reader = FileReader(place, path=story.path)
        with watcher, reader:
            for number in range(1, rounds + 1):
                story.replace(number, VICTIMS[number % len(VICTIMS)])
            wait_for("the onlookers", lambda: watcher.wrong or watcher_knows(watcher, story.acknowledged))
        assert watcher.wrong == []
        assert reader.wrong == []
        assert reader.looks > 100
        assert watcher.uids.keys() == set(namespaces)
        wait_for("scratch files to be swept", lambda: list(story.path.parent.iterdir()) == [story.path])


def watcher_knows(watcher: SecretWatcher, value: int) -> bool:
    return len(watcher.held) == NAMESPACES and all(held == value for _, held in watcher.held.values())
