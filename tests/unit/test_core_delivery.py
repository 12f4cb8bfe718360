"""The rules of `core.delivery`: ownership, drift, and components that never fall."""

from __future__ import annotations

import base64
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secretsvc.core.access import InstallationKeys
from secretsvc.core.delivery import (
    COMPONENTS,
    CONTENT,
    MANAGED,
    MARK,
    RULE,
    SECRET_TYPE,
    Action,
    Components,
    Marker,
    components_of,
)
from secretsvc.core.ident import ulid
from secretsvc.core.model import Secret
from secretsvc.core.ports import LiveSecret, SecretMetadata, WantedSecret
from secretsvc.core.rules import (
    NamespaceSelection,
    PullSecretRule,
)
from tests.fakes import NOON

CONTENT_1 = Secret('{"auths":{"r.example":{"auth":"dTpw"}}}')
CONTENT_2 = Secret('{"auths":{"r.example":{"auth":"dTpx"}}}')
OLDER, NEWER = (ulid(NOON.replace(minute=minute), bytes(10)) for minute in (1, 2))


def keys(installation: str = "inst-1", seed: int = 1) -> InstallationKeys:
    return InstallationKeys.make(installation, NOON, lambda count: bytes([seed]) * count)


def rule(name: str = "team", uid: str = OLDER, secret_name: str = "pull-secret") -> PullSecretRule:
    return PullSecretRule(
        uid=uid,
        name=name,
        secret_name=secret_name,
        credentials=("prod",),
        namespaces=NamespaceSelection(("a",)),
        created_at=NOON,
        created_by="t",
    )


MARKER = Marker(keys(), "cluster-1")


def want(rev: int = 1, pub: int = 1, content: Secret = CONTENT_1, **options: object) -> WantedSecret:
    pubs = options.pop("pubs", {"c1": pub})
    return MARKER.wanted(options.pop("rule", rule()), rev, str(options.pop("namespace", "a")), pubs, content)


def found(wanted: WantedSecret, version: str = "7") -> SecretMetadata:
    return SecretMetadata(wanted.namespace, wanted.name, "uid-1", version, wanted.labels, wanted.annotations)


def live(wanted: WantedSecret, version: str = "7") -> LiveSecret:
    return LiveSecret(found(wanted, version), SECRET_TYPE, wanted.dockerconfigjson)


def without(metadata: SecretMetadata, key: str) -> SecretMetadata:
    return replace(metadata, annotations={k: v for k, v in metadata.annotations.items() if k != key})


def test_a_missing_secret_is_created() -> None:
    assert MARKER.decide(want(), None, "").action is Action.CREATE


def test_after_our_own_write_nothing_is_left_to_do() -> None:
    assert MARKER.decide(want(), found(want()), "7").action is Action.UNCHANGED


def test_right_metadata_at_an_unknown_version_has_its_data_read() -> None:
    decision = MARKER.decide(want(), found(want()), "6")
    assert (decision.action, decision.reason) == (Action.READ, "DataUnknown")


def test_a_new_value_is_an_update() -> None:
    decision = MARKER.decide(want(pub=2, content=CONTENT_2), found(want()), "7")
    assert (decision.action, decision.reason) == (Action.UPDATE, "NewComponents")


@pytest.mark.parametrize("key", [CONTENT, COMPONENTS])
def test_removed_annotations_are_put_back(key: str) -> None:
    decision = MARKER.decide(want(), without(found(want()), key), "7")
    assert (decision.action, decision.reason) == (Action.UPDATE, "MetadataDrift")
    assert key in decision.message


def test_foreign_labels_and_annotations_are_not_drift() -> None:
    there = found(want())
    there = replace(
        there, labels={**there.labels, "app": "x"}, annotations={**there.annotations, "their/own": "y"}
    )
    assert MARKER.decide(want(), there, "7").action is Action.UNCHANGED


def test_a_secret_without_our_label_is_a_conflict() -> None:
    there = SecretMetadata("a", "pull-secret", "u", "7", {"app": "x"}, {"their/own": "y"})
    assert MARKER.decide(want(), there, "7").reason == "NotOurs"


