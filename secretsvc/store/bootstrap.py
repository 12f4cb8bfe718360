"""`secretsvc vault bootstrap`: prepare Vault or OpenBao for us with an admin's token, as often as one likes.

It makes the KV v2 mount (compare-and-set required, ten versions kept), the two policies of
``policies/vault``, the AppRole method, and three roles: ``secretsvc-serve``, ``secretsvc-work`` and
``secretsvc`` (both policies, for one process that is both). What is right already is left unchanged and said
to be; what differs is set again.

Refused: a mount that is not KV v2, and policies that another installation's mount stands in. Secret ids are
made only on request, for the roles that were asked for, into files of mode 0600; they expire after 90 days,
so that one that was copied does not open the store for ever. Programs read the file again at each login: a
new one needs no restart. The admin's token is used and forgotten.
"""

from __future__ import annotations

import functools
import importlib.resources
import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from secretsvc.core.errors import ConfigurationError, StoreDenied, StoreError
from secretsvc.core.model import Secret
from secretsvc.store.vaultlink import Answer, VaultAddress, VaultLink

SERVE: Final = "secretsvc-serve"
WORK: Final = "secretsvc-work"
BOTH: Final = "secretsvc"

ROLES: Final[Mapping[str, tuple[str, ...]]] = {SERVE: (SERVE,), WORK: (WORK,), BOTH: (SERVE, WORK)}
"""Role name to the names of its policies."""

_POLICY_FILES: Final[Mapping[str, str]] = {SERVE: "serve.hcl", WORK: "work.hcl"}
_KEPT_VERSIONS = 10
_TOKEN_LIFE = 20 * 60
_TOKEN_LONGEST_LIFE = 24 * 3600
SECRET_ID_DAYS: Final = 90
"""How long a secret id can be used to log in."""
_MOUNT_LINE = "# mount: "
_UPGRADE_TRIES = 120
_UPGRADE_PAUSE_S = 0.25


@dataclass(frozen=True, slots=True)
class BootstrapReport:
    """What bootstrap did, and what secretsvc needs to log in."""

    lines: tuple[str, ...]
    """One sentence for each thing that was made, changed or left."""
    role_ids: Mapping[str, str]
    """Role name to role id. A role id is a name, not a secret."""
    secret_id_files: Mapping[str, Path] = field(default_factory=dict)
    """Role name to the file with its secret id, when they were asked for."""


def policy_text(name: str, mount: str) -> str:
    """Return the policy ``secretsvc-serve`` or ``secretsvc-work`` for a mount, as Vault should hold it."""
    folder = importlib.resources.files("secretsvc") / "policies" / "vault"
    return (folder / _POLICY_FILES[name]).read_text(encoding="utf-8").replace("{{mount}}", mount)


def bootstrap(
    where: VaultAddress,
    admin_token: Secret,
    *,
    secret_id_dir: Path | None = None,
    secret_id_roles: Sequence[str] = (BOTH,),
    auth_mount: str = "approle",
) -> BootstrapReport:
    """Make or correct everything that secretsvc needs in Vault.

    Args:
        where: which Vault, and the mount to make.
        admin_token: may manage mounts, policies, auth methods and AppRoles.
        secret_id_dir: makes new secret ids and writes them to ``<role>.secret-id`` there.
        secret_id_roles: for which of `ROLES`.
        auth_mount: where the AppRole method is.

    Raises `StoreDenied` when the token may not, `StoreUnavailable` when Vault is not there, `StoreError` or
    `ConfigurationError` when something is in the way. What was done before that stays done.
    """
    link = VaultLink(where)
    try:
        return _Bootstrap(link, admin_token, auth_mount).run(secret_id_dir, secret_id_roles)
    finally:
        link.close()


