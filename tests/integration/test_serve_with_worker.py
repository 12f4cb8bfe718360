"""``serve --with-worker`` as real processes: it starts, heals, stops, and leaves nothing behind."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from secretsvc.cli.exits import Exit
from tests.rig.ports import free_port
from tests.rig.service import Service

pytestmark = pytest.mark.rig

_PATIENCE = 40.0


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with Service(tmp_path, {}) as running:
        yield running


def eventually(true: Callable[[], object], what: str) -> None:
    end = time.monotonic() + _PATIENCE
    while not true():
        assert time.monotonic() < end, what
        time.sleep(0.05)


def arguments(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def program(service: Service, name: str) -> int:
    """Return the process id of the parent's child ``serve`` or ``work``, 0 when there is none."""
    below = Path(f"/proc/{service.pid}/task/{service.pid}/children").read_text().split()
    return next((int(pid) for pid in below if arguments(int(pid)).endswith(f"secretsvc {name}")), 0)


def ready(service: Service) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=2)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def start(folder: Path, *command: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a start that is expected to end by itself."""
    places = {
        "PATH": os.environ["PATH"],
        "SECRETSVC_DATA_DIR": str(folder / "data"),
        "SECRETSVC_KEY_FILE": str(folder / "kek"),
        "SECRETSVC_LISTEN": f"127.0.0.1:{free_port()}",
        **environ,
    }
    return subprocess.run(
        [sys.executable, "-m", "secretsvc", *(command or ("serve", "--with-worker"))],
        env=places,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


# --- The first start ------------------------------------------------------------------------------


def test_the_first_start_makes_private_files_and_says_where(service: Service) -> None:
    folder = service.folder
    eventually(lambda: "is ready at" in service.log(), service.log())
    data = folder / "data"
    assert stat.S_IMODE(data.stat().st_mode) == 0o700
    for path in [folder / "kek", *(path for path in data.rglob("*") if path.is_file())]:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    log = service.log()
    for said in (service.url, str(data / "admin.token"), str(folder / "kek"), "credential add"):
        assert said in log
    assert service.token_file.read_text().strip() not in log
    assert (folder / "kek").read_text().strip() not in log


def test_a_second_start_makes_nothing_new(tmp_path: Path) -> None:
    with Service(tmp_path, {}) as first:
        token, key = first.token_file.read_bytes(), (tmp_path / "kek").read_bytes()
        eventually(lambda: "is ready at" in first.log(), "the first start")
        first.stop()
        first.start()
        eventually(lambda: first.log().count("is ready at") == 2, first.log())
        assert (first.token_file.read_bytes(), (tmp_path / "kek").read_bytes()) == (token, key)
        assert first.log().count("made at this first start") == 1


def test_a_missing_key_is_never_replaced(tmp_path: Path) -> None:
    with Service(tmp_path, {}):
        pass
    (tmp_path / "kek").unlink()
    done = start(tmp_path)
    assert done.returncode == Exit.USAGE
    assert "is missing" in done.stderr
    assert not (tmp_path / "kek").exists()


# --- Dying and stopping ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["serve", "work"])
def test_a_child_that_is_killed_is_started_again(service: Service, name: str) -> None:
    eventually(lambda: program(service, name), "no child")
    old = program(service, name)
    os.kill(old, signal.SIGKILL)
    eventually(lambda: program(service, name) not in (0, old), service.log())
    eventually(lambda: ready(service), service.log())
    assert "killed by SIGKILL" in service.log()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_stops_everything_in_order(tmp_path: Path, number: signal.Signals) -> None:
    with Service(tmp_path, {}) as service:
        eventually(lambda: "work.loaded" in service.log(), service.log())
        pids = service.children()
        assert len(pids) == 3  # serve, its one worker process, and work
        process = service._process
        assert process is not None
        process.send_signal(number)
        assert process.wait(_PATIENCE) == 0
        assert not any(alive(pid) for pid in pids)
        assert "work.stopped" in service.log()
        assert "child.killed" not in service.log()
        service._process = None


def test_the_children_end_when_the_parent_is_killed(service: Service) -> None:
    eventually(lambda: program(service, "work") and len(service.children()) == 3, service.log())
    pids = service.children()
    os.kill(service.pid, signal.SIGKILL)
    eventually(lambda: not any(alive(pid) for pid in pids), service.log())


def test_after_a_power_cut_it_starts_again(tmp_path: Path) -> None:
    with Service(tmp_path, {}) as service:
        service.kill()
        service.start()
        assert ready(service)


# --- Starts that can not be -----------------------------------------------------------------------


def test_wrong_settings_end_with_one_message_and_no_restart(tmp_path: Path) -> None:
    done = start(tmp_path, SECRETSVC_LISTEN="0.0.0.0:1", SECRETSVC_STORE="redis")
    assert done.returncode == Exit.USAGE
    assert done.stderr.count("error:") == 1
    assert not (tmp_path / "data").exists()


def test_a_key_that_others_can_read_ends_with_one_message(tmp_path: Path) -> None:
    with Service(tmp_path, {}):
        pass
    (tmp_path / "kek").chmod(0o644)
    done = start(tmp_path)
    assert done.returncode == Exit.USAGE
    assert "chmod 600" in done.stderr
    assert "child.started" not in done.stderr


def test_what_only_a_child_finds_wrong_stops_the_parent_too(tmp_path: Path) -> None:
    kubeconfig = tmp_path / "nowhere"
    port = Service(tmp_path, {}).port
    listen = f"127.0.0.1:{port}"
    done = start(tmp_path, SECRETSVC_KUBECONFIG=str(kubeconfig), SECRETSVC_LISTEN=listen)
    assert done.returncode == Exit.USAGE
    assert str(kubeconfig) in done.stderr
    assert "child.died" not in done.stderr


def test_a_port_that_is_taken_is_a_clear_message(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for command in (("serve", "--with-worker"), ("serve",)):
            done = start(tmp_path, *command, SECRETSVC_LISTEN=f"127.0.0.1:{port}")
            assert done.returncode == Exit.USAGE
            assert f"127.0.0.1:{port} can not be listened on" in done.stderr


# --- How it runs ----------------------------------------------------------------------------------


def test_no_control_socket_and_no_access_log_of_gunicorn(service: Service) -> None:
    assert ready(service)
    pids = service.children()
    sockets = Path("/proc/net/unix").read_text()
    assert "gunicorn" not in sockets
    assert pids
    assert not (Path.home() / ".gunicorn" / "gunicorn.ctl").exists()
    assert "gunicorn.access" not in service.log()


def test_the_programs_leave_no_core_dump(service: Service) -> None:
    eventually(lambda: len(service.children()) == 3, service.log())
    for pid in service.children():
        limits = Path(f"/proc/{pid}/limits").read_text()
        line = next(line for line in limits.splitlines() if line.startswith("Max core file size"))
        assert line.split()[4:6] == ["0", "0"]


def test_the_doorbell_and_the_lifeline_are_inherited(service: Service) -> None:
    """Both ends are inherited, by serve's worker process and by work, and nothing else is."""
    eventually(lambda: program(service, "work") and program(service, "serve"), service.log())
    for name in ("serve", "work"):
        environ = Path(f"/proc/{program(service, name)}/environ").read_bytes().split(b"\0")
        found = dict(entry.split(b"=", 1) for entry in environ if b"=" in entry)
        for variable in (b"SECRETSVC_DOORBELL_FD", b"SECRETSVC_LIFELINE_FD"):
            descriptor = int(found[variable])
            target = str(Path(f"/proc/{program(service, name)}/fd/{descriptor}").readlink())
            assert target.startswith(("socket:", "pipe:"))
