"""The worker's rules that only show when something goes wrong: each test here fails without its rule."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace

import pytest

from secretsvc.core.errors import TargetChanged, TargetUnreachable
from secretsvc.core.model import CredentialState, Head, History, OperationState, Outcome, Secret
from secretsvc.core.ports import LiveSecret, SecretMetadata, WantedSecret
from secretsvc.core.rotation import DISTRIBUTION_DEADLINE
from secretsvc.core.rules import AuthFileRule, DeliveryState, Observed, PullSecretRule
from secretsvc.workflows.ledger import HISTORY_GRACE, Ledger
from tests.worksite import PATH, Site, encoded, settled, until, work


@pytest.fixture
def site() -> Site:
    return Site()


def test_an_operation_with_stragglers_ends_at_its_deadline(site: Site) -> None:
    async def story() -> None:
        await until(settled(site, site.register()))
        await until(settled(site, site.pull("a", "nowhere")))
        operation = site.put("two")
        await until(lambda: encoded("two") in site.held("a"))
        assert not site.reporter.operation(operation).operation.settled
        site.clock.advance(seconds=DISTRIBUTION_DEADLINE.total_seconds())
        await until(settled(site, operation))
        ended = site.reporter.operation(operation).operation
        assert (ended.state, ended.progress.done, ended.progress.total) == (OperationState.FAILED, 1, 2)
        assert ended.failure is not None
        assert ended.failure.code == "Stragglers"
        assert encoded("two") in site.held("a")

    work(site, story)


def test_a_lost_race_is_run_again_at_once(site: Site) -> None:
    async def story() -> None:
        await until(settled(site, site.register()))
        real = site.cluster.apply_secret
        lost = [TargetChanged("somebody was first")]

        async def apply(wanted: WantedSecret, found: SecretMetadata | None) -> LiveSecret:
            if lost:
                raise lost.pop()
            return await real(wanted, found)

        site.cluster.apply_secret = apply  # type: ignore[method-assign]  # as the API server would
        operation = site.pull("a")
        await until(settled(site, operation))
        assert site.reporter.operation(operation).operation.state is OperationState.SUCCEEDED
        assert encoded("one") in site.held("a")

    work(site, story)


def test_what_the_server_kept_instead_is_drift(site: Site) -> None:
    async def story() -> None:
        await until(settled(site, site.register()))
        real = site.cluster.apply_secret

        async def apply(wanted: WantedSecret, found: SecretMetadata | None) -> LiveSecret:
            return replace(await real(wanted, found), dockerconfigjson=Secret("{}"))

        site.cluster.apply_secret = apply  # type: ignore[method-assign]  # as a webhook would
        await until(settled(site, site.pull("a")))
        assert site.state("a") == (DeliveryState.DRIFTED, "DataDrift")

    work(site, story)


def test_a_value_that_was_delivered_is_not_dropped_for_want_of_its_state(site: Site) -> None:
    async def first() -> None:
        for name in ("prod", "second"):
            await until(settled(site, site.register(name, f"value-of-{name}")))
        await until(settled(site, site.pull("a", credentials=("prod", "second"))))

    work(site, first)
    before = site.held("a")
    uid = site.reporter.credential("second").spec.uid
    stored = site.store.get(CredentialState, uid)
    assert stored is not None
    site.store.put(uid, replace(stored.record, head=Head()), stored.version)

    async def second() -> None:
        site.put("other", "prod")
        await until(lambda: site.state("a") == (DeliveryState.FAILED, "ValueUnreadable"))
        assert site.held("a") == before

    work(site, second)


def test_the_lowest_publication_is_that_of_the_last_target(site: Site) -> None:
    async def story() -> None:
        await until(settled(site, site.register()))
        await until(settled(site, site.pull("a", "nowhere")))
        uid = site.reporter.rule(PullSecretRule, "pull").rule.uid
        stored = site.store.get(Observed, uid)
        assert stored is not None
        assert set(stored.record.lowest_pub.values()) == {0}
        assert stored.record.stragglers == ("nowhere",)
        site.cluster.namespaces.add("nowhere")
        await until(settled(site, site.assigner.sync(PullSecretRule, "pull", "ann")))
        stored = site.store.get(Observed, uid)
        assert stored is not None
        assert set(stored.record.lowest_pub.values()) == {1}

    work(site, story)


def test_the_history_of_what_is_gone_goes_after_an_hour(site: Site) -> None:
    async def story() -> None:
        await until(settled(site, site.register()))
        await until(settled(site, site.pull("a")))
        await until(settled(site, site.assigner.delete(PullSecretRule, "pull", None, "ann")))
        await until(lambda: site.store.names(PullSecretRule) == [])
        assert site.worker is not None
        ledger: Ledger = site.worker._ledger
        ledger.sweep()
        assert len(site.store.names(History)) == 2
        site.clock.advance(seconds=HISTORY_GRACE.total_seconds() + 1)
        ledger.sweep()
        assert len(site.store.names(History)) == 1

    work(site, story)


def test_an_outage_in_which_work_looks_at_targets_blanks_nothing(site: Site) -> None:
    async def first() -> None:
        await until(settled(site, site.register()))
        await until(settled(site, site.pull("a")))
        await until(settled(site, site.file()))

    work(site, first)
    site.cluster.failure = TargetUnreachable("no route")

    async def second() -> None:
        site.prover.answer = Outcome.UNAVAILABLE
        await until(settled(site, site.assigner.sync(PullSecretRule, "pull", "ann")))
        await until(settled(site, site.assigner.sync(AuthFileRule, "host", "ann")))
        assert encoded("one") in site.held("a")
        assert site.files.files[PATH]["prod.example.com"].secret == Secret("one")
        assert site.state("a") == (DeliveryState.FAILED, "TargetUnreachable")

    work(site, second)


def test_a_worker_stops_whenever_it_is_told_to(site: Site) -> None:
    """Python 3.11's `asyncio.wait_for` can lose a cancellation: one loop then goes on for ever."""
    chance = random.Random(7)

    async def stop_at_random() -> None:
        for number in range(60):
            stop = asyncio.Event()
            task = asyncio.create_task(site.start().run(stop))
            await asyncio.sleep(chance.random() / 100)
            site.register(f"c{number}", "x")
            await asyncio.sleep(chance.random() / 50)
            stop.set()
            async with asyncio.timeout(10):
                await task

    asyncio.run(stop_at_random())
