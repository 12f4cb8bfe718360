"""The routes of rules: pull secrets and auth files."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from flask import Response
from marshmallow import fields

from secretsvc.core.errors import NotFound, StoreError
from secretsvc.core.model import OperationKind
from secretsvc.core.rules import (
    AuthFileRule,
    PullSecretRule,
    Rule,
)
from secretsvc.web import schemas
from secretsvc.web.answers import (
    AuthFileAnswer,
    ChangedAuthFileAnswer,
    ChangedPullSecretAnswer,
    ListAnswer,
    OperationAnswer,
    PullSecretAnswer,
)
from secretsvc.web.deliveries import DeliveryList, delivery_row
from secretsvc.web.exchange import (
    Answer,
    accepted,
    expected_version,
    page,
    preference_applied,
    same_name,
    settled_or_seen,
    tag,
    tagged,
)
from secretsvc.web.openapi import PREFIX, Resource
from secretsvc.web.services import principal, services
from secretsvc.workflows.assign import Assigned, AuthFileDraft, PullSecretDraft

pull_secrets = Resource("pull-secrets", "Secrets of type dockerconfigjson in namespaces")
auth_files = Resource("auth-files", "Auth files on hosts")

_PULL_SECRETS = "/pull-secrets"
_AUTH_FILES = "/auth-files"


class PullSecretList(ListAnswer):
    """Pull secrets by name."""

    items = fields.List(fields.Nested(PullSecretAnswer), required=True)


class AuthFileList(ListAnswer):
    """Auth files by name."""

    items = fields.List(fields.Nested(AuthFileAnswer), required=True)


# --- Pull secrets ---------------------------------------------------------------------------------


@pull_secrets.call("GET", _PULL_SECRETS, query=schemas.Page, answer=PullSecretList)
def list_pull_secrets(wished: dict[str, Any]) -> dict[str, object]:
    """List pull secrets."""
    return page(services().reporter.rules(PullSecretRule), lambda row: row.rule.name, wished)


@pull_secrets.call(
    "POST",
    _PULL_SECRETS,
    body=schemas.NewPullSecret,
    answer=ChangedPullSecretAnswer,
    status=201,
    tagged=True,
    waits=True,
)
def add_pull_secret(given: dict[str, Any]) -> Answer:
    """Add a pull secret. With `Prefer: wait` the answer comes when its namespaces were seen to."""
    assigned = services().assigner.add_pull_secret(_pull_secret(given, given["name"]), principal().name)
    return _changed(assigned, HTTPStatus.CREATED, f"{PREFIX}{_PULL_SECRETS}/{given['name']}")


@pull_secrets.call("GET", f"{_PULL_SECRETS}/<name:name>", answer=PullSecretAnswer, tagged=True)
def get_pull_secret(name: str) -> Answer | Response:
    """Show a pull secret."""
    report = services().reporter.rule(PullSecretRule, name)
    return tagged(report, report.version)


@pull_secrets.call(
    "PUT",
    f"{_PULL_SECRETS}/<name:name>",
    body=schemas.PullSecretChange,
    answer=ChangedPullSecretAnswer,
    tagged=True,
    waits=True,
)
def put_pull_secret(given: dict[str, Any], name: str) -> Answer:
    """Replace a pull secret's description; namespaces that it no longer names lose our Secret."""
    same_name(given, name)
    draft = _pull_secret(given, name)
    assigned = services().assigner.change_pull_secret(draft, expected_version(), principal().name)
    return _changed(assigned, HTTPStatus.OK)


@pull_secrets.call(
    "DELETE", f"{_PULL_SECRETS}/<name:name>", answer=OperationAnswer, status=202, tagged=True, waits=True
)
def delete_pull_secret(name: str) -> Answer:
    """Delete a pull secret and, unless it says `keep`, exactly the Secrets it made."""
    return _deleted(PullSecretRule, name)


@pull_secrets.call(
    "POST", f"{_PULL_SECRETS}/<name:name>/sync", answer=OperationAnswer, status=202, waits=True
)
def sync_pull_secret(name: str) -> Answer:
    """Look at every namespace of a pull secret now."""
    return _synced(PullSecretRule, name)


@pull_secrets.call("GET", f"{_PULL_SECRETS}/<name:name>/deliveries", query=schemas.Page, answer=DeliveryList)
def pull_secret_deliveries(wished: dict[str, Any], name: str) -> dict[str, object]:
    """List a pull secret's namespaces and what is known of each."""
    return _deliveries(PullSecretRule, wished, name)


# --- Auth files -----------------------------------------------------------------------------------


@auth_files.call("GET", _AUTH_FILES, query=schemas.Page, answer=AuthFileList)
def list_auth_files(wished: dict[str, Any]) -> dict[str, object]:
    """List auth files."""
    return page(services().reporter.rules(AuthFileRule), lambda row: row.rule.name, wished)


