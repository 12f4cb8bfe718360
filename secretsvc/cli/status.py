"""``secretsvc status``: everything on one screen; exit code 1 when something is unhealthy."""

from __future__ import annotations

from typing import Any

import click

from secretsvc.cli.client import ApiClient, segment
from secretsvc.cli.credentials import deliveries_table
from secretsvc.cli.credentials import table as credentials_table
from secretsvc.cli.exits import BadAnswer
from secretsvc.cli.explain import lacking, shortfall
from secretsvc.cli.output import Part
from secretsvc.cli.session import Command, Session, pass_session
from secretsvc.cli.tables import Table

_RULES = (("pull-secrets", "pull_secrets"), ("auth-files", "auth_files"))


@click.command("status", cls=Command)
@pass_session
def status(session: Session) -> None:
    """Show registries, credentials and every target, with the reason of each.

    Exits with 1 when a credential is not active or a target does not have what it should.
    """
    with session.terminal.waiting("reading the service's state"):
        data = _read(session.api)
    session.terminal.show(data, lambda: _screen(data))
    if data["unhealthy"]:
        raise BadAnswer(
            f"unhealthy: {', '.join(data['unhealthy'])}", hint="the reason and what to do stand below each"
        )


def _read(api: ApiClient) -> dict[str, Any]:
    data: dict[str, Any] = {
        "registries": list(api.items("/registries")),
        "credentials": list(api.items("/credentials")),
    }
    deliveries: list[dict[str, Any]] = []
    for path, name in _RULES:
        data[name] = list(api.items(f"/{path}"))
        for rule in data[name]:
            deliveries += api.items(f"/{path}/{segment(rule['name'])}/deliveries")
    data["deliveries"] = deliveries
    data["unhealthy"] = _unhealthy(data)
    return data


def _unhealthy(data: dict[str, Any]) -> list[str]:
    credentials = [item for item in data["credentials"] if item["state"] != "active"]
    named = [f"credential {item['name']} is {item['state']}" for item in credentials]
    return named + ([shortfall(data["deliveries"])] if lacking(data["deliveries"]) else [])


def _screen(data: dict[str, Any]) -> list[Part]:
    registries = [(item["name"], item["host"], item["kind"]) for item in data["registries"]]
    return [
        Table.of(("REGISTRY", "HOST", "KIND"), registries, empty="no registries"),
        credentials_table(data["credentials"]),
        deliveries_table(data["deliveries"]),
    ]
