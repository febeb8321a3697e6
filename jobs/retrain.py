"""Retrain on the tars that came into ``retrain.incoming``: check them, train from the champion on new and old data,
judge candidate and champion on the same samples, promote the better one, swap it in.

Safe to start at any time: the same window twice is one cycle, a cycle that was killed continues, windows that were
missed are made up by one cycle, and each tar is consumed by exactly one. --watch goes on with each later window,
--abandon first gives up a cycle that cannot be finished.
"""

from __future__ import annotations

import sys

from jobs.job import main
from pipelines.workflows.retrain import run

if __name__ == "__main__":
    sys.exit(
        main(run, "retrain", flags={"--watch": "retrain.watch=true", "--abandon": "retrain.abandon=true"}, doc=__doc__)
    )
