"""Train every combination of a grid of settings with every seed, and compare them on the validation split.

Each cell is a complete training under its own name; a repeated job continues where it stopped. Nothing is registered,
and the test split is not read.
"""

from __future__ import annotations

import sys

from jobs.job import main
from pipelines.workflows.ablate import run

if __name__ == "__main__":
    sys.exit(main(run, "ablate", doc=__doc__))
