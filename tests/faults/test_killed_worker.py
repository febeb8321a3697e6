"""Drill: ``kill -9`` of training workers in mid-epoch, and of the driver.

The run must end by itself as one MLflow run, with every sample seen once an epoch and weights that equal those of an
uninterrupted run bit for bit.
"""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

from tests.faults.trainings import STEPS, assert_as_calm, finish, ledger_of, start, stop, worker_at

KILLS = 5


def test_workers_killed_at_five_steps_cost_nothing(uninterrupted: Path) -> None:
    folder, name = uninterrupted, "killed"
    seed = random.randrange(2**32)
    print(f"steps and ranks drawn with seed {seed}")  # shown where the drill fails
    draw = random.Random(seed)
    steps = sorted(draw.sample(range(2, STEPS - 5), KILLS))
    ranks = draw.sample([0, 0, 1, 1, draw.randrange(2)], KILLS)
    training = start(name, folder, f"train.max_failures={KILLS}")
    seen: list[int] = []
    for step, rank in zip(steps, ranks, strict=True):
        # All workers start anew with each kill, so the process of another rank may be one of the past too.
        process = worker_at(training, ledger_of(folder, name), rank, step, seen=seen)
        os.kill(process, signal.SIGKILL)
        seen = [int(file.stem.split("-")[2]) for file in ledger_of(folder, name).glob("*.jsonl")]
    finish(training, folder, name)
    assert_as_calm(folder, name)


def test_a_killed_driver_costs_nothing(uninterrupted: Path) -> None:
    folder, name = uninterrupted, "driver"
    training = start(name, folder)
    worker_at(training, ledger_of(folder, name), 0, 18)
    stop(training)
    finish(start(name, folder), folder, name)
    assert_as_calm(folder, name)
