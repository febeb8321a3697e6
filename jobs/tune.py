"""Search for good settings with Ray Tune: random samples of a space; ASHA stops the weak ones early.

Each trial is a training under its own name, evaluated on the validation split; nothing is registered. The
best settings are printed as overrides for the other jobs. A repeated job continues where it stopped.
"""

from __future__ import annotations

import sys

from jobs.job import main
from pipelines.workflows.tune import run

if __name__ == "__main__":
    sys.exit(main(run, "tune", doc=__doc__))
