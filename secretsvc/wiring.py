"""The composition root: the one place that names concrete adapters and gives them to the workflows.

Rules:

- Everything is made here from `Settings` and handed over by constructor; nothing below looks anything up.
- Adapters are imported when they are chosen: hvac, kubernetes and Flask take longer to import than the rest
  of a start, and not every program needs each.
- A first start makes what is missing and never replaces what is there: a key file is made only where no
  database waits for another one.
"""

from __future__ import annotations

import asyncio
import os
import resource
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from secretsvc.core.access import LOCAL_ACTOR
from secretsvc.core.errors import ConfigurationError, SecretsvcError, StoreDenied, StoreUnavailable
from secretsvc.core.model import Secret
from secretsvc.core.ports import CredentialStore, RegistryProver
from secretsvc.settings import ClientSettings, LogFormat, Settings, StoreKind, VaultSettings, version
from secretsvc.telemetry.audit import LogAudit
from secretsvc.telemetry.logs import configure, get_logger
from secretsvc.telemetry.metrics import CredentialFact, Metrics, Snapshot
from secretsvc.telemetry.redaction import Redactor
from secretsvc.workflows.admit import Gatekeeper
from secretsvc.workflows.records import Desk

if TYPE_CHECKING:
    from wsgiref.types import WSGIApplication

    from secretsvc.delivery.cluster import ClusterTarget
    from secretsvc.store.bootstrap import BootstrapReport
    from secretsvc.store.vaultlink import VaultAddress
    from secretsvc.workflows.reconcile import Worker
    from secretsvc.workflows.report import Reporter

DEFAULT_CLUSTER = "default"
"""The cluster that the settings give."""
SECRET_VERBS = ("list", "get", "create", "patch", "delete")
"""What delivering into namespaces needs to be allowed on Secrets."""

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class FirstStart:
    """What a start found or made."""

    made: tuple[str, ...]
    """What was not there before, one line each."""
    token_file: Path
    has_token_file: bool


# --- The process ----------------------------------------------------------------------------------


def harden() -> None:
    """Let this process make private files only, and leave no core dump: it holds secret values."""
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def start_logs(settings: Settings) -> Redactor:
    """Send this process's logs to standard error; return what strikes values out of them."""
    redactor = Redactor()
    default = LogFormat.CONSOLE if os.isatty(2) else LogFormat.JSON
    log_format = settings.log_format or default
    configure(settings.log_level.value, "console" if log_format is LogFormat.CONSOLE else "json", redactor)
    return redactor


def now() -> datetime:
    """Return the present: the clock that everything is given."""
    return datetime.now(UTC)


# --- The store ------------------------------------------------------------------------------------


def open_store(settings: Settings) -> CredentialStore:
    """Return the store that the settings name."""
    return _vault_store(settings) if settings.store is StoreKind.VAULT else _local_store(settings)


def _local_store(settings: Settings) -> CredentialStore:
    from secretsvc.store.envelope import load_key_file  # noqa: PLC0415  # see the module's rules
    from secretsvc.store.local import LocalStore  # noqa: PLC0415

    return LocalStore(settings.data_dir, load_key_file(settings.key_file, settings.data_dir))


def _vault_store(settings: Settings) -> CredentialStore:
    from secretsvc.store.vault import VaultStore  # noqa: PLC0415  # see the module's rules
    from secretsvc.store.vaultlogin import AppRole, TokenFile  # noqa: PLC0415

    vault = settings.vault
    if vault is None:
        raise ConfigurationError("the settings do not say where Vault is", hint="set SECRETSVC_VAULT_ADDR")
    where = _vault_address(vault)
    if vault.token_file is not None:
        return VaultStore(where, TokenFile(vault.token_file), now)
    if vault.secret_id_file is None:
        raise ConfigurationError("there is no way to log in to Vault", hint="set SECRETSVC_VAULT_ROLE_ID")
    return VaultStore(where, AppRole(vault.role_id, vault.secret_id_file), now)


def _vault_address(vault: VaultSettings) -> VaultAddress:
    from secretsvc.store.vaultlink import VaultAddress  # noqa: PLC0415  # see the module's rules

    cacert = str(vault.cacert) if vault.cacert else ""
    return VaultAddress(vault.address, vault.mount, vault.namespace, cacert)


