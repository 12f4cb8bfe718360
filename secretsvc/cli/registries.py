"""``secretsvc registry``: where credentials are for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from secretsvc.cli.client import segment
from secretsvc.cli.exits import BadAnswer
from secretsvc.cli.output import verdict_lines
from secretsvc.cli.session import Group, Session, pass_session
from secretsvc.cli.tables import Table
from secretsvc.core.model import RegistryKind

_WISH = (
    "name",
    "host",
    "kind",
    "insecure",
    "ca",
    "realms",
    "networks",
    "probe_repository",
    "production_requires_token",
)
"""What a caller may say of a registry; the rest of an answer is ours."""
_BINDING = ("host", "realms", "insecure", "ca")
"""What a value is proved against: a change makes it stale."""


@click.group(cls=Group)
def registry() -> None:
    """Registries: where credentials are for."""


def _description(function: Any) -> Any:  # noqa: ANN401  # a decorator of click's
    options = (
        click.option(
            "--kind",
            type=click.Choice([known.value for known in RegistryKind]),
            help="Which product it is; by default told from the host: quay.io, ghcr.io, harbor.*, "
            "gitlab.* and so on, else generic.",
        ),
        click.option("--insecure/--secure", default=None, help="Allow plain HTTP."),
        click.option(
            "--ca-file",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            help="CA bundle (PEM) to verify it with.",
        ),
        click.option("--realm", "realms", multiple=True, help="URL prefix of a token server it may name."),
        click.option(
            "--network", "networks", multiple=True, help="Private network (CIDR) that it may be in."
        ),
        click.option("--probe-repository", help="A repository to try a pull on."),
        click.option(
            "--production-requires-token/--production-allows-password",
            default=None,
            help="Recorded; no rule looks at it yet.",
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


def _wish(ca_file: Path | None, **given: Any) -> dict[str, Any]:  # noqa: ANN401  # JSON
    """Return what was said of a registry, leaving out what was not."""
    if ca_file is not None:
        given["ca"] = ca_file.read_text("utf-8")
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in given.items()
        if value not in (None, ())
    }


@registry.command("add")
@click.argument("name")
@click.argument("host")
@_description
@pass_session
def add(session: Session, /, name: str, host: str, **given: Any) -> None:  # noqa: ANN401
    """Describe the registry HOST (host or host:port) under a NAME.

    \b
    secretsvc registry add reg1 registry.example.com
    secretsvc registry add lab 127.0.0.1:5000 --insecure --network 127.0.0.0/8
    """
    body = session.api.call("POST", "/registries", _wish(name=name, host=host, **given)).body
    _show(session, body)
    session.terminal.note(
        f"next: secretsvc credential add NAME --registry {name} --username USER --type token"
    )


@registry.command("set")
@click.argument("name")
@click.option("--host", help="host or host:port")
@_description
@pass_session
def set_(session: Session, /, name: str, **given: Any) -> None:  # noqa: ANN401
    """Change what is said of a registry; what is not named stays.

    When host, realms, CA or --insecure change, its credentials become stale and wait for a new value each.
    """
    path = f"/registries/{segment(name)}"
    found = session.api.get(path)
    wish = {key: found.body[key] for key in _WISH if key in found.body} | _wish(**given)
    changed = session.api.call("PUT", path, wish, etag=found.etag).body
    _show(session, changed)
    if any(found.body[key] != changed[key] for key in _BINDING):
        _warn_of_stale(session, name)


@registry.command("list")
@pass_session
def list_(session: Session) -> None:
    """List registries."""
    items = list(session.api.items("/registries"))
    session.terminal.show({"items": items}, lambda: _table(items))


@registry.command("get")
@click.argument("name")
@pass_session
def get(session: Session, name: str) -> None:
    """Show one registry."""
    _show(session, session.api.get(f"/registries/{segment(name)}").body)


@registry.command("ping")
@click.argument("name")
@pass_session
def ping(session: Session, name: str) -> None:
    """Ask a registry, without a login, whether it answers like one."""
    with session.terminal.waiting(f"asking {name}"):
        verdict = session.api.call("POST", f"/registries/{segment(name)}/ping").body
    session.terminal.show(verdict, lambda: "\n".join(verdict_lines(verdict)))
    if not str(verdict["outcome"]).startswith("VALID"):
        raise BadAnswer(f"{name} does not answer as a registry should", code=str(verdict["reason"]))


@registry.command("delete")
@click.argument("name")
@pass_session
def delete(session: Session, name: str) -> None:
    """Forget a registry that no credential uses. Nothing at the registry is touched."""
    path = f"/registries/{segment(name)}"
    session.api.call("DELETE", path, etag=session.api.get(path).etag)
    session.terminal.note(f"registry {name} is deleted")


def _warn_of_stale(session: Session, name: str) -> None:
    """Name the credentials whose values were proved against the registry as it was."""
    # A list may be some seconds old, one credential is read fresh.
    known = [item["name"] for item in session.api.items("/credentials", {"registry": name})]
    found = [session.api.get(f"/credentials/{segment(one)}").body for one in known]
    stale = [item["name"] for item in found if item["state"] == "stale"]
    if stale:
        one = len(stale) == 1
        what = f"credential {stale[0]} is" if one else f"credentials {', '.join(stale)} are"
        session.terminal.warn(
            f"{what} stale now: proved against {name} as it was, and not delivered anywhere new until "
            f"{'it' if one else 'each'} has a new value "
            f"(`secretsvc credential rotate {stale[0] if one else 'NAME'} --manual`) or {name} is set back"
        )


def _show(session: Session, body: dict[str, Any]) -> None:
    session.terminal.show(body, lambda: _table([body]))


def _table(items: list[dict[str, Any]]) -> Table:
    header = ("NAME", "HOST", "KIND", "HTTP", "NETWORKS")
    rows = [
        (item["name"], item["host"], item.get("kind"), item.get("insecure"), item.get("networks"))
        for item in items
    ]
    return Table.of(header, rows, empty="no registries")
