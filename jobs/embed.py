"""Embed the images (or other inputs) and the texts of a set of tars with a contrastive model, into Parquet files. No
texts are needed. A job that was stopped resumes; after new tars came, only these are embedded.

A service searches among the vectors where serve.search.embeddings names their folder.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from jobs import job


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job with these arguments, or those of the process; returns the exit status."""
    return job.main(
        "embed",
        argv,
        sections=("embed", "evaluate", "predict", "name", "storage", "data"),
        doc=__doc__,
        again="the same command continues",
    )


if __name__ == "__main__":
    sys.exit(main())
