"""Index the tars: validate every sample, write the index and the quarantine beside them. Only new tars are read.

--report also shows what was left out, with its pictures, on a page: _index/quarantine.html beside the tars.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from jobs import job


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job with these arguments, or those of the process; returns the exit status."""
    return job.main(
        "index",
        argv,
        flags={"--report": "data.index.report=true"},
        sections=("data",),
        doc=__doc__,
        again="the same command continues with the tars that are left",
    )


if __name__ == "__main__":
    sys.exit(main())
