"""Train a model on the indexed tars: Ray Data feeds Ray Train's workers, MLflow records the run, and the best
checkpoint is evaluated on the validation split and registered. The same name continues a run that was interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from jobs import job


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job with these arguments, or those of the process; returns the exit status."""
    return job.main(
        "train",
        argv,
        sections=("name", "train", "model", "data", "storage"),
        doc=__doc__,
        again="the same command continues from the last checkpoint",
    )


if __name__ == "__main__":
    sys.exit(main())
