"""All jobs in a row: import, index, train, evaluate, promote, serve; then one question is asked over HTTP.

For your own table: --config own source.kind=table source.file=my.csv data.tars=build/data/mine (the columns are told by
``python -m jobs.import_data --help``).

Steps that were finished before are not repeated. The service and the MLflow page stay up until Ctrl-C; where standard
input is no terminal they are stopped at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from jobs import job


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job with these arguments, or those of the process; returns the exit status."""
    return job.main(
        "pipeline",
        argv,
        sections=("name", "source", "data", "train", "serve"),
        doc=__doc__,
        again="the same command continues, and keeps what was finished",
    )


if __name__ == "__main__":
    sys.exit(main())
