"""What work knows: wishes and facts in memory, and what every rule's targets should hold.

The store is the truth; this is read from it at the start and record by record when the inbox says so. Values
of published generations stay here too, so that targets are served while the store is away. Absence in a
failed read changes nothing: only a document that the store says is not there is forgotten.

Reads happen in threads and decisions in the event loop, so what decides iterates over copies.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime
from threading import RLock

from secretsvc.core import kinds
from secretsvc.core.access import InstallationKeys
from secretsvc.core.errors import RecordDamaged, StoreConflict
from secretsvc.core.ident import keyed_digest
from secretsvc.core.model import (
    CredentialSpec,
    CredentialState,
    Generation,
    Operation,
    Phase,
    Progress,
    RegistrySpec,
    generation_name,
)
from secretsvc.core.ports import AuthEntry, CredentialStore, R, Stored
from secretsvc.core.rotation import confirmed, wanted
from secretsvc.core.rules import (
    AuthFileRule,
    Component,
    CredentialSummary,
    Delivery,
    DeliveryView,
    Observed,
    PullSecretRule,
    Rule,
)
from secretsvc.workflows.records import Desk
from secretsvc.workflows.report import summary, view_name

StoredRule = Stored[PullSecretRule] | Stored[AuthFileRule]


@dataclass(frozen=True, slots=True)
class Content:
    """What a rule's targets should hold now."""

    entries: tuple[AuthEntry, ...]
    components: tuple[Component, ...]
    pubs: dict[str, int]
    """Credential uid to publication."""
    missing: dict[str, str]
    """Uid of a credential that has nothing to deliver yet, to a sentence that says so."""
    held: str = ""
    """Why nothing may be written now: a value that was published can not be read."""


