"""Logs: one line per event, UTC, and no value in any form."""

from __future__ import annotations

import base64
import io
import json
import logging
import urllib.parse
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from secretsvc.core.model import Secret
from secretsvc.telemetry.audit import LogAudit
from secretsvc.telemetry.logs import QUIET_LIBRARIES, adopt, bind_context, configure, describe, get_logger
from secretsvc.telemetry.redaction import SHORTEST, Redactor

VALUE = 'canary "quoted"/+&\\ é'


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """Where lines go; the process's logging is put back afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    bind_context()
    yield io.StringIO()
    bind_context()
    root.handlers[:] = handlers
    root.setLevel(level)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_an_event_is_one_json_line_with_its_context(stream: io.StringIO) -> None:
    configure("info", "json", Redactor(), stream)
    bind_context(request_id="r1")
    get_logger("room").info("thing.done", count=3)
    get_logger("room").debug("not.shown")
    (line,) = lines(stream)
    assert line["timestamp"].endswith("Z")
    assert {key: line[key] for key in ("event", "level", "logger", "request_id", "count")} == {
        "event": "thing.done",
        "level": "info",
        "logger": "room",
        "request_id": "r1",
        "count": 3,
    }


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_one_event_can_not_forge_another(stream: io.StringIO, log_format: Any) -> None:
    configure("info", log_format, Redactor(), stream)
    get_logger("room").info("a\nb", who="x\r\n2026 [info] forged \x1b[31m\u2028")
    logging.getLogger("gunicorn.error").info("boot %s", "y\nforged")
    assert len(stream.getvalue().splitlines()) == 2
    assert "\x1b" not in stream.getvalue()


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_values_in_hand_are_struck_out_in_every_form(stream: io.StringIO, log_format: Any) -> None:
    redactor = Redactor()
    configure("debug", log_format, redactor, stream)
    pair = f"robot$x:{VALUE}".encode()
    forms = [
        VALUE,
        urllib.parse.quote(VALUE, safe=""),
        urllib.parse.quote_plus(VALUE),
        json.dumps(VALUE),
        base64.b64encode(pair).decode(),
        base64.urlsafe_b64encode(pair).decode().rstrip("="),
        base64.b64encode(VALUE.encode()).decode(),
    ]
    with redactor.holding(Secret(VALUE), "robot$x"):
        for form in forms:
            get_logger("room").info("said", detail=form, nested={"list": [form]})
            logging.getLogger("urllib3.connectionpool").warning("sent %s", form)
            error = RuntimeError(form)
            logging.getLogger("gunicorn.error").error("oops %s", form, exc_info=error)
    text = stream.getvalue()
    assert text.count("***") >= 4 * len(forms)
    for form in forms:
        assert form not in text
        assert json.dumps(form)[1:-1] not in text


def test_a_value_is_forgotten_when_its_last_holder_is_done() -> None:
    redactor = Redactor()
    with redactor.holding(Secret("abcdefgh")):
        with redactor.holding(Secret("abcdefgh")):
            pass
        assert redactor.clean("xabcdefghx") == "x***x"
    assert redactor.clean("xabcdefghx") == "xabcdefghx"


@given(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=SHORTEST),
    st.text(max_size=5),
    st.text(max_size=5),
)
def test_any_value_is_struck_out_of_any_text(value: str, before: str, after: str) -> None:
    redactor = Redactor()
    with redactor.holding(Secret(value)):
        cleaned = redactor.clean(before + value + after)
    assert "***" in cleaned
    assert value not in cleaned or value in before + "***" + after


def test_fields_named_like_values_are_struck_out_whatever_they_hold(stream: io.StringIO) -> None:
    configure("info", "json", Redactor(), stream)
    get_logger("room").info(
        "sent",
        password="p1",
        Authorization="p2",
        headers={"X-Vault-Token": "p3", "Cookie": "p4"},
        token_name="shown",
    )
    text = stream.getvalue()
    assert not [value for value in ("p1", "p2", "p3", "p4") if value in text]
    assert "shown" in text


def test_a_secret_shows_itself_to_no_line(stream: io.StringIO) -> None:
    for log_format in ("json", "console"):
        configure("info", log_format, Redactor(), stream)  # type: ignore[arg-type]
        get_logger("room").info("said", thing=Secret(VALUE), things=[Secret(VALUE)])
    assert "canary" not in stream.getvalue()


def test_libraries_are_quiet_even_when_we_are_not(stream: io.StringIO) -> None:
    configure("debug", "json", Redactor(), stream)
    for name in QUIET_LIBRARIES:
        logging.getLogger(f"{name}.inner").info("chatter")
        logging.getLogger(f"{name}.inner").warning("worth it")
    get_logger("room").debug("ours")
    assert [line["event"] for line in lines(stream)] == ["worth it"] * len(QUIET_LIBRARIES) + ["ours"]
    configure("error", "json", Redactor(), stream)
    logging.getLogger("urllib3").warning("too little")
    assert len(lines(stream)) == len(QUIET_LIBRARIES) + 1


def test_adopted_loggers_use_our_handler(stream: io.StringIO) -> None:
    configure("info", "json", Redactor(), stream)
    theirs = logging.getLogger("gunicorn.error")
    theirs.addHandler(logging.StreamHandler(io.StringIO()))
    theirs.propagate = False
    adopt("gunicorn.error")
    theirs.warning("hello")
    assert [line["event"] for line in lines(stream)] == ["hello"]


def fail() -> None:
    value = VALUE
    raise ValueError(value) from KeyError(value)


def test_an_unforeseen_error_is_described_without_its_message() -> None:
    with pytest.raises(ValueError, match="canary") as caught:
        fail()
    described = describe(caught.value)
    assert described["error"] == "ValueError < KeyError"
    assert "fail" in str(described["places"])
    assert "canary" not in str(described)


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_no_exception_s_message_is_written_whoever_logs_it(stream: io.StringIO, log_format: Any) -> None:
    configure("info", log_format, Redactor(), stream)
    ours, theirs = structlog.stdlib.get_logger("room"), logging.getLogger("gunicorn.error")
    theirs.error("nothing", exc_info=True)  # as libraries do
    try:
        fail()
    except ValueError as exc:
        theirs.exception("oops")
        theirs.exception("never retrieved", exc_info=(type(exc), exc, exc.__traceback__))
        theirs.exception("a group", exc_info=ExceptionGroup(VALUE, [exc]))
        ours.error("ours", exc_info=True)
        ours.error("ours too", exc_info=exc)
    text = stream.getvalue()
    assert "canary" not in text
    assert len(text.splitlines()) == 6
    assert text.count("ValueError") == 5
    assert "ExceptionGroup < ValueError" in text
    assert text.count(" fail") == 5


def test_an_act_is_one_line_with_the_request_it_belongs_to(stream: io.StringIO) -> None:
    configure("info", "json", Redactor(), stream)
    bind_context(request_id="r7")
    audit = LogAudit(get_logger("audit"))
    audit.record(
        "token.create", "ci", actor="admin", outcome="stored", role="viewer", level=3, action_count=1
    )
    (line,) = lines(stream)
    expected = {
        "action": "token.create",
        "subject": "ci",
        "actor": "admin",
        "outcome": "stored",
        "role": "viewer",
    }
    assert expected.items() <= line.items()
    assert (line["event"], line["request_id"], line["level"], line["fact_level"]) == (
        "audit",
        "r7",
        "info",
        3,
    )
