"""``secretsvc credential import``: take over logins that are in a cluster or a file already.

The cluster is read with the user's own kubeconfig and the file by the user's own right; only the logins that
are chosen go to the service, which proves each. Values are never shown.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from secretsvc import settings, wiring
from secretsvc.cli.exits import ApiProblem, BadAnswer, PartlyDone
from secretsvc.cli.session import Command, Session, pass_session
from secretsvc.cli.tables import Item, Table
from secretsvc.core import dockerconfig
from secretsvc.core.errors import InvalidInput, NotFound
from secretsvc.core.ident import is_name
from secretsvc.core.model import CredentialType
from secretsvc.core.ports import AuthEntry

_FILE_LIMIT = 1024 * 1024
_NAME_LENGTH = 40
_CONFLICT = 409


@dataclass(slots=True)
class _Line:
    """What is shown of one entry."""

    key: str
    username: str
    result: str
    detail: str
    credential: str = ""

    def as_json(self) -> dict[str, str]:
        return {
            "key": self.key,
            "username": self.username,
            "result": self.result,
            "detail": self.detail,
            "credential": self.credential,
        }


@click.command("import", cls=Command)
@click.option("--k8s-secret", metavar="NAMESPACE/NAME", help="A Secret of type dockerconfigjson.")
@click.option("--authfile", type=click.Path(path_type=Path), help="An auth file of podman or docker.")
@click.option("--select", "selected", multiple=True, metavar="KEY", help="Register this entry. Repeatable.")
@click.option("--all", "everything", is_flag=True, help="Register every usable entry.")
@click.option("--dry-run", is_flag=True, help="Only list what is there.")
@click.option(
    "--type",
    "kind",
    type=click.Choice([known.value for known in CredentialType]),
    help="What kind of login it is; needed to register, since the entry does not tell.",
)
@click.option("--name", help="The credential's name, when one entry is registered.")
@click.option("--kubeconfig", type=click.Path(), help="Instead of the one kubectl would use.")
@click.option("--context", help="The context in it, instead of the current one.")
@pass_session
def import_(session: Session, /, selected: tuple[str, ...], everything: bool, **given: Any) -> None:  # noqa: ANN401
    """Register logins that are in a Secret or an auth file already.

    Without --select or --all it lists what is there. Names are made from the registry's host.

    \b
    secretsvc credential import --k8s-secret shop/pull-secret
    secretsvc credential import --authfile ~/.docker/config.json --select quay.io --type token
    """
    entries, unusable = dockerconfig.entries(_document(session, given))
    lines = [_Line(bad.key, "", "unusable", bad.detail) for bad in unusable]
    chosen = _chosen(entries, selected, everything=everything)
    if given["dry_run"] or not chosen:
        found = [_Line(entry.key, entry.username, "usable", "") for entry in entries]
        _show(session, found + lines)
        if entries and not given["dry_run"]:
            session.terminal.note(
                "choose with --select KEY or --all, and say --type token or --type password"
            )
        return
    if given["kind"] is None:
        raise click.UsageError("say --type token or --type password: the entry does not tell")
    if given["name"] and len(chosen) != 1:
        raise click.UsageError("--name is for one entry; choose it with --select")
    results = [_register(session, entry, given["kind"], given["name"]) for entry in chosen]
    _show(session, results + lines)
    _raise_unregistered(results)


def _chosen(entries: Sequence[AuthEntry], selected: Sequence[str], *, everything: bool) -> list[AuthEntry]:
    if everything and selected:
        raise click.UsageError("--all and --select exclude each other")
    known = {entry.key: entry for entry in entries}
    missing = [key for key in selected if key not in known]
    if missing:
        there = ", ".join(known) or "none"
        raise click.UsageError(f"no usable entry has the key {missing[0]!r}; there are: {there}")
    return list(entries) if everything else [known[key] for key in dict.fromkeys(selected)]


def _document(session: Session, given: dict[str, Any]) -> dockerconfig.Document:
    if (given["k8s_secret"] is None) == (given["authfile"] is None):
        raise click.UsageError("give either --k8s-secret NAMESPACE/NAME or --authfile PATH")
    if given["authfile"] is not None:
        return _parsed(_file(given["authfile"]), str(given["authfile"]))
    namespace, slash, name = given["k8s_secret"].partition("/")
    if not (namespace and slash and name) or "/" in name:
        raise click.UsageError("--k8s-secret is NAMESPACE/NAME")
    options = {"KUBECONFIG": given["kubeconfig"], "KUBE_CONTEXT": given["context"]}
    flags = session.flags | {key: value for key, value in options.items() if value}
    found = settings.load_client(session.environ, flags)
    with session.terminal.waiting(f"reading the Secret {namespace}/{name}"):
        text = asyncio.run(_secret(found, namespace, name))
    return _parsed(text, f"the Secret {namespace}/{name}")


def _parsed(content: bytes | str, source: str) -> dockerconfig.Document:
    try:
        return dockerconfig.parse(content)
    except InvalidInput as exc:
        hint = (
            "it must be an auth file of podman or docker, such as ~/.docker/config.json; it is left as it is"
        )
        raise InvalidInput(f"{source}: {exc.message}", hint=hint, code=exc.code) from exc


def _file(path: Path) -> bytes:
    try:
        with path.expanduser().open("rb") as file:
            data = file.read(_FILE_LIMIT + 1)
    except OSError as exc:
        raise InvalidInput(f"{path} can not be read: {exc.strerror}") from exc
    if len(data) > _FILE_LIMIT:
        raise InvalidInput(f"{path} is larger than 1 MiB, which no auth file is")
    return data


async def _secret(found: settings.ClientSettings, namespace: str, name: str) -> str:
    cluster = wiring.make_cluster(found)
    try:
        live = await cluster.read_secret(namespace, name)
    finally:
        await cluster.close()
    if live is None:
        raise NotFound(f"there is no Secret {namespace}/{name}", hint="see `kubectl get secrets`")
    if live.dockerconfigjson is None:
        raise InvalidInput(
            f"the Secret {namespace}/{name} has no .dockerconfigjson (its type is {live.type})"
        )
    return live.dockerconfigjson.reveal()


def _register(session: Session, entry: AuthEntry, kind: str, name: str | None) -> _Line:
    credential = name or credential_name(entry.key)
    body = {
        "name": credential,
        "registry": dockerconfig.registry_host(entry.key),
        "username": entry.username,
        "type": kind,
        "secret": entry.secret,
    }
    try:
        with session.terminal.waiting(f"proving {entry.username} at {body['registry']}"):
            session.api.call("POST", "/credentials", body)
    except ApiProblem as exc:
        if exc.status not in (_CONFLICT, 422, 503):
            raise
        result = "exists" if exc.status == _CONFLICT else "refused"
        return _Line(entry.key, entry.username, result, exc.message, credential)
    return _Line(entry.key, entry.username, "registered", "", credential)


def credential_name(key: str) -> str:
    """Return a credential's name for an auth key: its host and path, in the letters of a name."""
    scope = dockerconfig.key_scope(key)
    name = (
        re.sub(r"[^a-z0-9]+", "-", f"{scope.host}/{scope.path}".lower()).strip("-")[:_NAME_LENGTH].strip("-")
    )
    return name if is_name(name) else "imported"


def _show(session: Session, lines: list[_Line]) -> None:
    items = [
        Item((line.key, line.username, line.result, line.credential), (line.detail,) if line.detail else ())
        for line in lines
    ]
    session.terminal.show(
        {"items": [line.as_json() for line in lines]},
        lambda: Table(("KEY", "USERNAME", "RESULT", "CREDENTIAL"), items, empty="no logins"),
    )


def _raise_unregistered(results: list[_Line]) -> None:
    missed = [line for line in results if line.result != "registered"]
    if missed:
        message = f"{len(missed)} of {len(results)} entries were not registered"
        kind = PartlyDone if len(missed) < len(results) else BadAnswer
        raise kind(message, hint="the reason stands below each; an existing one takes `credential rotate`")
