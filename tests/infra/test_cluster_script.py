"""infra/cluster.sh: its messages, and a cluster that it starts, guards with a token, and stops."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "infra" / "cluster.sh"


def cluster(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    return subprocess.run(
        [str(SCRIPT), *arguments], env=environment, capture_output=True, text=True, timeout=240, check=False
    )


def free_ports(number: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


@pytest.mark.parametrize("script", ["infra/cluster.sh", "infra/retrain.sh", "infra/services.sh", ".ci/run"])
def test_scripts_parse(script: str) -> None:
    assert (ROOT / script).stat().st_mode & stat.S_IXUSR, f"{script} is not executable"
    done = subprocess.run(["bash", "-n", str(ROOT / script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    if shellcheck := shutil.which("shellcheck"):
        done = subprocess.run([shellcheck, str(ROOT / script)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ([], 2, "usage:"),
        (["restart"], 2, "usage:"),
        (["start", "--prot", "1"], 1, "unknown option --prot"),
        (["start", "--port"], 1, "option --port needs a value"),
        (["join", "somewhere"], 1, "join needs the head's HOST:PORT, not 'somewhere'"),
        (["start", "--python", "no-such-python"], 1, "there is no 'no-such-python'"),
    ],
)
def test_wrong_usage_is_explained(arguments: list[str], status: int, message: str) -> None:
    done = cluster(*arguments)
    assert (done.returncode, done.stdout) == (status, "")
    assert message in done.stderr


def test_status_and_stop_without_running_services(tmp_path: Path) -> None:
    state = ("--state", str(tmp_path), "--python", sys.executable)
    assert (cluster("status", *state).returncode, cluster("status", *state).stdout) == (3, "not running\n")
    assert (cluster("stop", *state).returncode, cluster("stop", *state).stdout) == (0, "nothing to stop\n")


def test_stop_spares_another_process_with_the_recorded_pid(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as stranger:
        (tmp_path / "pid").write_text(str(stranger.pid), encoding="utf-8")
        done = cluster("stop", "--state", str(tmp_path), "--python", sys.executable)
        assert (done.returncode, stranger.poll()) == (0, None)
        stranger.kill()


def test_a_taken_port_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        done = cluster("start", "--port", port, "--state", str(tmp_path / "state"), "--python", sys.executable)
    assert done.returncode == 1
    assert f"port {port} on 127.0.0.1 is taken; choose another with --port" in done.stderr
    assert not (tmp_path / "state").exists()


@pytest.fixture
def folder() -> Iterator[Path]:
    # Ray's sockets lie below, and their paths may have 107 characters; tmp_path is too long.
    with tempfile.TemporaryDirectory(prefix="rc-") as short:
        yield Path(short)


def listening(family: list[psutil.Process]) -> set[tuple[str, int]]:
    """(address, port) of all that these processes listen on."""
    connections = [c for process in family for c in process.net_connections("tcp")]
    return {(c.laddr.ip, c.laddr.port) for c in connections if c.status == psutil.CONN_LISTEN}


@pytest.mark.slow
def test_start_guard_use_stop(folder: Path) -> None:
    port, dashboard = free_ports(2)
    options = ["--state", f"{folder}/state", "--token", f"{folder}/secret/token", "--temp-dir", f"{folder}/ray"]
    options += ["--port", str(port), "--dashboard-port", str(dashboard), "--python", sys.executable]
    small = ["--", "--num-cpus=2", "--object-store-memory=100000000"]
    family: list[psutil.Process] = []
    try:
        started = cluster("start", *options, *small)
        assert started.returncode == 0, started.stderr
        token = folder / "secret" / "token"
        assert stat.S_IMODE(token.stat().st_mode) == 0o600
        assert len(token.read_text(encoding="utf-8")) == 64

        head = psutil.Process(int((folder / "state" / "pid").read_text(encoding="utf-8")))
        family = [head, *head.children(recursive=True)]
        open_ports = listening(family)
        assert {port, dashboard} <= {number for _, number in open_ports}
        assert {ip for ip, _ in open_ports} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}, "listens beyond loopback"

        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"http://127.0.0.1:{dashboard}/api/jobs/", timeout=30)
        assert refused.value.code == 401
        request = urllib.request.Request(
            f"http://127.0.0.1:{dashboard}/api/jobs/",
            headers={"Authorization": f"Bearer {token.read_text(encoding='utf-8')}"},
        )
        assert urllib.request.urlopen(request, timeout=30).status == 200

        again = cluster("start", *options, *small)
        assert again.returncode == 1
        assert "already running here" in again.stderr

        status = cluster("status", *options)
        assert "/2.0 CPU" in status.stdout, status.stdout + status.stderr

        (folder / "work").mkdir()
        (folder / "work" / "hello.py").write_text(
            "import ray, sys\nray.init()\nprint('nodes:', len(ray.nodes()), 'by', sys.executable)\n", encoding="utf-8"
        )
        submit = f"""
            eval "$('{SCRIPT}' env --state '{folder}/state')"
            ray job submit --working-dir '{folder}/work' -- python hello.py
        """
        job = subprocess.run(["bash", "-c", submit], capture_output=True, text=True, timeout=240, check=False)
        assert job.returncode == 0, job.stdout + job.stderr
        assert "nodes: 1 by " in job.stdout
        if (ROOT / ".venv" / "bin" / "python").exists():
            assert f"by {ROOT}/.venv/bin/python" in job.stdout
    finally:
        stopped = cluster("stop", *options)
    assert (stopped.returncode, stopped.stdout) == (0, "stopped\n")
    assert cluster("status", *options).returncode == 3
    assert not psutil.wait_procs(family, timeout=30)[1], "processes outlived the cluster"
