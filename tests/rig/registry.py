"""A real CNCF distribution registry with htpasswd on a free loopback port, plain HTTP, stopped by process id.

``Registry`` is also the back end of `tests.rig.tokenserver`, which gives it another ``auth`` section. Users'
passwords change at run time: the registry reads the htpasswd file anew at the next request.
"""

from __future__ import annotations

import hashlib
import http.client
import io
import json
import os
import subprocess
import tarfile
import time
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import bcrypt

from tests.rig.build import build, crane
from tests.rig.ports import free_port

_MODULE = Path(__file__).resolve().parent / "registry"
_PACKAGE = "github.com/distribution/distribution/v3/cmd/registry"
_READY_WITHIN = 30.0
_BCRYPT_COST = 4
"""The lowest there is: tests check many logins."""
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"

Asks = Callable[[str, str, bytes, dict[str, str]], tuple[int, dict[str, str], bytes]]
"""Sends method, path, body and headers to a registry; returns status, headers and body."""


class RegistryFailed(Exception):
    """The registry of the rig did not become ready, or did not take an image."""


def registry_program() -> Path:
    """Return the ``registry`` program, built once."""
    return build(_MODULE, _PACKAGE, "registry")


class Registry:
    """A registry of its own, with its files under ``folder``. A context manager."""

    def __init__(self, folder: Path, auth: dict[str, Any] | None = None) -> None:
        self.folder = folder
        self.port = 0
        self._auth = auth
        self._process: subprocess.Popen[bytes] | None = None
        self.folder.mkdir(parents=True, exist_ok=True)
        self.htpasswd.touch(mode=0o600)

    @property
    def host(self) -> str:
        """``host:port``, as a registry is registered."""
        return f"127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start on the port it had, or a free one, and wait until it answers."""
        self.port = self.port or free_port()
        settings = self.folder / "registry.json"  # JSON is YAML
        settings.write_text(json.dumps(self._settings()))
        with (self.folder / "registry.log").open("ab") as log:
            self._process = subprocess.Popen(
                [registry_program(), "serve", str(settings)],
                stdout=log,
                stderr=log,
                env={"PATH": os.environ["PATH"], "OTEL_TRACES_EXPORTER": "none"},
            )
        self._wait()

    def stop(self) -> None:
        """Stop the process that was started; what was pushed stays."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def set_password(self, user: str, password: str) -> None:
        """Add a user, or give it another password; the old one is refused from the next request on."""
        change_password(self.htpasswd, user, password)

    def remove_user(self, user: str) -> None:
        """Forget a user."""
        _write_users(
            self.htpasswd, {name: line for name, line in _users(self.htpasswd).items() if name != user}
        )

    def push(self, repository: str, user: str, password: str, tag: str = "latest") -> str:
        """Push a small image and return its reference, ``host:port/repository:tag``."""
        push_image(self.ask, repository, tag, basic(user, password))
        return f"{self.host}/{repository}:{tag}"

    def ask(
        self, method: str, path: str, body: bytes, headers: dict[str, str]
    ) -> tuple[int, dict[str, str], bytes]:
        """Send one request to the registry."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, found, answer.read()
        finally:
            connection.close()

    def _settings(self) -> dict[str, Any]:
        htpasswd = {"htpasswd": {"realm": "rig", "path": str(self.htpasswd)}}
        return {
            "version": "0.1",
            "log": {"level": "warn", "accesslog": {"disabled": True}},
            "storage": {
                "filesystem": {"rootdirectory": str(self.folder / "data")},
                "delete": {"enabled": True},
            },
            "http": {"addr": self.host, "secret": "rig"},
            "auth": self._auth or htpasswd,
        }

    @property
    def htpasswd(self) -> Path:
        """The users' file, which the registry reads anew at every request."""
        return self.folder / "htpasswd"

    def _wait(self) -> None:
        end = time.monotonic() + _READY_WITHIN
        while time.monotonic() < end and self._process is not None and self._process.poll() is None:
            try:
                if self.ask("GET", "/v2/", b"", {})[0] == 401:
                    return
            except OSError:
                pass
            time.sleep(0.02)
        log = (self.folder / "registry.log").read_text(errors="replace")
        self.stop()
        raise RegistryFailed(f"the registry did not become ready:\n{log[-2000:]}")


