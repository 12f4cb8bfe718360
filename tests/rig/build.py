"""Builds the rig's Go programs once, and finds them again.

A binary lives in ``${XDG_CACHE_HOME:-~/.cache}/secretsvc-rig/<hash>/``, where the hash is over
go.mod, go.sum, the package and the flags: what is there is what would be built. A build runs under a lock
file and ends in an atomic rename, so parallel test runs share it. It says on standard error what it does,
since the first one takes minutes. ``KUBEBUILDER_ASSETS`` (a folder with etcd and kube-apiserver, the
convention of controller-runtime's envtest) takes the place of building what is in it.

Run as a program it builds every ``tool`` of every go.mod of the rig.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

RIG = Path(__file__).resolve().parent
GO_AT_LEAST = (1, 26)
_SAY_EVERY = 15.0
_ETCD = "go.etcd.io/etcd/server/v3"
_APISERVER = "k8s.io/kubernetes/cmd/kube-apiserver"
_CONTROLLER_MANAGER = "k8s.io/kubernetes/cmd/kube-controller-manager"
_CRANE = "github.com/google/go-containerregistry/cmd/crane"
_KUBE = {_ETCD: "etcd", _APISERVER: "kube-apiserver", _CONTROLLER_MANAGER: "kube-controller-manager"}


class BuildFailed(Exception):
    """A program of the rig can not be had; the message says what to do."""


@dataclass(frozen=True)
class KubeBinaries:
    """The three programs of a control plane."""

    etcd: Path
    apiserver: Path
    controller_manager: Path


def kube_binaries() -> KubeBinaries:
    """Return the control plane's programs, building what ``KUBEBUILDER_ASSETS`` does not have."""
    return KubeBinaries(_kube(_ETCD), _kube(_APISERVER), _kube(_CONTROLLER_MANAGER))


def crane() -> Path:
    """Return the ``crane`` client."""
    return build(RIG, _CRANE, "crane")


def build(module_dir: Path, package: str, binary: str, ldflags: str = "") -> Path:
    """Return the program built from ``package`` as ``module_dir``'s go.mod pins it.

    Args:
        module_dir: folder of the go.mod and go.sum.
        package: import path of a main package.
        binary: file name of the result.
        ldflags: linker flags beyond ``-s -w``, such as ``-X path.variable=value``.
    """
    flags = ["-trimpath", f"-ldflags=-s -w {ldflags}".rstrip()]
    folder = _cache() / _key(module_dir, package, flags)
    path = folder / binary
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        if not path.exists():
            _compile(module_dir, package, flags, path)
    return path


def tools(module_dir: Path) -> list[str]:
    """Return the packages that the go.mod names as tools."""
    text = (module_dir / "go.mod").read_text()
    single = re.findall(r"^tool ([^\s(]+)", text, re.MULTILINE)
    for block in re.findall(r"^tool \(\n(.*?)^\)", text, re.MULTILINE | re.DOTALL):
        single += [line.split()[0] for line in block.splitlines() if line.strip()]
    return single


def build_all() -> list[Path]:
    """Build every tool of every go.mod of the rig."""
    kube = kube_binaries()
    paths = [kube.etcd, kube.apiserver, kube.controller_manager]
    for module in sorted(RIG.rglob("go.mod")):
        packages = [package for package in tools(module.parent) if package not in _KUBE]
        paths += [build(module.parent, package, package.rpartition("/")[2]) for package in packages]
    return paths


def _kube(package: str) -> Path:
    name = _KUBE[package]
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    if assets and (Path(assets) / name).exists():
        return Path(assets) / name
    return build(RIG, package, name, "" if package == _ETCD else _version_flags())


def _version_flags() -> str:
    """Without these ``/version`` answers ``v0.0.0-master+$Format:%H$``."""
    found = re.search(r"k8s\.io/kubernetes v((\d+)\.(\d+)\.\d+)", (RIG / "go.mod").read_text())
    if found is None:
        raise BuildFailed(f"{RIG / 'go.mod'} does not require k8s.io/kubernetes")
    version, major, minor = found.groups()
    values = {"gitVersion": f"v{version}", "gitMajor": major, "gitMinor": minor}
    return " ".join(f"-X k8s.io/component-base/version.{key}={value}" for key, value in values.items())


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "secretsvc-rig"


def _key(module_dir: Path, package: str, flags: list[str]) -> str:
    digest = hashlib.sha256()
    for name in ("go.mod", "go.sum"):
        digest.update((module_dir / name).read_bytes() + b"\0")
    digest.update("\0".join([package, *flags]).encode())
    return digest.hexdigest()[:20]


def _go() -> str:
    path = shutil.which("go")
    if path is None:
        raise BuildFailed(f"building the rig needs Go {_dotted(GO_AT_LEAST)} or newer on PATH")
    text = subprocess.run([path, "version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"go(\d+)\.(\d+)", text)
    if found is None or (int(found[1]), int(found[2])) < GO_AT_LEAST:
        raise BuildFailed(
            f"{path} is {text.strip()}; building the rig needs Go {_dotted(GO_AT_LEAST)} or newer"
        )
    return path


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _compile(module_dir: Path, package: str, flags: list[str], path: Path) -> None:
    environment = os.environ | {"GOTOOLCHAIN": "local", "CGO_ENABLED": "0"}
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        partial = Path(scratch) / path.name
        command = [_go(), "build", "-v", *flags, "-o", str(partial), package]
        log = Path(scratch) / "log"
        with log.open("w") as stream:
            process = subprocess.Popen(command, cwd=module_dir, env=environment, stdout=stream, stderr=stream)
        try:
            _wait(process, path.name, log)
        finally:
            process.kill()
        if process.returncode != 0:
            raise BuildFailed(f"go build {package} failed:\n{log.read_text()[-4000:]}")
        partial.rename(path)


def _wait(process: subprocess.Popen[bytes], name: str, log: Path) -> None:
    """Wait, saying how long it has taken and how many packages (``-v`` writes one line each) are compiled."""
    started = time.monotonic()
    _say(f"building {name} (once; minutes when nothing is compiled yet)")
    while True:
        try:
            process.wait(timeout=_SAY_EVERY)
        except subprocess.TimeoutExpired:
            packages = len(log.read_text().splitlines())
            _say(f"building {name}: {time.monotonic() - started:.0f} s, {packages} packages compiled")
        else:
            _say(f"building {name}: ended after {time.monotonic() - started:.0f} s")
            return


def _say(text: str) -> None:
    sys.stderr.write(f"rig: {text}\n")
    sys.stderr.flush()


def main() -> None:
    """Build everything and say where it is."""
    for path in build_all():
        _say(f"{path.name} is in {path.parent}")


if __name__ == "__main__":
    main()
