"""A real control plane on free loopback ports: etcd, kube-apiserver (RBAC on) and kube-controller-manager.

The controller manager runs what namespaces need: service accounts with their CA bundle, deletion that ends,
garbage collection. There are no nodes, so nothing runs pods. Users are client certificates signed by the
cluster's own CA. Programs are stopped by process id.

The session fixture `kube` starts one when a test first asks for it (3 to 12 s).
"""

from __future__ import annotations

import base64
import datetime as dt
import json
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, Self

import pytest
import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.rig.build import kube_binaries
from tests.rig.ports import free_port

_READY_WITHIN = 90.0
_CONTROLLERS = (
    "serviceaccount-controller",
    "serviceaccount-token-controller",
    "namespace-controller",
    "garbage-collector-controller",
    "root-ca-certificate-publisher-controller",
)
Rules = list[dict[str, list[str]]]
"""RBAC policy rules as a Role has them."""


class RigFailed(Exception):
    """A program of the rig did not become ready; the message ends with its log."""


def wait_until(what: str, holds: Callable[[], bool], within: float = _READY_WITHIN) -> None:
    """Wait until ``holds()``; raises `RigFailed` naming ``what`` after ``within`` seconds."""
    deadline = time.monotonic() + within
    while not holds():
        if time.monotonic() > deadline:
            raise RigFailed(f"gave up after {within:.0f} s waiting for: {what}")
        time.sleep(0.05)


