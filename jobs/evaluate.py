"""Evaluate a model on a split: every row of each of its tasks once, beside the floors. Figures and pictures go to the
model's run.
"""

from __future__ import annotations

import sys

from jobs.job import main
from pipelines.workflows.evaluate import run

if __name__ == "__main__":
    sys.exit(main(run, "evaluate", doc=__doc__))
