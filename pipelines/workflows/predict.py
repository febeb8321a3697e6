"""The workflow of the job ``predict``."""

from __future__ import annotations

from pathlib import Path

from pipelines.data.index.build import build_index, require_tars
from pipelines.evaluate.predict import iterate_answer_tables, predict_dataset, write_answer_tables
from pipelines.workflows import feature_cache, models
from pipelines.workflows.cluster import connected_to_cluster
from pipelines.workflows.workspace import Workspace
from vlmodel.processor import VLProcessor


def run(work: Workspace) -> Path:
    """Index the tars if necessary, answer every row, and write the answers. Returns the file."""
    require_tars(work.config.data.tars)  # before a cluster is started
    chosen = models.choose_model(work)
    out = Path(work.config.evaluate.out or work.local_folder / "predictions.parquet")
    with connected_to_cluster(work.config.cluster):
        build_index(work.config.data.tars, work.config.data.index)
        index = work.newest_index()
        split = work.config.evaluate.split
        features = feature_cache.cache_features_of_saved_model(work, index, (split,), chosen.folder, "predict")
        source = work.source(index, split, chosen.folder, features)
        task = work.config.evaluate.task or None
        answers = predict_dataset(str(chosen.folder), source, work.config.predict, work.config.stream, task)
        tasks = VLProcessor.from_pretrained(chosen.folder).tasks
        samples = index.count(tasks[task or next(iter(tasks))].can_answer, split)
        rows, cut = write_answer_tables(iterate_answer_tables(answers, "predict", samples), out)
    note = f", {cut} of them to texts that were cut, as they have more tokens than the model takes" if cut else ""
    print(f"{rows} answers of {chosen.name} version {chosen.version}{note}: {out}", flush=True)
    return out
