"""Staying logged in at Vault, from many threads, without ever locking the account.

Rules:

- A token is renewed on use, at two thirds of its life plus jitter; when its life no longer grows (it nears
  its maximum) we log in again. While one thread does that, the others go on with the token they have.
- A refused request (403) leads to one new login for all threads together, and only when the token is dead
  or old enough that its policies may have changed since; then it is our policy that refuses.
- A login that was refused is not sent again for an hour: Vault and OpenBao lock an AppRole after five wrong
  attempts. A changed file is tried at once, so putting the right one there is all an admin has to do.
- Only a token that we got by logging in is revoked at the end; one from a file belongs to somebody else.

Nothing here runs in the background: a process that was idle too long just logs in again.
"""

from __future__ import annotations

import hashlib
import secrets
import stat
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

from secretsvc.core.errors import StoreDenied, StoreError, StoreUnavailable
from secretsvc.core.model import Secret
from secretsvc.store.vaultlink import Answer, Door, VaultLink

Ticks = Callable[[], float]
"""Returns seconds that only rise, as ``time.monotonic`` does."""

REFUSED_PAUSE_SECONDS: Final = 3600.0
"""How long a refused login is not repeated."""
POLICY_AGE_SECONDS: Final = 300.0
"""How old a living token must be before a refusal makes us fetch one with today's policies."""

_RETRY_SECONDS = 5.0
_FILE_BYTES = 8192
_BOOTSTRAP = "`secretsvc vault bootstrap --secret-id-dir` writes a new one"


@dataclass(frozen=True, slots=True)
class AppRole:
    """Log in with a role id and the secret id in a file (read again for every login)."""

    role_id: str
    secret_id_file: Path
    mount: str = "approle"


@dataclass(frozen=True, slots=True)
class TokenFile:
    """Use the token in a file that somebody else, such as an agent, keeps fresh."""

    path: Path


LoginMethod = AppRole | TokenFile


@dataclass(frozen=True, slots=True, eq=False)
class Login:
    """One token and what is known of its life. Times are ticks; None means never."""

    door: Door
    digest: bytes
    since: float
    renew_at: float | None
    expires_at: float | None
    renewable: bool


@dataclass(frozen=True, slots=True)
class _Refused:
    digest: bytes
    until: float


