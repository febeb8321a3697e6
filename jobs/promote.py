"""Make a model the champion if the gate agrees: it and the champion answer the same hold-out, and it must be better by
more than chance, worse nowhere, sound in its behaviour, and whole. The decision is recorded with the model's run.

--rollback makes the former champion the champion again.
"""

from __future__ import annotations

import sys

from jobs.job import main
from pipelines.workflows.promote import run

if __name__ == "__main__":
    sys.exit(main(run, "promote", flags={"--rollback": "registry.rollback=true"}, doc=__doc__))
