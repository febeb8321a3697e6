"""What the job ``retrain`` does."""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
from datetime import UTC, datetime

from pipelines.errors import expected_cause
from pipelines.retrain.cycle import Outcome, Step, run_window
from pipelines.retrain.errors import BusyError
from pipelines.retrain.ledger import STEPS, Cycle, Facts
from pipelines.retrain.window import TimeWindow
from pipelines.workflows import retrain_steps
from pipelines.workflows.cluster import connected
from pipelines.workflows.workspace import Workspace


def run(work: Workspace) -> Outcome | None:
    """Retrain in one window, or in one after the other. Returns what came of it, None where another was at work."""
    if not work.config.retrain.watch:
        return in_window(work, work.config.retrain.window or _current_window(work).id)
    while True:
        window = _current_window(work)
        try:
            in_window(work, window.id)
        except Exception as error:
            if (known := expected_cause(error)) is None:
                raise
            # The cycle stays where it is, and the next window continues it.
            print(f"retrain: {known}", file=sys.stderr, flush=True)
        work = work.changed(retrain=work.config.retrain.model_copy(update={"abandon": False}))
        threading.Event().wait(max(0.0, (window.end - datetime.now(UTC)).total_seconds()))


def in_window(work: Workspace, window: str) -> Outcome | None:
    """Retrain in this window. Returns what came of it, None where another was at work."""
    ledger = retrain_steps.ledger(work)
    with contextlib.ExitStack() as cluster:

        def on_cluster(step: Step, cycle: Cycle) -> Facts:
            # Only now: most starts find nothing to do.
            cluster.enter_context(connected(work.config.cluster))
            return step(cycle)

        steps = {
            name: functools.partial(on_cluster, functools.partial(getattr(retrain_steps, name), work))
            for name in STEPS[1:]
        }
        try:
            with ledger.locked(work.config.retrain.wait_s):
                outcome = run_window(
                    ledger, window, functools.partial(retrain_steps.find, work), steps,
                    min_tars=work.config.retrain.min_tars, abandon=work.config.retrain.abandon,
                    dropped=functools.partial(retrain_steps.forget, work), report=retrain_steps.say,
                )  # fmt: skip
        except BusyError as error:
            retrain_steps.say(f"{error}; window {window} is left to it")
            return None
    if outcome.reason:
        retrain_steps.say(f"nothing to begin: {outcome.reason}")
    return outcome


def _current_window(work: Workspace) -> TimeWindow:
    return TimeWindow.at(datetime.now(UTC), work.config.retrain.period_minutes)
