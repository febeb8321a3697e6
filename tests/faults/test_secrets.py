"""Drill: secrets in the environment of jobs and of their callers are found nowhere that is kept or shown: no record of
MLflow, no checkpoint, no log, nothing that the job server tells.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipelines.serve.client import Client
from pipelines.serve.errors import ServeError
from pipelines.tracking.address import mlflow_server_command
from tests.faults.clusters import Cluster, cluster, free_port
from tests.faults.services import seconds_until
from tests.jobs.conftest import SMALL, coloured_pictures
from tests.pipelines.registry.conftest import picture

SHOWN = "api/v0/{}?detail=true&limit=1000"
"""What the dashboard shows of the cluster."""


def answers(port: int) -> bool:
    with socket.socket() as caller:
        return caller.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def mlflow_server(folder: Path, port: int) -> Iterator[None]:
    """An MLflow server while the block runs. It lets everybody in, and sees the credentials that it is given."""
    folder.mkdir()
    command = [
        *mlflow_server_command(f"sqlite:///{folder / 'mlflow.db'}", port),
        "--artifacts-destination",
        str(folder / "files"),
    ]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
    try:
        seconds_until(lambda: answers(port), 120)
        yield
    finally:
        server.terminate()
        server.wait(60)


def holders(places: list[Path], words: dict[str, bytes]) -> dict[str, set[str]]:
    """The files that hold each word, by its name."""
    found: dict[str, set[str]] = {name: set() for name in words}
    for path in (path for place in places for path in place.rglob("*")):
        if not path.is_file():
            continue
        data = path.read_bytes()
        for name, word in words.items():
            if word in data:
                found[name].add(str(path))
    return found


def told(head: Cluster) -> bytes:
    """What job server and dashboard tell: entry points, environments, printed lines, actors, workers, the service."""
    jobs = head.jobs()
    logs = [head.jobs(f"{job['submission_id']}/logs") for job in jobs if job["submission_id"]]
    states = [head.get(SHOWN.format(what)) for what in ("jobs", "actors", "workers", "tasks", "runtime_envs", "nodes")]
    return json.dumps(
        [jobs, logs, states, head.get("api/serve/applications/"), head.get("nodes?view=summary")]
    ).encode()


@pytest.mark.timeout(1800)
def test_no_secret_is_kept_or_shown(tmp_path: Path) -> None:
    canary = {
        name: f"canary{secrets.token_hex(12)}" for name in ("s3-id", "s3-key", "mlflow", "hub", "api", "wrong-api")
    }
    words = {name: value.encode() for name, value in canary.items()}
    words["mlflow, as sent"] = base64.b64encode(f"drill:{canary['mlflow']}".encode())
    port, serve_port = free_port(), free_port()
    tracking = f"http://drill:{canary['mlflow']}@127.0.0.1:{port}"
    (tmp_path / "pictures").mkdir()
    settings = [
        "--config", "jobs/configs/demo.toml", *SMALL, *coloured_pictures(tmp_path / "pictures", train=96),
        "name=secretive", f"storage={tmp_path / 'runs'}", f"data.tars={tmp_path / 'data'}", "train.workers=1",
        "train.epochs=4", "train.step.sync_batchnorm=false", f"serve.port={serve_port}", "tracking.system_metrics=true",
    ]  # fmt: skip
    environment = {
        "AWS_ACCESS_KEY_ID": canary["s3-id"], "AWS_SECRET_ACCESS_KEY": canary["s3-key"], "HF_TOKEN": canary["hub"],
        "MLFLOW_TRACKING_URI": tracking, "MLFLOW_TRACKING_PASSWORD": canary["mlflow"],
        "VLMODEL_API_KEY_HASHES": hashlib.sha256(canary["api"].encode()).hexdigest(),
    }  # fmt: skip
    with cluster(tmp_path, **environment) as head:
        words["the cluster's token"] = (tmp_path / "token").read_bytes().strip()
        with mlflow_server(tmp_path / "mlflow", port):
            for job in ("import_data", "index", "train", "promote", "serve"):
                head.done(job, *settings)
            address = f"http://127.0.0.1:{serve_port}"
            with Client(address, api_key=canary["api"]) as client:
                assert client.ask(picture(0), ["is it red?"]).model.name == "vlmodel"
            with Client(address, api_key=canary["wrong-api"]) as client, pytest.raises(ServeError, match="401"):
                client.ask(picture(0), ["is it red?"])
        # What goes wrong is told in messages, which name the server.
        failed = head.submit("promote", *settings)
        assert failed.returncode == 1
        assert f"http://***@127.0.0.1:{port} cannot be reached" in failed.stderr + failed.stdout
        shown = told(head)
        kept = holders([tmp_path, head.sessions], {"control": b"secretive", **words})

    # The search sees what it is to look through: the run's name is in each of these places.
    control = kept.pop("control")
    for place in ("mlflow.db", "/files/", "/runs/", str(head.sessions)):
        assert [path for path in control if place in path], f"nothing is found in {place}"
    assert b"secretive" in shown
    kept["the cluster's token"].discard(str(tmp_path / "token"))
    assert {name: files for name, files in kept.items() if files} == {}
    assert [name for name, word in words.items() if word in shown] == []
