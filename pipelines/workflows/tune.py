"""The workflow of the job ``tune``."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Mapping
from typing import Any

from pipelines.search.errors import SearchError
from pipelines.search.grid import check_grid, first_valid_cells, format_value, override_settings
from pipelines.search.pictures import draw_trials as picture
from pipelines.search.results import TrainingResult, TrainingResults
from pipelines.search.table import Row, tuning_table_rows
from pipelines.search.tuning import run_search
from pipelines.train import run_folder
from pipelines.workflows import training_data
from pipelines.workflows.cluster import connected_to_cluster
from pipelines.workflows.config import JobConfig
from pipelines.workflows.trials import (
    SearchContext,
    base_config_of_trials,
    common_metric_of_cells,
    index_with_validation,
    print_and_track_results,
    train_and_record_result,
)
from pipelines.workflows.workspace import Workspace
from vlmodel.config import ConfigError, dump_config


def run(work: Workspace) -> list[Row]:
    """Run the search, then show the table of results. Returns its rows, the best first.

    Raises:
        SearchError: trials failed; the others are finished and in the table.
    """
    shared = base_config_of_trials(work)
    # Whole choices and the ends of ranges: what these accept is left to the trials.
    ends = {key: values for key, d in work.config.tune.space.items() for values in d.values()}
    check_grid(shared, ends, "tune.space")
    metric = common_metric_of_cells(first_valid_cells(shared, ends, "tune.space", "model.task"), "tune.space")
    index, folder = index_with_validation(work), work.run_folder
    with (
        run_folder.lock_run_folder(work.run_folder),
        connected_to_cluster(work.config.cluster),
        work.track() as tracker,
    ):
        tracker.log_params(dump_config(work.config), volatile=changeable_settings(work.config))
        training_data.record_data(work, index, tracker)
        context = SearchContext(folder, tracker.run_id, work.index_versions())
        train = functools.partial(train_trial, shared, context)
        completed = run_search(
            train, work.config.tune, f"{folder}/tune", work.config.seed, work.config.train.epochs, metric
        )
        saved = TrainingResults(folder)
        records = {
            trial.number: saved.read(trial_name(work.config, trial.number)) or TrainingResult("failed", trial.error)
            for trial in completed
        }
        rows = tuning_table_rows(completed, records, metric)
        print_and_track_results(work, tracker, "tuning", rows, picture(work.config.tune, completed, records, metric))
        best = max(completed, key=lambda trial: records[trial.number].score or -1.0)
        if (score := records[best.number].score) is not None:
            print(
                f"\nbest: trial {best.number + 1}, {metric} {score:.4f}\n"
                f"{format_as_command_line_overrides(best.settings)}",
                flush=True,
            )
            tracker.log_text(format_as_command_line_overrides(best.settings) + "\n", "best.txt")
    if failed := [f"trial {n + 1}: {r.reason}" for n, r in records.items() if r.status == "failed"]:
        raise SearchError(
            f"{len(failed)} of {len(records)} trials failed; the same command tries them again:\n" + "\n".join(failed)
        )
    return rows


def changeable_settings(config: JobConfig) -> tuple[str, ...]:
    """List the settings that may change between two parts of a search; its space and the number of its samples
    may not.
    """
    return ("tune.concurrent", *(key for key in config.keys_changeable_on_resume() if key != "tune"))


def train_trial(
    shared: JobConfig, context: SearchContext, number: int, settings: Mapping[str, Any], trial_controller: Any
) -> TrainingResult:
    """Train one trial; a combination that the configuration refuses is recorded as such."""
    name = trial_name(shared, number)
    try:
        config = override_settings(shared, settings)
    except ConfigError as error:
        return TrainingResults(context.folder).add(name, TrainingResult("refused", str(error)))
    return train_and_record_result(config.model_copy(update={"name": name}), context, trial_controller)


def trial_name(config: JobConfig, number: int) -> str:
    """Return the name of a trial's run."""
    return f"{config.name}-t{number + 1:03d}"


def format_as_command_line_overrides(settings: Mapping[str, Any]) -> str:
    """Format settings as arguments for the command line of any job."""
    return " ".join(shlex.quote(f"{key}={format_value(value)}") for key, value in settings.items())
