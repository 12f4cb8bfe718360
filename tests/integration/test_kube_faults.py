"""What `delivery.kubeapi` makes of an API server in trouble, and of servers that are none."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from secretsvc.core.errors import DeliveryError, TargetMissing, TargetUnreachable
from secretsvc.core.ports import SecretMetadata
from secretsvc.delivery.cluster import ClusterTarget
from secretsvc.delivery.kubeapi import connect
from tests.rig.kube import free_port
from tests.rig.scripted import Reply, ScriptedServer, Seen

pytestmark = pytest.mark.rig

VERSION = Reply(200, body=b'{"gitVersion": "v1.2.3"}')


class Script:
    """Answers each request with the next reply, the last one again and again."""

    def __init__(self, *replies: Reply | Iterable[bytes]) -> None:
        self._replies = list(replies)

    def __call__(self, _seen: Seen) -> Reply | Iterable[bytes]:
        return self._replies.pop(0) if len(self._replies) > 1 else self._replies[0]


def status(code: int, reason: str = "", *headers: tuple[str, str], **more: Any) -> Reply:
    body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code, **more}
    return Reply(code, headers, json.dumps(body).encode())


def target_of(server: str, folder: Path) -> ClusterTarget:
    document = {
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "users": [{"name": "u", "user": {"token": "canary-token"}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "c",
    }
    path = folder / "kubeconfig"
    path.write_text(json.dumps(document))
    return ClusterTarget(connect("default", path, None))


def version(server: str, folder: Path) -> str:
    async def run() -> str:
        target = target_of(server, folder)
        try:
            return await target.version()
        finally:
            await target.close()

    return asyncio.run(run())


def failure(folder: Path, *replies: Reply | Iterable[bytes]) -> tuple[DeliveryError, list[Seen]]:
    """Return the error that these answers give, and the requests that were sent."""
    with ScriptedServer(Script(*replies)) as server, pytest.raises(DeliveryError) as caught:
        version(f"http://{server.host}", folder)
    assert "canary" not in f"{caught.value} {caught.value.hint} {caught.value.__cause__}"
    return caught.value, server.seen


@pytest.mark.parametrize("code", [429, 503])
def test_a_server_that_asks_us_to_wait_is_asked_again(tmp_path: Path, code: int) -> None:
    busy = status(code, "TooManyRequests", ("Retry-After", "0"))
    with ScriptedServer(Script(busy, busy, VERSION)) as server:
        assert version(f"http://{server.host}", tmp_path) == "v1.2.3"
    assert len(server.seen) == 3


def test_a_server_that_stays_busy_is_given_up(tmp_path: Path) -> None:
    error, seen = failure(tmp_path, status(429, "TooManyRequests", ("Retry-After", "0")))
    assert (type(error), error.code, len(seen)) == (TargetUnreachable, "Overloaded", 3)


def test_a_long_pause_is_left_to_the_caller(tmp_path: Path) -> None:
    error, seen = failure(tmp_path, status(429, "TooManyRequests", ("Retry-After", "3600")))
    assert (error.retryable, len(seen)) == (True, 1)


@pytest.mark.parametrize("code", [500, 502, 504])
def test_a_servers_own_errors_are_unreachable_and_not_repeated(tmp_path: Path, code: int) -> None:
    error, seen = failure(tmp_path, Reply(code, body=b"<html>canary</html>"))
    assert (type(error), error.code, len(seen)) == (TargetUnreachable, "ServerError", 1)


def test_a_connection_that_breaks_is_tried_once_more(tmp_path: Path) -> None:
    with ScriptedServer(Script([], VERSION)) as server:
        assert version(f"http://{server.host}", tmp_path) == "v1.2.3"


@pytest.mark.parametrize(
    "broken", [[], [b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"], [b"nonsense\r\n\r\n"]]
)
def test_a_connection_that_keeps_breaking_is_unreachable(tmp_path: Path, broken: list[bytes]) -> None:
    error, _ = failure(tmp_path, broken)
    assert (type(error), error.code) == (TargetUnreachable, "ConnectionLost")


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'"x"', b"[" * 100_000])
def test_an_answer_that_is_no_object_is_not_kubernetes(tmp_path: Path, body: bytes) -> None:
    error, _ = failure(tmp_path, Reply(200, body=body))
    assert (type(error), error.code) == (TargetUnreachable, "NotKubernetes")


def test_a_redirect_is_not_followed(tmp_path: Path) -> None:
    with ScriptedServer(Script(VERSION)) as other:
        there = ("Location", f"http://{other.host}/version")
        error, _ = failure(tmp_path, Reply(302, (there,)))
    assert isinstance(error, TargetUnreachable)
    assert other.seen == []


def test_nobody_listening_is_unreachable(tmp_path: Path) -> None:
    with pytest.raises(TargetUnreachable, match="Connection refused") as caught:
        version(f"http://127.0.0.1:{free_port()}", tmp_path)
    assert caught.value.code == "ConnectionFailed"


def conversation(folder: Path, script: Script, name: str) -> Any:
    """Return what ``secrets_named`` or ``read_secret`` makes of these answers."""

    async def run() -> Any:
        target = target_of(f"http://{server.host}", folder)
        try:
            return await (target.secrets_named("x") if name == "list" else target.read_secret("a", "x"))
        finally:
            await target.close()

    with ScriptedServer(script) as server:
        return asyncio.run(run()), server.seen


def test_the_404_of_some_other_server_does_not_mean_absent(tmp_path: Path) -> None:
    with pytest.raises(TargetUnreachable):
        conversation(tmp_path, Script(Reply(404, body=b"<html>")), "read")
    with pytest.raises(TargetUnreachable):
        conversation(tmp_path, Script(Reply(404, body=b"{}")), "read")


def test_a_404_status_means_absent_for_a_secret_and_is_an_error_for_a_list(tmp_path: Path) -> None:
    absent = status(404, "NotFound", details={"kind": "secrets"})
    assert conversation(tmp_path, Script(absent), "read")[0] is None
    with pytest.raises(TargetMissing):
        conversation(tmp_path, Script(absent), "list")


def item(namespace: str) -> dict[str, Any]:
    return {"metadata": {"namespace": namespace, "name": "x", "uid": "u", "resourceVersion": "7"}}


def page(token: str, *namespaces: str) -> Reply:
    kind = "PartialObjectMetadataList"
    document = {
        "kind": kind,
        "metadata": {"continue": token},
        "items": [item(namespace) for namespace in namespaces],
    }
    return Reply(200, body=json.dumps(document).encode())


def test_a_long_list_is_read_page_by_page(tmp_path: Path) -> None:
    found, seen = conversation(tmp_path, Script(page("next/1", "a", "b"), page("", "c")), "list")
    assert found == {name: SecretMetadata(name, "x", "u", "7") for name in ("a", "b", "c")}
    assert [request.query.get("continue") for request in seen] == [None, ["next/1"]]
    assert all(request.query["fieldSelector"] == ["metadata.name=x"] for request in seen)
    assert all("as=PartialObjectMetadataList" in request.headers["accept"] for request in seen)


def test_a_failing_page_is_an_error_not_a_short_list(tmp_path: Path) -> None:
    with pytest.raises(TargetUnreachable):
        conversation(tmp_path, Script(page("next", "a"), status(410, "Expired")), "list")


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b'{"kind": "SecretList", "metadata": {}, "items": []}',
        b'{"kind": "PartialObjectMetadataList", "metadata": null, "items": []}',
        b'{"kind": "PartialObjectMetadataList", "metadata": {}, "items": [{"metadata": {"name": "x"}}]}',
        b'{"kind": "PartialObjectMetadataList", "metadata": {}, "items": {"a": 1}}',
    ],
)
def test_a_list_of_some_other_shape_is_not_an_empty_list(tmp_path: Path, body: bytes) -> None:
    with pytest.raises(TargetUnreachable) as caught:
        conversation(tmp_path, Script(Reply(200, body=body)), "list")
    assert caught.value.code == "NotKubernetes"
