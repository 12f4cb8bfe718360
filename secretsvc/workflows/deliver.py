"""Bringing a rule's targets to what is wanted, and saying of each what was seen.

One pass over a pull secret is one request for the metadata of every Secret of that name, then one write for
each that differs. A pass writes nothing when nothing differs, leaves alone what is not ours, never drops a
value that it can not read, and may be stopped anywhere. Passes of different rules run side by side.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from secretsvc.core.delivery import Action, Decision, Marker
from secretsvc.core.dockerconfig import render
from secretsvc.core.errors import (
    DeliveryError,
    InvalidInput,
    TargetChanged,
    TargetForbidden,
    TargetMissing,
    TargetRefused,
)
from secretsvc.core.model import Secret
from secretsvc.core.ports import (
    AuthFileResult,
    AuthFiles,
    AuthFileWish,
    Clock,
    Cluster,
    LiveSecret,
    SecretMetadata,
    WantedSecret,
)
from secretsvc.core.rotation import targets
from secretsvc.core.rules import (
    AuthFileRule,
    Component,
    Delivery,
    DeliveryState,
    PullSecretRule,
    Rule,
)
from secretsvc.workflows.world import Content, StoredRule, World

CONCURRENCY = 8
"""Writes under way per cluster: throughput is flat from eight on and only latency grows."""

_ATTEMPTS = 3
_NOTHING = Content((), (), {}, {})


@dataclass(frozen=True, slots=True)
class Pass:
    """What one look at a rule's targets found and did."""

    deliveries: dict[str, Delivery]
    """Every target that the rule names, and those it no longer names whose removal did not succeed."""
    marks: dict[str, str] = field(default_factory=dict)
    """Auth files: auth key to the digest of what the file now holds of ours."""
    looked: bool = True
    """Every target was looked at; what is not among the deliveries holds nothing of the rule."""

    @property
    def removed(self) -> bool:
        """Nothing of the rule is left anywhere."""
        return self.looked and not self.deliveries


@dataclass(frozen=True, slots=True)
class _Seen:
    """What was seen at one target."""

    state: DeliveryState
    reason: str
    message: str
    components: tuple[Component, ...] = ()


