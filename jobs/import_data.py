"""Import a data set: read ``source`` and write it to ``data.tars`` as WebDataset tars.

With ``source.members`` these are texts alone or images alone, to be trained on beside pairs (``data.mix``).
"""

from __future__ import annotations

import sys

from jobs.job import main
from pipelines.workflows.import_data import run

if __name__ == "__main__":
    sys.exit(main(run, "import_data", doc=__doc__))
