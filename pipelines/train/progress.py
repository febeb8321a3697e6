"""Training progress: rank 0 posts it to an actor, and the job shows it on its terminal or in its log."""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping
from typing import Any, cast

import ray
from ray.actor import ActorHandle
from tqdm import tqdm


class ProgressActor:
    """Holds the newest metrics, and why a training failed. Workers write, the job reads."""

    def __init__(self) -> None:
        self._latest: dict[str, float] = {}
        self._failure = ""

    def post(self, metrics: dict[str, float]) -> None:
        self._latest |= metrics

    def read(self) -> dict[str, float]:
        return self._latest

    def fail(self, message: str) -> None:
        self._failure = message

    def failure(self) -> str:
        return self._failure


def create_progress_actor() -> ActorHandle[Any]:
    """An actor for one training; it ends with its handle."""
    return cast("ActorHandle[Any]", ray.remote(num_cpus=0)(ProgressActor).remote())


class ProgressDisplay:
    """Shows the progress until it is closed: a bar on a terminal, a line every ``interval_s`` seconds in a log."""

    def __init__(
        self, progress_actor: ActorHandle[Any], steps: int, label: str = "train", interval_s: float = 5.0
    ) -> None:
        self._progress_actor, self._steps, self._label = progress_actor, steps, label
        self._terminal = sys.stderr.isatty()
        self._interval_s = 0.5 if self._terminal else interval_s
        self._bar = tqdm(total=steps, unit="step", desc=label, disable=not self._terminal, dynamic_ncols=True)
        self._shown = -1.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow_progress, daemon=True)

    def __enter__(self) -> ProgressDisplay:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._show_line()
        self._bar.close()

    def _follow_progress(self) -> None:
        while not self._stop.wait(self._interval_s):
            self._show_line()

    def _show_line(self) -> None:
        try:
            metrics = cast("dict[str, float]", ray.get(self._progress_actor.read.remote(), timeout=5))
        except (ray.exceptions.RayError, TimeoutError):
            return  # a training does not fail because its progress cannot be shown
        step = metrics.get("step", 0.0)
        if not metrics or step == self._shown:
            return
        self._shown = step
        text = format_progress(metrics)
        if self._terminal:
            self._bar.n = int(step)
            self._bar.set_postfix_str(text, refresh=True)
        else:
            print(f"{self._label}  step {int(step)}/{self._steps}  {text}", file=sys.stderr, flush=True)


def format_progress(metrics: Mapping[str, float]) -> str:
    """The metrics that a person watches, in one line."""
    minutes, seconds = divmod(int(metrics.get("speed/left_s", 0)), 60)
    parts = [
        f"epoch {metrics.get('train/epoch', 0):.2f}",
        f"loss {metrics.get('train/loss', float('nan')):.4f}",
        f"{metrics.get('speed/images_per_s', 0):.0f} images/s",
        f"{metrics.get('speed/texts_per_s', 0):.0f} texts/s",
        f"waiting for data {metrics.get('speed/data_wait_share', 0):.0%}",
        f"left {minutes}:{seconds:02d}",
    ]
    if "val/accuracy" in metrics:
        parts.insert(2, f"val accuracy {metrics['val/accuracy']:.4f}")
    return "  ".join(parts)
