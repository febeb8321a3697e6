"""Make a model the champion if it passes the gate: it and the champion answer the same hold-out; it must be better by
more than chance, worse on no slice, behave as expected, and have all its files. The decision is recorded in the
model's run.

--force REASON makes it the champion whatever the gate says, and records why; files that were altered are refused all
the same. --rollback makes the previous champion the champion again.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from jobs import job


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job with these arguments, or those of the process; returns the exit status."""
    return job.main(
        "promote",
        argv,
        flags={"--rollback": "registry.rollback=true", "--force": "registry.force="},
        sections=("registry", "name", "storage", "serve"),
        doc=__doc__,
        again="the same command judges it again",
    )


if __name__ == "__main__":
    sys.exit(main())
