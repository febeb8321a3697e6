"""Drill: a worker stands still (SIGSTOP): nothing fails, and the others wait for it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.faults.trainings import assert_as_calm, finish, ledger_of, said, start, worker_at


@pytest.mark.parametrize("max_failures", [0, 1])
def test_a_frozen_worker_is_found_out_and_costs_nothing(uninterrupted: Path, max_failures: int) -> None:
    folder, name = uninterrupted, f"frozen-{max_failures}"
    training = start(name, folder, f"train.max_failures={max_failures}")
    worker = psutil.Process(worker_at(training, ledger_of(folder, name), 1, 18))
    os.kill(worker.pid, signal.SIGSTOP)
    begun = time.monotonic()
    worker.wait(300)
    print(f"a frozen worker was found out and ended after {time.monotonic() - begun:.0f} s")
    if not max_failures:
        assert training.wait(300) == 1
        last = said(folder, name).splitlines()[-1]
        assert "train: workers were lost (rank 1: A worker health check has been hanging for" in last
        assert "train.max_failures = 0" in last
        training = start(name, folder)
    finish(training, folder, name)
    assert_as_calm(folder, name)
