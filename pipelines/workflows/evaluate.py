"""What the job ``evaluate`` does."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq

from pipelines.data.index.index import Index
from pipelines.evaluate.assess import assess, show
from pipelines.evaluate.report import Report
from pipelines.tracking.tracker import Tracker
from pipelines.workflows import feature_cache, runs
from pipelines.workflows.cluster import connected
from pipelines.workflows.config import JobConfig


def run(config: JobConfig) -> list[Report]:
    """Answer, judge, record, a report for each task. Writes the answers as Parquet and the figures as JSON."""
    chosen = runs.choose_model(config)
    index = Index.open(runs.tars(config))
    split = config.evaluate.split
    with connected(config.cluster):
        answered = (split, "train") if config.evaluate.training and split else (split,)
        features = feature_cache.features_of_saved(config, index, answered, chosen.folder, "evaluate")
        source = runs.source(config, index, split, chosen.folder, features)
        found = assess(
            str(chosen.folder), source, index, config.predict, config.stream, config.evaluate.examples,
            training=config.evaluate.training,
        )  # fmt: skip
    out = Path(config.evaluate.out or runs.local_folder(config) / f"answers-{split or 'all'}.parquet")
    out.parent.mkdir(parents=True, exist_ok=True)
    figures: dict[str, float] = {}
    for one in found:
        file = out.with_stem(f"{out.stem}-{one.task}") if one.task else out
        pq.write_table(one.answers, file)
        figures |= one.report.metrics(one.task)
        name = f"{chosen.name} version {chosen.version}{f', {one.task}' if one.task else ''}"
        print(f"{name}, {one.report}\nanswers: {file}", flush=True)
    runs.write_json(out.with_suffix(".json"), figures | {"model": f"{chosen.name}/{chosen.version}"})
    if chosen.run_id:
        with Tracker.of_run(config.tracking, runs.storage(config), chosen.run_id) as tracker:
            tracker.log_metrics(figures, 0)
            for one in found:
                show(one, tracker)
    return [one.report for one in found]
