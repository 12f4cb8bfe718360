"""Whose a Secret is, and what may be done about it: the marks we write and the rules that read them.

Every Secret of ours carries a label and four annotations. The mark is a MAC over installation, rule,
cluster, namespace and name, so a Secret that was copied, restored elsewhere or labelled by hand is not ours.
The components say which publication of each credential is inside; a write that would let one of them fall is
refused, whoever asks, which is what makes two leaders harmless. They carry a MAC of their own: components
that we did not write hold no write back (they are drift, and written over) and justify no removal, since
nobody knows then how new the Secret is. The content digest is keyed, so nobody can guess a value from it.

What a hand's edit leads to: of the label, the mark or the rule's name, a conflict, for the Secret is not
provably ours any more; of components or content, that the next pass puts them back.

Pure. It decides on facts that an adapter gathered; `workflows` carries the decision out. It does not know how
a Secret's content is made (`core.dockerconfig`) or which namespaces a rule selects.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from secretsvc.core.access import InstallationKeys
from secretsvc.core.ident import is_ulid, keyed_digest, same_digest
from secretsvc.core.model import Secret
from secretsvc.core.ports import LiveSecret, SecretMetadata, WantedSecret
from secretsvc.core.rules import PullSecretRule

MANAGED = "secretsvc.io/managed"
"""Label: the installation's id."""
MARK = "secretsvc.io/mark"
"""Annotation: the MAC that makes a Secret ours in this very place."""
RULE = "secretsvc.io/rule"
"""Annotation: name of the rule it was made by."""
COMPONENTS = "secretsvc.io/components"
"""Annotation: JSON of `Components`, and the MAC over them in this very place."""
CONTENT = "secretsvc.io/content"
"""Annotation: keyed digest of the content."""

SECRET_TYPE = "kubernetes.io/dockerconfigjson"  # noqa: S105  # a type's name, not a value
"""The only type we write. A Secret's type can never be changed."""

_MARK_PURPOSE = "secretsvc.io/mark/v1"
_COMPONENTS_PURPOSE = "secretsvc.io/components/v1"
_CONTENT_PURPOSE = "secretsvc.io/content/v1"


@dataclass(frozen=True, slots=True)
class Components:
    """What a Secret was made from."""

    rule_uid: str
    rule_rev: int
    """Version of the rule's document."""
    pubs: Mapping[str, int]
    """Credential uid to the publication inside."""

    def encode(self, mac: str = "") -> str:
        """Return the annotation's text, or without ``mac`` what that is made over.

        The same components always give the same text.
        """
        document: dict[str, object] = {"rule": self.rule_uid, "rev": self.rule_rev, "pubs": dict(self.pubs)}
        return json.dumps(document | ({"mac": mac} if mac else {}), sort_keys=True, separators=(",", ":"))

    def falls_below(self, other: Components) -> str:
        """Return what would be lost by writing these over ``other``, in words; empty when nothing would.

        A later revision of the rule may drop credentials; the same revision may not, and none may go back.
        """
        same_rule = self.rule_uid == other.rule_uid
        if self.rule_rev < other.rule_rev if same_rule else _precedes(self.rule_uid, other.rule_uid):
            return "it was made by a later revision of the rule"
        for credential, pub in sorted(other.pubs.items()):
            if self.pubs.get(credential, pub) < pub:
                return (
                    f"it holds publication {pub} of credential {credential}, we know {self.pubs[credential]}"
                )
        missing = sorted(set(other.pubs) - set(self.pubs))
        if missing and same_rule and self.rule_rev == other.rule_rev:
            return f"it holds credential {missing[0]}, which the same revision of the rule would drop"
        return ""


def _precedes(rule_uid: str, other: str) -> bool:
    """Whether a rule is an earlier incarnation than another of its name; their ULIDs sort by time."""
    return is_ulid(rule_uid) and is_ulid(other) and rule_uid < other


def components_of(metadata: SecretMetadata) -> Components | None:
    """Return what a Secret says it was made from; None when it does not say so in a form we wrote.

    Anybody who may edit the Secret can have written it: `Marker.components` tells what we wrote.
    """
    claim = _claim(metadata)
    return claim[0] if claim is not None else None


def _claim(metadata: SecretMetadata) -> tuple[Components, str] | None:
    """Return the components of the annotation, and the MAC that came with them."""
    try:
        document = json.loads(metadata.annotations.get(COMPONENTS, ""))
        pubs = {str(uid): _count(pub) for uid, pub in document["pubs"].items()}
        made_from = Components(str(document["rule"]), _count(document["rev"]), pubs)
        mac = str(document.get("mac", ""))
        return made_from, mac if mac.isascii() else ""
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError
    return value


