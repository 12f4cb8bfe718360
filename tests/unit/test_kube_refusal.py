"""What refusals of an API server become, and that nothing of them is quoted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secretsvc.core.errors import (
    DeliveryError,
    TargetChanged,
    TargetForbidden,
    TargetMissing,
    TargetUnreachable,
)
from secretsvc.delivery.refusal import refusal

ABOUT = "secret pull-secret in namespace a"


def refused(status: int, **answer: object) -> DeliveryError:
    return refusal("prod", status, {"kind": "Status", **answer}, "PATCH", ABOUT)


@pytest.mark.parametrize(
    ("status", "answer", "kind", "code"),
    [
        (401, {}, TargetForbidden, "LoginRefused"),
        (403, {"message": 'User "u" cannot create resource "secrets"'}, TargetForbidden, "RbacDenied"),
        (403, {"message": "exceeded quota: canary"}, TargetForbidden, "AdmissionDenied"),
        (
            403,
            {"details": {"causes": [{"reason": "NamespaceTerminating"}]}},
            TargetMissing,
            "NamespaceTerminating",
        ),
        (404, {"details": {"kind": "namespaces"}}, TargetMissing, "NamespaceMissing"),
        (404, {"details": {"kind": "secrets"}}, TargetMissing, "NotFound"),
        (409, {"reason": "Conflict"}, TargetChanged, "WriteConflict"),
        (422, {"details": {"causes": [{"field": "type"}, {"field": "type"}]}}, TargetForbidden, "Invalid"),
        (413, {}, TargetForbidden, "Invalid"),
        (429, {}, TargetUnreachable, "Overloaded"),
        (500, {}, TargetUnreachable, "ServerError"),
        (302, {}, TargetUnreachable, "ServerError"),
    ],
)
def test_each_refusal_has_its_error(
    status: int, answer: dict[str, object], kind: type[DeliveryError], code: str
) -> None:
    error = refused(status, **answer)
    assert (type(error), error.code) == (kind, code)
    assert ABOUT in error.message
    assert "prod" in error.message
    assert "canary" not in error.message + error.hint


def test_the_missing_verb_and_the_invalid_fields_are_named() -> None:
    denied = refused(403, message='secrets "x" is forbidden: User "u" cannot patch resource "secrets"')
    assert "may not patch" in denied.message
    assert "'patch'" in denied.hint
    invalid = refused(422, reason="Invalid", details={"causes": [{"field": "type"}, {"field": "data"}]})
    assert "(Invalid: type, data)" in invalid.message


def test_texts_that_are_no_names_are_left_out() -> None:
    answer = {"reason": "canary: a whole sentence", "details": {"causes": [{"field": "canary = 1"}]}}
    assert "(no reason given)" in refused(422, **answer).message


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(
    st.sampled_from([301, 400, 401, 403, 404, 409, 418, 422, 429, 500, 599]),
    st.dictionaries(st.sampled_from(["reason", "message", "details", "kind"]), json_values),
)
def test_no_answer_makes_it_fail(status: int, answer: dict[str, object]) -> None:
    assert isinstance(refusal("prod", status, answer, "GET", ABOUT), DeliveryError)


@given(json_values)
def test_no_details_make_it_fail(causes: object) -> None:
    answer = {"details": {"causes": causes, "kind": causes}}
    assert isinstance(refusal("prod", 409, answer, "GET", ABOUT), TargetChanged)
