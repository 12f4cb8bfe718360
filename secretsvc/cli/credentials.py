"""``secretsvc credential``: register, replace, roll back. Values come from standard input or a prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import click

from secretsvc.cli.client import Answer, segment
from secretsvc.cli.exits import BadAnswer
from secretsvc.cli.explain import credential_notes, lacking, target_notes
from secretsvc.cli.imports import import_
from secretsvc.cli.output import Part, verdict_lines
from secretsvc.cli.session import (
    SETTLED,
    Group,
    Session,
    pass_session,
    progress,
    raise_failure,
    timeout_option,
)
from secretsvc.cli.tables import Item, Table, clean, moment
from secretsvc.cli.values import no_value_arguments, read_value
from secretsvc.core.model import (
    CredentialType,
    Outcome,
)

_TYPES = [known.value for known in CredentialType]


@click.group(cls=Group)
def credential() -> None:
    """Credentials: register, replace, roll back."""


credential.add_command(import_)


@credential.command("add")
@click.argument("name")
@click.option("--registry", required=True, help="A registry's name, or its host (with a dot or a port).")
@click.option("--username", required=True, help="As the registry knows it; often with a prefix of its own.")
@click.option("--type", "kind", type=click.Choice(_TYPES), required=True, help="What kind of login it is.")
@click.option(
    "--allow-unverified",
    is_flag=True,
    help="Keep it although the registry could not be asked; never although it refused it.",
)
@click.option("--expires-at", metavar="TIME", help="When it ends, such as 2027-01-31T00:00:00Z.")
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="To find it by. May be repeated.")
@timeout_option()
@no_value_arguments
@pass_session
def add(session: Session, /, name: str, timeout: float, **given: Any) -> None:  # noqa: ANN401
    """Register a credential: its value is proved at the registry, then stored.

    The value comes from standard input, without its line end, or from a hidden prompt.

    \b
    secretsvc credential add prod --registry registry.example.com --username 'robot$ci' --type token
    pass show registry/prod | secretsvc credential add prod --registry reg1 --username ci --type token
    """
    body = {
        "name": name,
        "registry": given["registry"],
        "username": given["username"],
        "type": given["kind"],
        "secret": read_value(f"Value ({given['kind']}) of {given['username']}"),
        "allow_unverified": given["allow_unverified"],
    }
    if given["expires_at"]:
        body["expires_at"] = _time(given["expires_at"])
    if given["labels"]:
        body["labels"] = _labels(given["labels"])
    with session.terminal.waiting(f"proving {given['username']} at {given['registry']}"):
        answer = session.api.call("POST", "/credentials", body)
    tell_registered(session, answer.body)
    if _goes_on(session, answer.body):
        raise_failure(session.follow(answer, f"storing {name}", timeout, _see(name)))
    current = session.api.get(_path(name)).body
    session.terminal.show(current, lambda: table([current]))


@credential.command("list")
@click.option("--state", help="Only those in this state: active, unverified, invalid, expired or stale.")
@click.option("--registry", help="Only those at this registry.")
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="Only those with this label.")
@pass_session
def list_(session: Session, state: str | None, registry: str | None, labels: tuple[str, ...]) -> None:
    """List credentials."""
    query = {"state": state, "registry": registry, "label": labels}
    items = list(session.api.items("/credentials", {key: value for key, value in query.items() if value}))
    session.terminal.show({"items": items}, lambda: table(items))


@credential.command("get")
@click.argument("name")
@pass_session
def get(session: Session, name: str) -> None:
    """Show one credential, and every target it reaches."""
    body = session.api.get(_path(name)).body
    deliveries = list(session.api.items(f"{_path(name)}/deliveries"))
    session.terminal.show(
        {**body, "targets": deliveries},
        lambda: [table([body]), _besides(body), *_verdict_text(body), deliveries_table(deliveries)],
    )


@credential.command("set")
@click.argument("name")
@click.option(
    "--label", "labels", multiple=True, metavar="KEY=VALUE", help="Add or change it. May be repeated."
)
@click.option(
    "--remove-label", "removed", multiple=True, metavar="KEY", help="Take it away. May be repeated."
)
@click.option("--expires-at", metavar="TIME|never", help="When it ends, such as 2027-01-31T00:00:00Z.")
@pass_session
def set_(
    session: Session, name: str, labels: tuple[str, ...], removed: tuple[str, ...], expires_at: str | None
) -> None:
    """Change a credential's labels or the time it ends; what is not named stays. Its value has its own verb.

    \b
    secretsvc credential set prod --label team=shop --expires-at 2027-01-31T00:00:00Z
    """
    if not (labels or removed or expires_at):
        raise click.UsageError("say what to change: --label, --remove-label or --expires-at")
    found = session.api.get(_path(name))
    body: dict[str, Any] = {}
    if labels or removed:
        kept = {key: value for key, value in found.body["labels"].items() if key not in removed}
        body["labels"] = kept | _labels(labels)
    if expires_at:
        body["expires_at"] = None if expires_at == "never" else _time(expires_at)
    changed = session.api.call("PATCH", _path(name), body, etag=found.etag).body
    session.terminal.show(changed, lambda: [table([changed]), _besides(changed)])


@credential.command("rotate")
@click.argument("name")
@click.option("--manual", is_flag=True, help="You give the new value (standard input or prompt).")
@click.option("--username", help="The new value's username, when it is another one.")
@click.option(
    "--type", "kind", type=click.Choice(_TYPES), help="The new value's type, when it is another one."
)
@click.option("--allow-unverified", is_flag=True, help="Take it although the registry could not be asked.")
@click.option("--expires-at", metavar="TIME", help="When the new value ends.")
@timeout_option(300)
@no_value_arguments
@pass_session
def rotate(session: Session, /, name: str, timeout: float, **given: Any) -> None:  # noqa: ANN401
    """Replace a credential's value everywhere.

    The new value is proved, becomes the next generation, and reaches every target. A value that the
    registry refuses changes nothing.

    \b
    secretsvc credential rotate prod --manual < new-token
    """
    if not given["manual"]:
        raise click.UsageError(
            "no issuer is set up for it: make the new value at the registry and give it with --manual"
        )
    found = session.api.get(_path(name))
    body = {
        "username": given["username"] or found.body["username"],
        "type": given["kind"] or found.body["type"],
        "secret": read_value(f"New value of {found.body['username']} at {found.body['registry']}"),
        "allow_unverified": given["allow_unverified"],
    }
    if given["expires_at"]:
        body["expires_at"] = _time(given["expires_at"])
    with session.terminal.waiting(f"proving the new value of {name}"):
        answer = session.api.call("PUT", f"{_path(name)}/secret", body, etag=found.etag)
    tell_registered(session, answer.body)
    if _goes_on(session, answer.body):
        _distribute(session, name, answer, f"replacing {name}", timeout)


@credential.command("rollback")
@click.argument("name")
@click.option("--force", is_flag=True, help="Although the previous value is no longer accepted.")
@click.option("--reason", default="", help="Why; needed with --force, and recorded.")
@timeout_option(300)
@pass_session
def rollback(session: Session, name: str, force: bool, reason: str, timeout: float) -> None:
    """Publish the previous generation again, after proving it."""
    body: dict[str, Any] = {"force": force}
    if reason:
        body["reason"] = reason
    answer = session.api.call("POST", f"{_path(name)}/rollback", body)
    _distribute(session, name, answer, f"rolling {name} back", timeout)


@credential.command("validate")
@click.argument("name")
@timeout_option()
@pass_session
def validate(session: Session, name: str, timeout: float) -> None:
    """Prove the current value at the registry again."""
    answer = session.api.call("POST", f"{_path(name)}/validate")
    raise_failure(session.follow(answer, f"proving {name}", timeout, _see(name)))
    body = session.api.get(_path(name)).body
    session.terminal.show(body, lambda: [table([body]), *_verdict_text(body)])
    if body["state"] != "active":
        raise BadAnswer(f"credential {name} is {body['state']}")


@credential.command("delete")
@click.argument("name")
@pass_session
def delete(session: Session, name: str) -> None:
    """Forget a credential that no rule uses. Nothing at the registry is touched."""
    session.api.call("DELETE", _path(name), etag=session.api.get(_path(name)).etag)
    session.terminal.note(f"credential {name} is deleted; it still exists at the registry")


@credential.command("history")
@click.argument("name")
@pass_session
def history(session: Session, name: str) -> None:
    """Show a credential's generations and its operations, an open one first."""
    # The open one is read first: if it ends meanwhile it is among the finished ones, and shown once.
    under_way = _open_operation(session, name)
    generations = list(session.api.items(f"{_path(name)}/generations"))
    operations = list(session.api.items(f"{_path(name)}/history"))
    if under_way and under_way["id"] not in [row["id"] for row in operations]:
        operations.insert(0, under_way)
    data = {"generations": generations, "operations": operations}
    session.terminal.show(data, lambda: _history(generations, operations))


