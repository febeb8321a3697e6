"""The cluster that a job starts for itself: who can reach it; and one that is gone."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.workflows import cluster
from pipelines.workflows.cluster import ClusterConfig, ClusterError

ROOT = Path(__file__).resolve().parents[3]

# Prints the mode of the private folder, what another account can list, and the addresses on which Ray's processes
# listen, after workers have started.
LOOK = """
import os, subprocess, sys
from pathlib import Path
import psutil, ray
from pipelines.workflows.cluster import ClusterConfig, connected_to_cluster
from pipelines.errors import DataError
with connected_to_cluster(ClusterConfig(num_cpus=2, object_store_mb=100)) as own:
    assert own
    (session,) = (Path(os.environ["RAY_TMPDIR"]) / f"ray-{os.getuid()}" / "ray").glob(f"session_*_{os.getpid()}")
    print("mode", oct(session.parent.parent.stat().st_mode & 0o777))
    ray.get(ray.remote(lambda: None).remote())
    if os.getuid() == 0:
        for name in ("", "sockets", "logs"):
            other = {"user": 65534, "group": 65534, "extra_groups": []}
            print("listed", subprocess.run(["ls", session / name], capture_output=True, **other).returncode == 0)
    print("token", os.environ["RAY_AUTH_MODE"], (Path.home() / ".ray" / "auth_token").exists())
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        for connection in process.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN:
                print("listens", connection.laddr.ip, process.name())
    def fail(batch):
        raise DataError("the shard is gone; restore it")
    try:
        ray.data.range(2).map_batches(fail).take_all()
    except Exception as error:
        from pipelines.errors import find_expected_cause, message_for_user
        known = find_expected_cause(error)
        print("cause", type(known).__name__, message_for_user(known))
"""


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder with a short path, as Ray's sockets need."""
    with tempfile.TemporaryDirectory(prefix="h-", dir="/tmp") as folder:
        yield Path(folder)


def test_a_jobs_own_cluster_is_closed_to_others_and_keeps_the_type_of_errors(home: Path) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = kept | {"HOME": str(home), "RAY_TMPDIR": str(home), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", LOOK],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    lines = [line.split(maxsplit=2) for line in done.stdout.splitlines()]
    assert ["mode", "0o700"] in lines, done.stderr
    assert ["listed", "True"] not in lines
    assert ["token", "token", "False"] in lines
    addresses = {line[1] for line in lines if line[0] == "listens"}
    assert addresses
    assert addresses <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    assert ["cause", "DataError", "the shard is gone; restore it"] in lines


def test_a_head_that_is_gone_is_told_at_once() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    says = rf"no Ray cluster answers at cluster\.address='{address}'.*cluster\.sh"
    with pytest.raises(ClusterError, match=says):
        cluster._require_reachable_head(address)


@pytest.mark.parametrize(
    ("raised", "says"),
    [
        (
            OSError("AF_UNIX path length cannot exceed 107 bytes"),
            r"Ray cannot start in .*107 bytes; name a short folder",
        ),
        (Exception("The current node timed out during startup."), "Ray did not start within its 30 s, .* too busy"),
    ],
    ids=["a long path", "a busy machine"],
)
def test_why_ray_does_not_start_is_told(
    raised: Exception, says: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**_: object) -> None:
        raise raised

    monkeypatch.setenv("RAY_TMPDIR", str(home))
    monkeypatch.setattr("ray.init", fail)
    with pytest.raises(ClusterError, match=says):
        cluster._start_cluster(ClusterConfig())


def test_a_folder_of_another_user_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / f"ray-{os.getuid()}").symlink_to(elsewhere)
    folder = cluster._make_private_session_folder()
    assert folder.parent.parent == tmp_path
    assert folder.parent.name != f"ray-{os.getuid()}"
    assert folder.parent.stat().st_mode & 0o777 == 0o700
