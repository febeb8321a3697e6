"""The training loop of one worker. It imports neither Ray nor MLflow."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol

from pipelines.data.stream.dataset import Arrays
from pipelines.data.stream.plan import StepSchedule
from pipelines.data.stream.shuffle_quality import shuffle_quality
from pipelines.train.config import TrainConfig
from pipelines.train.prefetcher import DevicePrefetcher
from pipelines.train.step import StepResult, TrainStep
from pipelines.train.validation import ValidationResult, divide_or_zero

log = logging.getLogger(__name__)


@dataclass
class TrainingProgress:
    """The state of the training loop, stored in each checkpoint.

    Attributes:
        step: number of global steps done.
        epoch_sums: loss sum, count and correct of the current epoch.
        history: an entry for each finished epoch: step, epoch, training and validation metrics.
    """

    step: int = 0
    epoch_sums: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    history: list[dict[str, float]] = field(default_factory=list)


class TrainingHooks(Protocol):
    """The functions that the training loop calls for validation, logging and checkpoints."""

    def evaluate(self) -> ValidationResult | None:
        """Evaluate the validation split over all workers; None if there is none."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Record metrics; called on every rank, and only the first records them."""

    def checkpoint(self, progress: TrainingProgress, selection: float) -> None:
        """Store the state after ``progress.step`` steps. ``selection`` ranks the checkpoint; it is -1 without a
        validation.
        """

    def should_continue(self, progress: TrainingProgress, selection: float) -> bool:
        """Whether training continues after this epoch; the same on all ranks."""


def train(
    trainer: TrainStep,
    schedule: StepSchedule,
    prefetcher: DevicePrefetcher,
    config: TrainConfig,
    progress: TrainingProgress,
    hooks: TrainingHooks,
    sample_log: SampleLog | None = None,
    selection_metric: Literal["accuracy", "loss"] = "accuracy",
) -> TrainingProgress:
    """Run all global steps from ``progress.step`` on, or fewer if the hooks stop the training after an epoch.

    Args:
        selection_metric: the validation metric that ranks checkpoints.

    Raises:
        NonFiniteLossError: on all ranks, before any checkpoint of the failed state.
    """
    if patience_is_exhausted(progress.history, config.patience, selection_metric):
        return progress
    meter = ThroughputMeter(schedule, prefetcher)
    while progress.step < schedule.step_count:
        step = progress.step
        result = trainer(step, _micro_batches(prefetcher, config.accumulation, step, sample_log), config.accumulation)
        meter.add(result, schedule.count_step_samples(step))
        progress.step = step + 1

        epoch_ended = schedule.epochs_done(progress.step) > schedule.epochs_done(step)
        checkpoint_due = config.checkpoint_steps > 0 and progress.step % config.checkpoint_steps == 0
        if epoch_ended or checkpoint_due or progress.step % config.log_steps == 0:
            trainer.raise_if_failed(step)
            metrics, sums = meter.flush(progress.step)
            progress.epoch_sums = [a + b for a, b in zip(progress.epoch_sums, sums, strict=True)]
            hooks.log(metrics, progress.step)
        if epoch_ended:
            selection = _end_epoch(schedule, progress, hooks, selection_metric)
            hooks.checkpoint(progress, selection)
            if not hooks.should_continue(progress, selection) or patience_is_exhausted(
                progress.history, config.patience, selection_metric
            ):
                break
        elif checkpoint_due:
            hooks.checkpoint(progress, -1.0)
        if epoch_ended or checkpoint_due:
            meter.restart_clock()
    return progress


def _end_epoch(
    schedule: StepSchedule, progress: TrainingProgress, hooks: TrainingHooks, selection_metric: str
) -> float:
    epoch = schedule.epochs_done(progress.step)
    for source, plan in schedule.plan.plans_by_source.items():
        metrics = shuffle_quality(plan, epoch - 1, schedule.batch)._asdict()
        prefix = f"shuffle/{source}/" if source else "shuffle/"
        hooks.log({f"{prefix}{name}": value for name, value in metrics.items()}, progress.step)
    score = hooks.evaluate()
    (loss, count, correct), progress.epoch_sums = progress.epoch_sums, [0.0, 0.0, 0.0]
    entry = {
        "step": float(progress.step),
        "epoch": float(epoch),
        "train/loss": divide_or_zero(loss, count),
        "train/accuracy": divide_or_zero(correct, count),
    }
    if score is not None:
        entry |= score.metrics("val")
        hooks.log(score.metrics("val"), progress.step)
    progress.history.append(entry)
    # Without a validation split, the newest checkpoint counts as the best.
    return float(epoch) if score is None else _compute_selection_value(entry, selection_metric)


