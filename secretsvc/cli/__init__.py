"""The command line: ``secretsvc``.

Rules:

- Data goes to standard output, everything else to standard error; exit codes are those of `cli.exits`.
- Commands talk to the API. Only ``serve``, ``work``, ``doctor``, ``vault bootstrap``, ``token reset --local``
  and the reading half of ``credential import`` touch this machine or another server themselves.
- A command's module is imported when the command is used, so that ``--help`` stays quick.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from contextlib import suppress

import click

from secretsvc.cli.exits import MEANINGS, Exit, exit_for
from secretsvc.cli.explain import of_usage
from secretsvc.cli.output import Terminal
from secretsvc.cli.session import Group, Session, output_options, pass_session
from secretsvc.cli.tables import Table, moment
from secretsvc.core.errors import SecretsvcError
from secretsvc.settings import version

_COMMANDS = {
    "serve": ("serve", "Serve the API (and, with --with-worker, do the work too)."),
    "work": ("serve", "Do the work: make generations, deliver, watch."),
    "status": ("status", "Show registries, credentials and every target."),
    "doctor": ("doctor", "Check settings, files, store, clusters and registries."),
    "registry": ("registries", "Registries: where credentials are for."),
    "credential": ("credentials", "Credentials: register, replace, roll back."),
    "pull-secret": ("pullsecrets", "Pull secrets: which namespaces get which credentials."),
    "authfile": ("authfiles", "Auth files on this service's machine."),
    "token": ("tokens", "API tokens."),
    "operation": ("operations", "Work that outlives a request."),
    "vault": ("vault", "Prepare Vault or OpenBao."),
}
"""Command to its module in this package, and what ``--help`` says of it."""


class _LazyGroup(Group):
    """Imports a command's module when the command is named."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*_COMMANDS, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return super().get_command(ctx, cmd_name)
        module = importlib.import_module(f"secretsvc.cli.{_COMMANDS[cmd_name][0]}")
        found: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        own = [(name, command.get_short_help_str()) for name, command in sorted(self.commands.items())]
        with formatter.section("Commands"):
            formatter.write_dl([*((name, text) for name, (_, text) in _COMMANDS.items()), *own])


@click.group(
    cls=_LazyGroup, params=output_options(), context_settings={"help_option_names": ["-h", "--help"]}
)
@click.option("--url", metavar="URL", help="Where the API is [SECRETSVC_URL].")
@click.option("--token-file", metavar="FILE", help="Holds the API token [SECRETSVC_TOKEN_FILE].")
@click.option("--cacert", metavar="FILE", help="CA bundle to verify the API with [SECRETSVC_CACERT].")
@click.option("--allow-http", is_flag=True, help="Send the token over plain HTTP to another machine or user.")
@click.option("--config", metavar="FILE", help="The settings file [SECRETSVC_CONFIG].")
@pass_session
def cli(
    session: Session,
    url: str | None,
    token_file: str | None,
    cacert: str | None,
    allow_http: bool,
    config: str | None,
) -> None:
    """Register, prove, deliver and replace container registry credentials."""
    given = {"URL": url, "TOKEN_FILE": token_file, "CACERT": cacert, "CONFIG": config}
    session.flags |= {name: value for name, value in given.items() if value}
    session.allow_http = allow_http


@cli.command("version")
@pass_session
def show_version(session: Session) -> None:
    """Print the version of this program."""
    session.terminal.show({"version": version()}, lambda: f"secretsvc {version()}")


@cli.command("whoami")
@pass_session
def whoami(session: Session) -> None:
    """Print whose token the command line uses, and its role."""
    body = session.api.get("/whoami").body
    header = ("NAME", "ROLE", "EXPIRES")
    row = (body["name"], body["role"], moment(body.get("expires_at")))
    session.terminal.show(body, lambda: Table.of(header, [row]))


@cli.command("exit-codes")
@pass_session
def exit_codes(session: Session) -> None:
    """Print what each exit code means."""
    rows = [(int(code), meaning) for code, meaning in MEANINGS.items()]
    data = {"items": [{"code": code, "meaning": meaning} for code, meaning in rows]}
    session.terminal.show(data, lambda: Table.of(("CODE", "MEANING"), rows))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    session = Session(Terminal(sys.stdout, sys.stderr))
    try:
        code = cli.main(args=arguments, prog_name="secretsvc", obj=session, standalone_mode=False)
    except (KeyboardInterrupt, click.Abort):
        session.terminal.note("interrupted")
        return Exit.INTERRUPTED
    except click.ClickException as exc:
        session.terminal.problem(of_usage(exc))
        return Exit.USAGE
    except SecretsvcError as exc:
        session.terminal.problem(exc)
        return exit_for(exc)
    except BrokenPipeError:
        # Whoever read our output has enough; the interpreter's own flush at exit must not complain.
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.OK
    except Exception as exc:  # noqa: BLE001  # the last resort
        _tell_defect(exc)
        return Exit.DEFECT
    return code if isinstance(code, int) else Exit.OK


def _tell_defect(error: Exception) -> None:
    """Say where an error nobody foresaw happened, without its message: that may quote a value."""
    from secretsvc.telemetry.logs import describe  # noqa: PLC0415  # takes longer than all of --help

    found = describe(error)
    places = found["places"] if isinstance(found["places"], list) else []
    sys.stderr.write("\n  ".join([f"defect: {found['error']}", *places]) + "\n")