class _Bootstrap:
    def __init__(self, link: VaultLink, admin_token: Secret, auth_mount: str) -> None:
        self._link = link
        self._door = link.door(admin_token)
        self._mount = link.where.mount
        self._auth = auth_mount
        self._lines: list[str] = []

    def run(self, secret_id_dir: Path | None, secret_id_roles: Sequence[str]) -> BootstrapReport:
        self._make_mount()
        self._configure_mount()
        for name in _POLICY_FILES:
            self._make_policy(name)
        self._enable_approle()
        for role, policies in ROLES.items():
            self._make_role(role, policies)
        role_ids = {role: self._role_id(role) for role in ROLES}
        files = {} if secret_id_dir is None else self._make_secret_ids(secret_id_dir, secret_id_roles)
        return BootstrapReport(tuple(self._lines), role_ids, files)

    def _make_mount(self) -> None:
        mounts = self._must(self._link.ask(self._door.system.list_mounted_secrets_engines), "the mounts").data
        found = mounts.get(f"{self._mount}/")
        if found is None:
            made = self._link.ask(
                lambda: self._door.system.enable_secrets_engine(
                    "kv", path=self._mount, description="secretsvc", options={"version": "2"}
                )
            )
            self._must(made, f"making the mount {self._mount}")
            self._lines.append(f"mount {self._mount}: made, KV version 2")
        elif found.get("type") != "kv" or (found.get("options") or {}).get("version") != "2":
            raise StoreError(
                f"the mount {self._mount} is there and is not a KV engine of version 2",
                hint="Choose another path with SECRETSVC_VAULT_MOUNT.",
                code="MountTaken",
            )
        else:
            self._lines.append(f"mount {self._mount}: unchanged")

    def _configure_mount(self) -> None:
        kv, mount = self._door.kv, self._mount
        found = self._must(self._mount_settings(), f"the settings of the mount {mount}").data
        wanted = {"cas_required": True, "max_versions": _KEPT_VERSIONS}
        if self._same(f"settings of mount {mount}", found, wanted):
            return
        set_again = self._link.ask(lambda: kv.configure(**wanted, mount_point=mount))
        self._must(set_again, f"setting up the mount {mount}")

    def _mount_settings(self) -> Answer:
        """Ask for the mount's settings; a new mount refuses until it has made itself version 2."""
        answer = Answer(0)
        for _ in range(_UPGRADE_TRIES):
            answer = self._link.ask(lambda: self._door.kv.read_configuration(mount_point=self._mount))
            if not answer.says("upgrading"):
                break
            time.sleep(_UPGRADE_PAUSE_S)
        return answer

    def _make_policy(self, name: str) -> None:
        text = policy_text(name, self._mount)
        read = self._link.ask(lambda: self._door.system.read_policy(name))
        found = str(read.body.get("rules") or read.data.get("rules") or "") if read.ok else ""
        if not read.ok and not read.absent:
            raise self._link.refusal(read, f"the policy {name}")
        if found.strip() == text.strip():
            self._lines.append(f"policy {name}: unchanged")
            return
        if _MOUNT_LINE in found and f"{_MOUNT_LINE}{self._mount}\n" not in found:
            raise ConfigurationError(
                f"the policy {name} belongs to a secretsvc with another mount",
                hint="Give each installation a Vault namespace of its own, or use that mount.",
            )
        put = self._link.ask(lambda: self._door.system.create_or_update_policy(name, text))
        self._must(put, f"writing the policy {name}")
        self._lines.append(f"policy {name}: {'changed' if found else 'made'}")

    def _enable_approle(self) -> None:
        methods = self._must(self._link.ask(self._door.system.list_auth_methods), "the auth methods").data
        found = methods.get(f"{self._auth}/")
        if found is None:
            enabled = self._link.ask(lambda: self._door.system.enable_auth_method("approle", path=self._auth))
            self._must(enabled, f"enabling AppRole at {self._auth}")
            self._lines.append(f"auth method {self._auth}: enabled")
        elif found.get("type") != "approle":
            raise StoreError(f"the auth method at {self._auth} is not AppRole", code="MountTaken")
        else:
            self._lines.append(f"auth method {self._auth}: unchanged")

    def _make_role(self, role: str, policies: tuple[str, ...]) -> None:
        approle, auth = self._door.approle, self._auth
        wanted = {
            "token_policies": list(policies),
            "token_no_default_policy": True,
            "token_type": "service",  # a batch token can not be renewed or revoked
            "token_ttl": _TOKEN_LIFE,
            "token_max_ttl": _TOKEN_LONGEST_LIFE,
            "token_num_uses": 0,
            "bind_secret_id": True,
            "secret_id_ttl": SECRET_ID_DAYS * 86400,
        }
        read = self._link.ask(lambda: approle.read_role(role, mount_point=auth))
        if not read.ok and not read.absent:
            raise self._link.refusal(read, f"the role {role}")
        if self._same(f"role {role}", read.data, wanted):
            return
        made = self._link.ask(lambda: approle.create_or_update_approle(role, **wanted, mount_point=auth))
        self._must(made, f"making the role {role}")

    def _role_id(self, role: str) -> str:
        approle = self._door.approle
        answer = self._link.ask(lambda: approle.read_role_id(role, mount_point=self._auth))
        return str(self._must(answer, f"the role id of {role}").data["role_id"])

    def _make_secret_ids(self, folder: Path, roles: Sequence[str]) -> dict[str, Path]:
        files = {}
        for role in dict.fromkeys(roles):
            path = folder / f"{role}.secret-id"
            try:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                _keep(path, functools.partial(self._secret_id, role))
            except OSError as exc:
                raise ConfigurationError(
                    f"the secret id file {path} can not be written: {exc.strerror}",
                    hint="Give --secret-id-dir a directory that this user may write.",
                ) from exc
            files[role] = path
            self._lines.append(
                f"secret id of {role}: made, in {path}, valid for {SECRET_ID_DAYS} days; "
                "older ones stay valid for their time"
            )
        return files

    def _secret_id(self, role: str) -> Secret:
        approle = self._door.approle
        answer = self._link.ask(lambda: approle.generate_secret_id(role, mount_point=self._auth))
        return Secret(str(self._must(answer, f"a secret id of {role}").data["secret_id"]))

    def _same(self, what: str, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
        """Say whether something is as wanted already, or will be changed, or made."""
        wrong = [key for key, value in wanted.items() if found.get(key) != value]
        if not wrong:
            self._lines.append(f"{what}: unchanged")
        elif found:
            self._lines.append(f"{what}: changed ({', '.join(wrong)})")
        else:
            self._lines.append(f"{what}: made")
        return not wrong

    def _must(self, answer: Answer, what: str) -> Answer:
        if answer.denied:
            raise StoreDenied(
                f"the admin's token does not allow {what}",
                hint="Use a token that may manage mounts, policies, auth methods and AppRoles.",
            )
        if not answer.ok:
            raise self._link.refusal(answer, what)
        return answer


def _keep(path: Path, make: Callable[[], Secret]) -> None:
    """Write a new value to a file of mode 0600 in one step; it is made once there is a place for it."""
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(f"{make().reveal()}\n")
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