def change_password(htpasswd: Path, user: str, password: str) -> None:
    """Add a user to an htpasswd file, or give it another password."""
    hashed = bcrypt.hashpw(password.encode(), bcrypt.gensalt(_BCRYPT_COST)).decode()
    _write_users(htpasswd, {**_users(htpasswd), user: f"{user}:{hashed}"})


def _users(htpasswd: Path) -> dict[str, str]:
    return {line.partition(":")[0]: line for line in htpasswd.read_text().splitlines()}


def _write_users(htpasswd: Path, users: dict[str, str]) -> None:
    """Write the whole file beside the old one and swap: a half-written line makes every answer 400."""
    fresh = htpasswd.with_suffix(".new")
    fresh.write_text("".join(f"{line}\n" for line in users.values()))
    fresh.replace(htpasswd)


def basic(user: str, password: str) -> str:
    """Return the Authorization header of a login."""
    return "Basic " + b64encode(f"{user}:{password}".encode()).decode()


def push_image(ask: Asks, repository: str, tag: str, authorization: str) -> None:
    """Push a one-layer image with one small file, by the distribution protocol."""
    layer = _layer(f"image {repository}:{tag}\n".encode())
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]},
        }
    ).encode()
    for blob in (layer, config):
        _push_blob(ask, repository, blob, authorization)
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "config": _descriptor("application/vnd.oci.image.config.v1+json", config),
            "layers": [_descriptor("application/vnd.oci.image.layer.v1.tar", layer)],
        }
    ).encode()
    headers = {"Authorization": authorization, "Content-Type": _MANIFEST}
    _expect(ask("PUT", f"/v2/{repository}/manifests/{tag}", manifest, headers), 201)


def _push_blob(ask: Asks, repository: str, blob: bytes, authorization: str) -> None:
    headers = {"Authorization": authorization}
    started = _expect(ask("POST", f"/v2/{repository}/blobs/uploads/", b"", headers), 202)
    place = "/v2/" + started["location"].split("/v2/", 1)[1]
    place += ("&" if "?" in place else "?") + f"digest={_digest(blob)}"
    _expect(ask("PUT", place, blob, headers | {"Content-Type": "application/octet-stream"}), 201)


def _expect(answer: tuple[int, dict[str, str], bytes], status: int) -> dict[str, str]:
    if answer[0] != status:
        raise RegistryFailed(
            f"the registry answered {answer[0]} to a push, not {status}: {answer[2][:500]!r}"
        )
    return answer[1]


def _layer(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        entry = tarfile.TarInfo("hello")
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def _digest(blob: bytes) -> str:
    return "sha256:" + hashlib.sha256(blob).hexdigest()


def _descriptor(media_type: str, blob: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": _digest(blob), "size": len(blob)}


def pull(
    reference: str, auth_file: Path, into: Path, ca: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Pull an image with crane and the logins of ``auth_file`` alone. Failure is a return code.

    Args:
        reference: ``host[:port]/repository:tag``.
        auth_file: a dockerconfigjson or containers auth file.
        into: folder for crane's configuration and the image.
        ca: bundle to trust instead of the system's.
    """
    into.mkdir(parents=True, exist_ok=True)
    (into / "config.json").write_bytes(auth_file.read_bytes())
    environment = {"PATH": os.environ["PATH"], "HOME": str(into), "DOCKER_CONFIG": str(into)}
    if ca is not None:
        environment["SSL_CERT_FILE"] = str(ca)
    return subprocess.run(
        [str(crane()), "pull", reference, str(into / "image.tar")],
        capture_output=True,
        text=True,
        env=environment,
        timeout=60,
        check=False,
    )