def test_another_installations_secret_is_a_conflict() -> None:
    theirs = Marker(keys("inst-2", seed=2), "cluster-1").wanted(rule(), 1, "a", {"c1": 1}, CONTENT_1)
    assert MARKER.decide(want(), found(theirs), "7").reason == "OtherInstallation"


def test_a_label_made_by_hand_does_not_make_a_secret_ours() -> None:
    there = SecretMetadata("a", "pull-secret", "u", "7", {MANAGED: "inst-1"}, {RULE: "team"})
    assert MARKER.decide(want(), there, "7").reason == "MarkMismatch"
    assert MARKER.owner(there) is None


@pytest.mark.parametrize(
    ("namespace", "name"), [("b", "pull-secret"), ("a", "pull-secret-copy"), ("b", "pull-secret-copy")]
)
def test_a_copied_secret_is_not_ours(namespace: str, name: str) -> None:
    copied = replace(found(want()), namespace=namespace, name=name)
    wanted = want(namespace=namespace, rule=rule(secret_name=name))
    decision = MARKER.decide(wanted, copied, "7")
    assert (decision.action, decision.reason) == (Action.CONFLICT, "MarkMismatch")


def test_a_secret_restored_into_another_cluster_is_not_ours() -> None:
    elsewhere = Marker(keys(), "cluster-2")
    assert elsewhere.owner(found(want())) is None


def test_another_rules_secret_is_a_conflict_that_names_the_rule() -> None:
    theirs = want(rule=rule("platform", NEWER))
    decision = MARKER.decide(want(), found(theirs), "7")
    assert (decision.action, decision.reason) == (Action.CONFLICT, "OtherRule")
    assert "platform" in decision.message


def test_a_renamed_owner_does_not_keep_the_mark() -> None:
    there = found(want())
    there = replace(there, annotations={**there.annotations, RULE: "platform"})
    assert MARKER.decide(want(rule=rule("platform")), there, "7").reason == "MarkMismatch"


@pytest.mark.parametrize(
    "newer",
    [
        pytest.param(want(pub=2, content=CONTENT_2), id="later publication"),
        pytest.param(want(rev=2), id="later revision of the rule"),
        pytest.param(want(rule=rule(uid=NEWER)), id="later rule of that name"),
        pytest.param(want(pubs={"c1": 1, "c2": 1}), id="one more credential, same revision"),
    ],
)
def test_what_is_newer_is_left_alone(newer: WantedSecret) -> None:
    decision = MARKER.decide(want(), found(newer), "7")
    assert (decision.action, decision.reason) == (Action.STALE, "NewerThere")
    assert MARKER.compare(want(), live(newer)).action is Action.STALE


@pytest.mark.parametrize(
    "older",
    [
        pytest.param(want(rule=rule(uid=OLDER), rev=9), id="earlier rule of that name"),
        pytest.param(want(rule=rule(uid="not-a-ulid"), rev=9), id="rules that can not be ordered"),
        pytest.param(
            want(rule=rule(uid=NEWER), pubs={"c1": 1, "c2": 4}), id="a later revision drops a credential"
        ),
    ],
)
def test_a_later_state_of_the_rule_writes(older: WantedSecret) -> None:
    wanted = want(rev=2, rule=rule(uid=NEWER), pubs={"c1": 1})
    assert MARKER.decide(wanted, found(older), "7").action is Action.UPDATE


def test_a_later_revision_does_not_take_a_credential_back() -> None:
    assert MARKER.decide(want(rev=2, pub=1), found(want(rev=1, pub=2)), "7").action is Action.STALE


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "null", '"x"', "{}", "[" * 100_000),
        '{"rule":"r","rev":"1","pubs":{}}',
        '{"rule":"r","rev":1,"pubs":[]}',
        '{"rule":"r","rev":1,"pubs":{"c":true}}',
    ],
)
def test_unreadable_components_are_repaired(text: str) -> None:
    there = found(want())
    there = replace(there, annotations={**there.annotations, COMPONENTS: text})
    assert components_of(there) is None
    assert MARKER.decide(want(), there, "7").reason == "MetadataDrift"


def test_the_right_data_is_in_sync() -> None:
    assert MARKER.compare(want(), live(want())).action is Action.UNCHANGED


