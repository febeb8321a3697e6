"""Finds the model that a job's settings mean, and the score by which the gate compares a new one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipelines.data.index.index import Index
from pipelines.evaluate.report import TaskReport
from pipelines.registry.version_score import VersionScore
from pipelines.registry.versions import CHAMPION, LocalModel
from pipelines.train.checkpoint import CheckpointError
from pipelines.workflows.workspace import Workspace


@dataclass(frozen=True)
class ChosenModel:
    """The model that a job uses, with its folder and version.

    Attributes:
        folder: what ``Predictor.from_pretrained`` loads.
        name, version: in the registry; version "0" for a folder that is not registered.
        run_id: the tracked run that made it, "" if unknown.
    """

    folder: Path
    name: str
    version: str
    run_id: str


def choose_model(work: Workspace) -> ChosenModel:
    """Find the model that ``evaluate.model`` names.

    Raises:
        CheckpointError: it is a folder without a model, or the run has registered none.
        RegistryError: there is no such version.
    """
    name = work.config.evaluate.model
    if name and Path(name).is_dir():
        if not any((Path(name) / file).is_file() for file in ("config.json", "open_clip_config.json")):
            raise CheckpointError(f"{name!r} holds no model; name the `model` folder of a checkpoint")
        return ChosenModel(Path(name).absolute(), work.config.tracking.model_name, "0", "")
    if name == CHAMPION:
        return _to_chosen_model(work.registry.champion())
    version = work.registry.version(name) if name else work.registry.newest_version_of_run(work.config.name)
    if version is None:
        raise CheckpointError(
            f"run {work.config.name!r} has registered no model; run the train job first, or set evaluate.model to "
            '"champion", a version number or a model folder'
        )
    return _to_chosen_model(work.registry.download(version))


def version_score_of_report(report: TaskReport, index: Index) -> VersionScore:
    """Extract from a report the score by which the gate compares models."""
    low, high = report.interval or (None, None)
    return VersionScore(
        report.metric, report.value, report.best_baseline_value, index.hash, report.split, report.rows, low, high,
        report.relation_to_baselines, report.baseline_verdict,
    )  # fmt: skip


def _to_chosen_model(model: LocalModel) -> ChosenModel:
    return ChosenModel(model.folder, model.name, model.version, model.run_id)
