"""Import a data set: read ``source`` and write it to ``data.tars`` as WebDataset tars.

A table (``source.kind=table source.file=my.csv``) has a row for each question, with the columns image (a path beside
the table), question and answer; or a row for each caption, with the columns image and caption. Other names of columns
are told by source.image, source.question, ... A column split is optional: without it a tenth of the images each becomes
split val and test. ``source.kind=KIND --help`` lists the settings of another kind of source.

With ``source.inputs`` samples are texts alone or images alone, to be trained on beside pairs (``data.mix``).
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
