"""``secretsvc doctor``: look at everything a working service needs, and say what to do about each finding.

The local half (settings, files, store, cluster) needs no running service, and makes no file or directory. The
other half asks the API.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from secretsvc import wiring
from secretsvc.cli.client import ApiClient, segment
from secretsvc.cli.exits import ApiProblem, BadAnswer
from secretsvc.cli.explain import for_a_terminal
from secretsvc.cli.session import Command, Session, pass_session
from secretsvc.cli.tables import Item, Table
from secretsvc.core.errors import SecretsvcError
from secretsvc.settings import Settings, StoreKind

_OPEN_TO_OTHERS = 0o077
_NOT_FOUND = 404

Say = Callable[[str], None]
"""Told what is looked at next."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the answer."""

    check: str
    severity: str
    """``ok``, ``warning`` or ``error``."""
    message: str
    hint: str = ""


@click.command("doctor", cls=Command)
@click.option("--local", is_flag=True, help="Only what is on this machine; do not ask the API.")
@pass_session
def doctor(session: Session, local: bool) -> None:
    """Check settings, files, store, cluster, API and registries.

    Exits with 1 when there is an error among the findings. The local checks need the service's settings and
    its user's rights.
    """
    with session.terminal.waiting("looking at the settings") as say:
        findings = list(_all(session, lambda what: say(f"looking at {what}"), local=local))
    session.terminal.show({"items": [asdict(one) for one in findings]}, lambda: _table(findings))
    errors = [one for one in findings if one.severity == "error"]
    if errors:
        raise BadAnswer(
            f"{len(errors)} of {len(findings)} checks failed", hint="what to do stands below each"
        )


def _table(findings: list[Finding]) -> Table:
    items = [
        Item((one.severity, one.check, one.message), (f"do: {one.hint}",) if one.hint else ())
        for one in findings
    ]
    return Table(("", "CHECK", "FOUND"), items)


def _all(session: Session, say: Say, *, local: bool) -> Iterator[Finding]:
    try:
        settings = session.settings()
    except SecretsvcError as exc:
        yield _failed("settings", exc)
    else:
        yield Finding("settings", "ok", f"store {settings.store.value}, listening on {settings.listen}")
        yield from (Finding("settings", "warning", text) for text in settings.warnings)
        yield from _local(settings, say)
    if not local:
        yield from _remote(session, say)


def _failed(check: str, error: SecretsvcError, severity: str = "error") -> Finding:
    # "See doctor" helps nobody who reads what doctor found.
    hint = "" if "secretsvc doctor" in error.hint else error.hint
    return Finding(check, severity, error.message.replace("\n", " "), hint)


# --- This machine ---------------------------------------------------------------------------------


def _local(settings: Settings, say: Say) -> Iterator[Finding]:
    absent = not settings.data_dir.exists()
    if absent and settings.store is StoreKind.LOCAL:
        hint = "start the service once, or set SECRETSVC_DATA_DIR to where its data are"
        yield Finding("data directory", "warning", f"{settings.data_dir} is not there", hint)
    else:
        yield _private("data directory", settings.data_dir, stat.S_IFDIR)
        if settings.store is StoreKind.LOCAL:
            yield _private("key file", settings.key_file, stat.S_IFREG)
        say("the store")
        yield _store(settings)
    say("cluster default")
    yield from _cluster(settings)


def _private(check: str, path: Path, kind: int) -> Finding:
    try:
        found = path.lstat()
    except OSError as exc:
        hint = "run doctor as the service's user, with its settings"
        return Finding(check, "error", f"{path} can not be looked at: {exc.strerror}", hint)
    if stat.S_IFMT(found.st_mode) != kind:
        return Finding(check, "error", f"{path} is not of the right kind", "name the thing itself, no link")
    if stat.S_IMODE(found.st_mode) & _OPEN_TO_OTHERS:
        mode = f"{stat.S_IMODE(found.st_mode):04o}"
        return Finding(check, "error", f"{path} has mode {mode}", f"chmod go= {path}")
    if found.st_uid not in (os.geteuid(), 0):
        return Finding(check, "error", f"{path} belongs to another user", "run doctor as the service's user")
    return Finding(check, "ok", f"{path} is private")


def _probe_store(settings: Settings) -> str:
    if settings.store is StoreKind.LOCAL and not settings.database.exists():
        return f"{settings.database} is not there yet; the first start makes it"
    store = wiring.open_store(settings)
    try:
        return store.probe()
    finally:
        store.close()


