"""The exit code table: total over our errors, and what the API's statuses become."""

from __future__ import annotations

import inspect

import pytest

from secretsvc.cli import exits
from secretsvc.cli.exits import ApiProblem, Exit, exit_for
from secretsvc.core import errors
from secretsvc.core.errors import SecretsvcError

OURS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, SecretsvcError)]


@pytest.mark.parametrize("kind", OURS, ids=lambda kind: kind.__name__)
def test_every_error_of_the_core_has_its_line(kind: type[SecretsvcError]) -> None:
    assert kind in exits.ERRORS
    assert exits.ERRORS[kind] not in (Exit.OK, Exit.DEFECT, Exit.INTERRUPTED)


def test_every_code_has_a_meaning() -> None:
    assert set(exits.MEANINGS) == set(Exit)
    assert [int(code) for code in exits.MEANINGS] == sorted(int(code) for code in Exit)


def test_an_error_without_a_line_takes_its_parents() -> None:
    class Odd(errors.TargetMissing):
        pass

    assert exit_for(Odd("x")) is Exit.NOT_FOUND


@pytest.mark.parametrize(
    ("status", "document", "code"),
    [
        (401, {}, Exit.FORBIDDEN),
        (403, {}, Exit.FORBIDDEN),
        (404, {}, Exit.NOT_FOUND),
        (409, {}, Exit.CONFLICT),
        (412, {}, Exit.CONFLICT),
        (422, {}, Exit.USAGE),
        (422, {"verdict": {"outcome": "INVALID"}}, Exit.BAD_ANSWER),
        (503, {"verdict": {"outcome": "UNAVAILABLE"}}, Exit.REMOTE),
        (500, {}, Exit.REMOTE),
        (429, {}, Exit.REMOTE),
        (504, {}, Exit.TIMED_OUT),
        (302, {}, Exit.REMOTE),
    ],
)
def test_statuses_of_the_api(status: int, document: dict[str, object], code: Exit) -> None:
    assert exit_for(ApiProblem(status, document)) is code
