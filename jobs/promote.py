"""Make a model the champion if it passes the gate: it and the champion answer the same hold-out; it must be better by
more than chance, worse on no slice, behave as expected, and have all its files. The decision is recorded in the
model's run.

--rollback makes the previous champion the champion again.
"""

from __future__ import annotations

import sys

from jobs.job import main
from pipelines.workflows.promote import run

if __name__ == "__main__":
    sys.exit(main(run, "promote", flags={"--rollback": "registry.rollback=true"}, doc=__doc__))
