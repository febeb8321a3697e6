"""Build the store of facts: read a source of triples, encode what is new, write it. A build that was stopped continues.

Facts are data, and not weights: training and serving read them from the store (knowledge.store), and a change is seen
by the next answer. ``GET`` and ``POST /v1/facts`` change single facts while a service runs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from jobs import job


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job with these arguments, or those of the process; returns the exit status."""
    return job.main("knowledge", argv, sections=("knowledge",), doc=__doc__)


if __name__ == "__main__":
    sys.exit(main())