class Deliverer:
    """Makes passes over rules.

    Args:
        world: what is wanted.
        clusters: the clusters that the settings give, by name.
        auth_files: this machine's auth files.
        clock: for the times in deliveries.
    """

    def __init__(
        self, world: World, clusters: Mapping[str, Cluster], auth_files: AuthFiles, clock: Clock
    ) -> None:
        self._world = world
        self._clusters = clusters
        self._auth_files = auth_files
        self._clock = clock
        self._slots = {name: asyncio.Semaphore(CONCURRENCY) for name in clusters}
        self._markers: dict[str, Marker] = {}
        self._in_sync: dict[tuple[str, str], str] = {}

    async def bring(self, stored: StoredRule, seen: Callable[[Delivery], None]) -> Pass:
        """Make one pass; ``seen`` hears of each target as soon as it is done."""
        if isinstance(stored.record, PullSecretRule):
            return await self._bring_namespaces(stored.record, stored.version, seen)
        return await self._bring_file(stored.record, seen)

    # --- namespaces -------------------------------------------------------------------------------

    async def _bring_namespaces(
        self, rule: PullSecretRule, revision: int, seen: Callable[[Delivery], None]
    ) -> Pass:
        wished = targets(rule)
        content = self._world.content(rule) if wished else _NOTHING
        cluster = self._clusters.get(rule.cluster)
        if cluster is None:
            return self._all(
                rule, self._known(rule), _Seen(DeliveryState.FAILED, "NoCluster", _no_cluster(rule.cluster))
            )
        if content.held:
            return self._all(rule, wished, _Seen(DeliveryState.FAILED, "ValueUnreadable", content.held))
        try:
            rendered = render(content.entries) if content.entries else None
            marker = await self._marker(cluster)
            found = await cluster.secrets_named(rule.secret_name)
        except (DeliveryError, InvalidInput) as exc:
            return self._all(rule, self._known(rule), _failed(exc))
        one = _NamespacePass(cluster, marker, rule, revision, content, rendered, self._in_sync)

        async def bring(namespace: str) -> Delivery | None:
            async with self._slots[rule.cluster]:
                removing = namespace not in wished
                outcome = (
                    await one.remove(found[namespace])
                    if removing
                    else await one.bring(namespace, found.get(namespace))
                )
            if outcome is None:
                return None
            delivery = self._delivery(rule, namespace, outcome)
            seen(delivery)
            return delivery

        leaving = [] if rule.keep else one.left_behind(found.values(), wished)
        done = await asyncio.gather(*(bring(namespace) for namespace in (*wished, *leaving)))
        return Pass({delivery.target: delivery for delivery in done if delivery is not None})

    def _known(self, rule: PullSecretRule) -> tuple[str, ...]:
        """Return the targets to speak of when none can be looked at: of a deleted rule those it had."""
        return targets(rule) or tuple(self._world.deliveries.get(rule.uid, {}))

    async def _marker(self, cluster: Cluster) -> Marker:
        if cluster.name not in self._markers:
            self._markers[cluster.name] = Marker(self._world.keys, await cluster.identity())
        return self._markers[cluster.name]

    # --- auth files -------------------------------------------------------------------------------

    async def _bring_file(self, rule: AuthFileRule, seen: Callable[[Delivery], None]) -> Pass:
        wished = targets(rule)
        content = self._world.content(rule) if wished else _NOTHING
        observed = self._world.observed.get(rule.uid)
        marks = dict(observed.marks) if observed else {}
        if content.held:
            outcome = _Seen(DeliveryState.FAILED, "ValueUnreadable", content.held)
            return Pass(self._all(rule, wished, outcome).deliveries, marks)
        wish = self._file_wish(rule, content)
        if not wish.entries and not wish.remove:
            return Pass(self._all(rule, wished, _waiting(content)).deliveries, marks if wished else {})
        try:
            result = await asyncio.to_thread(self._auth_files.write, wish)
        except (DeliveryError, InvalidInput) as exc:
            # A file that can not be read may be left when nothing of ours is known to be in it.
            left = isinstance(exc, TargetMissing) or (isinstance(exc, TargetRefused) and not marks)
            gone = not wished and left
            return Pass({}) if gone else Pass(self._all(rule, (rule.path,), _failed(exc)).deliveries, marks)
        if not wished:
            return Pass({})
        delivery = self._delivery(rule, rule.path, _written(content, result))
        seen(delivery)
        return Pass({rule.path: delivery}, dict(result.marks))

    def _file_wish(self, rule: AuthFileRule, content: Content) -> AuthFileWish:
        """Say what the file should hold; entries of ours that are not wanted any more go, unless kept."""
        accepted = self._world.accepted(rule)
        unwanted = frozenset(accepted) - {entry.key for entry in content.entries}
        kept = rule.keep or content.missing
        return AuthFileWish(
            path=rule.path,
            dialect=rule.dialect,
            entries=content.entries,
            accepted=accepted,
            digest=self._world.digest,
            remove=frozenset() if kept else unwanted,
        )

    # --- the parts --------------------------------------------------------------------------------

    def _all(self, rule: Rule, names: Iterable[str], outcome: _Seen) -> Pass:
        """Say the same of every target that can not be looked at; what it held it still holds."""
        return Pass({name: self._delivery(rule, name, outcome) for name in names}, looked=False)

    def _delivery(self, rule: Rule, target: str, seen: _Seen) -> Delivery:
        """Return what was seen of a target; the same as before keeps its time, and costs no write."""
        now = Delivery(target, seen.state, seen.reason, seen.message, self._clock(), seen.components)
        before = self._world.deliveries.get(rule.uid, {}).get(target)
        same = before is not None and replace(before, updated_at=now.updated_at) == now
        return before if before is not None and same else now


