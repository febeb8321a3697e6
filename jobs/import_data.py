"""Import a data set: read ``source`` and write it to ``data.tars`` as WebDataset tars.

With ``source.members`` these are texts alone or images alone, to be trained on beside pairs (``data.mix``).
"""

from __future__ import annotations

import sys

from jobs.config import JobConfig
from jobs.job import main
from pipelines.data.importing import ImportSummary, import_data


def run(config: JobConfig) -> ImportSummary:
    """Write the tars; does nothing where they are complete already."""
    summary = import_data(config.source, config.data.tars)
    for split, counts in summary.splits.items():
        print(f"import {split}: {counts.samples} samples, {counts.questions} questions, {counts.captions} captions")
    if summary.rejected:
        print(f"import left out: {', '.join(f'{n} {reason}' for reason, n in summary.rejected.items())}")
    print(f"import {'was complete already' if summary.unchanged else 'done'}: {config.data.tars}", flush=True)
    if (members := config.source.members) != "pairs":
        print(f"these are {members} alone; other jobs are told so by data.mix.NAME.members={members}", flush=True)
    return summary


if __name__ == "__main__":
    sys.exit(main(run, "import_data"))
