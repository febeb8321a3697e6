"""Describes each failure of workers in one line, in a module of its own: Ray's controller imports it, and needs no
torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray.actor import ActorHandle
from ray.train import UserCallback

from pipelines.errors import escape_unprintable, find_expected_cause, message_for_user

_LONGEST_REASON = 300


class FailureLines(UserCallback):
    """Describes each failure of workers in one line. Ray calls it in the process that controls them."""

    def __init__(self, progress_actor: ActorHandle[Any]) -> None:
        self._progress_actor = progress_actor

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        # Not waited for: the actor may have been on the node that was lost.
        self._progress_actor.post_line.remote(describe_worker_failure(worker_exceptions))


def describe_worker_failure(errors: Mapping[int, Exception]) -> str:
    """Describe the errors of workers, by rank, for the user. Most of them follow from one, as their collectives
    failed.
    """
    known = {rank: cause for rank, error in errors.items() if (cause := find_expected_cause(error)) is not None}
    rank, error = min((known or errors).items())
    reason = message_for_user(error) if known else f"{type(error).__name__}: {error}"
    return f"rank {rank} failed: {escape_unprintable(reason.strip().partition(chr(10))[0])[:_LONGEST_REASON]}"
