"""One `KubeApi` talks to one cluster: what a kubeconfig that changes while we run may and may not do."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from secretsvc.core.errors import TargetRefused, TargetUnreachable
from secretsvc.delivery.cluster import ClusterTarget
from secretsvc.delivery.kubeapi import connect
from tests.rig.kube import CertificateAuthority, free_port
from tests.rig.scripted import Reply, ScriptedServer, Seen

pytestmark = pytest.mark.rig

IDENTITY, VERSION = "/api/v1/namespaces/kube-system", "/version"


class Api:
    """An API server that says which cluster it is, and refuses logins while ``refuses`` is set."""

    def __init__(self, uid: str, tls: ssl.SSLContext | None = None) -> None:
        self.refuses = False
        self.server = ScriptedServer(self._answer, tls)
        self._namespace = {"kind": "Namespace", "metadata": {"name": "kube-system", "uid": uid}}

    def _answer(self, seen: Seen) -> Reply:
        if self.refuses:
            return Reply(401, body=b'{"kind": "Status"}')
        document = self._namespace if seen.path == IDENTITY else {"gitVersion": "v1.2.3"}
        return Reply(200, body=json.dumps(document).encode())

    @property
    def url(self) -> str:
        return f"http://{self.server.host}"

    @property
    def paths(self) -> list[str]:
        return [seen.path for seen in self.server.seen]


@pytest.fixture
def start() -> Iterator[Callable[..., Api]]:
    with ExitStack() as running:

        def started(uid: str, tls: ssl.SSLContext | None = None) -> Api:
            api = Api(uid, tls)
            running.enter_context(api.server)
            return api

        yield started


class Kubeconfig:
    """A kubeconfig with one context per cluster."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "kubeconfig"

    def write(self, current: str, **clusters: str | dict[str, str]) -> Path:
        entries = {name: {"server": c} if isinstance(c, str) else c for name, c in clusters.items()}
        document = {
            "clusters": [{"name": name, "cluster": entry} for name, entry in entries.items()],
            "users": [{"name": name, "user": {"token": f"token-{name}"}} for name in entries],
            "contexts": [{"name": name, "context": {"cluster": name, "user": name}} for name in entries],
            "current-context": current,
        }
        self.path.write_text(json.dumps(document))
        return self.path


@pytest.fixture
def kubeconfig(tmp_path: Path) -> Kubeconfig:
    return Kubeconfig(tmp_path)


