"""Retrain on the tars that came into ``retrain.incoming``: check them, train from the champion on new and old data,
evaluate candidate and champion on the same samples, promote the better one, update the service.

It can be started at any time: a second start in the same window does nothing new, a cycle that was killed continues,
one cycle makes up for windows that were missed, and each tar is used by exactly one cycle. --watch runs a cycle in each
later window, --abandon first gives up a cycle that cannot be finished.
"""

from __future__ import annotations

import sys

from jobs.job import main
from pipelines.workflows.retrain import run

if __name__ == "__main__":
    sys.exit(
        main(run, "retrain", flags={"--watch": "retrain.watch=true", "--abandon": "retrain.abandon=true"}, doc=__doc__)
    )
