"""Runs one of the many trainings of the jobs ``ablate`` and ``tune``: as the job ``train`` does, but never
registered.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from pipelines.data.index.index import Index
from pipelines.errors import DataError, find_expected_cause
from pipelines.search.config import AblateConfig, TuneConfig
from pipelines.search.grid import GridCell
from pipelines.search.results import TrainingResult, TrainingResults, result_of_run
from pipelines.search.table import Row, markdown_table
from pipelines.tracking.tracker import Tracker, to_csv
from pipelines.workflows import train
from pipelines.workflows.config import JobConfig
from pipelines.workflows.fit import fit
from pipelines.workflows.workspace import Workspace, absolute_path
from vlmodel.config import ConfigError


@dataclass(frozen=True)
class SearchContext:
    """The folder, parent run and data that all trainings of one search share.

    Attributes:
        folder: of the search, in storage; the records lie there.
        parent: id of its tracked run.
        versions: of the indexes that all of them learn from, see ``Workspace.index_versions``.
    """

    folder: str
    parent: str
    versions: Mapping[str, str] = field(default_factory=dict)


def base_config_of_trials(work: Workspace) -> JobConfig:
    """Return the configuration that the trainings of a search vary: without the search itself, and with absolute paths,
    as they run in other processes.
    """
    mix = {
        name: source.model_copy(update={"tars": absolute_path(source.tars)})
        for name, source in work.config.data.mix.items()
    }
    data = work.config.data.model_copy(update={"tars": work.tars, "mix": mix})
    update = {"storage": work.storage, "data": data, "ablate": AblateConfig(), "tune": TuneConfig()}
    return work.config.model_copy(update=update)


def index_with_validation(work: Workspace) -> Index:
    """Open the index of the data; raises DataError if it has no validation split, by which searches compare.

    Raises:
        DataError: it has none, or there is no index.
    """
    # Its own tasks may be none of those that are trained.
    index = train.open_index(work)
    if not index.counts().get("val", 0):
        raise DataError(
            f"{work.tars} has no validation split, by which trainings are compared; import one (split `val`)"
        )
    return index


def metric_name(config: JobConfig) -> str:
    """Return the name in tables of the validation metric by which trainings are compared; higher is better."""
    return "val accuracy" if config.model.task.checkpoint_metric() == "accuracy" else "exp(-val loss)"


def common_metric_of_cells(cells: Iterable[GridCell[JobConfig]], setting: str) -> str:
    """Return the ``metric_name`` that all accepted cells share; there must be at least one.

    Args:
        setting: the setting that holds the grid, for messages.

    Raises:
        ConfigError: not all have the same metric, so they cannot be ranked together.
    """
    slugs: dict[str, str] = {}
    for cell in cells:
        if cell.config is not None:
            slugs.setdefault(metric_name(cell.config), cell.slug)
    if len(slugs) > 1:
        compared = " and ".join(f"{slug!r} by {metric}" for metric, slug in slugs.items())
        raise ConfigError(
            f"{setting}: trainings are compared by one figure, and these are not: {compared}; make it one search for "
            "each figure, with only those model.task settings that share it"
        )
    (metric,) = slugs
    return metric


def train_and_record_result(config: JobConfig, context: SearchContext, trial_controller: Any = None) -> TrainingResult:
    """Train to the end and record the result, unless a result is recorded already. An error is recorded too."""
    results = TrainingResults(context.folder)
    if (earlier := results.read(config.name)) is not None and earlier.is_done:
        return earlier
    begun = time.perf_counter()

    def record(result: TrainingResult) -> TrainingResult:
        seconds = time.perf_counter() - begun
        return results.add(config.name, TrainingResult(**{**vars(result), "seconds": seconds}))

    try:
        work = Workspace(config)
        work.record_index_versions(context.versions)
        with (
            train.locked_run(work) as index,
            work.track(parent=context.parent) as tracker,
        ):
            fit(work, index, tracker, label=config.name, trial_controller=trial_controller)
            result = result_of_run(work.run_folder, config.train.epochs, tracker)
            tracker.set_tags({"search.status": result.status})
    except Exception as error:
        known = find_expected_cause(error)
        refused = isinstance(known, ConfigError)
        reason = str(known) if known is not None else f"{type(error).__name__}: {error}"
        return record(TrainingResult("refused" if refused else "failed", reason))
    except BaseException:
        record(TrainingResult("interrupted"))
        raise
    return record(result)


def print_and_track_results(work: Workspace, tracker: Tracker, name: str, rows: list[Row], picture: Figure) -> Path:
    """Print the table and the picture of results, and store them in the search's folder and in its tracked run. Returns
    the picture's file.
    """
    folder = work.local_folder
    folder.mkdir(parents=True, exist_ok=True)
    shown = markdown_table(rows)
    (folder / f"{name}.md").write_text(shown + "\n", encoding="utf-8")
    (folder / f"{name}.csv").write_text(to_csv(rows), encoding="utf-8")
    file = folder / f"{name}.png"
    picture.savefig(file, dpi=150)
    for suffix in ("md", "csv"):
        tracker.log_artifact(folder / f"{name}.{suffix}")
    tracker.log_artifact(file, "pictures")
    print(f"\n{shown}\n\ntable: {folder / f'{name}.csv'}\npicture: {file}", flush=True)
    return file
