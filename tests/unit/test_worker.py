"""The worker as a whole, over in-memory ports: what serve wishes, targets get."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from datetime import timedelta

import pytest

from secretsvc.core.delivery import MANAGED
from secretsvc.core.errors import (
    Conflict,
    InvalidInput,
    NotFound,
    RecordDamaged,
    SecretsvcError,
    StoreUnavailable,
    TargetForbidden,
    TargetUnreachable,
)
from secretsvc.core.model import (
    Candidate,
    CredentialSpec,
    CredentialState,
    Generation,
    History,
    InboxItem,
    Login,
    OperationState,
    Outcome,
    RegistrySpec,
    Secret,
)
from secretsvc.core.ports import LiveSecret, SecretMetadata
from secretsvc.core.rules import (
    AuthFileRule,
    CredentialsView,
    DeliveryState,
    DeliveryView,
    NamespaceSelection,
    Observed,
    PullSecretRule,
)
from secretsvc.workflows.assign import PullSecretDraft
from secretsvc.workflows.deliver import Deliverer
from secretsvc.workflows.register import ASKING, CredentialDraft, RegistryDraft
from secretsvc.workflows.world import World
from tests.worksite import PATH, Site, encoded, login, settled, until, work


@pytest.fixture
def site() -> Site:
    return Site()


def test_a_credential_reaches_namespaces_and_a_file_and_is_replaced(site: Site) -> None:
    async def story() -> None:
        registered = site.register()
        await until(settled(site, registered))
        await until(settled(site, site.pull("a", "b", "c")))
        await until(settled(site, site.file()))
        assert all(encoded("one") in site.held(space) for space in "abc")
        replaced = site.put("two")
        await until(settled(site, replaced))
        operation = site.reporter.operation(replaced).operation
        assert operation.state is OperationState.SUCCEEDED
        assert (operation.progress.done, operation.progress.total) == (4, 4)
        assert all(encoded("two") in site.held(space) for space in "abc")
        assert not any(encoded("one") in site.held(space) for space in "abc")
        entry = site.files.files[PATH]["prod.example.com"]
        assert entry.secret == Secret("two")
        back = site.registrar.roll_back("prod", "ann")
        await until(settled(site, back))
        assert all(encoded("one") in site.held(space) for space in "abc")
        assert site.store.names(InboxItem) == site.store.names(Candidate) == []

    work(site, story)


def test_several_registries_merge_into_one_secret(site: Site) -> None:
    async def story() -> None:
        for name in ("prod", "second"):
            await until(settled(site, site.register(name, f"value-of-{name}")))
        await until(settled(site, site.pull("a", credentials=("prod", "second"))))
        assert "prod.example.com" in site.held("a")
        assert "second.example.com" in site.held("a")

    work(site, story)


def test_a_foreign_secret_is_a_conflict_and_clears_when_it_goes(site: Site) -> None:
    foreign = LiveSecret(SecretMetadata("a", "pull", "u", "9", {}, {}), "Opaque", None)
    site.cluster.tamper("a", "pull", foreign)

    async def story() -> None:
        await until(settled(site, site.register()))
        operation = site.pull("a", "b")
        await until(settled(site, operation))
        assert site.state("a") == (DeliveryState.CONFLICT, "NotOurs")
        assert site.cluster.secrets[("a", "pull")].type == "Opaque"
        assert site.reporter.operation(operation).operation.state is OperationState.FAILED
        site.cluster.tamper("a", "pull", None)
        await until(settled(site, site.assigner.sync(PullSecretRule, "pull", "ann")))
        assert site.state("a") == (DeliveryState.SYNCED, "InSync")

    work(site, story)


def test_drift_is_repaired_in_place_and_a_settled_site_writes_nothing(site: Site) -> None:
    async def story() -> None:
        await until(settled(site, site.register()))
        await until(settled(site, site.pull("a")))
        live = site.cluster.secrets[("a", "pull")]
        site.cluster.tamper("a", "pull", replace(live, dockerconfigjson=Secret("{}")))
        await until(settled(site, site.assigner.sync(PullSecretRule, "pull", "ann")))
        assert encoded("one") in site.held("a")
        assert site.cluster.secrets[("a", "pull")].metadata.uid == live.metadata.uid
        writes = len(site.cluster.writes)
        seen = site.store.writes[:]
        for _ in range(3):
            site.clock.advance(seconds=60)
            await until(settled(site, site.assigner.sync(PullSecretRule, "pull", "ann")))
        assert len(site.cluster.writes) == writes
        views = [name for kind, name in site.store.writes[len(seen) :] if kind in ("view", "observed")]
        assert [name for name in views if not name.startswith("credentials")] == []

    work(site, story)


def test_a_namespace_that_is_not_there_waits(site: Site) -> None:
    async def story() -> None:
        await until(settled(site, site.register()))
        await until(settled(site, site.pull("a", "later")))
        assert site.state("later") == (DeliveryState.PENDING, "NamespaceMissing")
        site.cluster.namespaces.add("later")
        await until(settled(site, site.assigner.sync(PullSecretRule, "pull", "ann")))
        assert site.state("later") == (DeliveryState.SYNCED, "InSync")

    work(site, story)


@pytest.mark.parametrize(
    ("failure", "state"),
    [
        (TargetUnreachable("no route"), DeliveryState.FAILED),
        (TargetForbidden("secrets is forbidden"), DeliveryState.DENIED),
    ],
)
def test_a_cluster_that_fails_is_said_and_recovers(
    site: Site, failure: Exception, state: DeliveryState
) -> None:
    async def story() -> None:
        await until(settled(site, site.register()))
        site.cluster.failure = failure  # type: ignore[assignment]
        await until(settled(site, site.pull("a")))
        assert site.state("a") == (state, type(failure).__name__)
        site.cluster.failure = None
        await until(settled(site, site.assigner.sync(PullSecretRule, "pull", "ann")))
        assert site.state("a") == (DeliveryState.SYNCED, "InSync")

    work(site, story)


def test_a_deselected_namespace_and_a_deleted_rule_lose_our_secret(site: Site) -> None:
    async def story() -> None:
        await until(settled(site, site.register()))
        await until(settled(site, site.pull("a", "b")))
        changed = PullSecretDraft("pull", "pull", ("prod",), ("b",))
        await until(settled(site, site.assigner.change_pull_secret(changed, None, "ann").operation))
        assert set(site.cluster.secrets) == {("b", "pull")}
        gone = site.assigner.delete(PullSecretRule, "pull", None, "ann")
        await until(settled(site, gone))
        assert site.cluster.secrets == {}
        await until(lambda: site.store.names(PullSecretRule) == [])
        assert site.store.names(Observed) == []
        assert site.reporter.operation(gone).operation.state is OperationState.SUCCEEDED

    work(site, story)


def test_a_kept_rule_leaves_its_secrets(site: Site) -> None:
    async def story() -> None:
        await until(settled(site, site.register()))
        draft = PullSecretDraft("pull", "pull", ("prod",), ("a",), keep=True)
        await until(settled(site, site.assigner.add_pull_secret(draft, "ann").operation))
        await until(settled(site, site.assigner.delete(PullSecretRule, "pull", None, "ann")))
        assert set(site.cluster.secrets) == {("a", "pull")}

    work(site, story)


def test_deleting_an_auth_file_takes_only_ours_out(site: Site) -> None:
    async def story() -> None:
        await until(settled(site, site.register()))
        await until(settled(site, site.file()))
        other = replace(site.files.files[PATH]["prod.example.com"], key="other.example.com")
        site.files.files[PATH]["other.example.com"] = other
        await until(settled(site, site.assigner.delete(AuthFileRule, "host", None, "ann")))
        assert set(site.files.files[PATH]) == {"other.example.com"}

    work(site, story)


def test_somebody_elses_entry_in_a_file_is_a_conflict(site: Site) -> None:
    async def story() -> None:
        await until(settled(site, site.register()))
        await until(settled(site, site.file()))
        entry = site.files.files[PATH]["prod.example.com"]
        site.files.files[PATH]["prod.example.com"] = replace(entry, secret=Secret("by hand"))
        await until(settled(site, site.assigner.sync(AuthFileRule, "host", "ann")))
        row = site.reporter.deliveries(AuthFileRule, "host")[0].delivery
        assert (row.state, row.reason, row.components) == (DeliveryState.CONFLICT, "NotOurs", ())
        assert site.files.files[PATH]["prod.example.com"].secret == Secret("by hand")

    work(site, story)


def test_a_credential_that_is_not_proved_yet_holds_back_only_itself(site: Site) -> None:
    async def story() -> None:
        await until(settled(site, site.register("prod")))
        site.prover.answer = Outcome.UNAVAILABLE
        site.registrar.add_registry(RegistryDraft("second", "second.example.com"), "ann")
        site.registrar.register(
            CredentialDraft("second", "second", login("two"), allow_unverified=True), "ann"
        )
        await until(settled(site, site.pull("a", credentials=("prod", "second"))))
        assert site.state("a") == (DeliveryState.PENDING, "CredentialNotReady")
        assert encoded("one") in site.held("a")
        assert "second.example.com" not in site.held("a")

    work(site, story)


def test_the_store_going_away_blanks_nothing_and_work_goes_on_after(site: Site) -> None:
    async def story() -> None:
        await until(settled(site, site.register()))
        await until(settled(site, site.pull("a")))
        site.store.failure = StoreUnavailable("sealed")
        site.ring()
        await asyncio.sleep(0.1)
        assert encoded("one") in site.held("a")
        site.store.failure = None
        await until(settled(site, site.put("two")))
        assert encoded("two") in site.held("a")

    work(site, story)


def test_a_damaged_value_holds_the_rule_and_blanks_nothing(site: Site) -> None:
    async def first() -> None:
        for name in ("prod", "second"):
            await until(settled(site, site.register(name, f"value-of-{name}")))
        await until(settled(site, site.pull("a", credentials=("prod", "second"))))

    work(site, first)
    before = site.held("a")
    real_get = site.store.get
    broken = next(name for name in site.store.names(Generation))

    def get(kind: type, name: str) -> object:
        if (kind, name) == (Generation, broken):
            raise RecordDamaged("does not decrypt")
        return real_get(kind, name)

    site.store.get = get  # type: ignore[method-assign,assignment]

    async def second() -> None:
        site.cluster.tamper("b", "pull", None)
        await until(settled(site, site.assigner.sync(PullSecretRule, "pull", "ann")))
        assert site.state("a") == (DeliveryState.FAILED, "ValueUnreadable")
        assert site.held("a") == before

    work(site, second)


def test_a_stale_credential_stays_delivered_where_it_was(site: Site) -> None:
    async def story() -> None:
        await until(settled(site, site.register()))
        await until(settled(site, site.pull("a")))
        site.registrar.change_registry(RegistryDraft("prod", "moved.example.com"), None, "ann")
        await until(lambda: site.store.names(InboxItem) == [])
        await until(settled(site, site.assigner.sync(PullSecretRule, "pull", "ann")))
        assert "moved.example.com" not in site.held("a")
        assert "prod.example.com" in site.held("a")
        assert site.reporter.credential("prod").state == "stale"
        await until(settled(site, site.put("two")))
        assert "moved.example.com" in site.held("a")
        assert site.reporter.credential("prod").state == "active"

    work(site, story)


def test_a_restart_writes_nothing_and_knows_everything(site: Site) -> None:
    async def first() -> None:
        await until(settled(site, site.register()))
        await until(settled(site, site.pull("a", "b")))

    work(site, first)
    writes = len(site.cluster.writes)

    async def second() -> None:
        await until(settled(site, site.assigner.sync(PullSecretRule, "pull", "ann")))
        assert len(site.cluster.writes) == writes
        await until(settled(site, site.put("two")))
        assert encoded("two") in site.held("a")

    work(site, second)


def test_rules_that_can_not_work_are_refused(site: Site) -> None:
    async def story() -> None:
        await until(settled(site, site.register()))
        site.registrar.register(CredentialDraft("twin", "prod", login("x")), "ann")
        with pytest.raises(InvalidInput) as twice:
            site.pull("a", credentials=("prod", "twin"))
        assert "one login per registry" in twice.value.fields[0].detail
        with pytest.raises(InvalidInput):
            site.pull("a", credentials=("unknown",))
        with pytest.raises(InvalidInput):
            site.pull("Not_A_Namespace")
        with pytest.raises(InvalidInput):
            site.pull("a", credentials=())
        site.pull("a")
        with pytest.raises(Conflict, match="has 'pull' in 'a' already"):
            site.assigner.add_pull_secret(PullSecretDraft("other", "pull", ("prod",), ("a",)), "ann")
        with pytest.raises(Conflict, match="is used by pull-secret/pull"):
            site.registrar.delete_credential("prod", None, "ann")
        with pytest.raises(Conflict, match="is used by credential/prod"):
            site.registrar.delete_registry("prod", None, "ann")

    work(site, story)


def test_lists_come_from_views_and_know_new_records(site: Site) -> None:
    async def story() -> None:
        await until(settled(site, site.register()))
        await until(settled(site, site.pull("a")))
        await until(lambda: site.store.names(CredentialsView) != [])
        names = [line.spec.name for line in site.reporter.credentials()[0]]
        assert names == ["prod"]
        site.register("second", "x")
        assert [line.spec.name for line in site.reporter.credentials()[0]] == ["prod", "second"]
        with pytest.raises(NotFound):
            site.reporter.operation("nonsense")

    work(site, story)


def test_our_secret_carries_the_installation(site: Site) -> None:
    async def story() -> None:
        await until(settled(site, site.register()))
        await until(settled(site, site.pull("a")))
        assert MANAGED in site.cluster.secrets[("a", "pull")].metadata.labels

    work(site, story)


def test_a_deletion_that_could_not_look_is_not_done(site: Site) -> None:
    async def story() -> None:
        await until(settled(site, site.register()))
        await until(settled(site, site.pull("a")))

    work(site, story)
    site.worker = None
    operation = site.assigner.delete(PullSecretRule, "pull", None, "ann")
    for name in site.store.names(DeliveryView):
        stored = site.store.get(DeliveryView, name) if name != "credentials-0" else None
        if stored is not None:
            site.store.remove(DeliveryView, name, stored.version)
    site.cluster.failure = TargetUnreachable("no route")

    async def second() -> None:
        await until(settled(site, operation))
        assert site.reporter.operation(operation).operation.state is OperationState.FAILED
        assert site.store.names(PullSecretRule) == ["pull"]
        site.cluster.failure = None
        await until(lambda: site.store.names(PullSecretRule) == [])
        assert site.cluster.secrets == {}

    work(site, second)


def test_a_value_that_can_not_be_rendered_is_said_at_its_targets(site: Site) -> None:
    async def story() -> None:
        await until(settled(site, site.register()))
        await until(settled(site, site.pull("a")))
        before = site.held("a")
        await until(settled(site, site.register("second", "x" * 900_000)))
        changed = PullSecretDraft("pull", "pull", ("prod", "second"), ("a",))
        await until(settled(site, site.assigner.change_pull_secret(changed, None, "ann").operation))
        found = site.state("a")
        assert found is not None
        assert found[0] is DeliveryState.FAILED
        assert site.held("a") == before

    work(site, story)


def test_a_silent_registry_holds_up_nobody_else(site: Site) -> None:
    release = threading.Event()

    def answer(registry: RegistrySpec, _login: Login) -> Outcome:
        if registry.name.startswith("silent") and asyncio_thread_of_work():
            release.wait(10)
            return Outcome.UNAVAILABLE
        return Outcome.UNAVAILABLE if registry.name.startswith("silent") else Outcome.VALID

    async def story() -> None:
        site.prover.answer = answer
        site.registrar.add_registry(RegistryDraft("silent", "silent.example.com"), "ann")
        for number in range(40):
            draft = CredentialDraft(f"silent-{number}", "silent", login("x"), allow_unverified=True)
            site.registrar.register(draft, "ann")
        await until(lambda: threading.active_count() > 4)
        try:
            await until(settled(site, site.register()))
            await until(settled(site, site.pull("a")))
            assert encoded("one") in site.held("a")
        finally:
            release.set()

    work(site, story)


def asyncio_thread_of_work() -> bool:
    return threading.current_thread().name.startswith("asking")


def test_an_operation_is_in_the_list_when_its_caller_hears_of_it(site: Site) -> None:
    async def story() -> None:
        await until(settled(site, site.register()))
        assert [line.state for line in site.reporter.credentials()[0]] == ["active"]

    work(site, story)


def test_a_worker_with_an_older_rule_deletes_nothing(site: Site) -> None:
    async def story() -> None:
        await until(settled(site, site.register()))
        await until(settled(site, site.pull("a")))

    work(site, story)
    older = World(site.store)
    older.load(site.desk)
    changed = PullSecretDraft("pull", "pull", ("prod",), ("a", "b"))

    async def second() -> None:
        await until(settled(site, site.assigner.change_pull_secret(changed, None, "ann").operation))
        assert encoded("one") in site.held("b")
        late = Deliverer(older, {"default": site.cluster}, site.files, site.clock)
        for stored in older.rules.values():
            await late.bring(stored, lambda _: None)
        assert encoded("one") in site.held("b")

    work(site, second)


def test_an_operation_is_found_wherever_it_is_just_then(site: Site) -> None:
    """Between any two reads of the look-up, work may move it from the inbox to the state to the history."""

    async def story() -> None:
        operations = [site.register(f"c{number}", "x") for number in range(20)]
        for operation in operations:
            while not site.reporter.operation(operation).operation.settled:  # noqa: ASYNC110  # a race
                await asyncio.sleep(0)

    work(site, story)


def test_a_clock_that_steps_back_supersedes_nothing(site: Site) -> None:
    async def story() -> None:
        await until(settled(site, site.register()))
        site.clock.advance(hours=-1)
        operation = site.put("two")
        await until(settled(site, operation))
        assert site.reporter.operation(operation).operation.state is OperationState.SUCCEEDED

    work(site, story)


def test_a_tombstone_without_its_request_is_swept(site: Site) -> None:
    """Serve may stop between writing a tombstone and telling work."""

    async def story() -> None:
        await until(settled(site, site.register()))

    work(site, story)
    site.worker = None
    site.desk.bury(site.desk.find(CredentialSpec, "prod"), None)
    site.desk.bury(site.desk.find(RegistrySpec, "prod"), None)
    site.refresh_s = 0.01

    async def second() -> None:
        await until(lambda: site.store.names(CredentialSpec) == site.store.names(RegistrySpec) == [])

    work(site, second)


def test_a_registry_that_goes_with_its_credential_is_swept(site: Site) -> None:
    async def story() -> None:
        await until(settled(site, site.register()))
        busy, site.worker = site.worker, None
        site.registrar.delete_credential("prod", None, "ann")
        site.registrar.delete_registry("prod", None, "ann")
        assert busy is not None
        busy.ring()
        await until(lambda: site.store.names(CredentialSpec) == site.store.names(RegistrySpec) == [])

    work(site, story)


def test_a_rule_changed_without_its_request_is_followed(site: Site) -> None:
    async def story() -> None:
        await until(settled(site, site.register()))
        await until(settled(site, site.pull("a")))

    work(site, story)
    site.worker = None
    site.refresh_s = 0.01

    async def second() -> None:
        stored = site.desk.find(PullSecretRule, "pull")
        wider = replace(stored.record, namespaces=NamespaceSelection(("a", "b")))
        site.desk.replace(wider, stored.version, None)
        await until(lambda: encoded("one") in site.held("b"))

    work(site, second)


def test_a_list_lets_a_credential_expire(site: Site) -> None:
    async def story() -> None:
        ends = site.clock() + timedelta(hours=1)
        site.registrar.add_registry(RegistryDraft("prod", "prod.example.com"), "ann")
        draft = CredentialDraft("prod", "prod", login("one"), expires_at=ends)
        await until(settled(site, site.registrar.register(draft, "ann").operation))
        assert [line.state for line in site.reporter.credentials()[0]] == ["active"]

    work(site, story)
    site.clock.advance(hours=1)
    assert [line.state for line in site.reporter.credentials()[0]] == ["expired"]


@pytest.mark.parametrize("kind", [History, Observed, DeliveryView, CredentialsView])
def test_one_damaged_record_stops_nothing_else(site: Site, kind: type) -> None:
    async def first() -> None:
        await until(settled(site, site.register("one")))
        await until(settled(site, site.pull("a", name="one", credentials=("one",))))
        await until(lambda: site.store.names(CredentialsView))

    work(site, first)
    broken = site.store.names(kind)[0]
    real = site.store.get

    def get(wanted: type, name: str) -> object:
        if (wanted, name) == (kind, broken):
            raise RecordDamaged("does not decrypt")
        return real(wanted, name)

    site.store.get = get  # type: ignore[method-assign,assignment]  # as a flipped bit would make it

    async def second() -> None:
        site.put("other", "one")
        await until(settled(site, site.register("two", "x")))
        await until(settled(site, site.pull("b", name="two", credentials=("two",))))
        await until(lambda: encoded("other") in site.held("a", "one"))
        assert encoded("x") in site.held("b", "two")

    work(site, second)


def test_a_credential_with_a_damaged_state_can_be_deleted(site: Site) -> None:
    async def story() -> None:
        await until(settled(site, site.register()))
        real = site.store.get

        def get(wanted: type, name: str) -> object:
            if wanted is CredentialState:
                raise RecordDamaged("does not decrypt")
            return real(wanted, name)

        site.store.get = get  # type: ignore[method-assign,assignment]  # as a flipped bit would make it
        site.registrar.delete_credential("prod", None, "ann")
        await until(lambda: site.store.names(CredentialSpec) == [])
        assert site.store.names(Generation) == []

    work(site, story)


def test_of_many_who_describe_one_host_one_succeeds(site: Site) -> None:
    start = threading.Barrier(8)
    taken: list[str] = []

    def describe(number: int) -> None:
        start.wait()
        try:
            site.registrar.add_registry(RegistryDraft(f"r{number}", "same.example.com"), "ann")
        except Conflict as exc:
            taken.append(exc.code)

    callers = [threading.Thread(target=describe, args=(number,)) for number in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert taken == ["HostTaken"] * 7


def test_callers_who_wait_for_registries_leave_room_for_others(site: Site) -> None:
    release = threading.Event()

    def answer(*_: object) -> Outcome:
        release.wait(20)
        return Outcome.UNAVAILABLE

    site.prover.answer = answer
    site.registrar.add_registry(RegistryDraft("silent", "silent.example.com"), "ann")
    refused: list[str] = []

    def register(number: int) -> None:
        try:
            site.registrar.register(CredentialDraft(f"c{number}", "silent", login("x")), "ann")
        except SecretsvcError as exc:
            refused.append(exc.code)

    callers = [threading.Thread(target=register, args=(number,)) for number in range(ASKING + 3)]
    for caller in callers:
        caller.start()
    while refused.count("Busy") < 3:
        assert any(caller.is_alive() for caller in callers)
    release.set()
    for caller in callers:
        caller.join()
    assert refused.count("Busy") == 3