class _NamespacePass:
    """One pass over one pull secret's namespaces."""

    def __init__(
        self,
        cluster: Cluster,
        marker: Marker,
        rule: PullSecretRule,
        revision: int,
        content: Content,
        rendered: Secret | None,
        in_sync: dict[tuple[str, str], str],
    ) -> None:
        self._cluster = cluster
        self._marker = marker
        self._rule = rule
        self._revision = revision
        self._content = content
        self._in_sync = in_sync
        self._rendered = rendered

    def left_behind(self, found: Iterable[SecretMetadata], wished: Iterable[str]) -> list[str]:
        """Return the namespaces that hold a Secret of this rule and are not named by it any more."""
        named = set(wished)
        return [
            secret.namespace
            for secret in found
            if secret.namespace not in named and self._marker.owner(secret) == self._rule.name
        ]

    async def bring(self, namespace: str, found: SecretMetadata | None) -> _Seen:
        """Bring one namespace to what is wanted."""
        if self._rendered is None:
            return _waiting(self._content)
        wanted = self._marker.wanted(
            self._rule, self._revision, namespace, self._content.pubs, self._rendered
        )
        held = self._would_drop(found)
        if held:
            return _Seen(DeliveryState.FAILED, "ValueUnreadable", held)
        try:
            return await self._converge(wanted, found)
        except DeliveryError as exc:
            return _failed(exc)

    async def _converge(self, wanted: WantedSecret, found: SecretMetadata | None) -> _Seen:
        key = (self._rule.uid, wanted.namespace)
        decision = self._marker.decide(wanted, found, self._in_sync.get(key, ""))
        for _ in range(_ATTEMPTS):
            if decision.action in (Action.CREATE, Action.UPDATE):
                try:
                    live = await self._cluster.apply_secret(wanted, found)
                except TargetChanged:
                    found, decision = await self._look_again(wanted)
                    continue
                return self._kept(key, wanted, live)
            if decision.action is Action.READ:
                found, decision = await self._look_again(wanted)
                if found is not None and decision.action is Action.UNCHANGED:
                    self._in_sync[key] = found.resource_version
                continue
            return self._unwritten(decision)
        return _Seen(
            DeliveryState.FAILED,
            "KeepsChanging",
            "Somebody else keeps writing this Secret; it is tried again.",
        )

    async def _look_again(self, wanted: WantedSecret) -> tuple[SecretMetadata | None, Decision]:
        live = await self._cluster.read_secret(wanted.namespace, wanted.name)
        if live is None:
            return None, self._marker.decide(wanted, None, "")
        return live.metadata, self._marker.compare(wanted, live)

    def _kept(self, key: tuple[str, str], wanted: WantedSecret, live: LiveSecret) -> _Seen:
        """Judge the answer to an apply: it is the read-back."""
        decision = self._marker.compare(wanted, live)
        if decision.action is not Action.UNCHANGED:
            return _Seen(
                DeliveryState.DRIFTED,
                decision.reason,
                "The API server kept something else than what was written (an admission webhook?).",
            )
        self._in_sync[key] = live.metadata.resource_version
        return _synced(self._content)

    def _unwritten(self, decision: Decision) -> _Seen:
        if decision.action is Action.UNCHANGED:
            return _synced(self._content)
        if decision.action is Action.CONFLICT:
            return _Seen(DeliveryState.CONFLICT, decision.reason, decision.message)
        return _Seen(DeliveryState.FAILED, decision.reason, decision.message)

    def _would_drop(self, found: SecretMetadata | None) -> str:
        """Say why writing would take a value away that the rule still names; empty when it would not."""
        there = self._marker.components(found) if found is not None else None
        dropped = set(there.pubs if there else ()) & set(self._content.missing)
        return self._content.missing[dropped.pop()] if dropped else ""

    async def remove(self, found: SecretMetadata) -> _Seen | None:
        """Take our Secret out of a namespace; None when nothing of ours is left there."""
        self._in_sync.pop((self._rule.uid, found.namespace), None)
        decision = self._marker.decide_removal(self._rule, self._revision, found)
        if decision.action is not Action.REMOVE:
            return self._unwritten(decision) if decision.reason == "ComponentsUnknown" else None
        try:
            await self._cluster.delete_secret(found)
        except TargetMissing:
            return None
        except DeliveryError as exc:
            return _failed(exc)
        return None


def _waiting(content: Content) -> _Seen:
    return _Seen(DeliveryState.PENDING, "CredentialNotReady", "; ".join(content.missing.values()) + ".")


def _synced(content: Content) -> _Seen:
    if content.missing:
        waiting = _waiting(content)
        return _Seen(waiting.state, waiting.reason, waiting.message, content.components)
    return _Seen(DeliveryState.SYNCED, "InSync", "The target is as wanted.", content.components)


def _written(content: Content, result: AuthFileResult) -> _Seen:
    if result.foreign:
        held = tuple(
            part
            for part, entry in zip(content.components, content.entries, strict=True)
            if entry.key not in result.foreign
        )
        message = (
            f"The file has an entry of somebody else for {', '.join(result.foreign)}; it was left alone. "
            "Remove it (`podman logout`), and ours follows."
        )
        return _Seen(DeliveryState.CONFLICT, "NotOurs", message, held)
    outcome = _synced(content)
    if not result.notes:
        return outcome
    return _Seen(
        outcome.state, outcome.reason, " ".join((outcome.message, *result.notes)), outcome.components
    )


def _failed(exc: DeliveryError | InvalidInput) -> _Seen:
    message = f"{exc.message} ({exc.hint})" if exc.hint else exc.message
    state = DeliveryState.FAILED
    if isinstance(exc, TargetForbidden):
        state = DeliveryState.DENIED
    elif isinstance(exc, TargetMissing):
        state = DeliveryState.PENDING
    elif isinstance(exc, TargetRefused):
        state = DeliveryState.CONFLICT
    return _Seen(state, exc.code, message)


def _no_cluster(name: str) -> str:
    return f"There is no access to the cluster {name!r}: set SECRETSVC_KUBECONFIG and restart."
