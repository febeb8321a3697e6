"""Drill: the number of workers changes twice in mid-epoch; nothing but the speed may change.

The small training has no dropout, whose masks differ from worker to worker, and shares the statistics of BatchNorm.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.ledger import audit
from tests.faults.trainings import CALM, EPOCHS, SAMPLES, curve, finish, ledger_of, start, stop, worker_at


def test_two_then_one_then_four_workers_take_the_same_steps(uninterrupted: Path) -> None:
    folder, name = uninterrupted, "resized"
    for workers, until in ((2, 9), (1, 21)):
        training = start(name, folder, f"train.workers={workers}")
        worker_at(training, ledger_of(folder, name), 0, until)
        stop(training)
    finish(start(name, folder, "train.workers=4", "cluster.num_cpus=12"), folder, name)

    found, calm = (audit(ledger_of(folder, which), SAMPLES, EPOCHS) for which in (name, CALM))
    assert found.faults == []
    assert {file.name.split("-")[0] for file in ledger_of(folder, name).iterdir()} == {f"rank{n}" for n in range(4)}
    assert {step: set(seen) for step, seen in found.steps.items()} == {
        step: set(seen) for step, seen in calm.steps.items()
    }
    losses, expected = curve(folder, name, "train/loss"), curve(folder, CALM, "train/loss")
    largest = max(abs(losses[step] - expected[step]) for step in expected)
    print(f"largest difference of a loss: {largest:.1e}")
    assert losses == pytest.approx(expected, abs=1e-5)
