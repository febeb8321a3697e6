"""What the job ``tune`` does."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Mapping
from typing import Any

from pipelines.report.search_pictures import trials as picture
from pipelines.search.errors import SearchError
from pipelines.search.grid import accepted, changed, check, text
from pipelines.search.record import Record, Records
from pipelines.search.table import Row, tune_rows
from pipelines.search.tuning import search
from pipelines.tracking import run_folder
from pipelines.tracking.tracker import Tracker
from pipelines.workflows import runs, training_data
from pipelines.workflows.cluster import connected
from pipelines.workflows.config import JobConfig
from pipelines.workflows.train import MAY_CHANGE
from pipelines.workflows.trials import SearchContext, base, one_measure, publish, train_cell, validated
from vlmodel.config import ConfigError, dump

_MAY_CHANGE = ("tune.concurrent", *(key for key in MAY_CHANGE if key != "tune"))
"""A search that continues has the same space and the same number of samples."""


def run(config: JobConfig) -> list[Row]:
    """Search, then show the table. Returns its rows, the best first.

    Raises:
        SearchError: trials failed; the others are finished and in the table.
    """
    shared = base(config)
    # Whole choices and the ends of ranges: what these accept is left to the trials.
    ends = {key: values for key, d in config.tune.space.items() for values in d.values()}
    check(shared, ends, "tune.space")
    named = one_measure(accepted(shared, ends, "tune.space", "model.decoder"), "tune.space")
    if "train.epochs" in config.tune.space:
        raise ConfigError("tune.space: 'train.epochs' is how long a trial may last; ASHA chooses among equal ones")
    index, folder = validated(config), runs.run_folder(config)
    with (
        run_folder.exclusive(runs.run_folder(config)),
        connected(config.cluster),
        Tracker.open(config.tracking, runs.storage(config), config.name) as tracker,
    ):
        tracker.log_params(dump(config), volatile=(*_MAY_CHANGE, *training_data.places(config)))
        training_data.record(config, index, tracker)
        around = SearchContext(folder, tracker.run_id, runs.versions(config))
        train = functools.partial(train_trial, shared, around)
        found = search(train, config.tune, f"{folder}/tune", config.seed, config.train.epochs, named)
        kept = Records(folder)
        records = {
            trial.number: kept.read(trial_name(config, trial.number)) or Record("failed", trial.error)
            for trial in found
        }
        rows = tune_rows(found, records, named)
        publish(config, tracker, "tuning", rows, picture(config.tune, found, records, named))
        best = max(found, key=lambda trial: records[trial.number].score or -1.0)
        if (score := records[best.number].score) is not None:
            print(f"\nbest: trial {best.number + 1}, {named} {score:.4f}\n{overrides(best.settings)}", flush=True)
            tracker.log_text(overrides(best.settings) + "\n", "best.txt")
    if failed := [f"trial {n + 1}: {r.reason}" for n, r in records.items() if r.status == "failed"]:
        raise SearchError(
            f"{len(failed)} of {len(records)} trials failed; the same command tries them again:\n" + "\n".join(failed)
        )
    return rows


def train_trial(
    shared: JobConfig, around: SearchContext, number: int, settings: Mapping[str, Any], referee: Any
) -> Record:
    """Train one trial; a combination that the configuration refuses is recorded as such."""
    name = trial_name(shared, number)
    try:
        config = changed(shared, settings)
    except ConfigError as error:
        return Records(around.folder).add(name, Record("refused", str(error)))
    return train_cell(config.model_copy(update={"name": name}), around, referee)


def trial_name(config: JobConfig, number: int) -> str:
    """Name of a trial's run."""
    return f"{config.name}-t{number + 1:03d}"


def overrides(settings: Mapping[str, Any]) -> str:
    """The settings as arguments for the command line of any job."""
    return " ".join(shlex.quote(f"{key}={text(value)}") for key, value in settings.items())
