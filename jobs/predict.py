"""Answer every row of a task (question, image to be described, ...) over a set of tars with a model, offline, into one
Parquet file. No right answers are needed.
"""

from __future__ import annotations

import sys

from jobs.job import main
from pipelines.workflows.predict import run

if __name__ == "__main__":
    sys.exit(main(run, "predict", doc=__doc__))
