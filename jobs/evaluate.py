"""Evaluate a model on a split: it answers every row of each of its tasks, and its metrics are shown beside the
baselines. Metrics and pictures are recorded in the model's run.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from jobs import job


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job with these arguments, or those of the process; returns the exit status."""
    return job.main(
        "evaluate",
        argv,
        sections=("evaluate", "predict", "name", "storage", "data"),
        doc=__doc__,
        again="the same command begins anew",
    )


if __name__ == "__main__":
    sys.exit(main())