def first_start(settings: Settings) -> FirstStart:
    """Make what is missing: data directory, key file, database, the first admin token.

    Raises:
        ConfigurationError: something is there and not as it must be, such as a database without its key.
        StoreError: the store does not answer.
    """
    from secretsvc.store.local import make_data_dir  # noqa: PLC0415  # see the module's rules

    made = []
    if not settings.data_dir.exists():
        made.append(f"data directory  {settings.data_dir}")
    make_data_dir(settings.data_dir)
    if settings.store is StoreKind.LOCAL and _make_key(settings):
        made.append(f"key file        {settings.key_file}  (keep a copy apart from the data)")
    if _make_admin(settings):
        made.append(f"admin token     {settings.admin_token_file}")
    return FirstStart(tuple(made), settings.admin_token_file, settings.admin_token_file.exists())


def _make_admin(settings: Settings) -> bool:
    """Make the first admin token.

    A store that is away or refuses our login matters only when there has been no start before. Otherwise we
    stay up, not ready, and notice when it is put right: to end and be started again would be to log in again
    and again, which locks the account.
    """
    store = open_store(settings)
    gatekeeper = _gatekeeper(_desk(store, _silence))
    try:
        if settings.admin_token_file.exists() and not gatekeeper.is_known():
            raise ConfigurationError(
                f"{settings.admin_token_file} is the admin token of another store; this one is empty",
                hint="give this store a data directory of its own (SECRETSVC_DATA_DIR), or move it away",
            )
        token = gatekeeper.ensure_admin(LOCAL_ACTOR)
    except (StoreUnavailable, StoreDenied) as exc:
        if not settings.admin_token_file.exists():
            raise
        _log.warning("store.not_ready", reason=exc.code, message=exc.message, hint=exc.hint)
        return False
    finally:
        store.close()
    if token is not None:
        write_token(settings.admin_token_file, token)
    return token is not None


def _make_key(settings: Settings) -> bool:
    from secretsvc.store.envelope import create_key_file  # noqa: PLC0415  # see the module's rules
    from secretsvc.store.local import LocalStore  # noqa: PLC0415

    if LocalStore.exists(settings.data_dir) and not os.path.lexists(settings.key_file):
        raise ConfigurationError(
            f"the key file {settings.key_file} is missing; {settings.database} can not be read without it",
            hint="restore it from its copy, or set SECRETSVC_KEY_FILE to where it is; a new one does not fit",
        )
    return create_key_file(settings.key_file, settings.data_dir)


def reset_admin_token(settings: Settings) -> Path:
    """Make a new admin token, end the one before, write it to its file; return the file.

    For whoever can run as the service's user when the old token is lost.
    """
    store = open_store(settings)
    try:
        token = _gatekeeper(_desk(store, _silence)).reset_admin(LOCAL_ACTOR)
    finally:
        store.close()
    write_token(settings.admin_token_file, token)
    return settings.admin_token_file


def write_token(path: Path, token: Secret) -> None:
    """Write a token to a file of mode 0600, which appears whole or not at all."""
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(f"{token.reveal()}\n")
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    except OSError as exc:
        raise ConfigurationError(
            f"the token file {path} can not be written: {exc.strerror}",
            hint="correct that, then run `secretsvc token reset --local`",
        ) from exc
    finally:
        scratch.unlink(missing_ok=True)


# --- serve ----------------------------------------------------------------------------------------


def serve_app(settings: Settings, redactor: Redactor, ring: Callable[[], None]) -> WSGIApplication:
    """Return the API as a WSGI application.

    Args:
        settings: this process's settings.
        redactor: the one that the logs were configured with.
        ring: wakes work.
    """
    from secretsvc.web.app import create_app  # noqa: PLC0415  # see the module's rules
    from secretsvc.web.services import Services  # noqa: PLC0415
    from secretsvc.web.waiting import Patience  # noqa: PLC0415
    from secretsvc.workflows.assign import Assigner  # noqa: PLC0415
    from secretsvc.workflows.register import Registrar  # noqa: PLC0415
    from secretsvc.workflows.report import Reporter  # noqa: PLC0415

    desk = _desk(open_store(settings), ring)
    audit = _audit()
    clusters = {DEFAULT_CLUSTER: _ClusterProbe(settings)} if settings.has_cluster else {}
    reporter = Reporter(desk)
    return create_app(
        Services(
            desk=desk,
            registrar=Registrar(desk, make_prover(), audit),
            assigner=Assigner(desk, audit, frozenset(clusters)),
            gatekeeper=Gatekeeper(desk, audit),
            reporter=reporter,
            clusters=clusters,
            version=version(),
            metrics=Metrics(version(), lambda: _snapshot(desk, reporter)),
            redactor=redactor,
            patience=Patience(),
        )
    )


class _ClusterProbe:
    """Asks a cluster for its version from a thread of serve, which has no event loop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def version(self) -> str:
        """Return the API server's version, or raise a `DeliveryError`."""
        return asyncio.run(self._ask())

    async def _ask(self) -> str:
        cluster = make_cluster(self._settings)
        try:
            return await cluster.version()
        finally:
            await cluster.close()


