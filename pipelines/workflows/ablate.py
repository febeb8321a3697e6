"""The workflow of the job ``ablate``."""

from __future__ import annotations

import functools

from pipelines.search.errors import SearchError
from pipelines.search.grid import GridCell, grid_cells
from pipelines.search.pictures import draw_ablation
from pipelines.search.remote import run_parallel
from pipelines.search.results import TrainingResult
from pipelines.search.table import Row, ablation_table_rows, describe_training_status
from pipelines.train import run_folder
from pipelines.workflows import training_data
from pipelines.workflows.cluster import connected_to_cluster
from pipelines.workflows.config import JobConfig
from pipelines.workflows.trials import (
    SearchContext,
    base_config_of_trials,
    common_metric_of_cells,
    index_with_validation,
    metric_name,
    print_and_track_results,
    train_and_record_result,
)
from pipelines.workflows.workspace import Workspace
from vlmodel.config import dump_config

Records = dict[tuple[str, int], TrainingResult]


def run(work: Workspace) -> list[Row]:
    """Train the cells of the grid, then show the table of results. Returns its rows.

    Raises:
        SearchError: cells failed; the others are finished and in the table.
    """
    grid, seeds = work.config.ablate.grid, work.config.ablate.seeds
    cells = grid_cells(base_config_of_trials(work), grid, "ablate.grid")
    metric = common_metric_of_cells(cells, "ablate.grid")
    index = index_with_validation(work)
    records: Records = {
        (cell.slug, seed): TrainingResult("refused", cell.refused)
        for cell in cells
        if cell.config is None
        for seed in seeds
    }
    for cell in cells:
        if cell.config is None:
            print(f"ablate  refused {cell.slug}: {cell.refused}", flush=True)
    with (
        run_folder.lock_run_folder(work.run_folder),
        connected_to_cluster(work.config.cluster),
        work.track() as tracker,
    ):
        tracker.log_params(dump_config(work.config), volatile=work.config.keys_changeable_on_resume())
        training_data.record_data(work, index, tracker)
        context = SearchContext(work.run_folder, tracker.run_id, work.index_versions())
        records |= _train_all_cells(work, cells, context)
        rows = ablation_table_rows(cells, seeds, records, metric)
        print_and_track_results(work, tracker, "ablation", rows, draw_ablation(grid, cells, seeds, records, metric))
    if failed := [f"{slug} seed {seed}: {r.reason}" for (slug, seed), r in records.items() if r.status == "failed"]:
        raise SearchError(
            f"{len(failed)} of {len(records)} trainings failed; the same command tries them again:\n"
            + "\n".join(failed)
        )
    return rows


def _train_all_cells(work: Workspace, cells: list[GridCell[JobConfig]], context: SearchContext) -> Records:
    keys = {
        f"{work.config.name}-{cell.slug}-s{seed}": (cell, seed)
        for seed in work.config.ablate.seeds
        for cell in cells
        if cell.config is not None
    }
    items = [
        cell.config.model_copy(update={"name": name, "seed": seed})
        for name, (cell, seed) in keys.items()
        if cell.config is not None
    ]
    print(f"ablate {work.config.name}: {len(items)} trainings, {work.config.ablate.concurrent} at one time", flush=True)
    function = functools.partial(train_and_record_result, context=context)
    records: Records = {}
    for item, result in run_parallel(function, items, work.config.ablate.concurrent):
        record = result if isinstance(result, TrainingResult) else TrainingResult("failed", str(result))
        cell, seed = keys[item.name]
        records[cell.slug, seed] = record
        print(
            f"ablate  {len(records)} of {len(items)}  {item.name}  {_describe_result(record, metric_name(item))}",
            flush=True,
        )
    return records


def _describe_result(record: TrainingResult, metric: str) -> str:
    if record.score is None:
        return describe_training_status(record)
    return f"{metric} {record.score:.4f}  {record.images_per_s:.0f} images/s  {record.seconds:.0f} s"
