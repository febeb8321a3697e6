"""Train every combination of a grid of settings with every seed. The validation split compares them.

Each cell is a complete training under its own name; a repeated job continues where it stopped. Nothing is registered,
and the test split is not read.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from jobs import job


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job with these arguments, or those of the process; returns the exit status."""
    return job.main(
        "ablate",
        argv,
        sections=("ablate", "name", "storage", "train", "model"),
        doc=__doc__,
        again="the same command continues, and keeps what was trained",
    )


if __name__ == "__main__":
    sys.exit(main())
