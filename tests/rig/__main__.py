"""``make rig``: the servers of the walk-through by hand, until interrupted.

    python -m tests.rig [FOLDER]                 start them; FOLDER/env is what to source
    python -m tests.rig passwd HTPASSWD USER     change a user's password to standard input's

A registry with a private image, a Kubernetes control plane with three namespaces, and OpenBao prepared by
our own bootstrap. Everything listens on free loopback ports and goes when this process goes.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from tests.rig.build import crane
from tests.rig.kube import KubeCluster
from tests.rig.openbao import OpenBao, bootstrapped
from tests.rig.registry import Registry, change_password

NAMESPACES = ("team-a", "team-b", "team-c")
USER = "robot$pull"
SERVERS = ("registry", "kube", "openbao")


@contextlib.contextmanager
def servers(folder: Path) -> Iterator[dict[str, str]]:
    """Start everything below ``folder``; yield the environment that finds it."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    for name in SERVERS:  # what a run before this one left would not fit its fresh certificates
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).mkdir()
    passwords = {name: folder / f"{name}-password" for name in ("first", "second", "wrong")}
    for path in passwords.values():
        path.write_text(secrets.token_urlsafe(24) + "\n")
    with contextlib.ExitStack() as stack:
        registry = stack.enter_context(Registry(folder / "registry"))
        first = passwords["first"].read_text().strip()
        registry.set_password(USER, first)
        image = registry.push("team/app", USER, first)
        kube = stack.enter_context(KubeCluster(folder / "kube"))
        for name in NAMESPACES:
            kube.create_namespace(name)
        bao = stack.enter_context(OpenBao.dev(folder / "openbao"))
        report = bootstrapped(bao, folder / "openbao").report
        yield {
            "REGISTRY": registry.host,
            "REGISTRY_USER": USER,
            "HTPASSWD": str(registry.htpasswd),
            "IMAGE": image,
            **{name.upper(): str(path) for name, path in passwords.items()},
            "KUBECONFIG": str(kube.kubeconfig),
            "CRANE": str(crane()),
            "BAO_ADDRESS": bao.address,
            "BAO_ROLE_ID": report.role_ids["secretsvc"],
            "BAO_SECRET_ID_FILE": str(report.secret_id_files["secretsvc"]),
        }


def main(arguments: list[str]) -> None:
    """Change a password, or run the servers until SIGINT or SIGTERM."""
    if arguments[:1] == ["passwd"]:
        change_password(Path(arguments[1]), arguments[2], sys.stdin.readline().rstrip("\n"))
        return
    folder = Path(arguments[0] if arguments else ".run/rig").absolute()
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    sys.stderr.write("rig: starting a registry, a Kubernetes control plane and OpenBao\n")
    with servers(folder) as environment:
        lines = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in environment.items())
        path = folder / "env"
        path.write_text(lines)
        shown = os.path.relpath(path)
        sys.stdout.write(f"{lines}\nThe servers run until Ctrl-C. In another terminal: source {shown}\n")
        sys.stdout.flush()
        stop.wait()
        path.unlink()


if __name__ == "__main__":
    main(sys.argv[1:])
