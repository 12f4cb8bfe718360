"""``secretsvc pull-secret``: which namespaces get which credentials."""

from __future__ import annotations

from typing import Any

import click

from secretsvc.cli.client import segment
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

_FEW = 5
"""Namespaces that a list names; ``get`` shows all."""


@click.group(cls=Group)
def pull_secret() -> None:
    """Pull secrets: which namespaces get which credentials."""


@pull_secret.command("add")
@click.argument("name")
@click.option("--secret-name", required=True, help="The Secret's name in every namespace.")
@click.option("--credential", "credentials", multiple=True, required=True, help="May be repeated.")
@click.option("--namespace", "namespaces", multiple=True, required=True, help="May be repeated.")
@click.option("--cluster", default="default", show_default=True, help="Where the namespaces are.")
@click.option("--keep", is_flag=True, help="Leave the Secrets where they are when the rule goes.")
@timeout_option()
@pass_session
def add(session: Session, /, name: str, timeout: float, **given: Any) -> None:  # noqa: ANN401
    """Deliver credentials to namespaces, as a dockerconfigjson Secret in each.

    \b
    secretsvc pull-secret add apps --secret-name pull-secret --credential prod \\
        --namespace shop --namespace billing
    """
    body = {
        "name": name,
        "secret_name": given["secret_name"],
        "cluster": given["cluster"],
        "credentials": list(given["credentials"]),
        "namespaces": {"names": list(given["namespaces"])},
        "keep": given["keep"],
    }
    answer = session.api.call("POST", "/pull-secrets", body)
    session.follow(answer, f"delivering to {len(given['namespaces'])} namespaces", timeout, _see(name))
    _show_targets(session, name)


@pull_secret.command("set")
@click.argument("name")
@click.option("--credential", "credentials", multiple=True, help="Exactly these credentials.")
@click.option("--namespace", "namespaces", multiple=True, help="Exactly these namespaces.")
@click.option("--add-namespace", "added", multiple=True, help="These namespaces too.")
@click.option("--remove-namespace", "removed", multiple=True, help="These namespaces no longer.")
@click.option(
    "--keep/--no-keep", default=None, help="Whether the Secrets stay where they are when the rule goes."
)
@timeout_option()
@pass_session
def set_(session: Session, /, name: str, timeout: float, **given: Any) -> None:  # noqa: ANN401
    """Change a pull secret; a namespace that it no longer names loses our Secret."""
    found = session.api.get(_path(name))
    body = {key: found.body[key] for key in ("name", "secret_name", "cluster", "credentials", "keep")}
    names = list(given["namespaces"] or found.body["namespaces"]["names"])
    names = [known for known in names if known not in given["removed"]]
    body["namespaces"] = {"names": names + [new for new in given["added"] if new not in names]}
    if given["credentials"]:
        body["credentials"] = list(given["credentials"])
    if given["keep"] is not None:
        body["keep"] = given["keep"]
    answer = session.api.call("PUT", _path(name), body, etag=found.etag)
    session.follow(answer, f"bringing {name} to its targets", timeout, _see(name))
    _show_targets(session, name)


@pull_secret.command("list")
@pass_session
def list_(session: Session) -> None:
    """List pull secrets."""
    items = list(session.api.items("/pull-secrets"))
    session.terminal.show({"items": items}, lambda: _table(items))


@pull_secret.command("get")
@click.argument("name")
@pass_session
def get(session: Session, name: str) -> None:
    """Show one pull secret and its targets."""
    body = session.api.get(_path(name)).body
    rows = list(session.api.items(f"{_path(name)}/deliveries"))
    session.terminal.show({**body, "targets": rows}, lambda: [_table([body]), deliveries_table(rows)])


@pull_secret.command("sync")
@click.argument("name")
@timeout_option()
@pass_session
def sync(session: Session, name: str, timeout: float) -> None:
    """Look at every target now, and bring it to what is wanted."""
    answer = session.api.call("POST", f"{_path(name)}/sync")
    session.follow(answer, f"syncing {name}", timeout, _see(name))
    _show_targets(session, name)


@pull_secret.command("delete")
@click.argument("name")
@timeout_option()
@pass_session
def delete(session: Session, name: str, timeout: float) -> None:
    """Delete a pull secret and the Secrets that it made (unless it keeps them)."""
    answer = session.api.call("DELETE", _path(name), etag=session.api.get(_path(name)).etag)
    raise_failure(session.follow(answer, f"removing what {name} made", timeout, _see(name)))
    session.terminal.note(f"pull secret {name} is deleted")


def _show_targets(session: Session, name: str) -> None:
    rows = list(session.api.items(f"{_path(name)}/deliveries"))
    session.terminal.show({"items": rows}, lambda: deliveries_table(rows))
    raise_undelivered(rows)


def _table(items: list[dict[str, Any]]) -> Table:
    header = ("NAME", "SECRET", "CLUSTER", "CREDENTIALS", "SYNCED", "NAMESPACES")
    return Table.of(header, [_row(item) for item in items], empty="no pull secrets")


def _row(item: dict[str, Any]) -> tuple[object, ...]:
    counts = item.get("deliveries") or {}
    names = item["namespaces"]["names"]
    synced = f"{counts.get('synced', 0)}/{counts.get('total', len(names))}"
    shown = names if len(names) <= _FEW else f"{','.join(names[:_FEW])} and {len(names) - _FEW} more"
    return (item["name"], item["secret_name"], item["cluster"], item["credentials"], synced, shown)


def _see(name: str) -> str:
    return f"secretsvc pull-secret get {segment(name)}"


def _path(name: str) -> str:
    return f"/pull-secrets/{segment(name)}"
