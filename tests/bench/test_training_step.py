"""Time of a training step under Ray Train against the same model and batches in a bare torch loop, a process a worker.

Three kinds of run take turns, so that a machine whose speed drifts treats them alike:

- bare: torch's DDP, mean loss, clip, AdamW, batches ready in memory; what one would write by hand;
- step: our step (TrainStep) in the same bare processes; its ratio is the price of exactness under any cut;
- ray: the train job; the rest of its ratio is Ray's processes, the stream and tracking beside the two workers.
"""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from mlflow import MlflowClient
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pipelines.data.stream.loader import MicroBatches, without_provenance
from pipelines.data.stream.plan import StepSchedule
from pipelines.train.config import OptimizerConfig, StepConfig
from pipelines.train.step import TrainStep
from pipelines.workflows import import_data, index, train
from pipelines.workflows.cluster import connected_to_cluster
from pipelines.workflows.config import JobConfig
from pipelines.workflows.workspace import Workspace
from tests.bench.conftest import Figure
from tests.jobs.conftest import ROOT
from vlmodel.config import load_config
from vlmodel.model import VLModel
from vlmodel.processor import VLProcessor

ROUNDS, STEPS, WARM_UP, WORKERS = 3, 40, 5, 2


def settings(folder: Path, name: str) -> JobConfig:
    return load_config(
        JobConfig,
        ROOT / "jobs/configs/demo.toml",
        [
            f"name={name}", f"storage={folder / 'runs'}", f"data.tars={folder / 'data'}", "source.train=1440",
            "source.val=0", "source.test=16", "train.epochs=1", "train.log_steps=1",
            "data.index.validation_fraction=0.02",
        ],
    )  # fmt: skip


def _bare(
    rank: int, port: int, folder: str, ours: bool, processor: str, config: JobConfig, parts: MicroBatches
) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=WORKERS)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    mine = MicroBatches(**{**vars(parts), "rank": rank})
    batches = [{k: torch.from_numpy(v.copy()) for k, v in without_provenance(mine[i]).items()} for i in range(STEPS)]
    model = VLModel.create_from_config(config.model, VLProcessor.from_pretrained(processor)).train()
    times = []
    if ours:
        trainer = TrainStep(model, OptimizerConfig(), StepConfig(), steps=STEPS, seed=0)
        for step, batch in enumerate(batches):
            begun = time.perf_counter()
            trainer(step, [batch], 1)
            times.append(time.perf_counter() - begun)
    else:
        ddp = DistributedDataParallel(model)
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
        for batch in batches:
            begun = time.perf_counter()
            loss = ddp(**batch).loss
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            loss.item()
            times.append(time.perf_counter() - begun)
    if rank == 0:
        Path(folder, "times").write_text("\n".join(map(str, times[WARM_UP:])))
    dist.destroy_process_group()


def bare_step_s(folder: Path, ours: bool, processor: str, config: JobConfig, parts: MicroBatches, port: int) -> float:
    mp.spawn(_bare, (port, str(folder), ours, processor, config, parts), nprocs=WORKERS)
    return statistics.median(map(float, (folder / "times").read_text().split()))


def ray_step_s(config: JobConfig) -> tuple[float, float]:
    """Median seconds of a step, and the median share of it that was waiting for data."""
    train.run(Workspace(config))
    client = MlflowClient(f"sqlite:///{config.storage}/mlflow.db")
    (run,) = client.search_runs(
        [experiment.experiment_id for experiment in client.search_experiments()],
        f"tags.`training.run` = '{config.name}'",
    )

    def series(name: str) -> list[float]:
        return [m.value for m in client.get_metric_history(run.info.run_id, name) if WARM_UP < m.step <= STEPS]

    return statistics.median(series("speed/step_s")), statistics.median(series("speed/data_wait_share"))


def test_training_step(tmp_path: Path, figure: Figure, unused_port: int) -> None:
    config = settings(tmp_path, "round-0")
    with connected_to_cluster(config.cluster):
        work = Workspace(config)
        import_data.run(work)
        index.run(work)
        measured: dict[str, list[float]] = {"ray": [], "step": [], "bare": []}
        waits = []
        for number in range(ROUNDS):
            step_s, wait = ray_step_s(settings(tmp_path, f"round-{number}"))
            measured["ray"].append(step_s)
            waits.append(wait)
            processor = str(tmp_path / "runs" / f"round-{number}" / "processor")
            source = work.source(work.newest_index(), "train", processor)
            schedule = StepSchedule(source.plan_order(seed=0, shuffle=True), config.train.batch, 1)
            parts = MicroBatches(source, schedule, 0, WORKERS, 1, config.train.augment)
            for kind in ("step", "bare"):
                port = unused_port + 2 * number + (kind == "step")
                measured[kind].append(bare_step_s(tmp_path, kind == "step", processor, config, parts, port))
    medians = {kind: statistics.median(values) for kind, values in measured.items()}
    figure(
        "training step, ours in bare processes",
        medians["step"],
        "s",
        peer="bare torch loop",
        peer_value=medians["bare"],
    )
    figure("training step, train job", medians["ray"], "s", peer="bare torch loop", peer_value=medians["bare"])
    figure("training step, share waiting for data", statistics.median(waits), "1")
    assert medians["ray"] > 0


@pytest.fixture
def unused_port() -> int:
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
