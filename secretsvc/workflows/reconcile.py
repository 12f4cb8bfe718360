"""The worker: takes what serve hands over, keeps every target as wanted, and writes down what it saw.

Level-triggered: every pass over a rule compares what is there with what is wanted, so a pass may be stopped,
repeated or run twice. The doorbell only makes it quick; without it the inbox is polled every 2 s. The
store being away delays what is new and changes nothing that is delivered.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar
from weakref import WeakValueDictionary

from secretsvc.core.errors import RecordDamaged, SecretsvcError, StoreError, StoreUnavailable
from secretsvc.core.model import (
    Candidate,
    CredentialSpec,
    CredentialState,
    Failure,
    InboxItem,
    Operation,
    Progress,
    RegistrySpec,
    Verb,
)
from secretsvc.core.ports import AuditLog, AuthFiles, Cluster, RegistryProver, Stored
from secretsvc.core.rules import (
    AuthFileRule,
    Delivery,
    DeliveryState,
    PullSecretRule,
)
from secretsvc.telemetry.logs import describe, get_logger
from secretsvc.workflows.deliver import Deliverer, Pass
from secretsvc.workflows.intake import Intake, Taken
from secretsvc.workflows.ledger import Ledger
from secretsvc.workflows.records import Desk
from secretsvc.workflows.report import CREDENTIALS_VIEW
from secretsvc.workflows.rounds import BACKOFF_S, Rounds
from secretsvc.workflows.world import StoredRule, World

ASKING = 16
"""Registries asked at the same time."""
ASKING_ONE = 4
"""Questions to one registry at the same time."""
POLL_S = 2.0
VIEW_S = 5.0
"""A view that keeps changing is written at most this often."""
REFRESH_S = 2.0
"""One record is read again this often, so that a lost doorbell and inbox item heal."""
SWEEP_S = 600.0

_EARLY_S = (0.25, 30.0)
_WAITING_S = (30.0, 3600.0)
_TICK_S = 0.5

_RULES: dict[str, type[PullSecretRule | AuthFileRule]] = {
    PullSecretRule.KIND: PullSecretRule,
    AuthFileRule.KIND: AuthFileRule,
}
_log = get_logger(__name__)
A = TypeVar("A", str, InboxItem)


class Worker:
    """One worker process: inbox, rounds over the rules, and housekeeping, in one event loop."""

    def __init__(
        self,
        desk: Desk,
        prover: RegistryProver,
        clusters: Mapping[str, Cluster],
        auth_files: AuthFiles,
        audit: AuditLog,
        *,
        refresh_s: float = REFRESH_S,
    ) -> None:
        self._refresh_s = refresh_s
        self._desk = desk
        self._store = desk.store
        self._clusters = clusters
        self._world = World(desk.store)
        self._intake = Intake(desk, prover, self._world, audit)
        self._deliverer = Deliverer(self._world, clusters, auth_files, desk.clock)
        self._ledger = Ledger(desk, self._world, self._intake)
        self._rounds = Rounds()
        self._bell = asyncio.Event()
        self._wake = asyncio.Event()
        self._in_hand: set[str] = set()
        self._waiting: dict[str, tuple[float, float]] = {}
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._gates: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._asking_threads = ThreadPoolExecutor(ASKING, thread_name_prefix="asking")
        self._settling = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._stale_views: set[str] = set()
        self._views_written = 0.0
        self._credentials_shown = 0.0
        self._reported: dict[str, dict[str, tuple[DeliveryState, str]]] = {}
        self._to_refresh: list[tuple[type, str]] = []

    def ring(self) -> None:
        """Look into the inbox now. To be called in the worker's event loop."""
        self._bell.set()

    async def run(self, stop: asyncio.Event) -> None:
        """Work until ``stop`` is set. What is under way then is left as it is: stopping is safe anywhere."""
        stopping = asyncio.create_task(stop.wait())
        work = asyncio.create_task(self._work())
        try:
            await asyncio.wait([stopping, work], return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
        finally:
            tasks = [stopping, work, *self._tasks]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._asking_threads.shutdown(wait=False, cancel_futures=True)
            for cluster in self._clusters.values():
                await cluster.close()

    async def _work(self) -> None:
        await self._insist(self._load)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._repeat(self._take_requests, lambda: _either(self._bell, POLL_S)))
            group.create_task(
                self._repeat(self._start_rounds, lambda: _either(self._wake, self._rounds.wait()))
            )
            group.create_task(self._repeat(self._keep_views, lambda: asyncio.sleep(_TICK_S)))
            group.create_task(self._repeat(self._refresh_one, lambda: asyncio.sleep(self._refresh_s)))
            group.create_task(self._repeat(self._sweep, lambda: asyncio.sleep(SWEEP_S)))

    async def _insist(self, step: Callable[[], Coroutine[None, None, None]]) -> None:
        """Do a step until it succeeds: the store may be sealed or away when we start."""
        pause = BACKOFF_S[0]
        while True:
            try:
                await step()
            except StoreError as exc:
                _log.warning("store.unavailable", reason=exc.code, message=exc.message, hint=exc.hint)
                await asyncio.sleep(pause)
                pause = min(2 * pause, BACKOFF_S[1])
            else:
                return

    async def _repeat(
        self,
        step: Callable[[], Coroutine[None, None, None]],
        pause: Callable[[], Coroutine[None, None, None]],
    ) -> None:
        while True:
            await self._insist(step)
            await pause()

    async def _load(self) -> None:
        await asyncio.to_thread(self._world.load, self._desk)
        self._rounds.soon(self._world.rules)
        self._stale_views.add(CREDENTIALS_VIEW)
        _log.info(
            "work.loaded",
            registries=len(self._world.registries),
            credentials=len(self._world.credentials),
            rules=len(self._world.rules),
            damaged=sorted(self._world.damaged),
        )

    # --- what serve hands over --------------------------------------------------------------------

    async def _take_requests(self) -> None:
        self._bell.clear()
        now = time.monotonic()
        candidates = await asyncio.to_thread(self._store.names, Candidate)
        items = await asyncio.to_thread(self._store.names, InboxItem)
        self._waiting = {
            name: rest for name, rest in self._waiting.items() if name in candidates or name in items
        }
        for name in sorted((*candidates, *items)):
            if name in self._in_hand or self._waiting.get(name, (0.0, 0.0))[0] > now:
                continue
            kind = Candidate if name in candidates else InboxItem
            stored = await asyncio.to_thread(self._get_request, kind, name)
            if stored is None:
                self._later(name, _WAITING_S)
                continue
            self._in_hand.add(name)
            self._spawn(self._take(stored))

    def _get_request(
        self, kind: type[Candidate | InboxItem], name: str
    ) -> Stored[Candidate] | Stored[InboxItem] | None:
        try:
            if kind is Candidate:
                return self._store.get(Candidate, name)
            return self._store.get(InboxItem, name)
        except RecordDamaged as exc:
            _log.error("request.damaged", document=f"{kind.KIND}/{name}", message=exc.message, hint=exc.hint)
            return None

    async def _take(self, stored: Stored[Candidate] | Stored[InboxItem]) -> None:
        """Carry out one request; those for one subject in the order in which they were made."""
        request = stored.record
        subject = request.credential_uid if isinstance(request, Candidate) else request.subject_uid
        async with self._locks.setdefault(subject, asyncio.Lock()):
            taken = Taken.EARLY
            try:
                if isinstance(request, Candidate):
                    taken = await self._asking(request.credential, self._intake.take_candidate, request.id)
                    await self._credential_changed(request.credential)
                else:
                    taken = await self._take_item(Stored(request, stored.version))
            except SecretsvcError as exc:
                _log.warning("request.failed", request=request.id, reason=exc.code, message=exc.message)
            finally:
                if taken is not Taken.DONE:
                    self._later(request.id, _WAITING_S if taken is Taken.WAITING else _EARLY_S)
                if not self._rounds.is_asked(request.id):
                    self._in_hand.discard(request.id)

    async def _asking(self, credential: str, take: Callable[[A], Taken], request: A) -> Taken:
        """Run what may ask a registry: on threads of its own, and few for one registry.

        A registry that never answers then holds up neither the store, nor deliveries, nor other registries.
        """
        stored = self._world.credentials.get(credential)
        registry = stored.record.registry if stored is not None else ""
        async with self._gates.setdefault(registry, asyncio.Semaphore(ASKING_ONE)):
            return await asyncio.get_running_loop().run_in_executor(self._asking_threads, take, request)

    def _later(self, name: str, pauses: tuple[float, float]) -> None:
        shortest, longest = pauses
        _, before = self._waiting.get(name, (0.0, 0.0))
        pause = min(max(2 * before, shortest), longest)
        self._waiting[name] = (time.monotonic() + pause, pause)
        self._loop_later(pause)

    def _loop_later(self, pause: float) -> None:
        asyncio.get_running_loop().call_later(pause, self._bell.set)

    async def _take_item(self, stored: Stored[InboxItem]) -> Taken:
        item = stored.record
        if item.verb in (Verb.VALIDATE, Verb.ROLLBACK):
            taken = await self._asking(item.subject, self._intake.take_verb, item)
            await self._credential_changed(item.subject)
            if taken is not Taken.DONE:
                return taken
        elif item.subject_kind == RegistrySpec.KIND:
            await self._registry_changed(item.subject)
        elif item.subject_kind == CredentialSpec.KIND:
            await self._credential_changed(item.subject)
        elif await self._rule_asked(stored):
            return Taken.DONE
        await asyncio.to_thread(self._store.remove, InboxItem, item.id, stored.version)
        return Taken.DONE

    async def _rule_asked(self, stored: Stored[InboxItem]) -> bool:
        """Have the next round over a rule answer a request; False when the rule is gone already."""
        item = stored.record
        rule = await asyncio.to_thread(self._world.read_rule, _RULES[item.subject_kind], item.subject)
        if rule is None or rule.record.uid != item.subject_uid:
            await asyncio.to_thread(self._ledger.answer_gone, item)
            return False
        for name in rule.record.credentials:
            if name not in self._world.credentials:
                await self._read_credential(name)
        self._rounds.asked.setdefault(item.subject_uid, []).append(stored)
        self._look_at([item.subject_uid])
        return True

    async def _registry_changed(self, name: str) -> None:
        await asyncio.to_thread(self._world.read_registry, name)
        used = self._world.credentials_at(name)
        stored = self._world.registries.get(name)
        if stored is not None and stored.record.deleted_at is not None and not used:
            await asyncio.to_thread(self._store.remove, RegistrySpec, name, stored.version)
            await asyncio.to_thread(self._world.read_registry, name)
        self._stale_views.add(CREDENTIALS_VIEW)
        self._look_at(self._world.rules_using(used))

    async def _credential_changed(self, name: str) -> None:
        await self._read_credential(name)
        stored = self._world.credentials.get(name)
        if stored is not None and stored.record.deleted_at is not None:
            await asyncio.to_thread(self._intake.sweep_credential, stored)
            await asyncio.to_thread(self._world.read_credential, name)
            await self._registry_changed(stored.record.registry)  # which may have waited for this one
        self._stale_views.add(CREDENTIALS_VIEW)
        self._look_at(self._world.rules_using([name]))
        await self._settle()

    async def _read_credential(self, name: str) -> None:
        """Read a credential again, and its registry if that is not known yet."""
        await asyncio.to_thread(self._world.read_credential, name)
        stored = self._world.credentials.get(name)
        if stored is not None and stored.record.registry not in self._world.registries:
            await asyncio.to_thread(self._world.read_registry, stored.record.registry)

    # --- rounds -----------------------------------------------------------------------------------

    def _look_at(self, uids: list[str]) -> None:
        self._rounds.soon(uids)
        self._wake.set()

    async def _start_rounds(self) -> None:
        self._wake.clear()
        for uid in self._rounds.begin():
            self._spawn(self._round(uid))

    async def _round(self, uid: str) -> None:
        """Make one pass over one rule, write down what was seen, and say when to look again."""
        rest: float | None = BACKOFF_S[1]
        asked = self._rounds.asked.get(uid, [])[:]
        try:
            stored = self._world.rules.get(uid)
            if stored is not None:
                rest = await self._brought(stored, asked)
            else:
                self._finished(uid, asked)
        except SecretsvcError as exc:
            _log.warning("round.failed", rule_uid=uid, reason=exc.code, message=exc.message)
            rest = self._rounds.back_off(uid)
        finally:
            self._rounds.end(uid, rest if uid in self._world.rules else None)
            self._wake.set()

    async def _brought(self, stored: StoredRule, asked: list[Stored[InboxItem]]) -> float:
        uid = stored.record.uid

        def seen(delivery: Delivery) -> None:
            self._world.deliveries.setdefault(uid, {})[delivery.target] = delivery
            self._stale_views.add(uid)

        made = await self._deliverer.bring(stored, seen)
        self._note_changes(stored, made)
        self._world.deliveries[uid] = made.deliveries
        over = stored.record.deleted_at is not None and made.removed
        if not over:
            await asyncio.to_thread(self._ledger.observe, stored, made)
            self._stale_views.discard(uid)
        await asyncio.to_thread(self._ledger.answer, stored, made, asked)
        self._finished(uid, asked)
        if over:
            await asyncio.to_thread(self._ledger.forget, stored)
            self._reported.pop(uid, None)
        await self._settle()
        return self._rounds.rest(stored, made)

    def _finished(self, uid: str, asked: list[Stored[InboxItem]]) -> None:
        self._rounds.answered(uid, asked)
        self._in_hand -= {item.record.id for item in asked}

    def _note_changes(self, stored: StoredRule, made: Pass) -> None:
        """Log what is otherwise than after the pass before, and have the credentials' list follow."""
        before = self._reported.get(stored.record.uid, {})
        now = {target: (one.state, one.reason) for target, one in made.deliveries.items()}
        if now != before:
            self._stale_views.add(CREDENTIALS_VIEW)  # which counts them
        for target, (state, reason) in now.items():
            if before.get(target) != (state, reason):
                write = _log.info if state is DeliveryState.SYNCED else _log.warning
                write("delivery", rule=stored.record.name, target=target, state=state.value, reason=reason)
        self._reported[stored.record.uid] = now

    # --- ends -------------------------------------------------------------------------------------

    async def _keep_views(self) -> None:
        """Write views that changed, at most every 5 s while they keep changing; end what is over."""
        now = time.monotonic()
        if self._stale_views and now - self._views_written >= VIEW_S:
            self._views_written = now
            await self._write_views()
        await self._settle()

    async def _show_credentials(self) -> None:
        """Have lists say what an operation did before its caller hears that it is done."""
        if time.monotonic() - self._credentials_shown >= _TICK_S:
            self._credentials_shown = time.monotonic()
            await asyncio.to_thread(self._ledger.show_credentials)

    async def _write_views(self) -> None:
        stale, self._stale_views = self._stale_views, set()
        try:
            for subject in stale:
                if subject == CREDENTIALS_VIEW:
                    await asyncio.to_thread(self._ledger.show_credentials)
                else:
                    await asyncio.to_thread(self._ledger.show_rule, subject)
        except StoreError:
            self._stale_views |= stale
            raise

    async def _settle(self) -> None:
        """End the operations whose targets all follow, or whose deadline has passed."""
        async with self._settling:
            for state, op in self._world.open_operations():
                try:
                    await self._settle_one(state, op)
                except StoreUnavailable:
                    raise
                except SecretsvcError as exc:  # one credential's damaged history must not stop the others
                    _log.warning("settle.failed", credential=state.name, reason=exc.code, message=exc.message)

    async def _settle_one(self, state: CredentialState, op: Operation) -> None:
        progress = self._world.progress(state)
        late = op.deadline is not None and self._desk.clock() >= op.deadline
        if progress.done < progress.total and not late:
            return
        failure = None if progress.done == progress.total else _stragglers(progress)
        await self._show_credentials()
        await asyncio.to_thread(self._intake.settle, state, op.id, progress, failure)
        await asyncio.to_thread(self._world.read_credential, state.name)
        self._stale_views.add(CREDENTIALS_VIEW)
        _log.info("operation.settled", credential=state.name, operation=op.id, kind=op.kind.value)

    # --- housekeeping -----------------------------------------------------------------------------

    async def _refresh_one(self) -> None:
        """Read one record again, in turn, so that nothing stays unseen for ever."""
        if not self._to_refresh:
            self._to_refresh = await asyncio.to_thread(self._all_names)
            return
        kind, name = self._to_refresh.pop()
        before = self._world.known(kind, name)
        if kind is CredentialSpec:
            await asyncio.to_thread(self._world.read_credential, name)
            if self._world.known(kind, name) != before or self._world.is_deleted(kind, name):
                await self._credential_changed(name)
        elif kind is RegistrySpec:
            await asyncio.to_thread(self._world.read_registry, name)
            if self._world.known(kind, name) != before or self._world.is_deleted(kind, name):
                await self._registry_changed(name)
        else:
            rule_kind = PullSecretRule if kind is PullSecretRule else AuthFileRule
            rule = await asyncio.to_thread(self._world.read_rule, rule_kind, name)
            if rule is not None and self._world.known(kind, name) != before:
                self._look_at([rule.record.uid])

    def _all_names(self) -> list[tuple[type, str]]:
        """Return what the store has, and what is known here: it may be gone from the store."""
        kinds = (RegistrySpec, CredentialSpec, PullSecretRule, AuthFileRule)
        stored = {(kind, name) for kind in kinds for name in self._store.names(kind)}
        return sorted(stored | self._world.names(), key=str)

    async def _sweep(self) -> None:
        """Remove histories of deleted rules and credentials after an hour."""
        await asyncio.to_thread(self._ledger.sweep)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Log what nobody expected; one subject's trouble must not stop the others."""
        self._tasks.discard(task)
        if not task.cancelled() and (exc := task.exception()) is not None:
            _log.error("work.defect", **describe(exc))


async def _either(event: asyncio.Event, seconds: float) -> None:
    """Wait until the event is set, at most so long.

    Not `asyncio.wait_for`: Python 3.11's loses a cancellation that comes with the event.
    """
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()


def _stragglers(progress: Progress) -> Failure:
    behind = progress.total - progress.done
    return Failure(
        "Stragglers",
        f"{behind} of {progress.total} targets do not hold the new value yet; they are still tried",
        "see `secretsvc status` for the reason of each",
    )
