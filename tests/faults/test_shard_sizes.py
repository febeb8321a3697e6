"""Drill: shards of very different sizes, more workers than shards, and a data set of one sample; nothing hangs."""

from __future__ import annotations

import subprocess
from pathlib import Path

from pipelines.data.tars.shards import ShardWriter
from tests.faults.ledger import audit
from tests.faults.trainings import command, finish, ledger_of, places, start
from tests.jobs.conftest import ROOT
from tests.pipelines.data.tar_maker import photo
from vlmodel.sample import Question, SampleTexts

ALL = "data.index.validation_fraction=0.0"


def prepare(folder: Path, sizes: list[int]) -> None:
    """Index shards of these sizes."""
    (folder / "data").mkdir()
    number = 0
    texts = SampleTexts((), (Question("is it noise?", "yes"), Question("is it a face?", "no")))
    with ShardWriter(folder / "data", "train") as writer:
        for size in sizes:
            writer.max_samples = size
            for _ in range(size):
                writer.add(f"{number:05d}", {"image": (photo(number, (8, 8), "PNG"), "png")}, texts)
                number += 1
    assert [len(writer.shards), writer.samples] == [len(sizes), sum(sizes)]
    subprocess.run(command("index", *places(folder), ALL), cwd=ROOT, check=True)


def test_more_workers_than_shards_of_one_and_of_five_thousand_samples(tmp_path: Path) -> None:
    prepare(tmp_path, [1, 5000])
    settings = ["train.workers=3", "train.batch=300", "train.epochs=2", "train.checkpoint_steps=0", ALL]
    finish(start("uneven", tmp_path, *settings), tmp_path, "uneven")
    assert audit(ledger_of(tmp_path, "uneven"), samples=5001, epochs=2).faults == []


def test_one_sample(tmp_path: Path) -> None:
    """The second step has one sample for two workers."""
    prepare(tmp_path, [1])
    settings = ["train.workers=2", "train.batch=2", "train.epochs=3", ALL]
    finish(start("one", tmp_path, *settings), tmp_path, "one")
    found = audit(ledger_of(tmp_path, "one"), samples=1, epochs=3)
    assert found.faults == []
    assert found.steps == {0: [(0, 0, 0), (1, 0, 0)], 1: [(2, 0, 0)]}