def patience_is_exhausted(history: Sequence[Mapping[str, float]], patience: int, selection_metric: str) -> bool:
    """Whether the last ``patience`` validations were no better than the best before them.

    It depends only on the history, which is the same on all ranks and in each checkpoint.
    """
    values = [_compute_selection_value(entry, selection_metric) for entry in history if "val/loss" in entry]
    return 0 < patience < len(values) and max(values[-patience:]) <= max(values[:-patience])


def _compute_selection_value(entry: Mapping[str, float], selection_metric: str) -> float:
    """Return the value that ranks the checkpoint after an epoch; higher is better."""
    return math.exp(-entry["val/loss"]) if selection_metric == "loss" else entry["val/accuracy"]


def _micro_batches(
    prefetcher: DevicePrefetcher, count: int, step: int, sample_log: SampleLog | None
) -> Iterator[dict[str, Any]]:
    for arrays, tensors in islice(prefetcher, count):
        if int(arrays["step"][0]) != step:
            raise RuntimeError(f"the stream delivered step {int(arrays['step'][0])} where {step} was due")
        if sample_log is not None:
            sample_log.write(arrays)
        yield tensors


class SampleLog:
    """Records which samples this worker used, as a JSON line for each micro-batch; for audits and fault drills."""

    def __init__(self, folder: Path, rank: int, world: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._worker = {"rank": rank, "world": world, "pid": os.getpid()}
        # A file for each process: a restarted worker does not overwrite what the dead one wrote.
        self._file = (folder / f"rank{rank}-{time.time_ns()}-{os.getpid()}.jsonl").open("a", buffering=1)

    def write(self, arrays: Arrays) -> None:
        used = [n for n, counts in enumerate(arrays["counts_B"].tolist()) if counts]
        columns = {name: arrays[f"{name}_B"][used].tolist() for name in ("source", "epoch", "shard", "row")}
        line = {"step": int(arrays["step"][0]), **self._worker, **columns}
        self._file.write(json.dumps(line) + "\n")


class ThroughputMeter:
    """Collects the results of steps, which stay on the device until ``flush`` computes metrics from them."""

    def __init__(self, schedule: StepSchedule, prefetcher: DevicePrefetcher) -> None:
        self._schedule, self._prefetcher = schedule, prefetcher
        self._results: list[StepResult] = []
        self._images = 0
        self._rate: float | None = None
        self.restart_clock()

    def restart_clock(self) -> None:
        """Restart the clock, so that validation and checkpoints do not count as slow steps."""
        self._last, self._waited = time.perf_counter(), self._prefetcher.waited_s

    def add(self, result: StepResult, images: int) -> None:
        self._results.append(result)
        self._images += images

    def flush(self, step: int) -> tuple[dict[str, float], list[float]]:
        """Compute metrics since the last flush, by their names in tracking, and their sums. Waits for the device."""
        sums = [sum(column) for column in zip(*(r.totals.tolist() for r in self._results), strict=True)]
        loss, count, correct, texts = sums
        # The last step has fewer samples if the batch does not divide those of all epochs.
        samples = min(step * self._schedule.batch, self._schedule.plan.size * self._schedule.epochs)
        now = time.perf_counter()
        seconds = max(now - self._last, 1e-9)
        waited, self._waited = self._prefetcher.waited_s - self._waited, self._prefetcher.waited_s
        steps = len(self._results)
        metrics = {
            "train/loss": divide_or_zero(loss, count),
            "train/accuracy": divide_or_zero(correct, count),
            "train/grad_norm": float(self._results[-1].grad_norm),
            "train/lr": self._results[-1].lr,
            "train/epoch": samples / self._schedule.plan.size,
            "speed/images_per_s": self._images / seconds,
            "speed/texts_per_s": texts / seconds,
            "speed/step_s": seconds / steps,
            "speed/data_wait_share": waited / seconds,
            "speed/left_s": self._estimate_remaining_seconds(step, seconds / steps),
            **self._schedule.plan.metrics(samples),
        }
        self._results, self._images, self._last = [], 0, now
        return metrics, [loss, count, correct]

    def _estimate_remaining_seconds(self, step: int, step_s: float) -> float:
        self._rate = step_s if self._rate is None else 0.8 * self._rate + 0.2 * step_s
        return self._rate * (self._schedule.step_count - step)


def restore_progress(state: Mapping[str, Any] | None) -> TrainingProgress:
    """Restore the progress from a checkpoint's state, or create a new one."""
    return (
        TrainingProgress()
        if state is None
        else TrainingProgress(int(state["step"]), list(state["epoch_sums"]), list(state["history"]))
    )
