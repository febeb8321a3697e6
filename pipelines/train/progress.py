"""Shows training progress: rank 0 posts it to an actor, and the job shows it on its terminal or in its log."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipelines.report.progress import Progress
from vlmodel.errors import ExpectedError

_POLL_S = 0.5
# A smaller share of a step is no reason to look at the input.
_MIN_DATA_WAIT = 0.1


class PostedProgress(NamedTuple):
    """What the workers have posted: the newest metrics, and lines for the user."""

    metrics: dict[str, float]
    lines: list[str]


class ProgressActor:
    """Holds the newest metrics, lines for the user, and why a training failed. Workers write, the job reads."""

    def __init__(self) -> None:
        self._latest: dict[str, float] = {}
        self._lines: list[str] = []
        self._failure: ExpectedError | None = None

    def post(self, metrics: dict[str, float]) -> None:
        self._latest |= metrics

    def post_line(self, line: str) -> None:
        self._lines.append(line)

    def read(self, seen: int = 0) -> PostedProgress:
        """Return the newest metrics, and the lines after the first ``seen``."""
        return PostedProgress(self._latest, self._lines[seen:])

    def fail(self, error: ExpectedError) -> None:
        self._failure = error

    def failure(self) -> ExpectedError | None:
        return self._failure


def create_progress_actor() -> ActorHandle[Any]:
    """Create the progress actor of one training; it ends with its handle.

    It runs on the node of this process: on another it would be lost with that node, and with it the result of workers
    that were started elsewhere.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(num_cpus=0)(ProgressActor).options(scheduling_strategy=here)
    return cast("ActorHandle[Any]", actor.remote())


class ProgressDisplay:
    """Shows what the workers post until it is closed."""

    def __init__(self, progress_actor: ActorHandle[Any], steps: int, label: str = "train") -> None:
        self._progress_actor, self._steps, self._label = progress_actor, steps, label
        self._progress = Progress(label, "step")
        self._seen_lines, self._shown_step = 0, 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow_progress, daemon=True)

    def __enter__(self) -> ProgressDisplay:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if kind is None or issubclass(kind, Exception):  # Who stopped the job waits for its end.
            self._print_new_lines()
        self._progress.__exit__(None, None, None)

    def _follow_progress(self) -> None:
        while not self._stop.wait(_POLL_S):
            self._print_new_lines()

    def _print_new_lines(self) -> None:
        try:
            posted = cast(PostedProgress, ray.get(self._progress_actor.read.remote(self._seen_lines), timeout=5))
        except (ray.exceptions.RayError, TimeoutError):
            return  # a training does not fail because its progress cannot be shown
        for line in posted.lines:
            print(f"{self._label}  {line}", flush=True)
        self._seen_lines += len(posted.lines)
        step = posted.metrics.get("step", 0.0)
        if step != self._shown_step:
            self._shown_step = step
            self._progress(
                int(step), self._steps, choose_metrics_to_show(posted.metrics), posted.metrics.get("speed/left_s")
            )


def choose_metrics_to_show(metrics: Mapping[str, float]) -> list[str]:
    """Choose the metrics that a person watches, the most important first."""
    shown = [f"loss {metrics.get('train/loss', float('nan')):.4f}"]
    if "val/accuracy" in metrics:
        shown.append(f"val accuracy {metrics['val/accuracy']:.4f}")
    if (waiting := metrics.get("speed/data_wait_share", 0.0)) >= _MIN_DATA_WAIT:
        shown.append(f"waits for data {waiting:.0%}")
    return [
        *shown,
        f"{metrics.get('speed/images_per_s', 0):.0f} images/s",
        f"epoch {metrics.get('train/epoch', 0):.1f}",
    ]
