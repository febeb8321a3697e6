"""The workflow of the job ``train``: trains a model, evaluates its best checkpoint, registers it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pipelines.data.index.index import Index
from pipelines.evaluate.requirements import check_data_is_evaluable
from pipelines.registry.versions import ModelVersion
from pipelines.tracking.provenance import flatten_settings, has_dotted_prefix
from pipelines.train import run_folder
from pipelines.workflows import training_data
from pipelines.workflows.cluster import connected_to_cluster
from pipelines.workflows.config import JobConfig
from pipelines.workflows.workspace import Workspace
from vlmodel.config import ConfigError, dump_config, parse_config


def run(work: Workspace) -> ModelVersion:
    """Train, evaluate on the validation split, register. Returns the registered version."""
    with locked_run(work) as index, connected_to_cluster(work.config.cluster), work.track() as tracker:
        # What these import takes seconds: Ray's libraries, and after the training torch.
        from pipelines.workflows.fit import add_remedy_to_tracking_errors, fit

        fit(work, index, tracker)
        with add_remedy_to_tracking_errors():
            from pipelines.workflows.register import evaluate_and_register

            return evaluate_and_register(work, index, tracker, evaluation_split(index))


@contextmanager
def locked_run(work: Workspace) -> Iterator[Index]:
    """Hold the lock of the run, which is new or was begun with these settings and data.

    Yields:
        the index of the data that the model is evaluated on.

    Raises:
        ConfigError: the run was begun with other settings or data, or what ``open_checked_index`` raises.
        RunInUseError: another job trains it.
    """
    index = open_checked_index(work)
    with run_folder.lock_run_folder(work.run_folder):
        _check_same_settings(work, index)
        yield index


def open_checked_index(work: Workspace) -> Index:
    """Open the index of the data on which the model is evaluated, and check that the data suit the tasks.

    Raises:
        DataError: there is no index, or no sample that a task can be trained or evaluated on.
    """
    index = open_index(work)
    indexes = training_data.open_indexes(work, index)
    training_data.check_inputs(work, indexes)
    training_data.check_fact_store(work)
    training_data.check_tasks_have_training_samples(work, indexes)
    check_data_is_evaluable(index, work.config.model.task.tasks_by_name(), evaluation_split(index))
    return index


def open_index(work: Workspace) -> Index:
    """Open the index of the data on which models are evaluated, for any tasks.

    Raises:
        ConfigError: ``train.patience`` has no validation split.
        DataError: there is no index, or models cannot be evaluated on it.
    """
    train = work.config.train
    index = work.index()
    if train.patience and not index.counts().get("val", 0):
        raise ConfigError(
            f"train.patience={train.patience} ends a training by its validation figures, and {index.tars} has "
            "no validation split; set data.index.validation_fraction and index again, or patience=0"
        )
    check_data_is_evaluable(index, {}, "")
    return index


def _check_same_settings(work: Workspace, index: Index) -> None:
    """Record the settings with which a new run begins; compare those of an existing run with what it began with."""
    settings, data = dump_config(work.config), str(training_data.describe_data(work, index)["hash"])
    beginning = run_folder.read_run_start(work.run_folder)
    if beginning is None:
        run_folder.write_run_start(work.run_folder, run_folder.RunStart(settings, data))
        return
    volatile = ("name", *work.config.keys_changeable_on_resume())
    earlier = beginning.config
    known = set(flatten_settings(earlier)) & set(flatten_settings(settings))
    try:
        # Settings that are newer than the run have their defaults.
        earlier = dump_config(parse_config(JobConfig, earlier))
        known |= set(flatten_settings(earlier)) | set(flatten_settings(settings))
    except ConfigError:
        pass  # it was begun by another version of this program: compare the settings that both versions have
    changes = run_folder.describe_setting_differences(
        earlier, settings, lambda key: key not in known or has_dotted_prefix(key, volatile)
    )
    if beginning.data and beginning.data != data:
        changes.append(f"data (hash of the index): {beginning.data} -> {data}")
    if changes:
        raise ConfigError(
            f"run {work.config.name!r} in {work.run_folder} was begun with other settings; choose another name, or "
            f"restore: {'; '.join(changes)}"
        )


def evaluation_split(index: Index) -> str:
    """Return the split on which checkpoints are chosen and evaluated."""
    return "val" if index.counts().get("val", 0) else "train"
