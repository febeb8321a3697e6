"""The workflow of the job ``retrain``."""

from __future__ import annotations

import contextlib
import functools
from datetime import UTC, datetime

from pipelines.retrain.cycle import Step, WindowOutcome, run_retraining_window
from pipelines.retrain.errors import RetrainingBusyError
from pipelines.retrain.ledger import Facts, RetrainCycle
from pipelines.retrain.window import window_id
from pipelines.workflows import retrain_steps
from pipelines.workflows.cluster import connected_to_cluster
from pipelines.workflows.workspace import Workspace
from vlmodel.config import ConfigError


def run(work: Workspace) -> WindowOutcome | None:
    """Retrain in the configured time window. Returns the outcome, None if another process is retraining.

    Raises:
        ConfigError: ``registry.force`` is set: nobody looks at the gate's answer where a schedule trains.
    """
    settings = work.config.retrain
    if work.config.registry.force:
        raise ConfigError("registry.force is for one promotion by a person; unset it here and run jobs.promote --force")
    window = settings.window or window_id(datetime.now(UTC), settings.period_minutes)
    ledger = retrain_steps.open_ledger(work)
    with contextlib.ExitStack() as cluster:

        def run_retraining_on_cluster(step: Step, cycle: RetrainCycle) -> Facts:
            # Only now: most starts find nothing to do.
            cluster.enter_context(connected_to_cluster(work.config.cluster))
            return step(cycle)

        steps = {
            name: functools.partial(run_retraining_on_cluster, functools.partial(step, work))
            for name, step in retrain_steps.STEP_FUNCTIONS.items()
        }
        try:
            with ledger.hold_lock():
                outcome = run_retraining_window(
                    ledger, window, functools.partial(retrain_steps.find_unconsumed_tars, work), steps,
                    min_tars=settings.min_tars, abandon=settings.abandon,
                    dropped=functools.partial(retrain_steps.delete_copied_tars, work), report=retrain_steps.print_line,
                )  # fmt: skip
        except RetrainingBusyError as error:
            retrain_steps.print_line(f"{error}; window {window} is left to it")
            return None
    if outcome.reason:
        retrain_steps.print_line(f"nothing to begin: {outcome.reason}")
    return outcome
