"""Answer every row of a task (question, image to be described, ...) over a set of tars with a model, offline, into one
Parquet file. No right answers are needed.
"""

from __future__ import annotations

import sys
from pathlib import Path

from jobs import kept, runs
from jobs.cluster import connected
from jobs.config import JobConfig
from jobs.job import main
from pipelines.data.index.index import Index, build_index
from pipelines.evaluate.predict import collect, predict, write


def run(config: JobConfig) -> Path:
    """Index the tars if that was not done, answer, write. Returns the file."""
    chosen = runs.choose_model(config)
    out = Path(config.evaluate.out or runs.local_folder(config) / "predictions.parquet")
    with connected(config.cluster):
        build_index(config.data.tars, config.data.index)
        index = Index.open(runs.tars(config))
        split = config.evaluate.split
        features = kept.features_of_saved(config, index, (split,), chosen.folder, "predict")
        source = runs.source(config, index, split, chosen.folder, features)
        answers = predict(str(chosen.folder), source, config.predict, config.stream, config.evaluate.task or None)
        rows, cut = write(collect(answers), out)
    note = f", {cut} of them to texts that were cut, as they have more tokens than the model takes" if cut else ""
    print(f"{rows} answers of {chosen.name} version {chosen.version}{note}: {out}", flush=True)
    return out


if __name__ == "__main__":
    sys.exit(main(run, "predict"))
