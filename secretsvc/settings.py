"""What this process was told: flags before environment before ``secretsvc.toml``, read once and frozen.

Rules:

- The only module that reads ``SECRETSVC_*`` variables (and ``KUBECONFIG``) and the settings file. A key of
  the file is the variable's name without its prefix, in lower case: ``data_dir = "/srv/secretsvc"``.
- Every fault is reported at once, each with what to do, as one `ConfigurationError`.
- No setting holds a secret value: settings name files, which the programs that need them read.
- A relative path counts from the current directory, and is absolute from here on.

What it does not do: touch any file but the settings file, open the store, or connect to anything.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import stat
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from environs import Env, EnvValidationError, ValidationError

from secretsvc.core.errors import ConfigurationError

PREFIX = "SECRETSVC_"
SYSTEM_FILE = Path("/etc/secretsvc/secretsvc.toml")
"""Read when it is there and no other file is named."""
SYSTEM_DATA_DIR = Path("/var/lib/secretsvc")
"""The data directory where no other is named; only root can make it, so its owner is the service's user."""

_CLONE_TOKEN = Path(".run/data/admin.token")
"""Where ``make run`` keeps the admin token, seen from the clone."""

_LAST_PORT = 65_535

E = TypeVar("E", bound=StrEnum)
T = TypeVar("T")

_MEANINGS = {
    "CONFIG": "the settings file",
    "DATA_DIR": "where the database and the admin token are",
    "KEY_FILE": "the key-encryption key of the local store",
    "LISTEN": "address and port of serve",
    "TLS_CERT": "certificate chain of serve, PEM",
    "TLS_KEY": "private key of serve, PEM",
    "BEHIND_TLS": "1 when something in front of serve ends TLS",
    "STORE": "local or vault",
    "VAULT_ADDR": "URL of Vault or OpenBao",
    "VAULT_MOUNT": "mount of the KV v2 engine",
    "VAULT_NAMESPACE": "namespace in Vault",
    "VAULT_CACERT": "CA bundle to verify Vault with, PEM",
    "VAULT_ROLE_ID": "AppRole role id",
    "VAULT_SECRET_ID_FILE": "file that holds the AppRole secret id",
    "VAULT_TOKEN_FILE": "file that holds a Vault token",
    "KUBECONFIG": "kubeconfig of the cluster named default",
    "KUBE_CONTEXT": "context in that kubeconfig",
    "LOG_LEVEL": "debug, info, warning or error",
    "LOG_FORMAT": "console or json",
    "URL": "where the command line finds the API",
    "TOKEN_FILE": "file that holds the API token of the command line",
    "CACERT": "CA bundle the command line verifies the API with, PEM",
    "DOORBELL_FD": "set by serve --with-worker for its children",
    "LIFELINE_FD": "set by serve --with-worker for its children",
}
"""Every variable there is, without the prefix."""


class StoreKind(StrEnum):
    """Which store keeps the records."""

    LOCAL = "local"
    VAULT = "vault"


class LogLevel(StrEnum):
    """The least important line that is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(StrEnum):
    """How log lines look."""

    CONSOLE = "console"
    JSON = "json"


@dataclass(frozen=True, slots=True)
class Listen:
    """An address to listen on."""

    host: str
    """A name or an address, IPv6 without brackets."""
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def loopback(self) -> bool:
        """Whether only this machine can connect."""
        return is_loopback(self.host)


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """What serve needs for HTTPS."""

    cert: Path
    key: Path


@dataclass(frozen=True, slots=True)
class VaultSettings:
    """Where Vault or OpenBao is, and how to log in: by AppRole or by a token's file."""

    address: str
    mount: str
    namespace: str
    cacert: Path | None
    role_id: str
    secret_id_file: Path | None
    token_file: Path | None


