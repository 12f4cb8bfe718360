"""The command line without a service: what it refuses before it sends anything, and how it prints."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from secretsvc.cli import cli, main
from secretsvc.cli.authfiles import absolute, rule_name
from secretsvc.cli.client import ApiClient, read_token
from secretsvc.cli.exits import Exit, PartlyDone
from secretsvc.cli.imports import credential_name
from secretsvc.cli.output import OutputFormat, Terminal
from secretsvc.cli.session import Session, raise_failure, raise_undelivered
from secretsvc.cli.tables import aligned, clean
from secretsvc.cli.values import LIMIT, read_value
from secretsvc.core.errors import ConfigurationError, Unauthenticated
from secretsvc.core.ident import is_name

CANARY = "hunter2-canary"
ADD = ["credential", "add", "n", "--registry", "r", "--username", "u", "--type", "token"]


def run(arguments: list[str], **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "secretsvc", *arguments],
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", **environ},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


# --- Values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("piped", "value"),
    [
        (b"x\n", "x"),
        (b"x\r\n", "x"),
        (b"x", "x"),
        (b"x\n\n", "x\n"),
        (b" x \n", " x "),
        (b"a\nb\n", "a\nb"),
        (b"x\r", "x\r"),
        ("é$'\"".encode(), "é$'\""),
    ],
)
def test_exactly_one_line_end_is_taken_off(piped: bytes, value: str) -> None:
    assert read_value("Value", io.BytesIO(piped)).reveal() == value


@pytest.mark.parametrize("piped", [b"", b"\n", b"\xff\xfe", b"x" * (LIMIT + 1)])
def test_what_is_no_value_is_refused(piped: bytes) -> None:
    with pytest.raises(click.UsageError):
        read_value("Value", io.BytesIO(piped))


@pytest.mark.parametrize("option", ["--password", "--secret", "--token", "--value"])
@pytest.mark.parametrize("joined", [True, False])
@pytest.mark.parametrize("command", [ADD, ["credential", "rotate", "n", "--manual"], ["vault", "bootstrap"]])
def test_a_value_as_an_argument_is_refused_with_the_reason(
    option: str, joined: bool, command: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    given_value = [f"{option}={CANARY}"] if joined else [option, CANARY]
    assert main([*command, *given_value]) == Exit.USAGE
    said = capfd.readouterr()
    assert "never an argument" in said.err
    assert CANARY not in said.err + said.out


def test_no_command_takes_a_value_as_an_argument() -> None:
    def names(command: click.Command, context: click.Context) -> set[str]:
        found = {
            option for param in command.params for option in param.opts if not getattr(param, "hidden", 0)
        }
        if isinstance(command, click.Group):
            for name in command.list_commands(context):
                child = command.get_command(context, name)
                assert child is not None
                found |= names(child, context)
        return found

    assert not names(cli, click.Context(cli)) & {"--password", "--secret", "--token", "--value"}


# --- Tokens ---------------------------------------------------------------------------------------


def test_the_token_does_not_travel_in_clear_to_another_machine(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(f"{CANARY}\n")
    client = ApiClient("http://registry.example.com:8080", token, None)
    with pytest.raises(ConfigurationError, match="in clear"):
        client.get("/whoami")


def test_a_token_file_must_hold_one_token(tmp_path: Path) -> None:
    path = tmp_path / "token"
    for content in (b"", b"one two", b"\xff"):
        path.write_bytes(content)
        with pytest.raises(Unauthenticated):
            read_token(path)
    path.write_text("ssvc_x\n")
    assert read_token(path).reveal() == "ssvc_x"
    with pytest.raises(Unauthenticated, match="no API token"):
        read_token(None)


def test_without_a_token_it_says_how_to_give_one() -> None:
    done = run(["status"], SECRETSVC_DATA_DIR="/nonexistent")
    assert done.returncode == Exit.FORBIDDEN
    assert "SECRETSVC_TOKEN_FILE" in done.stderr
    assert done.stdout == ""


# --- Output ---------------------------------------------------------------------------------------


def test_a_problem_is_json_on_standard_error_when_json_was_asked_for() -> None:
    done = run(["status", "-o", "json"], SECRETSVC_DATA_DIR="/nonexistent")
    assert done.stdout == ""
    assert json.loads(done.stderr)["code"] == "Unauthenticated"


@pytest.mark.parametrize("place", ["before", "after"])
def test_the_format_may_stand_before_or_after_the_command(place: str) -> None:
    arguments = ["-o", "json", "version"] if place == "before" else ["version", "-o", "json"]
    done = run(arguments)
    assert json.loads(done.stdout)["version"]


def test_quiet_silences_remarks_and_progress() -> None:
    err = io.StringIO()
    terminal = Terminal(io.StringIO(), err, quiet=True)
    terminal.note("remark")
    with terminal.waiting("progress") as say:
        say("more")
    assert err.getvalue() == ""


def test_progress_without_a_terminal_is_silent_when_quick_and_never_on_standard_output() -> None:
    out, err = io.StringIO(), io.StringIO()
    with Terminal(out, err).waiting("progress") as say:
        say("more")
    assert (out.getvalue(), err.getvalue()) == ("", "")


@given(st.text())
def test_nothing_that_drives_a_terminal_is_printed(text: str) -> None:
    assert clean(text).isprintable()


def test_columns_are_aligned_and_never_cut() -> None:
    wide = "x" * 300
    lines = aligned(("A", "B"), [(wide, 1), ("y", None)]).splitlines()
    assert lines[1].startswith(wide)
    assert lines[2].split() == ["y", "-"]
    assert len({line.index(word) for line, word in zip(lines, ("B", "1", "-"), strict=True)}) == 1


def test_yaml_and_json_hold_the_same() -> None:
    for chosen in (OutputFormat.JSON, OutputFormat.YAML):
        out = io.StringIO()
        Terminal(out, io.StringIO(), chosen).show({"items": [{"name": "é"}]}, lambda: "table")
        assert "é" in out.getvalue()
        assert "table" not in out.getvalue()


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["status", "--nonsense"], ["credential", "get"], ["token", "create"]]
)
def test_what_is_wrong_with_a_command_line_is_said_like_any_other_error(
    arguments: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == Exit.USAGE
    said = capfd.readouterr().err.splitlines()
    assert said[0].startswith("error: ")
    assert said[1].startswith("hint: see `secretsvc")
    assert said[1].endswith("--help`")


# --- Outcomes -------------------------------------------------------------------------------------


def test_some_targets_are_partial_and_none_is_bad() -> None:
    good, bad = {"state": "synced"}, {"state": "conflict"}
    raise_undelivered([])
    raise_undelivered([good, {"state": "removed"}])
    with pytest.raises(PartlyDone):
        raise_undelivered([good, bad])
    with pytest.raises(Exception, match="1 of 1 targets"):
        raise_undelivered([bad])
    raise_failure({"state": "succeeded"})
    with pytest.raises(PartlyDone, match="late"):
        raise_failure({"state": "failed", "progress": {"done": 1}, "error": {"message": "late"}})


# --- Names and paths ------------------------------------------------------------------------------


@given(st.text(min_size=1).map(lambda text: f"/{text}"))
def test_a_rules_name_is_a_name_and_stable(path: str) -> None:
    try:
        path.encode()
    except UnicodeEncodeError:
        return
    assert is_name(rule_name(path))
    assert rule_name(path) == rule_name(path)


def test_two_paths_have_two_names() -> None:
    assert rule_name("/a/auth.json") != rule_name("/b/auth.json")
    assert rule_name("/x/a/auth.json") != rule_name("/y/a/auth.json")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/tmp/some-long-place-kqq3/repo/auth.json", "repo-auth-json"),
        ("/auth.json", "auth-json"),
        (f"/srv/{'x' * 30}/config.json", "config-json"),
        (f"/srv/{'x' * 60}", "x" * 33),
        ("/Root/.docker/config.json", "docker-config-json"),
    ],
)
def test_a_rule_is_named_after_its_last_folder_and_file(path: str, words: str) -> None:
    assert re.fullmatch(rf"{words}-[0-9a-f]{{6}}", rule_name(path))


@given(st.text())
def test_a_credentials_name_from_a_key_is_a_name(key: str) -> None:
    assert is_name(credential_name(key))


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("quay.io", "quay-io"),
        ("https://index.docker.io/v1/", "docker-io"),
        ("registry.example.com:5000/team/app", "registry-example-com-5000-team-app"),
    ],
)
def test_credential_names(key: str, name: str) -> None:
    assert credential_name(key) == name


def test_the_folder_of_a_path_is_resolved_and_the_file_is_not(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "real" / "auth.json").symlink_to("elsewhere")
    assert absolute(tmp_path / "link" / "x" / ".." / "auth.json") == tmp_path / "real" / "auth.json"


# --- Settings and start ---------------------------------------------------------------------------


def test_help_imports_nothing_slow() -> None:
    code = (
        "import sys; from secretsvc.cli import main; main(['--help']);"
        "slow = {'hvac', 'kubernetes', 'flask', 'aiohttp', 'gunicorn', 'cryptography'} & set(sys.modules);"
        "sys.exit(bool(slow) and str(slow))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", ["serve", "work", "doctor"])
def test_wrong_settings_are_one_clear_message(command: str) -> None:
    done = run([command], SECRETSVC_LISTEN="0.0.0.0:8080", SECRETSVC_STORE="x")
    assert done.returncode in (Exit.USAGE, Exit.BAD_ANSWER)
    said = done.stderr + done.stdout
    assert "SECRETSVC_LISTEN" in said
    assert "SECRETSVC_STORE" in said
    assert "Traceback" not in said


def test_doctor_makes_nothing(tmp_path: Path) -> None:
    done = run(
        ["doctor", "--local", "-o", "json"],
        SECRETSVC_DATA_DIR=str(tmp_path / "data"),
        SECRETSVC_KEY_FILE=str(tmp_path / "kek"),
    )
    assert done.returncode == Exit.OK
    checks = {row["check"]: row["severity"] for row in json.loads(done.stdout)["items"]}
    assert checks == {"settings": "ok", "data directory": "warning", "cluster default": "warning"}
    assert list(tmp_path.iterdir()) == []


def test_doctor_finds_an_open_key_file(tmp_path: Path) -> None:
    data, key = tmp_path / "data", tmp_path / "kek"
    data.mkdir(mode=0o700)
    key.write_text("x")
    key.chmod(0o644)
    places = {"SECRETSVC_DATA_DIR": str(data), "SECRETSVC_KEY_FILE": str(key)}
    done = run(["doctor", "--local", "-o", "json"], **places)
    assert done.returncode == Exit.BAD_ANSWER
    found = next(row for row in json.loads(done.stdout)["items"] if row["check"] == "key file")
    assert (found["severity"], found["hint"]) == ("error", f"chmod go= {key}")


def test_every_command_explains_itself() -> None:
    runner = CliRunner()

    def visit(command: click.Command, path: list[str], context: click.Context) -> None:
        shown = runner.invoke(cli, [*path, "--help"], obj=Session(Terminal(io.StringIO(), io.StringIO())))
        assert shown.exit_code == 0
        assert command.help, path
        if isinstance(command, click.Group):
            for name in command.list_commands(context):
                child = command.get_command(context, name)
                assert child is not None
                visit(child, [*path, name], context)

    visit(cli, [], click.Context(cli))


def test_a_defect_is_told_without_its_message() -> None:
    """An error of a library may quote what it failed on."""
    broken = f"""
import sys, click
from secretsvc.cli import cli, main

@cli.command("break")
def fail() -> None:
    raise ValueError({CANARY!r})

sys.exit(main(["break"]))
"""
    done = subprocess.run([sys.executable, "-c", broken], capture_output=True, text=True, timeout=60)
    assert done.returncode == Exit.DEFECT
    assert "defect: ValueError" in done.stderr
    assert " fail" in done.stderr
    assert CANARY not in done.stdout + done.stderr
