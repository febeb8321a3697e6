"""Drill: a training in shards is killed and goes on in shards over more workers, then whole on one; the losses are
those of the undisturbed training, which is whole.

The small training has no dropout, whose masks differ from worker to worker, and shares the statistics of BatchNorm.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.ledger import audit
from tests.faults.trainings import CALM, EPOCHS, SAMPLES, curve, final, finish, ledger_of, start, stop, worker_at
from vlmodel.inference import Predictor


def test_shards_over_two_then_four_workers_then_none(uninterrupted: Path) -> None:
    folder, name = uninterrupted, "sharded"
    for workers, until in ((2, 9), (4, 21)):
        sharded = ["train.sharding=fsdp2", f"train.workers={workers}", "cluster.num_cpus=12"]
        training = start(name, folder, *sharded)
        worker_at(training, ledger_of(folder, name), 0, until)
        stop(training)
    finish(start(name, folder, "train.workers=1"), folder, name)

    assert audit(ledger_of(folder, name), SAMPLES, EPOCHS).faults == []
    losses, expected = curve(folder, name, "train/loss"), curve(folder, CALM, "train/loss")
    print(f"largest difference of a loss: {max(abs(losses[step] - expected[step]) for step in expected):.1e}")
    # Sums over 2, 4 and 1 workers are rounded differently, and each update adds to it: 5e-5 after 45 steps here.
    assert losses == pytest.approx(expected, rel=1e-3)
    with final(folder, name).as_local() as checkpoint:
        Predictor.from_pretrained(checkpoint / "model")
