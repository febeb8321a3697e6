"""A small data set and a small training, the same for all tests of the jobs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

SMALL = [
    "source.train=96", "source.val=24", "source.test=24", "source.samples_per_shard=40", "processor.image_size=32",
    "model.vision.stages=1", "model.vision.grid=2", "model.vision.projection=32", "model.language.width=32",
    "model.language.depth=1", "model.language.heads=2", "model.fusion.width=32", "model.fusion.heads=2",
    "model.fusion.rounds=1", "train.epochs=2", "train.batch=16", "train.log_steps=2", "stream.batches_per_task=4",
    "tracking.system_metrics=false", "evaluate.examples=4", "cluster.object_store_mb=150",
]  # fmt: skip


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides that make jobs/configs/demo.toml a matter of seconds, with its files in a folder of the tests."""
    folder = tmp_path_factory.mktemp("jobs")
    return [*SMALL, f"storage={folder / 'runs'}", f"data.tars={folder / 'data'}"]


@pytest.fixture(scope="session")
def job() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run ``python -m jobs.NAME`` as a user does; returns the finished process."""

    def run(name: str, *arguments: str, check: bool = True, timeout: float = 280) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", f"jobs.{name}", *arguments]
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL,
            env={k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")},
        )  # fmt: skip
        if check and done.returncode:
            raise AssertionError(f"{' '.join(command)} exited {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    return run
