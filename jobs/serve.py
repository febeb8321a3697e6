"""Serve the champion over HTTP. On a cluster of its own the job runs until Ctrl-C; on a running cluster it deploys, or
updates what is deployed, and leaves the service up.
"""

from __future__ import annotations

import sys

from jobs.job import main
from pipelines.workflows.serve import run

if __name__ == "__main__":
    sys.exit(main(run, "serve", doc=__doc__))
