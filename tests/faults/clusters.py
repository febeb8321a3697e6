"""A Ray cluster as people have it: started by infra/cluster.sh, with token authentication, and given submitted jobs."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.jobs.conftest import ROOT

RAY = str(Path(sys.executable).with_name("ray"))
_SCRIPT = str(ROOT / "infra/cluster.sh")


@dataclass(frozen=True)
class Cluster:
    """A head node of a drill's own.

    Attributes:
        environment: of one who holds its token.
        sessions: the folder of Ray's sockets and logs.
    """

    environment: Mapping[str, str]
    sessions: Path

    def submit(self, job: str, *arguments: str, timeout_s: float = 900) -> subprocess.CompletedProcess[str]:
        """Submit ``python -m jobs.JOB`` and wait for its end."""
        command = [RAY, "job", "submit", "--working-dir", str(ROOT), "--", sys.executable, "-m", f"jobs.{job}"]
        return subprocess.run(
            [*command, *arguments], env=self.environment, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s,
            check=False,
        )  # fmt: skip

    def done(self, job: str, *arguments: str) -> str:
        """What a submitted job that ended well has printed."""
        ended = self.submit(job, *arguments)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    def get(self, path: str) -> Any:
        """What the dashboard's HTTP API says at this path."""
        token = Path(self.environment["RAY_AUTH_TOKEN_PATH"]).read_text().strip()
        answer = httpx.get(
            f"{self.environment['RAY_API_SERVER_ADDRESS']}/{path}", trust_env=False, timeout=60,
            headers={"authorization": f"Bearer {token}"},
        )  # fmt: skip
        return answer.raise_for_status().json()

    def jobs(self, which: str = "") -> Any:
        """What the job server says of the submission ``which``, or of all; with "ID/logs" what that one printed."""
        return self.get(f"api/jobs/{which}")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _environment_of_a_user(environment: Mapping[str, str], state: list[str]) -> dict[str, str]:
    """The environment of a shell that evaluated what ``infra/cluster.sh env`` prints."""
    evaluate = 'told=$("$@") && eval "$told" && exec env -0'
    command = ["bash", "-c", evaluate, "bash", _SCRIPT, "env", *state]
    shown = subprocess.run(command, check=True, env=environment, capture_output=True, text=True).stdout
    return dict(entry.split("=", 1) for entry in shown.split("\0") if entry)


@contextmanager
def cluster(folder: Path, **variables: str) -> Iterator[Cluster]:
    """A cluster while the block runs, with its state and its token in ``folder``.

    Args:
        variables: environment of the head, and so of all jobs.
    """
    state = ["--state", str(folder / "state"), "--token", str(folder / "token")]
    sessions = Path(f"/tmp/ray-drill-{os.getpid()}")  # sockets want a short path
    ports = ["--port", str(free_port()), "--dashboard-port", str(free_port()), "--temp-dir", str(sessions)]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_"))} | variables
    limits = ["--", "--num-cpus=8", "--object-store-memory=200000000"]
    subprocess.run([_SCRIPT, "start", *state, *ports, *limits], check=True, env=environment)
    try:
        yield Cluster(_environment_of_a_user(environment, state), sessions)
    finally:
        subprocess.run([_SCRIPT, "stop", *state], check=True, env=environment)
