"""What the job ``ablate`` does."""

from __future__ import annotations

import functools

from pipelines.report.search_pictures import ablation
from pipelines.search.errors import SearchError
from pipelines.search.grid import Cell, cells
from pipelines.search.record import Record
from pipelines.search.remote import each
from pipelines.search.table import Row, ablation_rows, status
from pipelines.tracking import run_folder
from pipelines.tracking.tracker import Tracker
from pipelines.workflows import runs, training_data
from pipelines.workflows.cluster import connected
from pipelines.workflows.config import JobConfig
from pipelines.workflows.train import MAY_CHANGE
from pipelines.workflows.trials import SearchContext, base, measure, one_measure, publish, train_cell, validated
from vlmodel.config import dump

Records = dict[tuple[str, int], Record]


def run(config: JobConfig) -> list[Row]:
    """Train the cells, then show the table. Returns its rows.

    Raises:
        SearchError: cells failed; the others are finished and in the table.
    """
    grid, seeds = config.ablate.grid, config.ablate.seeds
    found = cells(base(config), grid, "ablate.grid")
    named = one_measure(found, "ablate.grid")
    index = validated(config)
    records: Records = {
        (cell.slug, seed): Record("refused", cell.refused) for cell in found if cell.config is None for seed in seeds
    }
    for cell in found:
        if cell.config is None:
            print(f"ablate  refused {cell.slug}: {cell.refused}", flush=True)
    with (
        run_folder.exclusive(runs.run_folder(config)),
        connected(config.cluster),
        Tracker.open(config.tracking, runs.storage(config), config.name) as tracker,
    ):
        tracker.log_params(dump(config), volatile=(*MAY_CHANGE, *training_data.places(config)))
        training_data.record(config, index, tracker)
        around = SearchContext(runs.run_folder(config), tracker.run_id, runs.versions(config))
        records |= _train_all(config, found, around)
        rows = ablation_rows(found, seeds, records, named)
        publish(config, tracker, "ablation", rows, ablation(grid, found, seeds, records, named))
    if failed := [f"{slug} seed {seed}: {r.reason}" for (slug, seed), r in records.items() if r.status == "failed"]:
        raise SearchError(
            f"{len(failed)} of {len(records)} trainings failed; the same command tries them again:\n"
            + "\n".join(failed)
        )
    return rows


def _train_all(config: JobConfig, found: list[Cell[JobConfig]], around: SearchContext) -> Records:
    keys = {
        f"{config.name}-{cell.slug}-s{seed}": (cell, seed)
        for seed in config.ablate.seeds
        for cell in found
        if cell.config is not None
    }
    items = [
        cell.config.model_copy(update={"name": name, "seed": seed})
        for name, (cell, seed) in keys.items()
        if cell.config is not None
    ]
    print(f"ablate {config.name}: {len(items)} trainings, {config.ablate.parallel} at one time", flush=True)
    function = functools.partial(train_cell, around=around)
    records: Records = {}
    for item, result in each(function, items, config.ablate.parallel):
        record = result if isinstance(result, Record) else Record("failed", str(result))
        cell, seed = keys[item.name]
        records[cell.slug, seed] = record
        print(f"ablate  {len(records)} of {len(items)}  {item.name}  {_said(record, measure(item))}", flush=True)
    return records


def _said(record: Record, named: str) -> str:
    if record.score is None:
        return status(record)
    return f"{named} {record.score:.4f}  {record.images_per_s:.0f} images/s  {record.seconds:.0f} s"
