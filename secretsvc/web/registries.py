"""The routes of registries and clusters."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from flask import Response
from marshmallow import fields

from secretsvc.core.errors import DeliveryError, NotFound
from secretsvc.core.model import RegistrySpec
from secretsvc.web import schemas
from secretsvc.web.answers import ClusterAnswer, ClusterPingAnswer, ListAnswer, RegistryAnswer, VerdictAnswer
from secretsvc.web.exchange import Answer, expected_version, page, same_name, tag, tagged
from secretsvc.web.openapi import PREFIX, Resource
from secretsvc.web.services import ClusterInfo, principal, services
from secretsvc.workflows.register import RegistryDraft

registries = Resource("registries", "Registries and how to reach them")
clusters = Resource("clusters", "Kubernetes clusters that the settings give")


class RegistryList(ListAnswer):
    """Registries by name."""

    items = fields.List(fields.Nested(RegistryAnswer), required=True)


@registries.call("GET", "/registries", query=schemas.Page, answer=RegistryList)
def list_all(wished: dict[str, Any]) -> dict[str, object]:
    """List registries."""
    found = [stored.record for stored in services().desk.all(RegistrySpec)]
    return page(found, lambda registry: registry.name, wished)


@registries.call(
    "POST", "/registries", body=schemas.NewRegistry, answer=RegistryAnswer, status=201, tagged=True
)
def add(given: dict[str, Any]) -> Answer:
    """Register a registry."""
    stored = services().registrar.add_registry(_draft(given, given["name"]), principal().name)
    location = {"Location": f"{PREFIX}/registries/{stored.record.name}"}
    return stored.record, HTTPStatus.CREATED, location | tag(stored.version)


@registries.call("GET", "/registries/<name:name>", answer=RegistryAnswer, tagged=True)
def get(name: str) -> Answer | Response:
    """Show a registry."""
    stored = services().desk.find(RegistrySpec, name)
    return tagged(stored.record, stored.version)


@registries.call(
    "PUT", "/registries/<name:name>", body=schemas.RegistryChange, answer=RegistryAnswer, tagged=True
)
def put(given: dict[str, Any], name: str) -> Answer:
    """Replace a registry's description.

    When host, realms, `insecure` or `ca` change, its credentials become stale and wait for new values.
    """
    same_name(given, name)
    stored = services().registrar.change_registry(_draft(given, name), expected_version(), principal().name)
    return stored.record, HTTPStatus.OK, tag(stored.version)


@registries.call("DELETE", "/registries/<name:name>", status=204, tagged=True)
def delete(name: str) -> Response:
    """Delete a registry that no credential uses."""
    services().registrar.delete_registry(name, expected_version(), principal().name)
    return Response(status=HTTPStatus.NO_CONTENT)


@registries.call("POST", "/registries/<name:name>/ping", answer=VerdictAnswer)
def ping(name: str) -> object:
    """Ask a registry without a login whether it answers like one."""
    return services().registrar.ping_registry(name)


def _draft(given: dict[str, Any], name: str) -> RegistryDraft:
    return RegistryDraft(
        name=name,
        host=given["host"],
        kind=given["kind"],
        insecure=given["insecure"],
        ca=given["ca"],
        realms=tuple(given["realms"]),
        networks=tuple(given["networks"]),
        probe_repository=given["probe_repository"],
        production_requires_token=given["production_requires_token"],
    )


# --- Clusters -------------------------------------------------------------------------------------


class ClusterList(ListAnswer):
    """Clusters by name."""

    items = fields.List(fields.Nested(ClusterAnswer), required=True)


@clusters.call("GET", "/clusters", query=schemas.Page, answer=ClusterList)
def list_clusters(wished: dict[str, Any]) -> dict[str, object]:
    """List clusters."""
    found = [{"name": name} for name in sorted(services().clusters)]
    return page(found, lambda cluster: cluster["name"], wished)


@clusters.call("GET", "/clusters/<name:name>", answer=ClusterAnswer)
def get_cluster(name: str) -> dict[str, str]:
    """Show a cluster."""
    _cluster(name)
    return {"name": name}


@clusters.call("POST", "/clusters/<name:name>/ping", answer=ClusterPingAnswer)
def ping_cluster(name: str) -> dict[str, object]:
    """Ask a cluster's API server for its version."""
    cluster = _cluster(name)
    answer = {"name": name, "reachable": True, "version": "", "reason": "Answered", "message": "", "hint": ""}
    try:
        return answer | {"version": cluster.version(), "message": "The API server answers."}
    except DeliveryError as exc:
        return answer | {"reachable": False, "reason": exc.code, "message": exc.message, "hint": exc.hint}


def _cluster(name: str) -> ClusterInfo:
    found = services().clusters.get(name)
    if found is None:
        raise NotFound(f"there is no cluster {name!r}", hint="clusters are named in the settings")
    return found