class Minutes:
    """The event loop's clock, moved by hand."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        started = loop.time
        self._gone = 0
        loop.time = lambda: started() + 61 * self._gone  # type: ignore[method-assign]

    def pass_by(self) -> None:
        self._gone += 1


def talk(path: Path, conversation: Callable[[ClusterTarget, Minutes], Awaitable[None]]) -> None:
    async def run() -> None:
        target = ClusterTarget(connect("default", path, None))
        try:
            await conversation(target, Minutes())
        finally:
            await target.close()

    asyncio.run(run())


async def assert_refused(target: ClusterTarget) -> None:
    with pytest.raises(TargetRefused) as caught:
        await target.version()
    assert caught.value.code == "ClusterChanged"
    assert "restart" in caught.value.hint


def test_kubectl_config_use_context_moves_nothing(start: Callable[..., Api], kubeconfig: Kubeconfig) -> None:
    one, two = start("one"), start("two")

    async def conversation(target: ClusterTarget, minutes: Minutes) -> None:
        await target.identity()
        kubeconfig.write("b", a=one.url, b=two.url)
        minutes.pass_by()
        assert await target.version() == "v1.2.3"

    talk(kubeconfig.write("a", a=one.url, b=two.url), conversation)
    assert one.paths == [IDENTITY, VERSION]
    assert two.paths == []


def test_another_cluster_under_our_contexts_name_is_refused_until_it_is_put_back(
    start: Callable[..., Api], kubeconfig: Kubeconfig
) -> None:
    one, two = start("one"), start("two")

    async def conversation(target: ClusterTarget, minutes: Minutes) -> None:
        await target.identity()
        kubeconfig.write("a", a=two.url)
        minutes.pass_by()
        await assert_refused(target)
        await assert_refused(target)
        kubeconfig.write("a", a=one.url)
        assert await target.version() == "v1.2.3"

    talk(kubeconfig.write("a", a=one.url), conversation)
    assert two.paths == [IDENTITY, IDENTITY]
    assert one.paths == [IDENTITY, VERSION]


def test_a_login_renewed_after_a_401_does_not_move_either(
    start: Callable[..., Api], kubeconfig: Kubeconfig
) -> None:
    one, two = start("one"), start("two")

    async def conversation(target: ClusterTarget, minutes: Minutes) -> None:
        await target.identity()
        kubeconfig.write("a", a=two.url)
        one.refuses = True
        await assert_refused(target)

    talk(kubeconfig.write("a", a=one.url), conversation)
    assert two.paths == [IDENTITY]


def test_a_new_address_of_the_same_cluster_is_followed(
    start: Callable[..., Api], kubeconfig: Kubeconfig
) -> None:
    one, moved = start("one"), start("one")

    async def conversation(target: ClusterTarget, minutes: Minutes) -> None:
        await target.identity()
        kubeconfig.write("a", a=moved.url)
        minutes.pass_by()
        assert await target.version() == "v1.2.3"
        assert await target.version() == "v1.2.3"

    talk(kubeconfig.write("a", a=one.url), conversation)
    assert one.paths == [IDENTITY]
    assert moved.paths == [IDENTITY, VERSION, VERSION]


def test_a_new_address_that_does_not_answer_is_not_taken_for_the_old_one(
    start: Callable[..., Api], kubeconfig: Kubeconfig
) -> None:
    one = start("one")

    async def conversation(target: ClusterTarget, minutes: Minutes) -> None:
        await target.identity()
        kubeconfig.write("a", a=f"http://127.0.0.1:{free_port()}")
        minutes.pass_by()
        with pytest.raises(TargetUnreachable):
            await target.version()

    talk(kubeconfig.write("a", a=one.url), conversation)
    assert one.paths == [IDENTITY]


def test_a_cluster_made_anew_at_the_same_address_is_another_one(
    start: Callable[..., Api], kubeconfig: Kubeconfig
) -> None:
    one = start("one")

    async def conversation(target: ClusterTarget, minutes: Minutes) -> None:
        assert await target.identity() == "one"
        one._namespace["metadata"] = {"name": "kube-system", "uid": "anew"}
        with pytest.raises(TargetRefused):
            await target.identity()

    talk(kubeconfig.write("a", a=one.url), conversation)


def test_after_another_ca_the_cluster_is_asked_who_it_is(
    start: Callable[..., Api], kubeconfig: Kubeconfig, tmp_path: Path
) -> None:
    authority = CertificateAuthority(tmp_path)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(*authority.issue("server", server=True))
    one = start("one", tls)
    bundle = tmp_path / "bundle.crt"
    bundle.write_bytes(authority.path.read_bytes())
    entry = {"server": f"https://{one.server.host}", "certificate-authority": str(bundle)}
    other = tmp_path / "other"
    other.mkdir()

    async def conversation(target: ClusterTarget, minutes: Minutes) -> None:
        await target.identity()
        minutes.pass_by()
        await target.version()
        bundle.write_bytes(bundle.read_bytes() + CertificateAuthority(other).path.read_bytes())
        minutes.pass_by()
        await target.version()

    talk(kubeconfig.write("a", a=entry), conversation)
    assert one.paths == [IDENTITY, VERSION, IDENTITY, VERSION]


def test_an_answer_without_a_uid_identifies_nothing(
    start: Callable[..., Api], kubeconfig: Kubeconfig
) -> None:
    one, odd = start("one"), start("")

    async def conversation(target: ClusterTarget, minutes: Minutes) -> None:
        await target.identity()
        kubeconfig.write("a", a=odd.url)
        minutes.pass_by()
        with pytest.raises(TargetUnreachable) as caught:
            await target.version()
        assert caught.value.code == "NotKubernetes"

    talk(kubeconfig.write("a", a=one.url), conversation)
    assert odd.paths == [IDENTITY]
