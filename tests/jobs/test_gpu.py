"""The jobs where there is a GPU: trained, asked offline and served there, with the answers that a CPU gives."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from tests.jobs.conftest import SMALL, coloured_pictures
from tests.jobs.test_pipeline import DEMO, free_port

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
    pytest.mark.timeout(1200),
]

ON_GPU = ["train.workers=1", "train.gpus_per_worker=0.5", "train.step.precision=bf16", "predict.workers=1"]
ON_GPU += ["predict.gpus_per_worker=0.25", "serve.num_gpus=0.25"]


def test_the_whole_pipeline(job: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    small = [*SMALL, *coloured_pictures(tmp_path / "pictures", train=96), f"storage={tmp_path / 'runs'}"]
    small += [f"data.tars={tmp_path / 'data'}", f"serve.port={free_port()}", f"tracking.page_port={free_port()}"]
    done = job("pipeline", *DEMO, *small, *ON_GPU)
    assert "HTTP answers about" in done.stdout
    assert " right: " in done.stdout
    on_cpu = tmp_path / "on-cpu.parquet"
    job("predict", *DEMO, *small, "train.workers=1", f"evaluate.out={on_cpu}", "evaluate.split=test")
    tables = [pq.read_table(file).to_pylist() for file in (tmp_path / "runs" / "demo" / "answers-test.parquet", on_cpu)]
    of_gpu, of_cpu = ({(row["key"], row["text"]): row for row in table} for table in tables)
    assert of_gpu.keys() == of_cpu.keys()
    assert len(of_gpu) == 100
    differing = [key for key, row in of_gpu.items() if row["predicted"] != of_cpu[key]["predicted"]]
    probabilities = [(row["probability"], of_cpu[key]["probability"]) for key, row in of_gpu.items()]
    assert max(abs(a - b) for a, b in probabilities) < 0.02  # the GPU's convolutions round to TF32
    assert len(differing) <= 2  # where two answers are as likely
