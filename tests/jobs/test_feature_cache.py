"""A training on kept features, beside the same one on images."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.train import checkpoint
from tests.jobs.test_pipeline import DEMO, setting

# Whole jobs, each of which starts a cluster: slow machines take minutes.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

Job = Callable[..., subprocess.CompletedProcess[str]]
FROZEN = ("model.vision.frozen=true", "model.fusion.dropout=0.0", "tracking.model_name=frozen")


def history(small: list[str], name: str) -> list[dict[str, float]]:
    filesystem, folder = checkpoint.open_storage(f"{setting(small, 'storage')}/{name}")
    found: list[dict[str, float]] = next(iter(checkpoint.complete(filesystem, folder))).state["history"]
    return found


def test_features_train_as_images_do(job: Job, small: list[str], indexed: None) -> None:
    job("train", *DEMO, *small, *FROZEN, "name=images")
    kept = job("train", *DEMO, *small, *FROZEN, "name=features", "train.feature_cache=float32")
    assert re.search(r"train  features: (\d+) of \1 shards", kept.stderr)
    (folder,) = (Path(setting(small, "storage")) / "_features").iterdir()
    assert json.loads((folder / "features.json").read_text())["precision"] == "float32"
    for images, features in zip(history(small, "images"), history(small, "features"), strict=True):
        assert features == pytest.approx(images, rel=1e-3, abs=1e-6)

    # Another training of the same backbone finds them, and what it makes answers pictures.
    written = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    job("train", *DEMO, *small, *FROZEN, "name=again", "train.feature_cache=float32", "train.epochs=1")
    assert {file.name: file.stat().st_mtime_ns for file in folder.iterdir()} == written
    job("evaluate", *DEMO, *small, *FROZEN, "name=again")
    assert (Path(setting(small, "storage")) / "again" / "answers-test.parquet").is_file()
