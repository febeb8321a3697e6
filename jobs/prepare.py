"""Prepare the indexed tars of ``data.tars`` for training: filter, drop duplicates, shrink, and write tars of like size,
indexed and with their lineage, to ``prepare.out``. A job that was stopped goes on where it was.
"""

from __future__ import annotations

import sys

from jobs.cluster import connected
from jobs.config import JobConfig
from jobs.job import main
from pipelines.data.prepare.files import REPORT
from pipelines.data.prepare.run import prepare
from pipelines.data.prepare.summary import Summary


def run(config: JobConfig) -> Summary:
    """Prepare the data; does nothing where that was done."""
    with connected(config.cluster):
        summary = prepare(config.data.tars, config.prepare, config.data.index)
    print(summary)
    print(f"examples of what was dropped: {summary.out}/{REPORT}", flush=True)
    return summary


if __name__ == "__main__":
    sys.exit(main(run, "prepare"))
