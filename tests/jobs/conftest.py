"""A small data set and a small training, the same for all tests of the jobs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]

SMALL = [
    "processor.image_size=32", "model.vision.stages=1", "model.vision.grid=2", "model.vision.projection=32",
    "model.vision.position_scale=0.1", "model.language.output=pooled", "model.language.pooling=mean",
    "model.language.width=32", "model.language.depth=1", "model.language.heads=2", "model.fusion.width=32",
    "model.fusion.heads=2", "model.fusion.rounds=1", "train.epochs=2", "train.batch=16", "train.log_steps=2",
    "train.optimizer.head_lr=5e-3", "train.optimizer.backbone_lr=5e-3",
    "tracking.system_metrics=false", "cluster.object_store_mb=150", "tracking.model_name=vlmodel",
]  # fmt: skip
"""Overrides that make jobs/configs/demo.toml a matter of seconds."""


def coloured_pictures(folder: Path, train: int, val: int = 24, test: int = 50) -> list[str]:
    """Draw plain pictures and write a table of questions about their colour, which a model learns within a few steps.

    Returns:
        the overrides that make this table the source of the jobs.
    """
    rng = np.random.default_rng(0)
    colours = {"red": (210, 40, 40), "green": (40, 180, 60), "blue": (50, 70, 220)}
    rows = ["image,question,answer,split"]
    for split, count in (("train", train), ("val", val), ("test", test)):
        for number in range(count):
            name, rgb = list(colours.items())[int(rng.integers(3))]
            pixels = (np.array(rgb) + rng.normal(0, 12, (32, 32, 3))).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{split}{number}.png")
            asked = list(colours)[int(rng.integers(3))]
            rows.append(f"{split}{number}.png,what colour is it?,{name},{split}")
            rows.append(f"{split}{number}.png,is it {asked}?,{'yes' if asked == name else 'no'},{split}")
    (folder / "questions.csv").write_text("\n".join(rows) + "\n")
    return ["source.kind=table", f"source.file={folder / 'questions.csv'}", "source.samples_per_shard=40"]


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides for the small training of these tests, with all its files in a folder of theirs."""
    folder = tmp_path_factory.mktemp("jobs")
    (folder / "pictures").mkdir()
    source = coloured_pictures(folder / "pictures", train=96)
    return [*SMALL, *source, f"storage={folder / 'runs'}", f"data.tars={folder / 'data'}"]


@pytest.fixture(scope="session")
def job() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run ``python -m jobs.NAME`` as a user does; returns the finished process."""

    def run(name: str, *arguments: str, check: bool = True, timeout: float = 900) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", f"jobs.{name}", *arguments]
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL,
            env={k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")},
        )  # fmt: skip
        if check and done.returncode:
            raise AssertionError(f"{' '.join(command)} exited {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    return run


@pytest.fixture(scope="session")
def indexed(job: Callable[..., object], small: list[str]) -> None:
    """The small data set, imported and indexed."""
    for name in ("import_data", "index"):
        job(name, "--config", "jobs/configs/demo.toml", *small)
