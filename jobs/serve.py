"""Serve the champion over HTTP, or another model (serve.version=N, serve.model=FOLDER). On a cluster of its own the job
runs until Ctrl-C; on a running cluster it deploys, or updates what is deployed, and leaves the service up.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from jobs import job


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job with these arguments, or those of the process; returns the exit status."""
    return job.main(
        "serve",
        argv,
        sections=("serve", "registry", "storage", "tracking"),
        doc=__doc__,
        again="the same command serves again",
    )


if __name__ == "__main__":
    sys.exit(main())
