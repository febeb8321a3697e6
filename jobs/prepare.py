"""Prepare the indexed tars of ``data.tars`` for training: filter samples, drop duplicates, shrink images, and write
tars of similar size, with an index and their lineage, to ``prepare.out``. A job that was stopped resumes.
"""

from __future__ import annotations

import sys

from jobs.job import main
from pipelines.workflows.prepare import run

if __name__ == "__main__":
    sys.exit(main(run, "prepare", doc=__doc__))