def test_changed_data_is_drift() -> None:
    there = replace(live(want()), dockerconfigjson=CONTENT_2)
    decision = MARKER.compare(want(), there)
    assert (decision.action, decision.reason) == (Action.UPDATE, "DataDrift")


@pytest.mark.parametrize("value", [None, "", "{", "[]", "\x00"])
def test_data_that_no_consumer_could_read_is_told_apart(value: str | None) -> None:
    there = replace(live(want()), dockerconfigjson=None if value is None else Secret(value))
    decision = MARKER.compare(want(), there)
    assert (decision.action, decision.reason) == (Action.UPDATE, "Undecodable")


def test_changed_metadata_beside_right_data_is_drift() -> None:
    there = replace(live(want()), metadata=without(found(want()), CONTENT))
    assert MARKER.compare(want(), there).reason == "MetadataDrift"


def test_another_type_is_a_conflict_since_a_type_can_not_change() -> None:
    decision = MARKER.compare(want(), replace(live(want()), type="Opaque"))
    assert (decision.action, decision.reason) == (Action.CONFLICT, "TypeMismatch")


def test_a_foreign_secret_is_a_conflict_when_read_too() -> None:
    theirs = LiveSecret(SecretMetadata("a", "pull-secret", "u", "7"), SECRET_TYPE, CONTENT_1)
    assert MARKER.compare(want(), theirs).reason == "NotOurs"


def test_a_secret_of_another_place_is_never_written() -> None:
    assert MARKER.decide(want(namespace="b"), found(want()), "7").reason == "OtherPlace"


def test_removal_takes_only_what_the_rule_made() -> None:
    assert MARKER.decide_removal(rule(), 2, None).action is Action.UNCHANGED
    assert MARKER.decide_removal(rule(), 2, found(want())).action is Action.REMOVE
    theirs = found(want(rule=rule("platform")))
    assert MARKER.decide_removal(rule(), 2, theirs).reason == "OtherRule"
    foreign = SecretMetadata("a", "pull-secret", "u", "7")
    assert MARKER.decide_removal(rule(), 2, foreign).reason == "NotOurs"


def test_a_tombstone_does_not_remove_what_a_later_rule_of_its_name_made() -> None:
    later, earlier = found(want(rule=rule(uid=NEWER))), found(want(rev=9, rule=rule(uid=OLDER)))
    assert MARKER.decide_removal(rule(uid=OLDER), 2, later).reason == "NewerRule"
    assert MARKER.decide_removal(rule(uid=NEWER), 2, earlier).action is Action.REMOVE


@pytest.mark.parametrize(("revision", "action"), [(1, Action.STALE), (2, Action.REMOVE), (3, Action.REMOVE)])
def test_who_knows_an_old_revision_removes_nothing_of_a_later_one(revision: int, action: Action) -> None:
    assert MARKER.decide_removal(rule(), revision, found(want(rev=2))).action is action


# --- Edits by hand --------------------------------------------------------------------------------


def edited(metadata: SecretMetadata, key: str, text: str) -> SecretMetadata:
    return replace(metadata, annotations={**metadata.annotations, key: text})


FORGED = Components(OLDER, 1, {"c1": 999})


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(FORGED.encode(), id="a higher publication, no MAC"),
        pytest.param(FORGED.encode("0" * 64), id="a made-up MAC"),
        pytest.param(FORGED.encode("\ud800"), id="a MAC that is no text"),
        pytest.param(Components("7" * 26, 1, {}).encode(), id="a later rule"),
        pytest.param(want(pub=9, namespace="b").annotations[COMPONENTS], id="another namespace's"),
        pytest.param(
            Marker(keys(), "cluster-2").wanted(rule(), 9, "a", {"c1": 9}, CONTENT_1).annotations[COMPONENTS],
            id="another cluster's",
        ),
        pytest.param("{}", id="nothing"),
    ],
)
def test_components_that_we_did_not_write_are_put_right_and_remove_nothing(text: str) -> None:
    there = edited(found(want()), COMPONENTS, text)
    assert MARKER.components(there) is None
    decision = MARKER.decide(want(), there, "7")
    assert (decision.action, decision.reason) == (Action.UPDATE, "MetadataDrift")
    assert MARKER.compare(want(), replace(live(want()), metadata=there)).reason == "MetadataDrift"
    removal = MARKER.decide_removal(rule(), 1, there)
    assert (removal.action, removal.reason) == (Action.STALE, "ComponentsUnknown")
    assert "by hand" in removal.message


