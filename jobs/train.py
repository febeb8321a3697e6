"""Train a model on the indexed tars: Ray Data feeds Ray Train's workers, MLflow records the run, and the best
checkpoint is evaluated on the validation split and registered. The same name continues a run that was interrupted.
"""

from __future__ import annotations

import sys

from jobs.job import main
from pipelines.workflows.train import run

if __name__ == "__main__":
    sys.exit(main(run, "train", doc=__doc__))
