"""The contract of `core.ports.Cluster`, on a real kube-apiserver."""

from __future__ import annotations

import asyncio
import base64
import itertools
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

from secretsvc.core.access import InstallationKeys
from secretsvc.core.delivery import SECRET_TYPE, Action, Marker
from secretsvc.core.errors import TargetChanged, TargetForbidden, TargetMissing, TargetUnreachable
from secretsvc.core.model import Secret
from secretsvc.core.ports import Cluster, SecretMetadata, WantedSecret
from secretsvc.core.rules import (
    NamespaceSelection,
    PullSecretRule,
)
from secretsvc.delivery.cluster import FIELD_MANAGER, ClusterTarget
from secretsvc.delivery.kubeapi import connect
from tests.fakes import NOON
from tests.rig.kube import KubeCluster

pytestmark = pytest.mark.rig

T = TypeVar("T")
NAME = "pull-secret"
VALUE_1 = Secret('{"auths":{"r.example":{"auth":"dTpjYW5hcnktMQ=="}}}')
VALUE_2 = Secret('{"auths":{"r.example":{"auth":"dTpjYW5hcnktMg=="}}}')
DOCKERCONFIG = {".dockerconfigjson": VALUE_1.reveal()}
_numbers = itertools.count(1)


@pytest.fixture
def namespace(kube: KubeCluster) -> str:
    return kube.create_namespace(f"contract-{next(_numbers)}")


def talk(kubeconfig: Path, conversation: Callable[[Cluster], Awaitable[T]]) -> T:
    """Run a conversation with the cluster, and close the connections."""

    async def run() -> T:
        target = ClusterTarget(connect("default", kubeconfig, None))
        try:
            return await conversation(target)
        finally:
            await target.close()

    return asyncio.run(run())


def wanted(namespace: str, value: Secret = VALUE_1, **annotations: str) -> WantedSecret:
    marks = {"secretsvc.io/rule": "team", **annotations}
    return WantedSecret(namespace, NAME, {"secretsvc.io/managed": "inst-1"}, marks, value)


def assert_not_quoted(error: BaseException) -> None:
    """Assert that neither the error nor what it came from holds the value, raw or encoded."""
    texts = []
    link: BaseException | None = error
    while link is not None:
        texts += [str(link), repr(link), getattr(link, "hint", "")]
        link = link.__cause__ or link.__context__
    encoded = base64.b64encode(VALUE_1.reveal().encode()).decode()
    for needle in ("canary", "dTpj", encoded[:16]):
        assert not any(needle in text for text in texts)


def metadata_of(secret: dict[str, Any]) -> SecretMetadata:
    found = secret["metadata"]
    return SecretMetadata(found["namespace"], found["name"], found["uid"], found["resourceVersion"])


# --- Creating and updating ---


def test_a_created_secret_is_what_was_wanted_and_wholly_ours(kube: KubeCluster, namespace: str) -> None:
    live = talk(kube.kubeconfig, lambda cluster: cluster.apply_secret(wanted(namespace), None))
    there = kube.get_secret(namespace, NAME)
    assert there is not None
    assert there["type"] == live.type == SECRET_TYPE
    assert there["data"] == DOCKERCONFIG
    assert live.dockerconfigjson == VALUE_1
    assert live.metadata.resource_version == there["metadata"]["resourceVersion"]
    assert live.metadata.labels == {"secretsvc.io/managed": "inst-1"}
    owners = [(entry["manager"], entry["operation"]) for entry in there["metadata"]["managedFields"]]
    assert owners == [(FIELD_MANAGER, "Apply")]


def test_five_updates_keep_name_and_uid(kube: KubeCluster, namespace: str) -> None:
    async def update_often(cluster: Cluster) -> set[str]:
        live = await cluster.apply_secret(wanted(namespace), None)
        uids = {live.metadata.uid}
        for number in range(5):
            wish = wanted(namespace, (VALUE_2, VALUE_1)[number % 2], counter=str(number))
            live = await cluster.apply_secret(wish, live.metadata)
            assert live.dockerconfigjson == wish.dockerconfigjson
            uids.add(live.metadata.uid)
        return uids

    assert len(talk(kube.kubeconfig, update_often)) == 1
    there = kube.get_secret(namespace, NAME)
    assert there is not None
    assert there["data"] == {".dockerconfigjson": VALUE_2.reveal()}
    assert there["metadata"]["annotations"]["counter"] == "4"