@dataclass(frozen=True, slots=True)
class Settings:
    """What serve and work need to know."""

    data_dir: Path
    key_file: Path
    listen: Listen
    tls: TlsFiles | None
    behind_tls: bool
    store: StoreKind
    vault: VaultSettings | None
    """Set when the store is `StoreKind.VAULT`."""
    kubeconfig: str
    """One path, or several joined as in ``$KUBECONFIG``; empty for the in-cluster account."""
    kube_context: str
    in_cluster: bool
    """Whether this process runs in a pod, whose service account is the way to the cluster ``default``."""
    log_level: LogLevel
    log_format: LogFormat | None
    """None: console on a terminal, JSON else."""
    doorbell_fd: int | None
    lifeline_fd: int | None
    warnings: tuple[str, ...] = ()
    """What looks wrong but does not prevent a start."""

    @property
    def has_cluster(self) -> bool:
        """Whether there is a cluster ``default``."""
        return bool(self.kubeconfig) or self.in_cluster

    @property
    def admin_token_file(self) -> Path:
        """Where the first admin token is written."""
        return self.data_dir / "admin.token"

    @property
    def database(self) -> Path:
        """The local store's file."""
        return self.data_dir / "secretsvc.db"

    @property
    def url(self) -> str:
        """How this machine reaches serve."""
        scheme = "https" if self.tls else "http"
        wildcard = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # compared with, not bound to
        return f"{scheme}://{Listen(wildcard.get(self.listen.host, self.listen.host), self.listen.port)}"


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """What the command line needs to know to talk to the API."""

    url: str
    token_file: Path | None
    """None when none was named and there is no local admin token to be read."""
    cacert: Path | None
    kubeconfig: str
    """What the user's own kubectl would use; empty for the in-cluster account."""
    kube_context: str


def is_loopback(host: str) -> bool:
    """Whether ``host`` (a name or an address) can only mean this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def version() -> str:
    """Return the version of the installed package."""
    return metadata.version("secretsvc")


def load(environ: Mapping[str, str], flags: Mapping[str, str] | None = None) -> Settings:
    """Return the settings of serve and work, or raise one `ConfigurationError` that names every fault.

    Args:
        environ: the process's environment.
        flags: what was given on the command line, by variable name without the prefix.
    """
    source = _Source(environ, flags or {})
    source.warn_unknown()
    return _settings(source, environ)


def load_client(environ: Mapping[str, str], flags: Mapping[str, str] | None = None) -> ClientSettings:
    """Return what the command line needs, judging nothing else that may be set."""
    source = _Source(environ, flags or {})
    url = source.url("URL", "http://127.0.0.1:8080")
    token_file = source.path("TOKEN_FILE")
    cacert = source.path("CACERT")
    if token_file is None:
        token_file = _local_token(source)
    kubeconfig = source.text("KUBECONFIG") or environ.get("KUBECONFIG", "") or _home_kubeconfig(environ)
    kube_context = source.text("KUBE_CONTEXT")
    source.raise_faults()
    return ClientSettings(url, token_file, cacert, kubeconfig, kube_context)


def load_vault_address(environ: Mapping[str, str], flags: Mapping[str, str] | None = None) -> VaultSettings:
    """Return where Vault is, for whoever prepares it: how to log in is not judged."""
    source = _Source(environ, flags or {})
    where = _vault(source, login=False)
    source.raise_faults()
    return where


def _local_token(source: _Source) -> Path | None:
    named = source.path("DATA_DIR")
    candidates = [named] if named else [SYSTEM_DATA_DIR, _CLONE_TOKEN.parent.absolute()]
    for folder in candidates:
        if os.access(folder / "admin.token", os.R_OK):
            return folder / "admin.token"
    return None


def _home_kubeconfig(environ: Mapping[str, str]) -> str:
    path = Path(environ.get("HOME") or "/nonexistent") / ".kube/config"
    return str(path) if path.is_file() else ""


def _settings(source: _Source, environ: Mapping[str, str]) -> Settings:
    store = source.choice("STORE", StoreKind, StoreKind.LOCAL)
    log_format = source.choice("LOG_FORMAT", LogFormat, None)
    settings = Settings(
        data_dir=source.path("DATA_DIR") or SYSTEM_DATA_DIR,
        key_file=source.path("KEY_FILE") or Path("/etc/secretsvc/kek"),
        listen=source.listen("LISTEN", Listen("127.0.0.1", 8080)),
        tls=_tls(source),
        behind_tls=source.flag("BEHIND_TLS"),
        store=store or StoreKind.LOCAL,
        vault=_vault(source) if store is StoreKind.VAULT else None,
        kubeconfig=source.text("KUBECONFIG") or environ.get("KUBECONFIG", ""),
        kube_context=source.text("KUBE_CONTEXT"),
        in_cluster=bool(environ.get("KUBERNETES_SERVICE_HOST")),
        log_level=source.choice("LOG_LEVEL", LogLevel, LogLevel.INFO) or LogLevel.INFO,
        log_format=log_format,
        doorbell_fd=source.number("DOORBELL_FD"),
        lifeline_fd=source.number("LIFELINE_FD"),
        warnings=tuple(source.warnings),
    )
    if not (settings.listen.loopback or settings.tls or settings.behind_tls):
        source.fault(
            "LISTEN",
            f"{settings.listen} can be reached from other machines, and tokens would travel in clear;"
            f" set {PREFIX}TLS_CERT and {PREFIX}TLS_KEY, or {PREFIX}BEHIND_TLS=1 if a proxy in front has it",
        )
    source.raise_faults()
    return settings


def _tls(source: _Source) -> TlsFiles | None:
    cert, key = source.path("TLS_CERT"), source.path("TLS_KEY")
    if cert is None and key is None:
        return None
    if cert is None or key is None:
        missing = "TLS_CERT" if cert is None else "TLS_KEY"
        source.fault(missing, "is needed too: HTTPS takes a certificate and its key")
        return None
    for name, path in (("TLS_CERT", cert), ("TLS_KEY", key)):
        source.readable(name, path)
    source.private("TLS_KEY", key)
    return TlsFiles(cert, key)


def _vault(source: _Source, *, login: bool = True) -> VaultSettings:
    address = source.url("VAULT_ADDR", "")
    if not address and not source.is_faulty("VAULT_ADDR"):
        source.fault("VAULT_ADDR", "is needed for the store `vault`, such as https://vault.example.com:8200")
    host = urlsplit(address).hostname or ""
    if address.startswith("http://") and not is_loopback(host):
        source.fault("VAULT_ADDR", f"use https: tokens and secrets would travel to {host} in clear")
    role_id = source.text("VAULT_ROLE_ID")
    secret_id, token = source.path("VAULT_SECRET_ID_FILE"), source.path("VAULT_TOKEN_FILE")
    if not login:
        role_id, secret_id, token = "", None, None
    elif token is not None and (role_id or secret_id):
        source.fault(
            "VAULT_TOKEN_FILE", "is one way to log in, VAULT_ROLE_ID the other; set only one of them"
        )
    elif token is None and not (role_id and secret_id):
        missing = "VAULT_SECRET_ID_FILE" if role_id else "VAULT_ROLE_ID"
        hint = "`secretsvc vault bootstrap` makes the roles and prints their ids"
        source.fault(missing, f"is needed to log in (or VAULT_TOKEN_FILE); {hint}")
    cacert = source.path("VAULT_CACERT")
    if cacert is not None:
        source.readable("VAULT_CACERT", cacert)
    return VaultSettings(
        address=address,
        mount=source.text("VAULT_MOUNT") or "secretsvc",
        namespace=source.text("VAULT_NAMESPACE"),
        cacert=cacert,
        role_id=role_id,
        secret_id_file=secret_id,
        token_file=token,
    )


class _Merged(Env):
    """environs over any mapping, not the process's environment alone."""

    def __init__(self, values: Mapping[str, str]) -> None:
        super().__init__(eager=False, prefix=PREFIX)
        self._merged = values

    def _get_value(self, env_key: str, default: Any) -> Any:  # noqa: ANN401  # as in the base class
        return self._merged.get(env_key, default)


