"""``secretsvc operation``: work that outlives a request."""

from __future__ import annotations

from typing import Any

import click

from secretsvc.cli.client import segment
from secretsvc.cli.session import Group, Session, pass_session, raise_failure, timeout_option
from secretsvc.cli.tables import Item, Table


@click.group(cls=Group)
def operation() -> None:
    """Work that outlives a request."""


@operation.command("get")
@click.argument("identifier")
@pass_session
def get(session: Session, identifier: str) -> None:
    """Show an operation."""
    body = session.api.get(f"/operations/{segment(identifier)}").body
    session.terminal.show(body, lambda: _table(body))


@operation.command("wait")
@click.argument("identifier")
@timeout_option(300)
@pass_session
def wait(session: Session, identifier: str, timeout: float) -> None:
    """Wait until an operation has settled."""
    body = session.wait(identifier, "waiting for the operation", timeout)
    session.terminal.show(body, lambda: _table(body))
    raise_failure(body)


def _table(body: dict[str, Any]) -> Table:
    progress = body.get("progress") or {}
    error = body.get("error") or {}
    row = (body["kind"], body["state"], progress.get("done"), progress.get("total"))
    below = tuple(
        text for text in (error.get("message"), f"do: {error['hint']}" if error.get("hint") else "") if text
    )
    return Table(("KIND", "STATE", "DONE", "TOTAL"), [Item(row, below)])