class CertificateAuthority:
    """Signs the certificates of one cluster, into files below ``folder``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "rig")])
        builder = self._builder(self._name, self._key).add_extension(
            x509.BasicConstraints(True, None), critical=True
        )
        usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
        self._certificate = builder.add_extension(usage, critical=True).sign(self._key, hashes.SHA256())
        self.path = folder / "ca.crt"
        self.path.write_bytes(self._certificate.public_bytes(serialization.Encoding.PEM))

    def issue(self, user: str, group: str = "", *, server: bool = False) -> tuple[Path, Path]:
        """Return the certificate and key files of a client (``CN`` user, ``O`` group) or of the server."""
        key = ec.generate_private_key(ec.SECP256R1())
        parts = [x509.NameAttribute(NameOID.COMMON_NAME, user)]
        if group:
            parts.append(x509.NameAttribute(NameOID.ORGANIZATION_NAME, group))
        purpose = ExtendedKeyUsageOID.SERVER_AUTH if server else ExtendedKeyUsageOID.CLIENT_AUTH
        names = x509.SubjectAlternativeName(
            [x509.DNSName("localhost"), x509.IPAddress(IPv4Address("127.0.0.1"))]
        )
        certificate = (
            self._builder(x509.Name(parts), key)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(names, critical=False)
            .sign(self._key, hashes.SHA256())
        )
        path, key_path = self._folder / f"{user}.crt", self._folder / f"{user}.key"
        path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        write_key(key_path, key)
        return path, key_path

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = dt.datetime.now(dt.UTC)
        issuer_key = self._key.public_key()
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(minutes=5))
            .not_valid_after(now + dt.timedelta(days=30))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False)
        )


def write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    """Write a private key as PEM (``EC PRIVATE KEY``, which all three programs read), for its owner alone."""
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )
    path.touch(mode=0o600)
    path.write_bytes(pem)


@dataclass
class _Program:
    """One running server with the file its output goes to."""

    process: subprocess.Popen[bytes]
    log: Path

    @classmethod
    def start(cls, name: str, command: list[str], folder: Path) -> Self:
        log = folder / f"{name}.log"
        with log.open("ab") as stream:
            return cls(subprocess.Popen(command, stdout=stream, stderr=stream, cwd=folder), log)

    def wait_ready(self, answers: Callable[[], bool]) -> None:
        try:
            wait_until(self.log.stem, lambda: self.process.poll() is not None or answers())
        except RigFailed as exc:
            raise RigFailed(f"{exc}\n{self._tail()}") from exc
        if self.process.poll() is not None:
            raise RigFailed(f"{self.log.stem} ended with {self.process.returncode}\n{self._tail()}")

    def stop(self) -> None:
        """Kill: nothing is worth keeping, and an API server ends politely only after its watchers."""
        self.process.kill()
        self.process.wait()

    def _tail(self) -> str:
        return self.log.read_text(errors="replace")[-3000:]


class KubeCluster:
    """One control plane below ``folder``. A context manager: entering starts it, leaving stops it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._programs: dict[str, _Program] = {}
        self._users = 0
        self._etcd = f"http://127.0.0.1:{free_port()}"
        self.port = free_port()
        self.server = f"https://127.0.0.1:{self.port}"
        self.ca = CertificateAuthority(folder)
        self._admin = self.ca.issue("rig-admin", "system:masters")
        self._server_files = self.ca.issue("kube-apiserver", server=True)
        self._signing = folder / "service-accounts.key"
        write_key(self._signing, ec.generate_private_key(ec.SECP256R1()))
        self.kubeconfig = self.write_kubeconfig("admin", {"rig": self._user_of(self._admin)})
        """A kubeconfig of a cluster administrator; its context is ``rig``."""

    def __enter__(self) -> Self:
        try:
            self._start_etcd()
            self.start_apiserver()
            self._start_controller_manager()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop every program, the last started first."""
        for name in reversed(list(self._programs)):
            self._programs.pop(name).stop()

    def stop_apiserver(self) -> None:
        """Make the cluster unreachable; what it stores stays."""
        self._programs.pop("kube-apiserver").stop()

    def start_apiserver(self) -> None:
        """Start the API server, on the same port every time, and wait until it is ready."""
        certificate, key = map(str, self._server_files)
        options = {
            "etcd-servers": self._etcd,
            "bind-address": "127.0.0.1",
            "advertise-address": "127.0.0.1",
            "secure-port": str(self.port),
            "tls-cert-file": certificate,
            "tls-private-key-file": key,
            "client-ca-file": str(self.ca.path),
            "service-account-issuer": self.server,
            "service-account-key-file": str(self._signing),
            "service-account-signing-key-file": str(self._signing),
            "service-cluster-ip-range": "10.0.0.0/24",
            "authorization-mode": "RBAC",
            "anonymous-auth": "false",
            "endpoint-reconciler-type": "none",
            "shutdown-delay-duration": "0s",
        }
        program = self._start("kube-apiserver", kube_binaries().apiserver, options)
        program.wait_ready(self._apiserver_answers)

    def _start_etcd(self) -> None:
        peer = f"http://127.0.0.1:{free_port()}"
        options = {
            "data-dir": str(self._folder / "etcd"),
            "listen-client-urls": self._etcd,
            "advertise-client-urls": self._etcd,
            "listen-peer-urls": peer,
            "initial-advertise-peer-urls": peer,
            "initial-cluster": f"default={peer}",
            "unsafe-no-fsync": "true",
            "log-level": "warn",
        }
        program = self._start("etcd", kube_binaries().etcd, options)
        program.wait_ready(lambda: _answers(f"{self._etcd}/health"))

    def _start_controller_manager(self) -> None:
        user = {"controller-manager": self._user_of(self._admin)}
        kubeconfig = str(self.write_kubeconfig("controller-manager", user))
        options = {
            "kubeconfig": kubeconfig,
            "authentication-kubeconfig": kubeconfig,
            "authorization-kubeconfig": kubeconfig,
            "bind-address": "127.0.0.1",
            "secure-port": str(free_port()),
            "use-service-account-credentials": "true",
            "service-account-private-key-file": str(self._signing),
            "root-ca-file": str(self.ca.path),
            "leader-elect": "false",
            "controllers": ",".join(_CONTROLLERS),
        }
        program = self._start("kube-controller-manager", kube_binaries().controller_manager, options)
        account = "/api/v1/namespaces/default/serviceaccounts/default"
        program.wait_ready(lambda: self.ask("GET", account).status_code == requests.codes.ok)

    def _start(self, name: str, binary: Path, options: Mapping[str, str]) -> _Program:
        command = [str(binary), *(f"--{key}={value}" for key, value in options.items())]
        self._programs[name] = _Program.start(name, command, self._folder)
        return self._programs[name]

    def _apiserver_answers(self) -> bool:
        with suppress(requests.RequestException):
            return self.ask("GET", "/readyz").status_code == requests.codes.ok
        return False

    # --- Access ---

    def write_kubeconfig(self, name: str, users: Mapping[str, dict[str, Any]], current: str = "") -> Path:
        """Write a kubeconfig with one context per user, named as the user.

        Args:
            name: of the file.
            users: user name to the ``user`` object of the kubeconfig.
            current: name of the current context, by default the first.
        """
        cluster = {"server": self.server, "certificate-authority": str(self.ca.path)}
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "rig", "cluster": cluster}],
            "users": [{"name": user, "user": login} for user, login in users.items()],
            "contexts": [{"name": user, "context": {"cluster": "rig", "user": user}} for user in users],
            "current-context": current or next(iter(users)),
        }
        path = self._folder / f"{name}.kubeconfig"
        path.touch(mode=0o600)
        path.write_text(json.dumps(document))
        return path

    def user(self, rules: Rules, namespace: str = "") -> Path:
        """Return the kubeconfig of a new user with these rights, in one namespace or (empty) everywhere."""
        self._users += 1
        name = f"rig-user-{self._users}"
        self.allow(name, {"kind": "User", "name": name}, rules, namespace)
        return self.write_kubeconfig(name, {name: self._user_of(self.ca.issue(name))})

    def allow(self, name: str, subject: dict[str, str], rules: Rules, namespace: str = "") -> None:
        """Grant ``rules`` to an RBAC subject by a role and a binding called ``name``."""
        scope, kind = (f"/namespaces/{namespace}", "Role") if namespace else ("", "ClusterRole")
        base = f"/apis/rbac.authorization.k8s.io/v1{scope}/{kind.lower()}"
        self.create(f"{base}s", {"metadata": {"name": name}, "rules": rules})
        role = {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name}
        self.create(f"{base}bindings", {"metadata": {"name": name}, "subjects": [subject], "roleRef": role})

    def service_account_token(self, namespace: str, name: str = "default") -> str:
        """Return a new token of a service account, valid for an hour."""
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token"
        answer = self.create(path, {"spec": {"expirationSeconds": 3600}})
        token: str = answer["status"]["token"]
        return token

    @staticmethod
    def _user_of(files: tuple[Path, Path]) -> dict[str, Any]:
        return {"client-certificate": str(files[0]), "client-key": str(files[1])}

    # --- What tests do as the administrator ---

    def ask(
        self, method: str, path: str, body: Any = None, content_type: str = "application/json"
    ) -> requests.Response:
        """Send one request as the administrator and return whatever is answered."""
        certificate = (str(self._admin[0]), str(self._admin[1]))
        with requests.Session() as session:
            session.trust_env = False
            return session.request(
                method,
                self.server + path,
                data=None if body is None else json.dumps(body),
                headers={"Content-Type": content_type},
                cert=certificate,
                verify=str(self.ca.path),
                timeout=30,
            )

    def create(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """POST an object and return it as the server made it."""
        return _checked(self.ask("POST", path, body))

    def patch(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """JSON merge patch an object and return it."""
        return _checked(self.ask("PATCH", path, body, "application/merge-patch+json"))

    def create_namespace(self, name: str, **labels: str) -> str:
        """Create a namespace and return its name."""
        self.create("/api/v1/namespaces", {"metadata": {"name": name, "labels": labels}})
        return name

    def delete_namespace(self, name: str) -> None:
        """Ask for the deletion of a namespace; it goes a little later."""
        _checked(self.ask("DELETE", f"/api/v1/namespaces/{name}"))

    def wait_namespace_gone(self, name: str) -> None:
        """Wait until the namespace is not there any more."""
        path = f"/api/v1/namespaces/{name}"
        wait_until(
            f"namespace {name} gone", lambda: self.ask("GET", path).status_code == requests.codes.not_found
        )

    def deny(self, namespace: str, policy: dict[str, Any], probe: Mapping[str, str]) -> None:
        """Make a ValidatingAdmissionPolicy and wait until it refuses a Secret with the data ``probe``."""
        base = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolic"
        metadata = {"name": namespace}
        self.create(f"{base}ies", {"metadata": metadata, "spec": {"failurePolicy": "Fail", **policy}})
        binding = {"policyName": namespace, "validationActions": ["Deny"]}
        self.create(f"{base}ybindings", {"metadata": metadata, "spec": binding})
        path = f"/api/v1/namespaces/{namespace}/secrets?dryRun=All"
        body = {"metadata": {"name": "probe"}, "stringData": dict(probe)}
        wait_until("the admission policy", lambda: not self.ask("POST", path, body).ok)

    def create_secret(
        self, namespace: str, name: str, data: Mapping[str, str], type_: str = "Opaque", **metadata: Any
    ) -> dict[str, Any]:
        """Create a Secret by hand, as another tool would."""
        values = {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}
        body = {"metadata": {"name": name, **metadata}, "type": type_, "data": values}
        return self.create(f"/api/v1/namespaces/{namespace}/secrets", body)

    def get_secret(self, namespace: str, name: str) -> dict[str, Any] | None:
        """Return a Secret as JSON with its data decoded to text, or None when there is none."""
        answer = self.ask("GET", f"/api/v1/namespaces/{namespace}/secrets/{name}")
        if answer.status_code == requests.codes.not_found:
            return None
        secret = _checked(answer)
        data = secret.get("data", {}).items()
        return secret | {"data": {key: base64.b64decode(value).decode() for key, value in data}}


def _answers(url: str) -> bool:
    with suppress(requests.RequestException), requests.Session() as session:
        session.trust_env = False
        return session.get(url, timeout=2).ok
    return False


def _checked(answer: requests.Response) -> dict[str, Any]:
    if not answer.ok:
        raise RigFailed(f"{answer.request.method} {answer.request.url}: {answer.status_code} {answer.text}")
    body: dict[str, Any] = answer.json()
    return body


@pytest.fixture(scope="session")
def kube(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubeCluster]:
    """A control plane that all tests of a session share; tests make namespaces of their own."""
    with KubeCluster(tmp_path_factory.mktemp("kube")) as cluster:
        yield cluster
