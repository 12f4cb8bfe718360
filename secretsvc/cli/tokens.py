"""``secretsvc token``: API tokens."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import click

from secretsvc import wiring
from secretsvc.cli.client import segment
from secretsvc.cli.output import OutputFormat
from secretsvc.cli.session import Group, Session, pass_session
from secretsvc.cli.tables import Table, moment
from secretsvc.core.access import Role
from secretsvc.core.errors import InvalidInput


@click.group(cls=Group)
def token() -> None:
    """API tokens."""


@token.command("create")
@click.argument("name")
@click.option(
    "--role", type=click.Choice([known.value for known in Role]), required=True, help="What it may do."
)
@click.option(
    "--expires-in", default="90d", show_default=True, metavar="DURATION", help="Such as 12h or 30d."
)
@pass_session
def create(session: Session, name: str, role: str, expires_in: str) -> None:
    """Make a token; it is shown once, on standard output.

    \b
    (umask 077; secretsvc token create ci --role viewer > ci.token)
    """
    body = session.api.call("POST", "/tokens", {"name": name, "role": role, "expires_in": expires_in}).body
    session.terminal.show(body, lambda: str(body["token"]))
    if session.terminal.format is OutputFormat.TABLE:
        session.terminal.note(
            f"{role} token {name}, until {moment(body.get('expires_at'))}; it is not shown again"
        )


@token.command("list")
@pass_session
def list_(session: Session) -> None:
    """List tokens; never their values."""
    items = list(session.api.items("/tokens"))
    session.terminal.show({"items": items}, lambda: _table(items))


@token.command("revoke")
@click.argument("name")
@click.option("--force", is_flag=True, help="Although it is your own, or the last admin's.")
@pass_session
def revoke(session: Session, name: str, force: bool) -> None:
    """End a token at once."""
    if not force:
        _refuse_to_lock_out(session, name)
    session.api.call("DELETE", f"/tokens/{segment(name)}")
    session.terminal.note(f"token {name} is revoked")


@token.command("reset")
@click.option("--local", is_flag=True, required=True, help="Here, on the service's files or store.")
@pass_session
def reset(session: Session, local: bool) -> None:  # noqa: ARG001  # required: the only way there is
    """Make a new admin token without the old one, which is revoked.

    Run it as the service's user, with the service's settings.
    """
    wiring.harden()
    settings = session.settings()
    wiring.start_logs(settings)
    path = wiring.reset_admin_token(settings)
    session.terminal.show({"token_file": str(path)}, lambda: f"the new admin token is in {path}")


def _refuse_to_lock_out(session: Session, name: str) -> None:
    """Raise `InvalidInput` when the token is the caller's own, or that of the last admin."""
    caller = session.api.get("/whoami").body["name"]
    now = datetime.now(UTC)
    admins = {
        item["name"]
        for item in session.api.items("/tokens")
        if item["role"] == Role.ADMIN and not _ended(item.get("expires_at"), now)
    }
    back = (
        "; afterwards only `secretsvc token reset --local`, on the service's machine, lets an admin in again"
    )
    if admins == {name}:
        raise InvalidInput(
            f"token {name!r} is the last of an admin", hint=f"--force ends it all the same{back}"
        )
    if caller == name:
        raise InvalidInput(
            f"token {name!r} is the one you are calling with", hint="--force ends it all the same"
        )


def _ended(expires_at: str | None, now: datetime) -> bool:
    return expires_at is not None and datetime.fromisoformat(expires_at) <= now


def _table(items: list[dict[str, Any]]) -> Table:
    header = ("NAME", "ROLE", "CREATED", "BY", "EXPIRES")
    rows = [
        (
            item["name"],
            item["role"],
            moment(item.get("created_at")),
            item.get("created_by"),
            moment(item.get("expires_at")),
        )
        for item in items
    ]
    return Table.of(header, rows)
