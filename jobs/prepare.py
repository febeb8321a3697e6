"""Prepare the indexed tars of ``data.tars`` for training: filter samples, drop duplicates, shrink images, and write
tars of similar size, with an index and their lineage, to ``prepare.out``. A job that was stopped resumes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from jobs import job


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job with these arguments, or those of the process; returns the exit status."""
    return job.main("prepare", argv, sections=("prepare", "data"), doc=__doc__, again="the same command continues")


if __name__ == "__main__":
    sys.exit(main())