class VaultLogin:
    """The login of one store."""

    def __init__(self, link: VaultLink, method: LoginMethod, ticks: Ticks) -> None:
        self._link = link
        self._method = method
        self._ticks = ticks
        self._lock = threading.Lock()
        self._login: Login | None = None
        self._refused: _Refused | None = None

    def current(self) -> Login:
        """Return a login that should work; renew it or log in when it is time to.

        Raises `StoreDenied` when Vault refuses the login (or did so lately), `StoreUnavailable` when it does
        not answer.
        """
        login, now = self._login, self._ticks()
        if login is None or _passed(login.expires_at, now):
            return self._first(login)
        if _passed(login.renew_at, now) and self._lock.acquire(blocking=False):
            try:
                if self._login is login:
                    self._login = login = self._extended(login)
            finally:
                self._lock.release()
        return login

    def refused(self, login: Login) -> Login | None:
        """Return another login after Vault refused a request of this one; None if its policy did."""
        with self._lock:
            if self._login is not login and self._login is not None:
                return self._login
            alive = self._alive(login)
            young = self._ticks() - login.since < POLICY_AGE_SECONDS
            same = isinstance(self._method, TokenFile) and self._read()[1] == login.digest
            if alive and (young or same):
                return None
            if not alive:
                self._login = None
            self._login = self._log_in()
            return self._login

    def close(self) -> None:
        """Revoke our own token, if Vault can be reached."""
        with self._lock:
            login, self._login = self._login, None
        if login is not None and isinstance(self._method, AppRole):
            try:
                self._link.ask(login.door.token.revoke_self)
            except StoreError:
                return  # it ends with its own life

    def _first(self, seen: Login | None) -> Login:
        with self._lock:
            if self._login is None or self._login is seen:
                self._login = self._log_in()
            return self._login

    def _extended(self, login: Login) -> Login:
        """Return the login with a longer life, or a new one; the same one for a while if Vault is away."""
        try:
            if login.renewable:
                answer = self._link.ask(login.door.token.renew_self)
                if answer.ok and answer.auth:
                    renewed = self._made(login.door, login.digest, answer.auth, since=login.since)
                    if _grew(login, renewed):
                        return renewed
                elif not answer.denied:
                    raise self._link.refusal(answer, "a token's renewal")
            return self._log_in()
        except StoreError:  # what we have may still serve; if not, the next refusal says why
            return replace(login, renew_at=self._ticks() + _RETRY_SECONDS)

    def _alive(self, login: Login) -> bool:
        answer = self._link.ask(login.door.token.lookup_self)
        if not answer.ok and not answer.denied:
            raise self._link.refusal(answer, "a token's life")
        return answer.ok

    def _log_in(self) -> Login:
        credential, digest = self._read()
        refused = self._refused
        if refused is not None and refused.digest == digest and self._ticks() < refused.until:
            raise self._denied()
        if isinstance(self._method, AppRole):
            login = self._by_role(self._method, credential, digest)
        else:
            login = self._by_token(credential, digest)
        self._refused = None
        return login

    def _by_role(self, method: AppRole, secret_id: Secret, digest: bytes) -> Login:
        approle = self._link.door().approle
        answer = self._link.ask(
            lambda: approle.login(
                method.role_id, secret_id.reveal(), use_token=False, mount_point=method.mount
            )
        )
        token = answer.auth.get("client_token")
        if answer.ok and isinstance(token, str):
            return self._made(self._link.door(Secret(token)), digest, answer.auth)
        raise self._failed(answer, digest)

    def _by_token(self, token: Secret, digest: bytes) -> Login:
        door = self._link.door(token)
        answer = self._link.ask(door.token.lookup_self)
        if answer.ok and answer.data:
            return self._made(door, digest, answer.data)
        raise self._failed(answer, digest)

    def _failed(self, answer: Answer, digest: bytes) -> StoreError:
        if answer.denied or answer.status == HTTPStatus.BAD_REQUEST:  # what a wrong secret id gets
            self._refused = _Refused(digest, self._ticks() + REFUSED_PAUSE_SECONDS)
            return self._denied()
        return self._link.refusal(answer, "a login")

    def _denied(self) -> StoreDenied:
        if isinstance(self._method, AppRole):
            what, path, how = "role id or secret id", self._method.secret_id_file, f"{_BOOTSTRAP}. "
        else:
            what, path, how = "token", self._method.path, ""
        return StoreDenied(
            f"Vault at {self._link.where.address} refused the {what} in use ({path})",
            hint=f"Put a right one into {path}; it is tried at once. {how}"
            "The refused one is not sent again for an hour, because wrong logins lock the account.",
            code="LoginRefused",
        )

    def _made(self, door: Door, digest: bytes, facts: dict[str, Any], since: float | None = None) -> Login:
        """Return a login from an ``auth`` (``lease_duration``) or a lookup's ``data`` (``ttl``)."""
        now = self._ticks()
        life = facts.get("lease_duration", facts.get("ttl"))
        if not isinstance(life, int | float) or isinstance(life, bool) or life < 0:
            raise StoreUnavailable(
                f"Vault at {self._link.where.address} answers a login as Vault never would"
            )
        share = 2 / 3 + secrets.randbelow(1000) / 10_000  # up to a tenth later, so that replicas spread out
        return Login(
            door=door,
            digest=digest,
            since=now if since is None else since,
            renew_at=now + life * share if life else None,
            expires_at=now + life if life else None,
            renewable=facts.get("renewable") is True,
        )

    def _read(self) -> tuple[Secret, bytes]:
        """Return the file's content and a digest to tell a changed one."""
        if isinstance(self._method, AppRole):
            path, identity = self._method.secret_id_file, self._method.role_id
        else:
            path, identity = self._method.path, ""
        value = read_credential(path)
        return value, hashlib.sha256(f"{identity}\n{value.reveal()}".encode()).digest()


def read_credential(path: Path) -> Secret:
    """Return the one line in a file that others may not read; raise `StoreDenied` when it is not that.

    Symbolic links are followed and a group may read it: that is how Kubernetes mounts secrets.
    """
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(path.stat().st_mode)
            content = file.read(_FILE_BYTES + 1)
    except OSError as exc:
        raise StoreDenied(
            f"the login file {path} can not be read: {exc.strerror}",
            hint="SECRETSVC_VAULT_SECRET_ID_FILE or SECRETSVC_VAULT_TOKEN_FILE must name a readable file.",
        ) from exc
    if mode & 0o007:
        raise StoreDenied(
            f"the login file {path} has mode {mode:04o}: others can get at it", hint=f"chmod 600 {path}"
        )
    try:
        text = content.decode("ascii").strip()
    except UnicodeDecodeError:
        text = ""
    if not text or not text.isprintable() or " " in text or len(content) > _FILE_BYTES:
        raise StoreDenied(
            f"the login file {path} does not hold one token or secret id", hint="One line, nothing else."
        )
    return Secret(text)


def _passed(moment: float | None, now: float) -> bool:
    return moment is not None and now >= moment


def _grew(old: Login, new: Login) -> bool:
    """Whether renewal bought time. A second of doubt: lives are whole seconds."""
    return new.expires_at is None or old.expires_at is None or new.expires_at > old.expires_at + 1
