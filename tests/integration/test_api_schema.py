"""Schemathesis against the application's own description: any input, and never a 5xx."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from secretsvc.core.model import Outcome
from tests.serving import CANARY, Serving

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
    unsupported_method,
]
SERVING = Serving()


def seeded() -> dict[tuple[str, str], Any]:
    """Store some records, so that not everything is a 404."""
    headers = {"Prefer": "wait=5"}
    assert SERVING.add_registry("a", "a.example.com").status_code == 201
    assert SERVING.add_credential("a", registry="a", headers=headers).status_code == 201
    assert SERVING.add_pull_secret("a", credentials=["a"]).status_code == 201
    assert SERVING.add_auth_file("a", credentials=["a"]).status_code == 201
    return SERVING.store.documents()


SEEDED = seeded()
HEADERS = {"Authorization": f"Bearer {SERVING.tokens['admin']}"}
schema = schemathesis.openapi.from_dict(
    SERVING.call("GET", "/openapi.json").json or {},
)
schema.app = SERVING.app


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    SERVING.store.reset(SEEDED)
    SERVING.prover.answer = Outcome.VALID
    yield
    assert CANARY not in SERVING.logs.getvalue()


@schema.parametrize()
@settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_no_input_is_a_server_error(case: schemathesis.Case) -> None:
    case.headers = {**(case.headers or {}), **HEADERS, "Prefer": "wait=0"}
    if "name" in (case.path_parameters or {}) and len(str(case.path_parameters["name"])) % 2:
        case.path_parameters["name"] = "a"
    response = case.call(app=SERVING.app)
    assert CANARY not in response.text
    case.validate_response(response, checks=CHECKS)


def test_the_description_is_valid() -> None:
    assert json.dumps(schema.raw_schema)
    schema.validate()
