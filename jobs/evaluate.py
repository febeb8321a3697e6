"""Evaluate a model on a split: it answers every row of each of its tasks, and its metrics are shown beside the
baselines. Metrics and pictures are recorded in the model's run.
"""

from __future__ import annotations

import sys

from jobs.job import main
from pipelines.workflows.evaluate import run

if __name__ == "__main__":
    sys.exit(main(run, "evaluate", doc=__doc__))
