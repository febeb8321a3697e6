"""jobs.retrain, but one of its steps ends ill: ``python -m tests.faults.spoiled_retrain STEP HOW [arguments]``.

HOW is "dies", which is a SIGKILL of the process group when the step's work is done and not yet recorded; or "raises",
which is what an outage of a store looks like in the midst of it.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable

from jobs.job import main
from pipelines.retrain.ledger import Facts, RetrainCycle
from pipelines.tracking.address import TrackingError
from pipelines.tracking.tracker import Tracker
from pipelines.workflows import retrain_steps
from pipelines.workflows.workspace import Workspace


def dying(step: Callable[[Workspace, RetrainCycle], Facts]) -> Callable[[Workspace, RetrainCycle], Facts]:
    def run(work: Workspace, cycle: RetrainCycle) -> Facts:
        step(work, cycle)
        os.killpg(0, signal.SIGKILL)
        raise AssertionError("a killed process goes on")

    return run


def spoil(step: str, how: str) -> None:
    if how == "dies":
        retrain_steps.STEP_FUNCTIONS[step] = dying(retrain_steps.STEP_FUNCTIONS[step])
        return

    def fail(*_: object) -> None:
        raise TrackingError("could not log picture: the store is away")

    # The gate has decided by then, and it is the last thing before the exchange.
    assert step == "gated"
    setattr(Tracker, "log_figure", fail)  # noqa: B010 - an assignment would not be of the method's type


if __name__ == "__main__":
    spoil(sys.argv[1], sys.argv[2])
    sys.exit(main("retrain", sys.argv[3:]))