@auth_files.call(
    "POST",
    _AUTH_FILES,
    body=schemas.NewAuthFile,
    answer=ChangedAuthFileAnswer,
    status=201,
    tagged=True,
    waits=True,
)
def add_auth_file(given: dict[str, Any]) -> Answer:
    """Add an auth file. With `Prefer: wait` the answer comes when it was seen to."""
    assigned = services().assigner.add_auth_file(_auth_file(given, given["name"]), principal().name)
    return _changed(assigned, HTTPStatus.CREATED, f"{PREFIX}{_AUTH_FILES}/{given['name']}")


@auth_files.call("GET", f"{_AUTH_FILES}/<name:name>", answer=AuthFileAnswer, tagged=True)
def get_auth_file(name: str) -> Answer | Response:
    """Show an auth file."""
    report = services().reporter.rule(AuthFileRule, name)
    return tagged(report, report.version)


@auth_files.call(
    "PUT",
    f"{_AUTH_FILES}/<name:name>",
    body=schemas.AuthFileChange,
    answer=ChangedAuthFileAnswer,
    tagged=True,
    waits=True,
)
def put_auth_file(given: dict[str, Any], name: str) -> Answer:
    """Replace an auth file's description; entries that it no longer names are taken out of the file."""
    same_name(given, name)
    draft = _auth_file(given, name)
    assigned = services().assigner.change_auth_file(draft, expected_version(), principal().name)
    return _changed(assigned, HTTPStatus.OK)


@auth_files.call(
    "DELETE", f"{_AUTH_FILES}/<name:name>", answer=OperationAnswer, status=202, tagged=True, waits=True
)
def delete_auth_file(name: str) -> Answer:
    """Delete an auth file's rule and, unless it says `keep`, exactly the entries it made."""
    return _deleted(AuthFileRule, name)


@auth_files.call("POST", f"{_AUTH_FILES}/<name:name>/sync", answer=OperationAnswer, status=202, waits=True)
def sync_auth_file(name: str) -> Answer:
    """Look at an auth file now."""
    return _synced(AuthFileRule, name)


@auth_files.call("GET", f"{_AUTH_FILES}/<name:name>/deliveries", query=schemas.Page, answer=DeliveryList)
def auth_file_deliveries(wished: dict[str, Any], name: str) -> dict[str, object]:
    """List an auth file's hosts and what is known of each."""
    return _deliveries(AuthFileRule, wished, name)


# --- The parts ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Changed:
    """What the ``Changed...Answer`` schemas dump."""

    rule: Rule
    counts: dict[str, int]
    operation: str


def _pull_secret(given: dict[str, Any], name: str) -> PullSecretDraft:
    return PullSecretDraft(
        name=name,
        secret_name=given["secret_name"],
        credentials=tuple(given["credentials"]),
        namespaces=tuple(given["namespaces"]["names"]),
        cluster=given["cluster"],
        keep=given["keep"],
    )


def _auth_file(given: dict[str, Any], name: str) -> AuthFileDraft:
    return AuthFileDraft(
        name=name,
        path=given["path"],
        dialect=given["dialect"],
        credentials=tuple(given["credentials"]),
        hosts=tuple(given["hosts"]["names"]),
        keep=given["keep"],
    )


def _changed(assigned: Assigned, status: int, location: str = "") -> Answer:
    """Answer with the rule as it was written and, after the wait, what is known of its targets."""
    settled_or_seen(assigned.operation, OperationKind.SYNC)
    stored = assigned.rule
    changed = _Changed(stored.record, _counts(stored.record), assigned.operation)
    headers = tag(stored.version) | preference_applied()
    return changed, status, headers | ({"Location": location} if location else {})


def _counts(rule: Rule) -> dict[str, int]:
    try:
        return services().reporter.rule(type(rule), rule.name).counts
    except (NotFound, StoreError):  # the rule is stored: looking at it is a courtesy
        return {}


def _deleted(kind: type[PullSecretRule | AuthFileRule], name: str) -> Answer:
    identifier = services().assigner.delete(kind, name, expected_version(), principal().name)
    return accepted(identifier, OperationKind.REMOVE)


def _synced(kind: type[PullSecretRule | AuthFileRule], name: str) -> Answer:
    return accepted(services().assigner.sync(kind, name, principal().name), OperationKind.SYNC)


def _deliveries(
    kind: type[PullSecretRule | AuthFileRule], wished: dict[str, Any], name: str
) -> dict[str, object]:
    rows = [delivery_row(report) for report in services().reporter.deliveries(kind, name)]
    return page(sorted(rows, key=lambda row: row.key), lambda row: row.key, wished)