def _snapshot(desk: Desk, reporter: Reporter) -> Snapshot:
    """Return the state for a scrape; a store that is away is a fact, not an error."""
    from secretsvc.core.rules import AuthFileRule, PullSecretRule  # noqa: PLC0415  # see the module's rules

    try:
        credentials, seen_at = reporter.credentials()
        deliveries: dict[tuple[str, str], int] = {}
        for kind in (PullSecretRule, AuthFileRule):
            for report in reporter.rules(kind):
                for state, count in report.counts.items():
                    key = (kind.KIND, state)
                    deliveries[key] = deliveries.get(key, 0) + count
    except SecretsvcError:
        return Snapshot(store_up=False)
    facts = tuple(
        CredentialFact(line.spec.name, line.spec.registry, line.state, line.expires_at)
        for line in credentials
    )
    age = max(0.0, (desk.clock() - seen_at).total_seconds())
    return Snapshot(store_up=True, credentials=facts, deliveries=deliveries, view_age=age)


# --- work -----------------------------------------------------------------------------------------


def make_worker(settings: Settings) -> tuple[Worker, CredentialStore]:
    """Return the worker, and its store to be closed after it. To be called in its event loop."""
    from secretsvc.delivery.hosts import LocalAuthFiles  # noqa: PLC0415  # see the module's rules
    from secretsvc.store.local import make_data_dir  # noqa: PLC0415
    from secretsvc.workflows.reconcile import Worker  # noqa: PLC0415

    make_data_dir(settings.data_dir)
    clusters = {DEFAULT_CLUSTER: make_cluster(settings)} if settings.has_cluster else {}
    store = open_store(settings)
    auth_files = LocalAuthFiles(settings.data_dir / "authfiles")
    worker = Worker(_desk(store, _silence), make_prover(), clusters, auth_files, _audit())
    return worker, store


def make_cluster(settings: Settings | ClientSettings) -> ClusterTarget:
    """Return the cluster that the settings give. Sends nothing yet."""
    from secretsvc.delivery.cluster import ClusterTarget  # noqa: PLC0415  # see the module's rules
    from secretsvc.delivery.kubeapi import connect  # noqa: PLC0415

    kubeconfig = Path(settings.kubeconfig) if settings.kubeconfig else None
    return ClusterTarget(connect(DEFAULT_CLUSTER, kubeconfig, settings.kube_context or None))


async def cluster_rights(settings: Settings) -> dict[str, bool]:
    """Ask the cluster what our account may do with Secrets, in all namespaces and whatever their name."""
    from secretsvc.delivery.kubeapi import connect  # noqa: PLC0415  # see the module's rules

    kubeconfig = Path(settings.kubeconfig) if settings.kubeconfig else None
    api = connect(DEFAULT_CLUSTER, kubeconfig, settings.kube_context or None)
    rights = {}
    try:
        for verb in SECRET_VERBS:
            body = {
                "apiVersion": "authorization.k8s.io/v1",
                "kind": "SelfSubjectAccessReview",
                "spec": {"resourceAttributes": {"verb": verb, "resource": "secrets"}},
            }
            path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
            _, answer = await api.request("POST", path, about="our rights", body=body)
            rights[verb] = bool(answer.get("status", {}).get("allowed"))
    finally:
        await api.close()
    return rights


def make_prover() -> RegistryProver:
    """Return what asks registries about logins."""
    from secretsvc.registries.generic import Prover  # noqa: PLC0415  # see the module's rules
    from secretsvc.registries.transport import Transport, system_resolver  # noqa: PLC0415

    return Prover(Transport(system_resolver, time.monotonic), now, secrets.token_bytes)


def bootstrap_vault(
    where: VaultSettings, admin_token: Secret, secret_id_dir: Path | None, roles: Sequence[str]
) -> BootstrapReport:
    """Make mount, policies and roles in Vault; see `store.bootstrap`."""
    from secretsvc.store.bootstrap import bootstrap  # noqa: PLC0415  # see the module's rules

    address = _vault_address(where)
    return bootstrap(address, admin_token, secret_id_dir=secret_id_dir, secret_id_roles=roles)


# --- The parts ------------------------------------------------------------------------------------


def _desk(store: CredentialStore, ring: Callable[[], None]) -> Desk:
    return Desk(store, now, secrets.token_bytes, ring)


def _audit() -> LogAudit:
    return LogAudit(get_logger("secretsvc.audit"))


def _gatekeeper(desk: Desk) -> Gatekeeper:
    return Gatekeeper(desk, _audit())


def _silence() -> None:
    """Ring nobody: work is not running, or is the one who writes."""
