"""What the command line says of what is not well."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import click
import pytest

from secretsvc.cli import cli
from secretsvc.cli.exits import ApiProblem
from secretsvc.cli.explain import (
    credential_notes,
    for_a_terminal,
    name_options,
    of_usage,
    shortfall,
    target_notes,
)
from secretsvc.cli.output import Terminal
from secretsvc.core.model import Outcome
from tests.serving import Serving


def credential(state: str, outcome: str | None = None, **facts: Any) -> dict[str, Any]:
    verdict = {"outcome": outcome, "reason": "SomeReason", "message": "what was said"} if outcome else None
    return {"name": "prod", "registry": "reg1", "state": state, "verdict": verdict, **facts}


@pytest.mark.parametrize(
    ("item", "why", "what"),
    [
        (credential("stale", "VALID"), "registry reg1", "rotate prod --manual"),
        (credential("invalid", "INVALID"), "(SomeReason): what was said", "rotate prod --manual"),
        (
            credential("expired", "VALID", expires_at="2026-01-01T00:00:00.5Z"),
            "2026-01-01T00:00:00Z",
            "rotate",
        ),
        (credential("expired", "EXPIRED", expires_at=None), "(SomeReason): what was said", "rotate"),
        (credential("unverified", "UNAVAILABLE"), "(SomeReason): what was said", "registry ping reg1"),
        (credential("unverified", Outcome.UNVERIFIABLE), "can not tell", "validate prod"),
        (credential("unverified", operation="x"), "being stored", "history prod"),
        (credential("unverified", operation=None), "no value", "rotate prod --manual"),
    ],
)
def test_a_credential_that_is_not_active_has_its_reason_and_what_to_do(
    item: dict[str, Any], why: str, what: str
) -> None:
    reason, to_do = credential_notes(item)
    assert why in reason
    assert to_do.startswith("do: ")
    assert what in to_do


def test_nothing_is_said_of_what_is_well() -> None:
    assert credential_notes(credential("active", "VALID")) == ()
    assert target_notes({"state": "synced", "reason": "InSync", "message": "as wanted"}) == ()


def test_a_target_says_why() -> None:
    row = {"state": "pending", "reason": "NamespaceMissing", "message": "no such namespace"}
    assert target_notes(row) == ("NamespaceMissing: no such namespace",)
    assert target_notes({"state": "pending", "reason": "", "message": ""})[0]


@pytest.mark.parametrize(
    ("bad", "text"),
    [(0, ""), (1, "1 of 5 targets does not have it"), (2, "2 of 5 targets do not have it")],
)
def test_how_many_targets_lack_it(bad: int, text: str) -> None:
    rows = [{"state": "failed"}] * bad + [{"state": "synced"}] * (4 - bad) + [{"state": "removed"}]
    assert shortfall(rows) == text


def test_a_401_names_the_token_file_and_the_way_back() -> None:
    error = for_a_terminal(
        ApiProblem(401, {"detail": "unknown", "hint": "send Bearer"}), Path("/x/admin.token")
    )
    assert "/x/admin.token" in error.hint
    assert "token reset --local" in error.hint


def test_hints_for_programs_are_left_out_and_others_stay() -> None:
    serving = Serving()
    refused = serving.call("POST", "/tokens", json={"name": "x", "role": "none"})
    assert refused.json is not None
    assert "/openapi.json" in refused.json["hint"]
    assert for_a_terminal(ApiProblem(422, refused.json), None).hint == ""
    assert for_a_terminal(ApiProblem(422, {"hint": "do this"}), None).hint == "do this"


def command(*names: str) -> tuple[click.Command, click.Context]:
    found: click.Command = cli
    context = click.Context(cli)
    for name in names:
        assert isinstance(found, click.Group)
        child = found.get_command(context, name)
        assert child is not None
        found, context = child, click.Context(child, info_name=name, parent=context)
    return found, context


@pytest.mark.parametrize(
    ("names", "pointer", "shown"),
    [
        (("credential", "rollback"), "/reason", "--reason TEXT"),
        (("credential", "add"), "/registry", "--registry TEXT"),
        (("credential", "add"), "/name", "NAME"),
        (("credential", "add"), "/type", "--type [token|password]"),
        (("credential", "add"), "/secret", "the value"),
        (("credential", "add"), "/expires_at", "--expires-at TIME"),
        (("credential", "add"), "/allow_unverified", "--allow-unverified"),
        (("credential", "add"), "/labels/x", "--label KEY=VALUE"),
        (("pull-secret", "add"), "/namespaces/names/0", "--namespace TEXT"),
        (("pull-secret", "add"), "/credentials/1", "--credential TEXT"),
        (("registry", "add"), "/ca", "--ca-file FILE"),
        (("registry", "add"), "/realms/0", "--realm TEXT"),
        (("token", "create"), "/expires_in", "--expires-in DURATION"),
    ],
)
def test_a_wrong_field_is_named_as_it_was_given(names: tuple[str, ...], pointer: str, shown: str) -> None:
    error = ApiProblem(422, {"detail": "no", "errors": [{"pointer": pointer, "detail": "is wrong"}]})
    name_options(error, *command(*names))
    said = io.StringIO()
    Terminal(io.StringIO(), said).problem(error)
    assert said.getvalue().splitlines() == ["error: no", f"  {shown}: is wrong"]


def test_a_field_that_no_option_gave_keeps_its_pointer() -> None:
    error = ApiProblem(422, {"detail": "no", "errors": [{"pointer": "/odd", "detail": "is wrong"}]})
    name_options(error, *command("credential", "rollback"))
    assert error.given_as == {}


def test_nothing_is_said_twice() -> None:
    said = io.StringIO()
    terminal = Terminal(io.StringIO(), said)
    verdict = {"outcome": "INVALID", "reason": "LoginRefused", "message": "refused.", "steps": []}
    terminal.problem(ApiProblem(422, {"detail": "refused.", "verdict": verdict}))
    users = ["credential/prod", "credential/dev"]
    terminal.problem(ApiProblem(409, {"detail": "used by credential/prod", "users": users}))
    assert said.getvalue().splitlines() == [
        "error: refused.",
        "  INVALID (LoginRefused)",
        "error: used by credential/prod",
        "  used by: credential/dev",
    ]


def test_a_usage_error_points_to_the_help_of_its_command() -> None:
    _, context = command("credential", "add")
    error = of_usage(click.UsageError("what", context))
    assert error.message == "what"
    assert "credential add --help" in error.hint
    assert of_usage(click.UsageError("what")).hint == ""
