"""Retrain on the tars that came into ``retrain.incoming``: check them, train from the champion on new and old data,
evaluate candidate and champion on the same samples, promote the better one, update the service.

It can be started at any time: a second start in the same window does nothing new, a cycle that was killed continues,
one cycle makes up for windows that were missed, and each tar is used by exactly one cycle. --abandon first gives up a
cycle that cannot be finished. Schedules are in infra/: systemd, cron, Kubernetes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from jobs import job


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job with these arguments, or those of the process; returns the exit status."""
    flags = {"--abandon": "retrain.abandon=true"}
    return job.main(
        "retrain",
        argv,
        flags=flags,
        sections=("retrain", "name", "storage", "data"),
        doc=__doc__,
        again="the same command continues the cycle",
    )


if __name__ == "__main__":
    sys.exit(main())