def test_only_our_own_secrets_components_are_believed() -> None:
    assert MARKER.components(found(want(pub=3))) == Components(OLDER, 1, {"c1": 3})
    assert MARKER.components(edited(found(want()), MARK, "0" * 64)) is None


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        (MARK, "MarkMismatch"),
        (RULE, "MarkMismatch"),
        (COMPONENTS, "MetadataDrift"),
        (CONTENT, "MetadataDrift"),
    ],
)
def test_what_a_hands_edit_of_one_annotation_leads_to(key: str, reason: str) -> None:
    for there in (edited(found(want()), key, "edited"), without(found(want()), key)):
        decision = MARKER.decide(want(), there, "7")
        assert decision.reason == reason
        assert decision.action is (Action.UPDATE if reason == "MetadataDrift" else Action.CONFLICT)


def test_no_metadata_gives_the_content_away() -> None:
    wanted = want(content=Secret('{"auths":{"r":{"auth":"canary-7d1"}}}'))
    text = json.dumps([dict(wanted.labels), dict(wanted.annotations)])
    for shape in ("canary-7d1", base64.b64encode(b"canary-7d1").decode().rstrip("=")):
        assert shape not in text
    assert "canary" not in repr(wanted)


def test_equal_contents_have_equal_digests_and_others_do_not() -> None:
    assert want().annotations[CONTENT] == want(namespace="b").annotations[CONTENT]
    assert want().annotations[CONTENT] != want(content=CONTENT_2).annotations[CONTENT]
    other = Marker(keys(seed=2), "cluster-1").wanted(rule(), 1, "a", {"c1": 1}, CONTENT_1)
    assert want().annotations[CONTENT] != other.annotations[CONTENT]


# --- Properties -----------------------------------------------------------------------------------

uids = st.sampled_from([OLDER, NEWER, "plain-uid"])
components = st.builds(
    Components,
    uids,
    st.integers(1, 3),
    st.dictionaries(st.sampled_from(["c1", "c2", "c3"]), st.integers(0, 3), max_size=3),
)
contents = st.sampled_from([CONTENT_1, CONTENT_2])


@st.composite
def wishes(draw: st.DrawFn) -> WantedSecret:
    made = draw(components)
    return MARKER.wanted(rule(uid=made.rule_uid), made.rule_rev, "a", made.pubs, draw(contents))


def mac_of_b(wanted: WantedSecret) -> str:
    """Components with the MAC that they have in another namespace."""
    made = components_of(found(wanted))
    assert made is not None
    elsewhere = MARKER.wanted(rule(uid=made.rule_uid), made.rule_rev, "b", made.pubs, CONTENT_1)
    return elsewhere.annotations[COMPONENTS]


def tampered() -> st.SearchStrategy[SecretMetadata]:
    """Metadata that is not ours: arbitrary, or ours with the mark, label or place changed."""
    texts = st.text(max_size=8)
    label = st.sampled_from([{}, {MANAGED: "inst-1"}, {MANAGED: "inst-2"}])
    names = st.sampled_from([RULE, MARK, COMPONENTS, CONTENT, "other"])
    arbitrary = st.builds(
        SecretMetadata,
        st.just("a"),
        st.just("pull-secret"),
        texts,
        texts,
        label,
        st.dictionaries(names, st.one_of(texts, st.just("team")), max_size=5),
    )
    copies = wishes().map(
        lambda wanted: replace(
            found(wanted), annotations={**wanted.annotations, MARK: wanted.annotations[MARK][:-1] + "x"}
        )
    )
    return st.one_of(arbitrary, copies)


def applied(wanted: WantedSecret, there: SecretMetadata | None) -> SecretMetadata:
    """What a forced apply makes of a Secret: our keys are set, others stay, the version is new."""
    labels = {**(there.labels if there else {}), **wanted.labels}
    annotations = {**(there.annotations if there else {}), **wanted.annotations}
    return SecretMetadata(wanted.namespace, wanted.name, "uid-1", "8", labels, annotations)


