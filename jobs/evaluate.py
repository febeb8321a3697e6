"""Evaluate a model on a split: every question once, beside the floors. Figures and pictures go to its run."""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow.parquet as pq

from jobs import runs
from jobs.cluster import connected
from jobs.config import JobConfig
from jobs.job import main
from pipelines.data.index import Index
from pipelines.evaluate.assess import assess, show
from pipelines.evaluate.score import Report
from pipelines.train.tracking import Tracker


def run(config: JobConfig) -> Report:
    """Answer, score, record. Writes the answers as Parquet and the figures as JSON."""
    chosen = runs.choose_model(config)
    index = Index.open(runs.tars(config))
    split = config.evaluate.split
    with connected(config.cluster):
        found = assess(
            str(chosen.folder), runs.source(config, index, split, chosen.folder), index, config.predict, config.stream,
            config.evaluate.examples,
        )  # fmt: skip
    name = split or "all"
    out = Path(config.evaluate.out or runs.local_folder(config) / f"answers-{name}.parquet")
    out.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(found.answers, out)
    runs.write_json(out.with_suffix(".json"), found.report.metrics() | {"model": f"{chosen.name}/{chosen.version}"})
    if chosen.run_id:
        with Tracker.of_run(config.tracking, runs.storage(config), chosen.run_id) as tracker:
            tracker.log_metrics(found.report.metrics(), 0)
            show(found, tracker)
    print(f"{chosen.name} version {chosen.version}, {found.report}\nanswers: {out}", flush=True)
    return found.report


if __name__ == "__main__":
    sys.exit(main(run, "evaluate"))
