"""Prepare the indexed tars of ``data.tars`` for training: filter, drop duplicates, shrink, and write tars of like size,
indexed and with their lineage, to ``prepare.out``. A job that was stopped goes on where it was.
"""

from __future__ import annotations

import sys

from jobs.job import main
from pipelines.workflows.prepare import run

if __name__ == "__main__":
    sys.exit(main(run, "prepare", doc=__doc__))
