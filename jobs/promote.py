"""Make a model the champion if it passes the gate: it and the champion answer the same hold-out; it must be better by
more than chance, worse on no slice, behave as expected, and have all its files. The decision is recorded in the
model's run.

--rollback makes the previous champion the champion again.
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
        flags={"--rollback": "registry.rollback=true"},
        sections=("registry", "name", "storage", "serve"),
        doc=__doc__,
        again="the same command judges it again",
    )


if __name__ == "__main__":
    sys.exit(main())