@given(wishes(), tampered())
def test_what_is_not_ours_is_never_written(wanted: WantedSecret, there: SecretMetadata) -> None:
    assert MARKER.decide(wanted, there, there.resource_version).action is Action.CONFLICT
    assert MARKER.decide_removal(rule(), 1, there).action is Action.CONFLICT
    read = LiveSecret(there, SECRET_TYPE, wanted.dockerconfigjson)
    assert MARKER.compare(wanted, read).action is Action.CONFLICT


@given(wishes(), wishes())
def test_no_write_lets_a_component_fall(wanted: WantedSecret, before: WantedSecret) -> None:
    there, ours = MARKER.components(found(before)), MARKER.components(found(wanted))
    assert there is not None
    assert ours is not None
    if MARKER.decide(wanted, found(before), "").action is Action.UPDATE:
        assert all(ours.pubs.get(uid, pub) >= pub for uid, pub in there.pubs.items())
        if ours.rule_uid == there.rule_uid:
            assert ours.rule_rev >= there.rule_rev
        if (ours.rule_uid, ours.rule_rev) == (there.rule_uid, there.rule_rev):
            assert set(ours.pubs) >= set(there.pubs)
        assert (ours.rule_uid, there.rule_uid) != (OLDER, NEWER)


@given(wishes(), st.one_of(st.none(), wishes()))
def test_deciding_again_after_the_write_is_unchanged(
    wanted: WantedSecret, before: WantedSecret | None
) -> None:
    there = found(before) if before else None
    if MARKER.decide(wanted, there, "").action in {Action.CREATE, Action.UPDATE}:
        after = applied(wanted, there)
        assert MARKER.decide(wanted, after, after.resource_version).action is Action.UNCHANGED
        read = LiveSecret(after, SECRET_TYPE, wanted.dockerconfigjson)
        assert MARKER.compare(wanted, read).action is Action.UNCHANGED


@given(st.lists(wishes(), min_size=2, max_size=6))
def test_two_leaders_end_at_the_same_secret(wanted: list[WantedSecret]) -> None:
    """Whatever the order of writers, publications of a credential only rise while it stays in the Secret."""
    there: SecretMetadata | None = None
    for wish in wanted:
        before = components_of(there) if there else None
        if MARKER.decide(wish, there, "").action in {Action.CREATE, Action.UPDATE}:
            there = applied(wish, there)
        after = components_of(there) if there else None
        if before and after:
            assert all(after.pubs[uid] >= pub for uid, pub in before.pubs.items() if uid in after.pubs)


@given(components)
def test_components_survive_the_annotation(made: Components) -> None:
    wanted = want(made.rule_rev, rule=rule(uid=made.rule_uid), pubs=made.pubs)
    assert MARKER.components(found(wanted)) == components_of(found(wanted)) == made


@given(wishes(), st.one_of(st.text(max_size=60), components.map(Components.encode), wishes().map(mac_of_b)))
def test_no_text_in_the_components_holds_a_write_back(wanted: WantedSecret, text: str) -> None:
    """Whatever a hand puts there, the next pass writes over it, and it moves nobody to remove the Secret."""
    there = edited(found(wanted), COMPONENTS, text)
    assert MARKER.decide(wanted, there, there.resource_version).action is Action.UPDATE
    after = applied(wanted, there)
    assert MARKER.decide(wanted, after, after.resource_version).action is Action.UNCHANGED
    assert MARKER.decide_removal(rule(), 9, there).action is Action.STALE


@given(wishes(), st.integers(1, 3), uids)
def test_no_removal_of_what_a_later_state_of_the_rule_made(
    before: WantedSecret, revision: int, uid: str
) -> None:
    there = MARKER.components(found(before))
    assert there is not None
    if MARKER.decide_removal(rule(uid=uid), revision, found(before)).action is Action.REMOVE:
        assert there.rule_uid != uid or there.rule_rev <= revision
        assert (uid, there.rule_uid) != (OLDER, NEWER)