@dataclass(slots=True)
class World:
    """Wishes by name, facts by uid."""

    store: CredentialStore
    _keys: InstallationKeys | None = None
    registries: dict[str, Stored[RegistrySpec]] = field(default_factory=dict)
    credentials: dict[str, Stored[CredentialSpec]] = field(default_factory=dict)
    states: dict[str, CredentialState] = field(default_factory=dict)
    rules: dict[str, StoredRule] = field(default_factory=dict)
    observed: dict[str, Observed] = field(default_factory=dict)
    deliveries: dict[str, dict[str, Delivery]] = field(default_factory=dict)
    """Rule uid to target to what was last observed there."""
    damaged: dict[str, str] = field(default_factory=dict)
    """Document to why it can not be used; it is left alone and everything else goes on."""
    _generations: dict[str, Generation] = field(default_factory=dict)
    _reading: RLock = field(default_factory=RLock)
    """Held over a read and what is remembered of it, so that an older answer never replaces a newer one."""

    # --- reading ----------------------------------------------------------------------------------

    @property
    def keys(self) -> InstallationKeys:
        """This installation's identity and keys, once `load` has run."""
        if self._keys is None:
            raise RuntimeError("the world is not loaded yet")
        return self._keys

    def load(self, desk: Desk) -> None:
        """Read every wish and fact; at the very first start, make this installation's keys. Blocking."""
        self._keys = _installation_keys(desk)
        for name in self.store.names(RegistrySpec):
            self.read_registry(name)
        for name in self.store.names(CredentialSpec):
            self.read_credential(name)
        for kind in (PullSecretRule, AuthFileRule):
            for name in self.store.names(kind):
                self.read_rule(kind, name)

    def read_registry(self, name: str) -> None:
        """Read one registry again."""
        with self._reading:
            _remember(self.registries, name, self._read(RegistrySpec, name))

    def read_credential(self, name: str) -> None:
        """Read one credential, its state, and the values that are published, again."""
        with self._reading:
            old = self.credentials.get(name)
            found = self._read(CredentialSpec, name)
            _remember(self.credentials, name, found)
            if old is not None and (found is None or found.record.uid != old.record.uid):
                self.states.pop(old.record.uid, None)
                self._keep_generations(old.record.uid, set())
            if found is None:
                return
            state = self._read(CredentialState, found.record.uid)
            if state is not None:
                self.states[found.record.uid] = state.record
                self._read_generations(state.record)

    def _read_generations(self, state: CredentialState) -> None:
        for number in filter(None, (state.head.cur, state.head.prev)):
            name = generation_name(state.uid, number)
            if name not in self._generations:
                found = self._read(Generation, name)
                if found is not None:
                    self._generations[name] = found.record
        published = {generation_name(state.uid, number) for number in (state.head.cur, state.head.prev)}
        self._keep_generations(state.uid, published)

    def _keep_generations(self, uid: str, names: set[str]) -> None:
        """Forget every value of a credential but these."""
        for name in [known for known in self._generations if known.startswith(f"{uid}-")]:
            if name not in names:
                del self._generations[name]

    def read_rule(self, kind: type[PullSecretRule | AuthFileRule], name: str) -> StoredRule | None:
        """Read one rule again, with what was observed of it if it is new here."""
        with self._reading:
            return self._read_rule(kind, name)

    def _read_rule(self, kind: type[PullSecretRule | AuthFileRule], name: str) -> StoredRule | None:
        found: StoredRule | None = (
            self._read(PullSecretRule, name) if kind is PullSecretRule else self._read(AuthFileRule, name)
        )
        for known in self._rules_named(kind, name):
            if found is None or found.record.uid != known.record.uid:
                self.forget_rule(known.record.uid)
        if found is not None:
            uid = found.record.uid
            self.rules[uid] = found
            if uid not in self.deliveries:
                self._read_observed(uid)
        return found

    def forget_rule(self, uid: str) -> None:
        """Drop a rule that the store no longer has."""
        for known in (self.rules, self.observed, self.deliveries):
            known.pop(uid, None)

    def _read_observed(self, uid: str) -> None:
        observed = self._read(Observed, uid)
        if observed is not None:
            self.observed[uid] = observed.record
        self.deliveries[uid] = {}
        shard, shards = 0, 1
        while shard < shards:
            view = self._read(DeliveryView, view_name(uid, shard))
            if view is None:
                return
            self.deliveries[uid] |= {known.target: known for known in view.record.deliveries}
            shard, shards = shard + 1, view.record.shards

    def _read(self, kind: type[R], name: str) -> Stored[R] | None:
        document = f"{kind.KIND}/{name}"
        try:
            found = self.store.get(kind, name)
        except RecordDamaged as exc:
            self.damaged[document] = exc.message
            return None
        self.damaged.pop(document, None)
        return found

    # --- what is known ----------------------------------------------------------------------------

    def known(self, kind: type, name: str) -> tuple[object, ...]:
        """Return everything known of a record, to tell whether reading it again changed something."""
        if kind is RegistrySpec:
            return (self.registries.get(name),)
        if kind is CredentialSpec:
            stored = self.credentials.get(name)
            return (stored, self.states.get(stored.record.uid) if stored else None)
        return tuple(self._rules_named(kind, name))

    def is_deleted(self, kind: type[RegistrySpec | CredentialSpec], name: str) -> bool:
        """Whether a record has its tombstone and is not swept yet."""
        known = self.registries.get(name) if kind is RegistrySpec else self.credentials.get(name)
        return known is not None and known.record.deleted_at is not None

    def names(self) -> set[tuple[type, str]]:
        """Return kind and name of every wish that is known here."""
        return {
            *((RegistrySpec, name) for name in list(self.registries)),
            *((CredentialSpec, name) for name in list(self.credentials)),
            *((type(stored.record), stored.record.name) for stored in list(self.rules.values())),
        }

    def _rules_named(self, kind: type, name: str) -> list[StoredRule]:
        known = list(self.rules.values())
        return [rule for rule in known if type(rule.record) is kind and rule.record.name == name]

    # --- deciding ---------------------------------------------------------------------------------

    def content(self, rule: Rule) -> Content:
        """Return what a rule's targets should hold.

        A credential that was never published is left out and named. One whose value can not be read holds
        the whole rule: leaving it out would blank what is delivered. A stale one keeps its place: its value
        stays where it was delivered, under the host that it was proved against and nowhere else.
        """
        entries: list[AuthEntry] = []
        components: list[Component] = []
        pubs: dict[str, int] = {}
        missing: dict[str, str] = {}
        for name in rule.credentials:
            spec = self.credentials.get(name)
            state = self.states.get(spec.record.uid) if spec else None
            known = spec is not None and spec.record.registry in self.registries
            if spec is None or not known or f"state/{spec.record.uid}" in self.damaged:
                return Content((), (), {}, {}, held=f"the record of credential {name!r} can not be read")
            want = wanted(state) if state else None
            if state is None or want is None:
                missing[spec.record.uid] = f"credential {name!r} has no proved value yet"
                continue
            generation = self._generations.get(generation_name(state.uid, want.generation))
            if generation is None:
                return Content((), (), {}, {}, held=f"the value of credential {name!r} can not be read")
            entries.append(self._entry(name, generation))
            components.append(Component(name, want.pub, want.generation))
            pubs[state.uid] = want.pub
        return Content(tuple(entries), tuple(components), pubs, missing)

    def accepted(self, rule: AuthFileRule) -> dict[str, frozenset[str]]:
        """Return, per auth key, the digests of everything of ours that the file may hold."""
        digests: dict[str, set[str]] = {}
        observed = self.observed.get(rule.uid)
        for key, mark in (observed.marks if observed else {}).items():
            digests.setdefault(key, set()).add(mark)
        for name in rule.credentials:
            spec = self.credentials.get(name)
            state = self.states.get(spec.record.uid) if spec else None
            for number in (state.head.cur, state.head.prev) if state else ():
                generation = self._generations.get(generation_name(state.uid, number)) if state else None
                if generation is not None:
                    entry = self._entry(name, generation)
                    digests.setdefault(entry.key, set()).add(self.digest(entry))
        return {key: frozenset(known) for key, known in digests.items()}

    def digest(self, entry: AuthEntry) -> str:
        """Return the keyed digest by which an auth entry is known as ours."""
        return keyed_digest(self.keys.content, entry.key, entry.username, entry.secret.reveal())

    def _entry(self, name: str, generation: Generation) -> AuthEntry:
        registry = self.registries[self.credentials[name].record.registry].record
        proved_at = replace(registry, host=generation.bound_to.host)
        login = generation.login
        return AuthEntry(kinds.auth_key(proved_at), login.username, login.secret)

    # --- finding ----------------------------------------------------------------------------------

    def rules_using(self, credentials: Iterable[str]) -> list[str]:
        """Return the uids of rules that name one of these credentials."""
        names = set(credentials)
        return [uid for uid, stored in list(self.rules.items()) if names & set(stored.record.credentials)]

    def credentials_at(self, registry: str) -> list[str]:
        """Return the names of the credentials at a registry."""
        known = list(self.credentials.items())
        return [name for name, stored in known if stored.record.registry == registry]

    def open_operations(self) -> list[tuple[CredentialState, Operation]]:
        """Return the credentials whose operation waits for targets."""
        return [
            (state, state.op)
            for state in list(self.states.values())
            if state.op is not None and state.op.phase is Phase.DISTRIBUTING
        ]

    def progress(self, state: CredentialState) -> Progress:
        """Count the targets that hold a credential's newest publication, over all rules."""
        progress = Progress()
        for uid in self.rules_using([state.name]):
            known = list(self.deliveries.get(uid, {}).values())
            stored = self.rules.get(uid)
            if stored is not None:
                progress = confirmed(stored.record, known, state, progress)
        return progress

    def summaries(self, now: datetime) -> list[CredentialSummary]:
        """Return what lists show of every credential, by name. Blocking."""
        with self._reading:
            return self._summaries(now)

    def _summaries(self, now: datetime) -> list[CredentialSummary]:
        counts: dict[str, dict[str, int]] = {name: {} for name in self.credentials}
        for uid, stored in list(self.rules.items()):
            for delivery in list(self.deliveries.get(uid, {}).values()):
                for name in stored.record.credentials:
                    known = counts.get(name, {})
                    known[delivery.state.value] = known.get(delivery.state.value, 0) + 1
        return [self._summary(name, counts[name], now) for name in sorted(self.credentials)]

    def _summary(self, name: str, counts: dict[str, int], now: datetime) -> CredentialSummary:
        stored = self.credentials[name]
        registry = self.registries.get(stored.record.registry)
        state = self.states.get(stored.record.uid)
        return summary(stored, state, registry.record if registry else None, counts, now)


def _installation_keys(desk: Desk) -> InstallationKeys:
    """Return the installation's keys, made once and by whoever comes first."""
    found = desk.store.get(InstallationKeys, InstallationKeys.NAME)
    if found is not None:
        return found.record
    keys = InstallationKeys.make(desk.new_id(), desk.clock(), desk.entropy)
    try:
        desk.store.put(InstallationKeys.NAME, keys, 0)
    except StoreConflict:
        return _installation_keys(desk)
    return keys


def _remember(known: dict[str, Stored[R]], name: str, found: Stored[R] | None) -> None:
    if found is None:
        known.pop(name, None)
    else:
        known[name] = found
