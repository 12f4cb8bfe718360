"""``secretsvc vault``: prepare Vault or OpenBao, by an admin token from standard input or a prompt."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from secretsvc import wiring
from secretsvc.cli.session import Group, Session, pass_session
from secretsvc.cli.values import no_value_arguments, read_value
from secretsvc.settings import VaultSettings, load_vault_address

ROLES = ("secretsvc", "secretsvc-serve", "secretsvc-work")
"""The AppRoles; the first, for one process that is both programs, gets a secret id when none is named."""
_PROGRAMS = dict(zip(ROLES, ("serve --with-worker", "serve", "work"), strict=True))


@click.group(cls=Group)
def vault() -> None:
    """Prepare Vault or OpenBao."""


@vault.command("bootstrap")
@click.option("--address", metavar="URL", help="Where it is [SECRETSVC_VAULT_ADDR].")
@click.option("--mount", help="The KV v2 mount to make [SECRETSVC_VAULT_MOUNT, secretsvc].")
@click.option(
    "--secret-id-dir",
    type=click.Path(path_type=Path),
    help="Make a secret id, in a file of mode 0600 here. It is valid for 90 days.",
)
@click.option(
    "--role",
    "roles",
    type=click.Choice(ROLES),
    multiple=True,
    help="For which role to make a secret id, repeatable [secretsvc, for `serve --with-worker`].",
)
@no_value_arguments
@pass_session
def bootstrap(
    session: Session,
    address: str | None,
    mount: str | None,
    secret_id_dir: Path | None,
    roles: tuple[str, ...],
) -> None:
    """Make the mount, the policies and the AppRoles that secretsvc needs. Doing it again changes nothing.

    \b
    secretsvc vault bootstrap --address https://vault.example.com:8200 < admin-token
    secretsvc vault bootstrap --secret-id-dir ids --role secretsvc-serve --role secretsvc-work < admin-token
    """
    if roles and secret_id_dir is None:
        raise click.UsageError("--role says whose secret id to make; say where with --secret-id-dir.")
    given = {"VAULT_ADDR": address, "VAULT_MOUNT": mount}
    flags = session.flags | {name: value for name, value in given.items() if value}
    where = load_vault_address(session.environ, flags)
    token = read_value(f"Admin token of {where.address}")
    with session.terminal.waiting(f"preparing {where.address}"):
        report = wiring.bootstrap_vault(where, token, secret_id_dir, roles or ROLES[:1])
    files = {role: str(path) for role, path in report.secret_id_files.items()}
    data = {"done": list(report.lines), "role_ids": dict(report.role_ids), "secret_id_files": files}
    ids = [f"role id of {role}: {name}" for role, name in report.role_ids.items()]
    steps = [_next(where, role, report.role_ids[role], files.get(role)) for role in files or ROLES[:1]]
    session.terminal.show(data, lambda: ["\n".join(report.lines), "\n".join(ids), *steps])


def _next(where: VaultSettings, role: str, role_id: str, secret_id_file: str | None) -> str:
    """Return the settings of the program that logs in as a role, to be pasted into its shell or unit."""
    given = {
        "STORE": "vault",
        "VAULT_ADDR": where.address,
        "VAULT_MOUNT": where.mount,
        "VAULT_NAMESPACE": where.namespace,
        "VAULT_CACERT": str(where.cacert.absolute()) if where.cacert else "",
        "VAULT_ROLE_ID": role_id,
        "VAULT_SECRET_ID_FILE": str(Path(secret_id_file).absolute()) if secret_id_file else "",
    }
    lines = [f"  export SECRETSVC_{name}={shlex.quote(value)}" for name, value in given.items() if value]
    if secret_id_file is None:
        lines.append("  export SECRETSVC_VAULT_SECRET_ID_FILE=...  # made with --secret-id-dir DIR")
    return "\n".join([f"next, for `secretsvc {_PROGRAMS[role]}`:", *lines])
