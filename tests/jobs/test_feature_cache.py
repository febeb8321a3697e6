"""A training on kept features, beside the same one on images."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipelines.train import checkpoint
from tests.jobs.test_pipeline import DEMO, setting

# Whole jobs, each of which starts a cluster: slow machines take minutes.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

Job = Callable[..., subprocess.CompletedProcess[str]]
FROZEN = (
    "model.vision.frozen=true", "model.language.frozen=true", "model.fusion.dropout=0.0", "tracking.model_name=frozen",
    "train.augment.flip=0", "train.augment.swap={}",
)  # fmt: skip
KEPT = "train.feature_cache=float32"


def history(small: list[str], name: str) -> list[dict[str, float]]:
    state = checkpoint.state_of_newest_checkpoint(f"{setting(small, 'storage')}/{name}")
    assert state is not None
    found: list[dict[str, float]] = state["history"]
    return found


def test_features_train_as_images_do(job: Job, small: list[str], indexed: None) -> None:
    job("train", *DEMO, *small, *FROZEN, "name=images")
    kept = job("train", *DEMO, *small, *FROZEN, "name=features", KEPT)
    for stream in ("vision", "language"):
        assert re.search(rf"train  features of {stream}  shard (\d+)/\1  took", kept.stderr)
    assert "core_worker" not in kept.stderr
    storage = Path(setting(small, "storage"))
    folders = sorted((storage / "_features").iterdir())
    facts = [json.loads((folder / "features.json").read_text()) for folder in folders]
    assert [(f["stream"], f["precision"]) for f in facts] == [("language", "float32"), ("vision", "float32")]
    for images, features in zip(history(small, "images"), history(small, "features"), strict=True):
        assert features == pytest.approx(images, rel=1e-3, abs=1e-6)

    # Another training of the same backbone finds them, and what it makes answers pictures.
    def written() -> dict[str, int]:
        return {file.name: file.stat().st_mtime_ns for folder in folders for file in folder.glob("*.features")}

    before = written()
    job("train", *DEMO, *small, *FROZEN, "name=again", KEPT, "train.epochs=1")
    assert written() == before

    # Evaluation and prediction encode the test split once, and answer as they do without features.
    job("evaluate", *DEMO, *small, *FROZEN, "name=again")
    direct = pq.read_table(storage / "again" / "answers-test.parquet").to_pylist()
    assert written() == before
    job("evaluate", *DEMO, *small, *FROZEN, "name=again", KEPT)
    tested = written()
    assert tested.keys() > before.keys()
    remembered = pq.read_table(storage / "again" / "answers-test.parquet").to_pylist()
    job("predict", *DEMO, *small, *FROZEN, "name=again", KEPT)
    assert written() == tested
    predicted = pq.read_table(storage / "again" / "predictions.parquet").to_pylist()
    for rows in (remembered, predicted):
        assert [row["key"] for row in rows] == [row["key"] for row in direct]
        for name in ("probability", "shuffled_probability"):
            assert [row[name] for row in rows] == pytest.approx([row[name] for row in direct], rel=1e-3, abs=1e-5)
