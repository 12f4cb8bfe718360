"""``secretsvc authfile``: auth files on the service's own machine, the host ``local``."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from secretsvc.cli.client import Answer, segment
from secretsvc.cli.credentials import deliveries_table
from secretsvc.cli.session import (
    Group,
    Session,
    pass_session,
    raise_failure,
    raise_undelivered,
    timeout_option,
)
from secretsvc.cli.tables import Table
from secretsvc.core.errors import NotFound
from secretsvc.core.ident import is_name
from secretsvc.core.rules import (
    LOCAL_HOST,
    Dialect,
)

_NAME_LENGTH = 40
_DIGEST_LENGTH = 6


@click.group(cls=Group)
def authfile() -> None:
    """Auth files on this service's machine."""


@authfile.command("write")
@click.option("--credential", "credentials", multiple=True, required=True, help="May be repeated.")
@click.option("--path", required=True, type=click.Path(path_type=Path), help="The auth file.")
@click.option(
    "--dialect",
    type=click.Choice([known.value for known in Dialect]),
    required=True,
    help="Whose rules the file follows.",
)
@click.option("--name", help="The rule's name; by default made from the path.")
@click.option("--replace", is_flag=True, help="Exactly these credentials, instead of these too.")
@timeout_option()
@pass_session
def write(session: Session, /, path: Path, timeout: float, **given: Any) -> None:  # noqa: ANN401
    """Keep credentials in an auth file, and in step with what is stored.

    What else is in the file stays. The file is written by the service, so it must be on its machine.

    \b
    secretsvc authfile write --credential prod --path ./auth.json --dialect containers-auth
    """
    where = absolute(path)
    session.terminal.note(f"auth file: {where}")
    known = _rule_at(session, str(where))
    name = given["name"] or (known["name"] if known else rule_name(str(where)))
    credentials = list(given["credentials"])
    if known is not None and known["name"] == name:
        answer = _change(session, known, credentials, given["dialect"], replace=given["replace"])
    else:
        answer = session.api.call(
            "POST", "/auth-files", _body(name, str(where), given["dialect"], credentials)
        )
    operation = session.follow(answer, f"writing {where}", timeout, _see(name))
    rows = list(session.api.items(f"{_path(name)}/deliveries"))
    session.terminal.show({"rule": name, "items": rows}, lambda: deliveries_table(rows))
    raise_undelivered(rows)
    raise_failure(operation)


@authfile.command("list")
@pass_session
def list_(session: Session) -> None:
    """List auth files."""
    items = list(session.api.items("/auth-files"))
    session.terminal.show({"items": items}, lambda: _table(items))


@authfile.command("get")
@click.argument("name", metavar="NAME|PATH")
@pass_session
def get(session: Session, name: str) -> None:
    """Show one auth file and how its target is."""
    name = _named(session, name)
    body = session.api.get(_path(name)).body
    rows = list(session.api.items(f"{_path(name)}/deliveries"))
    session.terminal.show({**body, "targets": rows}, lambda: [_table([body]), deliveries_table(rows)])


@authfile.command("delete")
@click.argument("name", metavar="NAME|PATH")
@timeout_option()
@pass_session
def delete(session: Session, name: str, timeout: float) -> None:
    """Take our entries out of an auth file, and forget it. What is not ours stays."""
    name = _named(session, name)
    answer = session.api.call("DELETE", _path(name), etag=session.api.get(_path(name)).etag)
    raise_failure(session.follow(answer, f"taking {name}'s entries out", timeout, _see(name)))
    session.terminal.note(f"auth file {name} is deleted")


def absolute(path: Path) -> Path:
    """Return an absolute path whose folder has no symbolic links; the file itself is not followed.

    The service refuses links on the way to a file, so the folder is named by its real path.
    """
    plain = Path(os.path.normpath(path.expanduser().absolute()))
    return plain.parent.resolve() / plain.name


def rule_name(path: str) -> str:
    """Return a name for the rule of a path: its last folder and file, and what tells it from others."""
    digest = hashlib.sha256(path.encode()).hexdigest()[:_DIGEST_LENGTH]
    room = _NAME_LENGTH - _DIGEST_LENGTH - 1
    parts = [re.sub(r"[^a-z0-9]+", "-", part.lower()).strip("-") for part in path.split("/")]
    words = [part for part in parts if part][-2:]
    if len("-".join(words)) > room:
        words = words[-1:]
    return f"{'-'.join(words)[:room].strip('-')}-{digest}".strip("-")


def _named(session: Session, text: str) -> str:
    """Return the name of the rule that ``text`` names; what can not be a name is a path."""
    if is_name(text):
        return text
    path = str(absolute(Path(text)))
    known = _rule_at(session, path)
    if known is None:
        raise NotFound(f"there is no auth file {path}", hint="see `secretsvc authfile list`")
    return str(known["name"])


def _rule_at(session: Session, path: str) -> dict[str, Any] | None:
    return next((item for item in session.api.items("/auth-files") if item["path"] == path), None)


def _change(
    session: Session, known: Mapping[str, Any], credentials: list[str], dialect: str, *, replace: bool
) -> Answer:
    name = str(known["name"])
    found = session.api.get(_path(name))
    if not replace:
        old = [name for name in found.body["credentials"] if name not in credentials]
        credentials = old + credentials
    body = _body(name, str(known["path"]), dialect, credentials) | {"keep": found.body.get("keep", False)}
    if found.body["credentials"] == credentials and found.body["dialect"] == dialect:
        return session.api.call("POST", f"{_path(name)}/sync")
    return session.api.call("PUT", _path(name), body, etag=found.etag)


def _body(name: str, path: str, dialect: str, credentials: list[str]) -> dict[str, Any]:
    return {
        "name": name,
        "hosts": {"names": [LOCAL_HOST]},
        "path": path,
        "dialect": dialect,
        "credentials": credentials,
    }


def _table(items: list[dict[str, Any]]) -> Table:
    header = ("NAME", "PATH", "CREDENTIALS", "SYNCED", "DIALECT")
    return Table.of(header, [_row(item) for item in items], empty="no auth files")


def _row(item: Mapping[str, Any]) -> tuple[object, ...]:
    counts = item.get("deliveries") or {}
    synced = f"{counts.get('synced', 0)}/{counts.get('total', 1)}"
    return (item["name"], item["path"], item["credentials"], synced, item["dialect"])


def _see(name: str) -> str:
    return f"secretsvc authfile get {segment(name)}"


def _path(name: str) -> str:
    return f"/auth-files/{segment(name)}"
