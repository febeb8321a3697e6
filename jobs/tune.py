"""Search for good settings with Ray Tune: random samples of a space; ASHA stops the weak ones early.

Each trial is a training under its own name, evaluated on the validation split; nothing is registered. The
best settings are printed as overrides for the other jobs. A repeated job continues where it stopped.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from jobs import job


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job with these arguments, or those of the process; returns the exit status."""
    return job.main(
        "tune",
        argv,
        sections=("tune", "name", "storage", "train", "model"),
        doc=__doc__,
        again="the same command continues, and keeps what was trained",
    )


if __name__ == "__main__":
    sys.exit(main())