def tell_registered(session: Session, body: Mapping[str, Any]) -> None:
    """Say on standard error how the registry answered, step by step."""
    if body.get("registry_created"):
        session.terminal.note(f"registry {body['registry_created']} was unknown and is registered now")
    if isinstance(body.get("verdict"), Mapping):
        session.terminal.note("\n".join(verdict_lines(body["verdict"])))


def table(items: list[dict[str, Any]]) -> Table:
    """Return credentials as a table, with what to do below each that is not active."""
    header = ("NAME", "REGISTRY", "USERNAME", "STATE", "GEN", "VERDICT", "TARGETS", "EXPIRES")
    return Table(header, [Item(_row(item), credential_notes(item)) for item in items], empty="none")


def deliveries_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return targets as a table, with the reason below each that does not have what it should."""
    header = ("RULE", "TARGET", "STATE", "GEN")
    return Table(header, [Item(_delivery_row(row), target_notes(row)) for row in rows], empty="no targets")


def _row(item: Mapping[str, Any]) -> tuple[object, ...]:
    counts = item.get("deliveries") or {}
    verdict = item.get("verdict") or {}
    return (
        item["name"],
        item["registry"],
        item["username"],
        item["state"],
        item.get("generation") or None,
        verdict.get("outcome"),
        f"{counts.get('synced', 0)}/{counts.get('total', 0)}",
        moment(item.get("expires_at")),
    )


def _besides(body: Mapping[str, Any]) -> str:
    """Return what the table has no room for."""
    labels = ",".join(f"{key}={value}" for key, value in sorted(body["labels"].items()))
    return clean(f"a {body['type']}; " + (f"labels {labels}" if labels else "no labels"))


def _delivery_row(row: Mapping[str, Any]) -> tuple[object, ...]:
    target = row["target"]
    where = target.get("path") or f"{target.get('cluster')}/{target.get('namespace')}"
    return (row["rule"], where, row["state"], row.get("generation") or None)


def _open_operation(session: Session, name: str) -> dict[str, Any] | None:
    identifier = session.api.get(_path(name)).body["operation"]
    if not identifier:
        return None
    found: dict[str, Any] = session.api.get(f"/operations/{segment(identifier)}").body
    return found


def _history(generations: list[dict[str, Any]], operations: list[dict[str, Any]]) -> list[Part]:
    stages = [(row["number"], row["stage"]) for row in generations]
    header = ("AT", "OPERATION", "STATE", "BY")
    return [
        Table.of(("GENERATION", "STAGE"), stages, empty="no generations"),
        Table(header, [_operation_item(row) for row in operations], empty="no operations"),
    ]


def _operation_item(row: Mapping[str, Any]) -> Item:
    error = row.get("error") or {}
    below = [error["message"]] if error else []
    if row["state"] not in SETTLED:
        below = [f"under way: {progress(row)}; `secretsvc operation wait {row['id']}`"]
    return Item((moment(row["updated_at"]), row["kind"], row["state"], row.get("requested_by")), tuple(below))


def _verdict_text(body: Mapping[str, Any]) -> list[str]:
    verdict = body.get("verdict")
    return ["\n".join(verdict_lines(verdict))] if verdict else []


def _goes_on(session: Session, body: Mapping[str, Any]) -> bool:
    """Whether the value is put to use now; one that was only kept waits for its registry, and so would we."""
    outcome = str((body.get("verdict") or {}).get("outcome", ""))
    if outcome == Outcome.UNVERIFIABLE:
        session.terminal.warn("the registry can not tell whether the value is right; it is used on your word")
        return True
    if not outcome.startswith(Outcome.VALID):
        session.terminal.warn("the value is kept but not proved; it is used when its registry confirms it")
        return False
    return True


def _distribute(session: Session, name: str, answer: Answer, what: str, timeout: float) -> None:
    operation = session.follow(answer, what, timeout, _see(name))
    rows = list(session.api.items(f"{_path(name)}/deliveries"))
    body = session.api.get(_path(name)).body
    stragglers = lacking(rows)
    published = operation["state"] == "succeeded" or body["generation"] == operation["generation"]

    def screen() -> list[Part]:
        # What was not published changed nothing: a table that shows all well would only mislead.
        return [table([body]), *([deliveries_table(stragglers)] if stragglers else [])] if published else []

    session.terminal.show({"credential": body, "operation": operation, "stragglers": stragglers}, screen)
    raise_failure(operation)


def _labels(given: tuple[str, ...]) -> dict[str, str]:
    labels = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not (key and equals):
            raise click.UsageError(f"--label {text!r}: a label is KEY=VALUE")
        labels[key] = value
    return labels


def _time(text: str) -> str:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise click.UsageError("--expires-at: give a time such as 2027-01-31T00:00:00Z") from None
    if moment.tzinfo is None:
        raise click.UsageError("--expires-at: say the time zone, such as Z for UTC")
    return moment.isoformat()


def _see(name: str) -> str:
    return f"secretsvc credential get {segment(name)}"


def _path(name: str) -> str:
    return f"/credentials/{segment(name)}"
