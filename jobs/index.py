"""Index the tars: validate every sample, write the index and the quarantine beside them. Only new tars are read.

--report also shows what was left out, with its pictures, on a page: _index/quarantine.html beside the tars.
"""

from __future__ import annotations

import sys

from jobs.job import main
from pipelines.workflows.index import run

if __name__ == "__main__":
    sys.exit(main(run, "index", flags={"--report": "data.index.report=true"}, doc=__doc__))
