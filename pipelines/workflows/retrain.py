"""What the job ``retrain`` does."""

from __future__ import annotations

import contextlib
import functools
from datetime import UTC, datetime

from pipelines.retrain.cycle import Outcome, Step, run_window
from pipelines.retrain.errors import BusyError
from pipelines.retrain.ledger import STEPS, Cycle, Facts
from pipelines.retrain.window import window_id
from pipelines.workflows import retrain_steps
from pipelines.workflows.cluster import connected
from pipelines.workflows.workspace import Workspace


def run(work: Workspace) -> Outcome | None:
    """Retrain in the configured window. Returns what came of it, None where another was at work."""
    settings = work.config.retrain
    window = settings.window or window_id(datetime.now(UTC), settings.period_minutes)
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
            with ledger.locked():
                outcome = run_window(
                    ledger, window, functools.partial(retrain_steps.find, work), steps,
                    min_tars=settings.min_tars, abandon=settings.abandon,
                    dropped=functools.partial(retrain_steps.forget, work), report=retrain_steps.say,
                )  # fmt: skip
        except BusyError as error:
            retrain_steps.say(f"{error}; window {window} is left to it")
            return None
    if outcome.reason:
        retrain_steps.say(f"nothing to begin: {outcome.reason}")
    return outcome
