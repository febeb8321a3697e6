"""What the job ``predict`` does."""

from __future__ import annotations

from pathlib import Path

from pipelines.data.index.index import Index, build_index
from pipelines.evaluate.predict import collect, predict, write
from pipelines.workflows import feature_cache, runs
from pipelines.workflows.cluster import connected
from pipelines.workflows.config import JobConfig


def run(config: JobConfig) -> Path:
    """Index the tars if that was not done, answer, write. Returns the file."""
    chosen = runs.choose_model(config)
    out = Path(config.evaluate.out or runs.local_folder(config) / "predictions.parquet")
    with connected(config.cluster):
        build_index(config.data.tars, config.data.index)
        index = Index.open(runs.tars(config))
        split = config.evaluate.split
        features = feature_cache.features_of_saved(config, index, (split,), chosen.folder, "predict")
        source = runs.source(config, index, split, chosen.folder, features)
        answers = predict(str(chosen.folder), source, config.predict, config.stream, config.evaluate.task or None)
        rows, cut = write(collect(answers), out)
    note = f", {cut} of them to texts that were cut, as they have more tokens than the model takes" if cut else ""
    print(f"{rows} answers of {chosen.name} version {chosen.version}{note}: {out}", flush=True)
    return out
