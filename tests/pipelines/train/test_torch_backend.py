"""Workers are joined by Ray's own torch backend, though the job that starts them imports no torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]

_PROGRAM = """
import json, sys
from pathlib import Path
from ray.train import RunConfig, ScalingConfig
from pipelines.train.ray_private import Trainer
from pipelines.train.torch_backend import TorchBackendConfig
from pipelines.workflows.cluster import ClusterConfig, connected_to_cluster

def train(config):
    import sys
    imported = "pipelines.train.worker" in sys.modules
    import ray.train, ray.train.torch, torch
    rank = torch.tensor([1.0 + ray.train.get_context().get_world_rank()])
    torch.distributed.all_reduce(rank)
    found = [imported, torch.distributed.get_backend(), rank.item(), str(ray.train.torch.get_device())]
    Path(config["folder"], str(ray.train.get_context().get_world_rank())).write_text(json.dumps(found))

folder = sys.argv[1]
with connected_to_cluster(ClusterConfig(num_cpus=3, object_store_mb=100)):
    trainer = Trainer(
        train, train_loop_config={"folder": folder}, backend_config=TorchBackendConfig(),
        scaling_config=ScalingConfig(num_workers=2), run_config=RunConfig(name="run", storage_path=folder),
    )
    trainer.fit()
    assert "torch" not in sys.modules
"""


@pytest.mark.timeout(900)
def test_the_workers_are_one_group_and_have_imported_what_they_run(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _PROGRAM, str(tmp_path)]
    with tempfile.TemporaryDirectory(prefix="h-", dir="/tmp") as home:  # Ray's sockets need a short path
        environment = os.environ | {"PYTHONPATH": str(ROOT), "RAY_TMPDIR": home}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    for rank in ("0", "1"):
        assert json.loads((tmp_path / rank).read_text()) == [True, "gloo", 3.0, "cpu"]