def _store(settings: Settings) -> Finding:
    try:
        return Finding("store", "ok", _probe_store(settings))
    except SecretsvcError as exc:
        return _failed("store", exc)


def _cluster(settings: Settings) -> Iterator[Finding]:
    if not settings.has_cluster:
        hint = "set SECRETSVC_KUBECONFIG to deliver to namespaces"
        yield Finding("cluster default", "warning", "there is none in the settings", hint)
        return
    try:
        answer = asyncio.run(_ask_cluster(settings))
    except SecretsvcError as exc:
        yield _failed("cluster default", exc)
        return
    yield from answer


async def _ask_cluster(settings: Settings) -> list[Finding]:
    cluster = wiring.make_cluster(settings)
    findings = []
    try:
        findings.append(Finding("cluster default", "ok", f"answers, {await cluster.version()}"))
        if not cluster.verifies_server:
            hint = "give certificate-authority in the kubeconfig instead of insecure-skip-tls-verify"
            findings.append(Finding("cluster default", "warning", "its certificate is not verified", hint))
        findings.append(Finding("cluster identity", "ok", f"uid {await cluster.identity()}"))
        findings.append(_rights(await wiring.cluster_rights(settings)))
    except SecretsvcError as exc:
        findings.append(_failed("cluster identity" if findings else "cluster default", exc))
    finally:
        await cluster.close()
    return findings


def _rights(rights: dict[str, bool]) -> Finding:
    denied = [verb for verb, allowed in rights.items() if not allowed]
    if not denied:
        return Finding("cluster rights", "ok", f"may {', '.join(rights)} Secrets")
    hint = (
        "grant them to our account; a role that is limited to the Secrets' names or namespaces is enough too"
    )
    message = f"may not {', '.join(denied)} Secrets of every name in every namespace"
    return Finding("cluster rights", "warning", message, hint)


# --- The API --------------------------------------------------------------------------------------


def _remote(session: Session, say: Say) -> Iterator[Finding]:
    say("the API")
    try:
        api = session.api
        ready, said = api.ready()
    except SecretsvcError as exc:
        yield _failed("API", exc)
        return
    severity = "ok" if ready else "error"
    yield Finding("API", severity, f"{api.url}: {'ready' if ready else said}")
    try:
        caller = api.get("/whoami").body
    except ApiProblem as exc:
        yield _failed("API token", for_a_terminal(exc, api.token_file))
        return
    except SecretsvcError as exc:
        yield _failed("API token", exc)
        return
    yield Finding("API token", "ok", f"{caller['name']}, role {caller['role']}")
    if caller["role"] != "admin":
        yield Finding("API token", "warning", "a viewer may not ping", "use a token of an admin")
        return
    yield from _pings(api, say)


def _pings(api: ApiClient, say: Say) -> Iterator[Finding]:
    try:
        clusters = list(api.items("/clusters"))
        registries = list(api.items("/registries"))
    except SecretsvcError as exc:
        yield _failed("API", exc)
        return
    for cluster in clusters:
        say(f"cluster {cluster['name']} from the service")
        yield _ping_cluster(api, cluster["name"])
    for registry in registries:
        say(f"registry {registry['name']}")
        yield _ping_registry(api, registry["name"])


def _ping_cluster(api: ApiClient, name: str) -> Finding:
    check = f"cluster {name} from the service"
    try:
        answer = api.call("POST", f"/clusters/{segment(name)}/ping").body
    except SecretsvcError as exc:
        return _failed(check, exc)
    if answer["reachable"]:
        return Finding(check, "ok", f"answers, {answer['version']}")
    return Finding(check, "error", answer["message"], answer.get("hint", ""))


def _ping_registry(api: ApiClient, name: str) -> Finding:
    check = f"registry {name}"
    try:
        verdict = api.call("POST", f"/registries/{segment(name)}/ping").body
    except ApiProblem as exc:
        return _failed(check, exc, "warning" if exc.status == _NOT_FOUND else "error")
    except SecretsvcError as exc:
        return _failed(check, exc)
    good = str(verdict["outcome"]).startswith("VALID")
    hint = "" if good else f"`secretsvc registry ping {name}` shows each request"
    return Finding(check, "ok" if good else "error", str(verdict["message"]), hint)
