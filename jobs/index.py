"""Index the tars: validate every sample, write the index and the quarantine beside them. Only new tars are read.

--report also shows what was left out, with its pictures, on a page: _index/quarantine.html beside the tars.
"""

from __future__ import annotations

import sys

from jobs.cluster import connected
from jobs.config import JobConfig
from jobs.job import main
from pipelines.data.index.index import build_index
from pipelines.data.index.survey import describe_shapes
from pipelines.data.progress import ShardProgress


def run(config: JobConfig) -> None:
    """Build or update the index of ``data.tars``, and of every source of ``data.mix``."""
    with connected(config.cluster):
        for tars, members in config.data.sets().items():
            settings = config.data.index.model_copy(update={"members": members})
            with ShardProgress("index") as progress:
                index = build_index(tars, settings, report_progress=progress)
            print("\n".join([index.report(), *describe_shapes(index.survey(), config.processor.resize)]), flush=True)
            if config.data.index.report:
                print(f"shown in {index.folder.path('_index/quarantine.html')}", flush=True)


if __name__ == "__main__":
    sys.exit(main(run, "index", flags={"--report": "data.index.report=true"}))
