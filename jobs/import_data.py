"""Import a data set: read ``source`` and write it to ``data.tars`` as WebDataset tars.

With ``source.members`` these are texts alone or images alone, to be trained on beside pairs (``data.mix``).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from jobs import job


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job with these arguments, or those of the process; returns the exit status."""
    return job.main("import_data", argv, sections=("source", "data"), doc=__doc__, again="the same command begins anew")


if __name__ == "__main__":
    sys.exit(main())
