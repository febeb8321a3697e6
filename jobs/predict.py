"""Answer every row of a task (question, image to be described, ...) over a set of tars with a model, offline, into one
Parquet file. No right answers are needed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from jobs import job


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job with these arguments, or those of the process; returns the exit status."""
    return job.main(
        "predict",
        argv,
        sections=("evaluate", "predict", "name", "storage", "data"),
        doc=__doc__,
        again="the same command begins anew",
    )


if __name__ == "__main__":
    sys.exit(main())