class _Source:
    """The merged values with typed access; faults are kept until `raise_faults`."""

    def __init__(self, environ: Mapping[str, str], flags: Mapping[str, str]) -> None:
        self.warnings: list[str] = []
        self._faults: dict[str, list[str]] = {}
        self._environ = {key: value for key, value in environ.items() if key.startswith(PREFIX) and value}
        given = {PREFIX + key: value for key, value in flags.items()}
        named = given.get(PREFIX + "CONFIG") or self._environ.get(PREFIX + "CONFIG")
        self._env = _Merged(self._file(named) | self._environ | given)

    def _file(self, named: str | None) -> dict[str, str]:
        path = Path(named) if named else SYSTEM_FILE
        try:
            content = tomllib.loads(path.read_text("utf-8"))
        except FileNotFoundError:
            if named:
                self.fault("CONFIG", f"there is no file {path}")
            return {}
        except (OSError, UnicodeDecodeError) as exc:
            self.fault("CONFIG", f"{path} can not be read ({type(exc).__name__})")
            return {}
        except tomllib.TOMLDecodeError as exc:
            self.fault("CONFIG", f"{path} is not TOML: {exc}")
            return {}
        return self._variables(path, content)

    def _variables(self, path: Path, content: dict[str, object]) -> dict[str, str]:
        values: dict[str, str] = {}
        for key, value in content.items():
            name = key.upper()
            if name not in _MEANINGS or key != key.lower():
                self.fault("CONFIG", f"{path} has an unknown key {key!r}{_similar(name, str.lower)}")
            elif not isinstance(value, str | int):
                self.fault("CONFIG", f"{path}: {key} must be text, a number, true or false")
            elif value != "":
                values[PREFIX + name] = str(value)
        return values

    def warn_unknown(self) -> None:
        """Add a warning for each variable that starts like ours and is none."""
        for key in sorted(self._environ):
            name = key.removeprefix(PREFIX)
            if name not in _MEANINGS:
                self.warnings.append(
                    f"{key} is not a setting of secretsvc{_similar(name, lambda known: PREFIX + known)}"
                )

    def fault(self, name: str, message: str) -> None:
        """Keep one fault of a variable."""
        self._faults.setdefault(PREFIX + name, []).append(message)

    def is_faulty(self, name: str) -> bool:
        """Whether a fault of this variable is known already."""
        return PREFIX + name in self._faults

    def raise_faults(self) -> None:
        """Raise what is wrong, all at once."""
        try:
            self._env.seal()
        except EnvValidationError as exc:
            for key, messages in _by_variable(exc):
                self._faults.setdefault(key, []).extend(messages)
        if not self._faults:
            return
        lines = [f"  {key}: {message}" for key, messages in self._faults.items() for message in messages]
        raise ConfigurationError(
            "the settings can not be used:\n" + "\n".join(lines),
            hint="a flag beats the environment, which beats secretsvc.toml",
        )

    def text(self, name: str) -> str:
        """Return a text without blanks around it, empty when it is not set."""
        return (self._env.str(name, "") or "").strip()

    def path(self, name: str) -> Path | None:
        """Return an absolute path, or None."""
        text = self._env.str(name, "")
        return Path(text).expanduser().absolute() if text else None

    def readable(self, name: str, path: Path) -> None:
        """Note a fault unless ``path`` is a file that this process may read."""
        if not path.is_file():
            self.fault(name, f"there is no file {path}")
        elif not os.access(path, os.R_OK):
            self.fault(name, f"{path} can not be read by this user")

    def private(self, name: str, path: Path) -> None:
        """Note a fault when others can get at a file. A group may read root's: Kubernetes mounts them so."""
        if not path.is_file():
            return  # `readable` has told it
        found = path.stat()
        mode = stat.S_IMODE(found.st_mode)
        if mode & ~(0o700 if found.st_uid else 0o740):
            way = "chmod 600, or 640 if it is root's (in a Kubernetes volume, `defaultMode: 0440`)"
            self.fault(name, f"{path} has mode {mode:04o}: others can get at the key; {way}")
        elif found.st_uid not in (0, os.geteuid()):
            self.fault(name, f"{path} belongs to another user; make it root's or this user's")

    def flag(self, name: str) -> bool:
        """Return a truth value."""
        return bool(self._env.bool(name, False))

    def number(self, name: str) -> int | None:
        """Return a whole number, or None."""
        return self._env.int(name, None)

    def choice(self, name: str, kind: type[E], default: E | None) -> E | None:
        """Return one of an enumeration's values."""
        parse: Callable[[str], E | None] = lambda text: _choice(kind, text)  # noqa: E731  # to be typed
        return self._parsed(name, default, parse)

    def listen(self, name: str, default: Listen) -> Listen:
        """Return an address to listen on."""
        return self._parsed(name, default, _listen)

    def url(self, name: str, default: str) -> str:
        """Return an HTTP(S) URL without a final slash."""
        return self._parsed(name, default, _url)

    def _parsed(self, name: str, default: T, parse: Callable[[str], T]) -> T:
        text = self.text(name)
        if not text:
            return default
        try:
            return parse(text)
        except ValidationError as exc:
            self.fault(name, str(exc.args[0]))
            return default


def _choice(kind: type[E], text: str) -> E:
    try:
        return kind(text.lower())
    except ValueError:
        raise ValidationError(f"must be one of {', '.join(kind)}") from None


def _listen(text: str) -> Listen:
    host, colon, port = text.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not (colon and host and port.isascii() and port.isdigit() and 0 < int(port) <= _LAST_PORT):
        raise ValidationError("must be host:port, such as 127.0.0.1:8080 or [::1]:8080")
    return Listen(host, int(port))


def _url(text: str) -> str:
    try:
        parts = urlsplit(text)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        raise ValidationError("is not a URL") from None
    if not usable:
        raise ValidationError("must be an http:// or https:// URL")
    if parts.username is not None or parts.query or parts.fragment:
        raise ValidationError("must hold no user, query or fragment: a URL ends up in logs")
    return text.rstrip("/")


def _by_variable(error: EnvValidationError) -> list[tuple[str, list[str]]]:
    messages = error.error_messages
    return list(messages.items()) if isinstance(messages, Mapping) else [("", messages)]


def _similar(name: str, spell: Callable[[str], str]) -> str:
    found = difflib.get_close_matches(name, _MEANINGS, n=1, cutoff=0.7)
    return f"; did you mean {spell(found[0])}?" if found else ""
