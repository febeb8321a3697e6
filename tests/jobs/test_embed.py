"""The embed job and zero-shot evaluation as a user runs them, on Ray: killed, resumed, and judged."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipelines.data.tars.shards import ShardWriter
from pipelines.embeddings.search import EmbeddingSearch
from pipelines.embeddings.stored import MANIFEST, PARTS
from tests.jobs.conftest import ROOT
from tests.pipelines.data.tar_maker import photo
from tests.pipelines.embeddings.conftest import captions_of, write_tars
from tests.pipelines.embeddings.test_embed import identities, rows_of
from tests.pipelines.serve.conftest import DECODERS, save_model
from vlmodel.sample import SampleTexts

pytestmark = pytest.mark.slow

Job = Callable[..., subprocess.CompletedProcess[str]]
SAMPLES = 400


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("contrastive"), DECODERS["contrastive"])


def settings(tars: Path, model: Path, *more: str) -> list[str]:
    return [
        f"data.tars={tars}", f"evaluate.model={model}", f"storage={tars.parent / 'runs'}", *more,
        "cluster.object_store_mb=150", 'data.index.inputs=["image?", "text?"]',
    ]  # fmt: skip


def test_a_killed_job_loses_and_doubles_nothing(tmp_path: Path, model: Path, job: Job) -> None:
    tars, out = tmp_path / "tars", tmp_path / "vectors"
    tars.mkdir()
    write_tars(tars, "train", range(SAMPLES), samples_per_tar=40)
    arguments = settings(tars, model, "embed.samples_per_file=10")
    job("embed", *arguments, f"embed.out={tmp_path / 'calm'}")
    command = [sys.executable, "-m", "jobs.embed", *arguments, f"embed.out={out}", "predict.workers=2"]
    kills = 0
    while not (out / MANIFEST).exists():
        before = len(list((out / PARTS).glob("*.parquet")))
        running = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        while running.poll() is None and len(list((out / PARTS).glob("*.parquet"))) < before + 12:
            time.sleep(0.01)
        if running.poll() is None:
            os.kill(running.pid, signal.SIGKILL)
            running.wait()
            kills += 1
            time.sleep(3)  # the cluster that the job had started ends with it
        else:
            assert running.returncode == 0
    assert kills >= 2
    done = job("embed", *arguments, f"embed.out={out}")
    assert "vectors of" in done.stdout
    assert rows_of(str(out)) == rows_of(str(tmp_path / "calm"))
    images = sum(n % 7 != 6 for n in range(SAMPLES))
    assert len(identities(str(out))) == images + sum(len(captions_of(n)) for n in range(SAMPLES))
    assert EmbeddingSearch(str(out)).inputs["image"] == images


def test_zero_shot_accuracy_of_a_folder_of_classes(tmp_path: Path, model: Path, job: Job) -> None:
    tars = tmp_path / "tars"
    tars.mkdir()
    with ShardWriter(tars, "test", inputs=("image", "text")) as writer:
        for n in range(30):
            writer.add(f"{n:02d}", {"image": (photo(n), "jpg")}, SampleTexts(label=("circle", "square")[n % 2]))
    arguments = [*settings(tars, model, "evaluate.zero_shot.templates=['a {}', 'the {} ?']"), "name=classes"]
    job("index", *arguments)
    done = job("evaluate", *arguments)
    assert "zero-shot among 2 classes by 'a {}', 'the {} ?', test: accuracy 0." in done.stdout
    [file] = (tmp_path / "runs" / "classes").glob("answers-test-zero-shot.parquet")
    answers = pq.read_table(file)
    right = sum(a == b for a, b in zip(*(answers[name].to_pylist() for name in ("target", "predicted")), strict=True))
    figures = json.loads(file.with_suffix(".json").read_text())
    assert figures["test/zero_shot/accuracy"] == pytest.approx(right / 30)
    assert figures["test/zero_shot/floor_majority"] == pytest.approx(0.5)
