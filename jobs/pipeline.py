"""All jobs in a row: import, index, train, evaluate, promote, serve; then one question is asked over HTTP.

Steps that were finished before are not repeated. The service and the MLflow page stay up until Ctrl-C; where standard
input is no terminal they are stopped at once.
"""

from __future__ import annotations

import sys

from jobs.job import main
from pipelines.workflows.pipeline import run

if __name__ == "__main__":
    sys.exit(main(run, "pipeline", doc=__doc__))
