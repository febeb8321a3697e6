"""The loop ends early by its validation figures, at the same place wherever it was interrupted."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.train import loop
from pipelines.train.config import TrainConfig
from pipelines.train.loop import TrainingProgress, patience_is_exhausted, restore_progress
from pipelines.train.validation import ValidationResult

ACCURACY = [0.2, 0.5, 0.4, 0.5, 0.45, 0.9]
"""After each epoch; the best of the first five is the second, and the fourth is no better."""


def history(figures: list[float], name: str = "val/accuracy") -> list[dict[str, float]]:
    return [{"epoch": n, "val/loss": 1.0, "val/accuracy": 0.0, name: value} for n, value in enumerate(figures, 1)]


def ends(figures: list[float], patience: int, selection_metric: str = "accuracy") -> int | None:
    """The epoch after which a training ends early."""
    made = history(figures, f"val/{selection_metric}")
    return next(
        (n for n in range(1, len(made) + 1) if patience_is_exhausted(made[:n], patience, selection_metric)), None
    )


@pytest.mark.parametrize(("patience", "expected"), [(0, None), (1, 3), (2, 4), (3, 5), (4, None), (99, None)])
def test_so_many_evaluations_without_a_better_one(patience: int, expected: int | None) -> None:
    assert ends(ACCURACY, patience) == expected


def test_by_the_loss_less_is_better() -> None:
    assert ends([3.0, 2.0, 1.0, 1.5, 1.2], 2, "loss") == 5
    assert ends([3.0, 2.0, 1.0, 1.5, 0.9], 2, "loss") is None


def test_epochs_that_were_not_evaluated_end_nothing() -> None:
    assert not patience_is_exhausted([{"epoch": 1.0, "train/loss": 1.0}] * 9, 1, "accuracy")


class Hooks:
    """Scores as written above; keeps what a checkpoint would."""

    def __init__(self) -> None:
        self.evaluated_model: list[int] = []
        self.state: dict[str, Any] = {}

    def evaluate(self) -> ValidationResult:
        self.evaluated_model.append(len(self.evaluated_model))
        return ValidationResult(1.0, ACCURACY[self.epochs], 1.0, 1)

    def log(self, metrics: Mapping[str, float], step: int) -> None: ...

    def checkpoint(self, progress: TrainingProgress, selection: float) -> None:
        self.state = {"step": progress.step, "epoch_sums": progress.epoch_sums, "history": list(progress.history)}
        self.epochs = len(progress.history)

    def should_continue(self, progress: TrainingProgress, selection: float) -> bool:
        return True

    epochs = 0


class Schedule:
    """An epoch is one step."""

    step_count, batch, epochs = len(ACCURACY), 1, len(ACCURACY)
    plan = SimpleNamespace(plans_by_source={}, size=1, metrics=lambda samples: {})

    def epochs_done(self, step: int) -> int:
        return step

    def count_step_samples(self, step: int) -> int:
        return 1


class Step:
    """Takes a step and learns nothing."""

    def __call__(self, step: int, micro_batches: Any, n_micro_batches: int) -> Any:
        assert len(list(micro_batches)) == n_micro_batches
        return SimpleNamespace(totals=torch.ones(4), grad_norm=torch.ones(()), lr=0.0)

    def raise_if_failed(self, step: int) -> None: ...


class DevicePrefetcher:
    """A part for each step from ``start`` on."""

    waited_s = 0.0

    def __init__(self, start: int) -> None:
        self._step = start

    def __iter__(self) -> DevicePrefetcher:
        return self

    def __next__(self) -> Any:
        self._step += 1
        return {"step": np.array([self._step - 1])}, {}


def run(state: Mapping[str, Any] | None, hooks: Hooks, patience: int) -> TrainingProgress:
    progress = restore_progress(state)
    hooks.epochs = len(progress.history)
    given: Any = Step(), Schedule(), DevicePrefetcher(progress.step), TrainConfig(patience=patience), progress, hooks
    return loop.train(*given)


@pytest.mark.parametrize("before", [0, 1, 2, 3])
def test_a_training_ends_where_it_would_have_without_an_interruption(before: int) -> None:
    hooks, state = Hooks(), None
    for n in range(before):
        accuracy = history(ACCURACY[: n + 1])
        state = {"step": n + 1, "epoch_sums": [0.0, 0.0, 0.0], "history": accuracy}
    assert run(state, hooks, patience=2).step == 4
    # What has ended stays so, and with more patience goes on.
    again = Hooks()
    assert run(hooks.state, again, patience=2).step == 4
    assert not again.evaluated_model
    assert run(hooks.state, again, patience=4).step == len(ACCURACY)
