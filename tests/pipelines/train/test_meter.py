"""The figures of the training loop."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.data.stream.plan import ShufflePlan, StepSchedule
from pipelines.train.loop import ThroughputMeter
from pipelines.train.step import StepResult


@pytest.fixture
def meter() -> ThroughputMeter:
    """Of 2 epochs over 15 images in batches of 8, which makes 4 steps, the last one of 6 images."""
    plan = ShufflePlan("index", np.array([15]), seed=0, shuffle=True)
    prefetcher: Any = SimpleNamespace(waited_s=0.0)
    return ThroughputMeter(StepSchedule(plan, 8, 2), prefetcher)


def test_texts_are_no_tokens(meter: ThroughputMeter) -> None:
    """40 captions of 10 tokens, 3 of which came out right."""
    totals = torch.tensor([800.0, 400.0, 3.0, 40.0], dtype=torch.float64)
    meter.add(StepResult(totals, torch.ones(()), 0.1), 8)
    figures, sums = meter.flush(1)
    assert figures["speed/texts_per_s"] == pytest.approx(figures["speed/images_per_s"] * 40 / 8)
    assert (figures["train/loss"], figures["train/accuracy"]) == (2.0, 3 / 400)
    assert sums == [800, 400, 3]


def test_a_training_ends_with_its_last_epoch(meter: ThroughputMeter) -> None:
    result = StepResult(torch.ones(4, dtype=torch.float64), torch.ones(()), 0.1)
    meter.add(result, 8)
    assert meter.flush(3)[0]["train/epoch"] == 24 / 15
    meter.add(result, 6)
    assert meter.flush(4)[0]["train/epoch"] == 2