class Action(StrEnum):
    """What to do about one Secret."""

    CREATE = "create"
    UPDATE = "update"
    REMOVE = "remove"
    READ = "read"
    """The metadata is right, but the data may have changed: read it and `Marker.compare`."""
    UNCHANGED = "unchanged"
    CONFLICT = "conflict"
    """It is not ours to write, or can not be written; leave it alone and say so."""
    STALE = "stale"
    """What is there is newer than what we want: read the store again."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do, and why, as a stable CamelCase reason and a sentence for a person."""

    action: Action
    reason: str
    message: str


class Marker:
    """Marks wanted Secrets and judges found ones, for one installation in one cluster.

    Args:
        keys: the installation's identity and digest keys.
        cluster_uid: `Cluster.identity`.
    """

    def __init__(self, keys: InstallationKeys, cluster_uid: str) -> None:
        self._keys = keys
        self._cluster_uid = cluster_uid

    def wanted(
        self, rule: PullSecretRule, rule_rev: int, namespace: str, pubs: Mapping[str, int], content: Secret
    ) -> WantedSecret:
        """Return the marked Secret of ``rule`` for one namespace.

        Args:
            rule: what it is made by.
            rule_rev: the version of the rule's document.
            namespace: where it goes.
            pubs: credential uid to the publication that ``content`` holds.
            content: the dockerconfigjson.
        """
        mark = self._mark(rule.name, namespace, rule.secret_name)
        made_from = Components(rule.uid, rule_rev, pubs)
        annotations = {
            MARK: mark,
            RULE: rule.name,
            COMPONENTS: made_from.encode(self._mac(mark, made_from)),
            CONTENT: keyed_digest(self._keys.content, _CONTENT_PURPOSE, content.reveal()),
        }
        labels = {MANAGED: self._keys.installation}
        return WantedSecret(namespace, rule.secret_name, labels, annotations, content)

    def owner(self, found: SecretMetadata) -> str | None:
        """Return the name of the rule of ours that made ``found`` in this very place, or None."""
        rule = found.annotations.get(RULE)
        if rule is None or found.labels.get(MANAGED) != self._keys.installation:
            return None
        mark = self._mark(rule, found.namespace, found.name)
        return rule if same_digest(mark, found.annotations.get(MARK, "")) else None

    def components(self, found: SecretMetadata) -> Components | None:
        """Return what we made ``found`` from; None when it is not ours, or a hand changed its components."""
        claim = _claim(found) if self.owner(found) is not None else None
        if claim is None:
            return None
        made_from, mac = claim
        return made_from if same_digest(mac, self._mac(found.annotations[MARK], made_from)) else None

    def decide(self, wanted: WantedSecret, found: SecretMetadata | None, in_sync_version: str) -> Decision:
        """Decide from metadata alone.

        Args:
            wanted: made by `wanted`.
            found: the Secret of that name in that namespace, if there is one.
            in_sync_version: the resourceVersion at which its data was last seen to be right (our own write's
                answer, or a `compare`); empty when unknown.
        """
        if found is None:
            return Decision(Action.CREATE, "Missing", "The namespace has no such Secret yet.")
        refusal = self._refusal(wanted, found)
        if refusal is not None:
            return refusal
        drift = self._metadata_drift(wanted, found)
        if drift is not None:
            return drift
        if found.resource_version != in_sync_version:
            return Decision(
                Action.READ, "DataUnknown", "The Secret was written since its data was last checked."
            )
        return _IN_SYNC

    def compare(self, wanted: WantedSecret, live: LiveSecret) -> Decision:
        """Decide from a Secret whose data was read; never answers `Action.READ`."""
        refusal = self._refusal(wanted, live.metadata)
        if refusal is not None:
            return refusal
        if live.type != SECRET_TYPE:
            return _conflict(
                "TypeMismatch", "The Secret was made anew with another type; delete it to get ours."
            )
        if live.dockerconfigjson != wanted.dockerconfigjson:
            return _data_drift(live.dockerconfigjson)
        return self._metadata_drift(wanted, live.metadata) or _IN_SYNC

    def decide_removal(self, rule: PullSecretRule, revision: int, found: SecretMetadata | None) -> Decision:
        """Decide about the Secret of a rule that is gone, or in a namespace that it no longer selects.

        The same name may by now belong to somebody else, to a later rule of that name, or to a later revision
        of this one, which another worker knows already. What can not be told to be older stays.

        Args:
            rule: the rule that does not want it.
            revision: the version of the rule's document.
            found: the Secret of that name in that namespace, if there is one.
        """
        if found is None:
            return Decision(Action.UNCHANGED, "Absent", "The namespace has no such Secret.")
        refusal = self._not_ours(rule.name, found)
        if refusal is not None:
            return refusal
        there = self.components(found)
        if there is None:
            return Decision(Action.STALE, "ComponentsUnknown", _UNKNOWN)
        if _precedes(rule.uid, there.rule_uid):
            return Decision(Action.STALE, "NewerRule", "The Secret was made by a later rule of that name.")
        if there.rule_uid == rule.uid and there.rule_rev > revision:
            return Decision(
                Action.STALE, "NewerRevision", "The Secret was made by a later revision of the rule."
            )
        return Decision(Action.REMOVE, "NotSelected", "The rule does not want a Secret here any more.")

    def _refusal(self, wanted: WantedSecret, found: SecretMetadata) -> Decision | None:
        """Return why ``found`` may not be written over, or None when it may."""
        if (found.namespace, found.name) != (wanted.namespace, wanted.name):
            return _conflict("OtherPlace", "The Secret that was found is not the one that is wanted.")
        not_ours = self._not_ours(wanted.annotations[RULE], found)
        if not_ours is not None:
            return not_ours
        there, ours = self.components(found), components_of(_as_metadata(wanted))
        loss = ours.falls_below(there) if there is not None and ours is not None else ""
        return Decision(Action.STALE, "NewerThere", f"The Secret is left alone: {loss}.") if loss else None

    def _not_ours(self, rule: str, found: SecretMetadata) -> Decision | None:
        installation = found.labels.get(MANAGED)
        if installation is None:
            return _conflict("NotOurs", "A Secret of that name is there and was not made by secretsvc.")
        if installation != self._keys.installation:
            return _conflict("OtherInstallation", "The Secret belongs to another installation of secretsvc.")
        owner = self.owner(found)
        if owner is None:
            return _conflict(
                "MarkMismatch", "The Secret carries our label but was not made for this place: a copy?"
            )
        if owner != rule:
            return _conflict("OtherRule", f"The Secret belongs to the pull secret rule {owner}.")
        return None

    def _metadata_drift(self, wanted: WantedSecret, found: SecretMetadata) -> Decision | None:
        """Compare what is ours of the metadata; labels and annotations of others are theirs."""
        differing = [key for key, value in wanted.annotations.items() if found.annotations.get(key) != value]
        if any(found.labels.get(key) != value for key, value in wanted.labels.items()):
            differing.append(MANAGED)
        if not differing:
            return None
        if COMPONENTS in differing and self.components(found) is not None:
            return Decision(Action.UPDATE, "NewComponents", "The Secret was made from an earlier state.")
        return Decision(Action.UPDATE, "MetadataDrift", f"Not as wanted: {', '.join(sorted(differing))}.")

    def _mac(self, mark: str, made_from: Components) -> str:
        return keyed_digest(self._keys.ownership, _COMPONENTS_PURPOSE, mark, made_from.encode())

    def _mark(self, rule: str, namespace: str, name: str) -> str:
        installation = self._keys.installation
        parts = (_MARK_PURPOSE, installation, rule, self._cluster_uid, namespace, name)
        return keyed_digest(self._keys.ownership, *parts)


_UNKNOWN = (
    "Somebody changed the Secret's annotation secretsvc.io/components, so nobody knows how new it is; "
    "delete the Secret by hand."
)
_IN_SYNC = Decision(Action.UNCHANGED, "InSync", "The Secret is as wanted.")


def _conflict(reason: str, message: str) -> Decision:
    return Decision(Action.CONFLICT, reason, message)


def _as_metadata(wanted: WantedSecret) -> SecretMetadata:
    return SecretMetadata(wanted.namespace, wanted.name, "", "", wanted.labels, wanted.annotations)


def _data_drift(there: Secret | None) -> Decision:
    if there is None:
        return Decision(
            Action.UPDATE, "Undecodable", "The Secret's .dockerconfigjson is missing or not text."
        )
    try:
        readable = isinstance(json.loads(there.reveal()), dict)
    except (ValueError, RecursionError):
        readable = False
    if not readable:
        return Decision(Action.UPDATE, "Undecodable", "The Secret's .dockerconfigjson is not a JSON object.")
    return Decision(Action.UPDATE, "DataDrift", "The Secret's data is not what was delivered.")