def test_an_apply_that_changes_nothing_keeps_the_version(kube: KubeCluster, namespace: str) -> None:
    async def apply_twice(cluster: Cluster) -> tuple[str, str]:
        first = (await cluster.apply_secret(wanted(namespace), None)).metadata
        second = (await cluster.apply_secret(wanted(namespace), first)).metadata
        return first.resource_version, second.resource_version

    first, second = talk(kube.kubeconfig, apply_twice)
    assert first == second


def test_an_update_takes_back_what_another_manager_changed(kube: KubeCluster, namespace: str) -> None:
    path = f"/api/v1/namespaces/{namespace}/secrets/{NAME}"

    async def repair(cluster: Cluster) -> Secret | None:
        await cluster.apply_secret(wanted(namespace), None)
        kube.patch(path, {"data": {".dockerconfigjson": "e30="}, "metadata": {"labels": {"theirs": "x"}}})
        found = (await cluster.secrets_named(NAME))[namespace]
        live = await cluster.apply_secret(wanted(namespace), found)
        assert live.metadata.labels["theirs"] == "x"
        return live.dockerconfigjson

    assert talk(kube.kubeconfig, repair) == VALUE_1


# --- What is not written over ---

SHAPES = {
    "opaque": ("Opaque", {"password": "theirs"}),
    "opaque with our key": ("Opaque", DOCKERCONFIG),
    "dockerconfigjson": (SECRET_TYPE, {".dockerconfigjson": '{"auths":{}}'}),
    "dockerconfigjson with our very value": (SECRET_TYPE, DOCKERCONFIG),
    "dockercfg": ("kubernetes.io/dockercfg", {".dockercfg": "{}"}),
    "tls": ("kubernetes.io/tls", {"tls.crt": "theirs", "tls.key": "theirs"}),
    "basic-auth": ("kubernetes.io/basic-auth", {"username": "u", "password": "theirs"}),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_creating_never_touches_a_secret_made_meanwhile(
    kube: KubeCluster, namespace: str, shape: str
) -> None:
    type_, data = SHAPES[shape]
    kube.create_secret(namespace, NAME, data, type_)
    before = kube.get_secret(namespace, NAME)
    with pytest.raises(TargetChanged):
        talk(kube.kubeconfig, lambda cluster: cluster.apply_secret(wanted(namespace), None))
    assert kube.get_secret(namespace, NAME) == before


def test_creating_never_touches_what_our_own_other_leader_made(kube: KubeCluster, namespace: str) -> None:
    async def create_twice(cluster: Cluster) -> None:
        await cluster.apply_secret(wanted(namespace, VALUE_2), None)
        with pytest.raises(TargetChanged):
            await cluster.apply_secret(wanted(namespace, VALUE_1), None)

    talk(kube.kubeconfig, create_twice)
    there = kube.get_secret(namespace, NAME)
    assert there is not None
    assert there["data"] == {".dockerconfigjson": VALUE_2.reveal()}


def test_of_two_updates_of_one_version_only_the_first_is_made(kube: KubeCluster, namespace: str) -> None:
    async def race(cluster: Cluster) -> None:
        first = (await cluster.apply_secret(wanted(namespace), None)).metadata
        await cluster.apply_secret(wanted(namespace, VALUE_2), first)
        with pytest.raises(TargetChanged):
            await cluster.apply_secret(wanted(namespace, VALUE_1), first)

    talk(kube.kubeconfig, race)
    there = kube.get_secret(namespace, NAME)
    assert there is not None
    assert there["data"] == {".dockerconfigjson": VALUE_2.reveal()}


def test_many_creators_at_once_make_one_secret(kube: KubeCluster, namespace: str) -> None:
    async def race(cluster: Cluster) -> list[object]:
        wishes = [wanted(namespace, VALUE_1, writer=str(number)) for number in range(8)]
        attempts = (cluster.apply_secret(wish, None) for wish in wishes)
        return list(await asyncio.gather(*attempts, return_exceptions=True))

    outcomes = talk(kube.kubeconfig, race)
    lost = [outcome for outcome in outcomes if isinstance(outcome, TargetChanged)]
    won = [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
    assert (len(lost), len(won)) == (7, 1)


def test_an_update_does_not_bring_back_what_was_deleted(kube: KubeCluster, namespace: str) -> None:
    async def update_late(cluster: Cluster) -> None:
        live = await cluster.apply_secret(wanted(namespace), None)
        await cluster.delete_secret(live.metadata)
        with pytest.raises(TargetChanged):
            await cluster.apply_secret(wanted(namespace, VALUE_2), live.metadata)

    talk(kube.kubeconfig, update_late)
    assert kube.get_secret(namespace, NAME) is None


def test_our_marked_secret_made_anew_with_another_type_is_left_alone(
    kube: KubeCluster, namespace: str
) -> None:
    made = kube.create_secret(namespace, NAME, {"x": "theirs"}, labels={"secretsvc.io/managed": "inst-1"})
    before = kube.get_secret(namespace, NAME)
    with pytest.raises(TargetForbidden, match="type") as caught:
        talk(kube.kubeconfig, lambda cluster: cluster.apply_secret(wanted(namespace), metadata_of(made)))
    assert caught.value.code == "Invalid"
    assert kube.get_secret(namespace, NAME) == before


# --- Namespaces that are not there ---


def test_a_missing_namespace_is_a_missing_target(kube: KubeCluster) -> None:
    with pytest.raises(TargetMissing, match="no such namespace") as caught:
        talk(kube.kubeconfig, lambda cluster: cluster.apply_secret(wanted("nowhere"), None))
    assert caught.value.code == "NamespaceMissing"
    assert talk(kube.kubeconfig, lambda cluster: cluster.read_secret("nowhere", NAME)) is None


@pytest.fixture
def terminating(kube: KubeCluster, namespace: str) -> Iterator[str]:
    """A namespace that is being deleted and can not go: something in it has a finalizer."""
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    kube.create(path, {"metadata": {"name": "held", "finalizers": ["example.org/hold"]}})
    kube.delete_namespace(namespace)
    yield namespace
    kube.patch(f"{path}/held", {"metadata": {"finalizers": None}})
    kube.wait_namespace_gone(namespace)


def test_a_terminating_namespace_is_a_missing_target(kube: KubeCluster, terminating: str) -> None:
    with pytest.raises(TargetMissing, match="being deleted") as caught:
        talk(kube.kubeconfig, lambda cluster: cluster.apply_secret(wanted(terminating), None))
    assert caught.value.code == "NamespaceTerminating"


# --- Finding, reading, deleting ---


def test_secrets_are_found_by_name_in_all_namespaces_without_their_data(
    kube: KubeCluster, namespace: str
) -> None:
    name = f"shared-{namespace}"
    others = [kube.create_namespace(f"{namespace}-{number}") for number in range(3)]
    for place in (namespace, *others):
        kube.create_secret(place, name, {"x": "theirs"}, labels={"at": place})
        kube.create_secret(place, f"{name}-not", {"x": "theirs"})
    found = talk(kube.kubeconfig, lambda cluster: cluster.secrets_named(name))
    assert set(found) == {namespace, *others}
    assert all(item.labels == {"at": place} and item.name == name for place, item in found.items())
    there = kube.get_secret(namespace, name)
    assert there is not None
    assert found[namespace].uid == there["metadata"]["uid"]
    assert found[namespace].resource_version == there["metadata"]["resourceVersion"]


def test_no_secret_of_that_name_is_an_empty_answer(kube: KubeCluster) -> None:
    assert talk(kube.kubeconfig, lambda cluster: cluster.secrets_named("none-has-this")) == {}


@pytest.mark.parametrize(
    ("data", "expected"),
    [(DOCKERCONFIG, VALUE_1), ({"other": "x"}, None), ({}, None)],
    ids=["value", "no such key", "no data"],
)
def test_reading_gives_the_decoded_value_or_none(
    kube: KubeCluster, namespace: str, data: dict[str, str], expected: Secret | None
) -> None:
    kube.create_secret(namespace, NAME, data)
    live = talk(kube.kubeconfig, lambda cluster: cluster.read_secret(namespace, NAME))
    assert live is not None
    assert live.type == "Opaque"
    assert live.dockerconfigjson == expected


def test_a_value_that_is_not_text_reads_as_none(kube: KubeCluster, namespace: str) -> None:
    body = {"metadata": {"name": NAME}, "data": {".dockerconfigjson": "//79"}}
    kube.create(f"/api/v1/namespaces/{namespace}/secrets", body)
    live = talk(kube.kubeconfig, lambda cluster: cluster.read_secret(namespace, NAME))
    assert live is not None
    assert live.dockerconfigjson is None


def test_an_absent_secret_reads_as_none(kube: KubeCluster, namespace: str) -> None:
    assert talk(kube.kubeconfig, lambda cluster: cluster.read_secret(namespace, NAME)) is None


def test_deleting_takes_that_very_object(kube: KubeCluster, namespace: str) -> None:
    async def delete(cluster: Cluster) -> None:
        live = await cluster.apply_secret(wanted(namespace), None)
        await cluster.delete_secret(live.metadata)
        await cluster.delete_secret(live.metadata)  # absent is success

    talk(kube.kubeconfig, delete)
    assert kube.get_secret(namespace, NAME) is None


@pytest.mark.parametrize("changed", ["uid", "resource_version"])
def test_deleting_spares_an_object_that_is_not_the_one_that_was_judged(
    kube: KubeCluster, namespace: str, changed: str
) -> None:
    judged = metadata_of(kube.create_secret(namespace, NAME, {"x": "theirs"}))
    other = {"uid": "11111111-2222-3333-4444-555555555555", "resource_version": "2"}[changed]
    stale = replace(judged, **{changed: other})
    with pytest.raises(TargetChanged):
        talk(kube.kubeconfig, lambda cluster: cluster.delete_secret(stale))
    assert kube.get_secret(namespace, NAME) is not None


def test_identity_is_the_uid_of_kube_system_and_version_is_the_servers(kube: KubeCluster) -> None:
    expected = kube.ask("GET", "/api/v1/namespaces/kube-system").json()["metadata"]["uid"]
    assert talk(kube.kubeconfig, lambda cluster: cluster.identity()) == expected
    version = kube.ask("GET", "/version").json()["gitVersion"]
    assert talk(kube.kubeconfig, lambda cluster: cluster.version()) == version


# --- Rights ---


def named_only(name: str) -> list[dict[str, list[str]]]:
    """What the chart grants: everything on one name, and creation, which can not be limited by name."""
    verbs = ["get", "list", "watch", "update", "patch", "delete"]
    return [
        {"apiGroups": [""], "resources": ["secrets"], "resourceNames": [name], "verbs": verbs},
        {"apiGroups": [""], "resources": ["secrets"], "verbs": ["create"]},
    ]


def test_rights_on_one_name_suffice_for_everything_we_do(kube: KubeCluster, namespace: str) -> None:
    user = kube.user(named_only(NAME))

    async def deliver(cluster: Cluster) -> None:
        live = await cluster.apply_secret(wanted(namespace), None)
        found = (await cluster.secrets_named(NAME))[namespace]
        assert found.resource_version == live.metadata.resource_version
        live = await cluster.apply_secret(wanted(namespace, VALUE_2), found)
        assert await cluster.read_secret(namespace, NAME) == live
        await cluster.delete_secret(live.metadata)

    talk(user, deliver)
    assert kube.get_secret(namespace, NAME) is None


def test_other_names_are_forbidden_and_the_error_says_what_to_grant(
    kube: KubeCluster, namespace: str
) -> None:
    user = kube.user(named_only(NAME))
    with pytest.raises(TargetForbidden, match="secrets named other in all namespaces") as caught:
        talk(user, lambda cluster: cluster.secrets_named("other"))
    assert caught.value.code == "RbacDenied"
    assert "'list'" in caught.value.hint
    with pytest.raises(
        TargetForbidden, match=f"secret other in namespace {namespace}: our login may not get"
    ):
        talk(user, lambda cluster: cluster.read_secret(namespace, "other"))


def test_the_missing_right_to_create_is_named(kube: KubeCluster, namespace: str) -> None:
    user = kube.user(named_only(NAME)[:1])
    with pytest.raises(TargetForbidden, match="may not create") as caught:
        talk(user, lambda cluster: cluster.apply_secret(wanted(namespace), None))
    assert "'create'" in caught.value.hint


def test_rights_in_one_namespace_do_not_list_all(kube: KubeCluster, namespace: str) -> None:
    user = kube.user(named_only(NAME), namespace)
    live = talk(user, lambda cluster: cluster.apply_secret(wanted(namespace), None))
    assert live.dockerconfigjson == VALUE_1
    with pytest.raises(TargetForbidden):
        talk(user, lambda cluster: cluster.secrets_named(NAME))


def test_an_admission_rule_is_told_apart_from_missing_rights_and_not_quoted(
    kube: KubeCluster, namespace: str
) -> None:
    secrets = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["secrets"]}
    here = {"matchLabels": {"kubernetes.io/metadata.name": namespace}}
    quoting = "string(object.data['.dockerconfigjson'])"
    rule = {"expression": "!has(object.data)", "reason": "Forbidden", "messageExpression": quoting}
    matches = {"namespaceSelector": here, "resourceRules": [secrets]}
    kube.deny(namespace, {"matchConstraints": matches, "validations": [rule]}, DOCKERCONFIG)
    with pytest.raises(TargetForbidden, match="admission rule") as caught:
        talk(kube.kubeconfig, lambda cluster: cluster.apply_secret(wanted(namespace), None))
    assert caught.value.code == "AdmissionDenied"
    assert_not_quoted(caught.value)


# --- With the rules of `core.delivery` ---


def test_a_copied_secret_is_not_ours(kube: KubeCluster, namespace: str) -> None:
    keys = InstallationKeys.make("inst-1", NOON, bytes)
    elsewhere = kube.create_namespace(f"{namespace}-copy")
    rule = PullSecretRule("uid", "team", NAME, ("prod",), NamespaceSelection((namespace,)), NOON, "t")

    async def judge_the_copy(cluster: Cluster) -> tuple[Action, str]:
        marker = Marker(keys, await cluster.identity())
        first = marker.wanted(rule, 1, namespace, {"c": 1}, VALUE_1)
        live = await cluster.apply_secret(first, None)
        assert marker.decide(first, live.metadata, live.metadata.resource_version).action is Action.UNCHANGED
        marks = {"labels": dict(first.labels), "annotations": dict(first.annotations)}
        kube.create_secret(elsewhere, NAME, DOCKERCONFIG, SECRET_TYPE, **marks)
        found = await cluster.secrets_named(NAME)
        assert marker.owner(found[namespace]) == "team"
        decision = marker.decide(marker.wanted(rule, 1, elsewhere, {"c": 1}, VALUE_1), found[elsewhere], "")
        return decision.action, decision.reason

    assert talk(kube.kubeconfig, judge_the_copy) == (Action.CONFLICT, "MarkMismatch")


def test_a_round_of_decide_apply_and_compare_settles(kube: KubeCluster, namespace: str) -> None:
    keys = InstallationKeys.make("inst-1", NOON, bytes)
    rule = PullSecretRule("uid", "team", NAME, ("prod",), NamespaceSelection((namespace,)), NOON, "t")
    path = f"/api/v1/namespaces/{namespace}/secrets/{NAME}"

    async def settle(cluster: Cluster) -> list[str]:
        marker = Marker(keys, await cluster.identity())
        wish = marker.wanted(rule, 1, namespace, {"c": 1}, VALUE_1)
        known, reasons = "", []
        for step in range(4):
            found = (await cluster.secrets_named(NAME)).get(namespace)
            decision = marker.decide(wish, found, known)
            if decision.action is Action.READ:
                live = await cluster.read_secret(namespace, NAME)
                assert live is not None
                decision = marker.compare(wish, live)
            reasons.append(decision.reason)
            if decision.action in {Action.CREATE, Action.UPDATE}:
                live = await cluster.apply_secret(wish, found)
                known = live.metadata.resource_version
            if step == 1:
                kube.patch(path, {"data": {".dockerconfigjson": "e30="}})
        return reasons

    assert talk(kube.kubeconfig, settle) == ["Missing", "InSync", "DataDrift", "InSync"]


# --- The cluster is down ---


def test_a_cluster_that_is_down_is_unreachable_and_comes_back(tmp_path: Path) -> None:
    with KubeCluster(tmp_path) as cluster_of_its_own:
        cluster_of_its_own.create_namespace("a")

        async def live_through_it(cluster: Cluster) -> None:
            live = await cluster.apply_secret(wanted("a"), None)
            await asyncio.to_thread(cluster_of_its_own.stop_apiserver)
            with pytest.raises(TargetUnreachable) as caught:
                await cluster.read_secret("a", NAME)
            assert caught.value.retryable
            with pytest.raises(TargetUnreachable):
                await cluster.secrets_named(NAME)
            await asyncio.to_thread(cluster_of_its_own.start_apiserver)
            assert await cluster.read_secret("a", NAME) == live

        talk(cluster_of_its_own.kubeconfig, live_through_it)


def test_errors_never_quote_the_value(kube: KubeCluster, namespace: str) -> None:
    wish = replace(wanted(namespace), name="Not A Name", dockerconfigjson=VALUE_1)
    with pytest.raises(TargetForbidden) as caught:
        talk(kube.kubeconfig, lambda cluster: cluster.apply_secret(wish, None))
    assert_not_quoted(caught.value)
