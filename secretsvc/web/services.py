"""What the web room needs from the others, and how views reach it.

`Services` is made by the composition root and hung on the Flask application; a view asks `services()`, and
`principal()` for who is calling. There is nothing else a view could know.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, cast

from flask import Flask, current_app, g

from secretsvc.core.access import Principal
from secretsvc.core.errors import Unauthenticated
from secretsvc.telemetry.metrics import Metrics
from secretsvc.telemetry.redaction import Redactor
from secretsvc.web.waiting import Patience
from secretsvc.workflows.admit import Gatekeeper
from secretsvc.workflows.assign import Assigner
from secretsvc.workflows.records import Desk
from secretsvc.workflows.register import Registrar
from secretsvc.workflows.report import Reporter

_EXTENSION = "secretsvc"


class ClusterInfo(Protocol):
    """What serve may ask of a cluster."""

    def version(self) -> str:
        """Return the API server's version, or raise a `DeliveryError`."""
        ...


@dataclass(frozen=True, slots=True)
class Services:
    """Everything the application works with."""

    desk: Desk
    """Its store and its clock answer the probes and the lists of registries."""
    registrar: Registrar
    assigner: Assigner
    gatekeeper: Gatekeeper
    reporter: Reporter
    clusters: Mapping[str, ClusterInfo]
    """By name; the ones that the settings give."""
    version: str
    """Of this program."""
    metrics: Metrics
    redactor: Redactor
    """The one that the logs were configured with: values are remembered in it while they are in hand."""
    patience: Patience = field(default_factory=Patience)


def attach(app: Flask, services: Services) -> None:
    """Hang the services on the application."""
    app.extensions[_EXTENSION] = services


def services() -> Services:
    """Return the services of the application that is answering."""
    return cast("Services", current_app.extensions[_EXTENSION])


def admit(caller: Principal) -> None:
    """Remember who is calling, for this request."""
    g.principal = caller


def principal() -> Principal:
    """Return who is calling; the guard has made sure that somebody is."""
    found = g.get("principal")
    if not isinstance(found, Principal):
        raise Unauthenticated("this call needs an API token")
    return found


def caller_name() -> str:
    """Return the caller's name for logs, ``-`` before they are known."""
    found = g.get("principal")
    return found.name if isinstance(found, Principal) else "-"
