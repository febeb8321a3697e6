"""infra/services.sh: its messages; and the drill, which runs PostgreSQL, the object store and MLflow for real."""

from __future__ import annotations

import importlib.util
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

import mlflow
import psutil
import pytest

from tests.infra.test_cluster_script import free_ports, listening

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "infra" / "services.sh"


def services(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(SCRIPT), *arguments], capture_output=True, text=True, timeout=400, check=False)


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ([], 2, "usage:"),
        (["restart"], 2, "usage:"),
        (["start", "--prot", "1"], 1, "unknown option --prot"),
        (["start", "--port"], 1, "option --port needs a value"),
    ],
)
def test_wrong_usage_is_explained(arguments: list[str], status: int, message: str) -> None:
    done = services(*arguments)
    assert (done.returncode, done.stdout) == (status, "")
    assert message in done.stderr


def test_status_and_stop_without_running_services(tmp_path: Path) -> None:
    state = ("--state", str(tmp_path))
    assert (services("status", *state).returncode, services("status", *state).stdout) == (3, "not running\n")
    assert (services("stop", *state).returncode, services("stop", *state).stdout) == (0, "nothing to stop\n")


def missing() -> str:
    """What the drill needs and this machine lacks; "" if nothing."""
    lacking = [name for name in ("boto3", "psycopg") if importlib.util.find_spec(name) is None]
    if not shutil.which("pg_config") and not list(Path("/usr/lib/postgresql").glob("*/bin/postgres")):
        lacking.append("PostgreSQL")
    if subprocess.run(["bash", "-c", "rclone serve s3 --help"], capture_output=True, check=False).returncode:
        lacking.append("rclone 1.65")
    return ", ".join(lacking)


@pytest.fixture
def folder() -> Iterator[Path]:
    # PostgreSQL's socket lies below, whose path is limited; and where root calls, another user goes through it.
    with tempfile.TemporaryDirectory(prefix="sv-") as short:
        Path(short).chmod(0o711)
        yield Path(short)


@pytest.mark.drill
def test_a_run_goes_to_the_database_and_its_files_to_the_store(folder: Path) -> None:
    if lacking := missing():
        pytest.skip(f"needs {lacking}; see infra/services.sh --help")
    port, s3_port, prometheus_port = free_ports(3)
    options = ["--state", f"{folder}/state", "--python", sys.executable, "--port", str(port)]
    options += ["--s3-port", str(s3_port), "--prometheus-port", str(prometheus_port)]
    tracking = f"http://127.0.0.1:{port}"
    family: list[psutil.Process] = []
    try:
        started = services("start", *options)
        assert started.returncode == 0, started.stderr
        assert services("env", *options).stdout == f"export MLFLOW_TRACKING_URI={tracking}\n"
        family = [psutil.Process(int(file.read_text())) for file in (folder / "state").glob("*.pid")]
        family += [child for process in family for child in process.children(recursive=True)]
        assert {port, s3_port} <= {number for _, number in listening(family)}
        assert {ip for ip, _ in listening(family)} <= {"127.0.0.1", "::1"}, "listens beyond loopback"

        # Who has no key gets nothing, and neither the key nor the folder of the database is for others.
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"http://127.0.0.1:{s3_port}/mlflow", timeout=30)
        assert 400 <= refused.value.code < 500
        assert stat.S_IMODE((folder / "state" / "keys").stat().st_mode) == 0o600
        assert stat.S_IMODE((folder / "state" / "postgres").stat().st_mode) == 0o700
        secret = (folder / "state" / "keys").read_text(encoding="utf-8").split("SECRET_ACCESS_KEY=")[1].strip()
        assert not [process for process in family if secret in " ".join(process.cmdline())], "a key in `ps`"
        lured = urllib.request.Request(f"{tracking}/api/2.0/mlflow/experiments/get", headers={"Host": "evil.example"})
        with pytest.raises(urllib.error.HTTPError) as foreign:
            urllib.request.urlopen(lured, timeout=30)
        assert foreign.value.code == 403

        client = mlflow.MlflowClient(tracking)
        run = client.create_run(client.create_experiment("drill"))
        client.log_metric(run.info.run_id, "accuracy", 0.75)
        client.log_text(run.info.run_id, "an answer", "notes/answer.txt")
        client.create_registered_model("vlmodel")
        version = client.create_model_version("vlmodel", f"{run.info.artifact_uri}/model", run.info.run_id)
        client.set_registered_model_alias("vlmodel", "champion", version.version)
        stored = list((folder / "state" / "objects" / "mlflow").rglob("answer.txt"))
        assert [file.read_text(encoding="utf-8") for file in stored] == ["an answer"]

        assert services("stop", *options).stdout == "stopped\n"
        assert not psutil.wait_procs(family, timeout=30)[1], "processes outlived the services"
        assert services("start", *options).returncode == 0, "data of before is not in the way"
        again = mlflow.MlflowClient(tracking)
        assert again.get_run(run.info.run_id).data.metrics == {"accuracy": 0.75}
        assert again.get_model_version_by_alias("vlmodel", "champion").version == version.version
        local = again.download_artifacts(run.info.run_id, "notes/answer.txt", str(folder))
        assert Path(local).read_text(encoding="utf-8") == "an answer"
    finally:
        stopped = services("stop", *options)
    assert stopped.returncode == 0, stopped.stderr
    assert services("status", *options).returncode == 3
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)), "something still listens"
