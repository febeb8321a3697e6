"""Where a run's things lie, and which model a job means: shared by the jobs that come after training."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipelines.data.index.index import Index
from pipelines.data.stream.dataset import Source
from pipelines.data.stream.features import Features
from pipelines.evaluate.report import Report
from pipelines.registry.registry import CHAMPION, LocalModel, Registry
from pipelines.registry.score import Score
from pipelines.storage.folder import Folder
from pipelines.train.checkpoint import CheckpointError
from pipelines.workflows.config import JobConfig
from vlmodel.config import ConfigError

_VERSIONS = "data.json"


@dataclass(frozen=True)
class ChosenModel:
    """A model that a job uses.

    Attributes:
        folder: what ``Predictor.from_pretrained`` loads.
        name, version: in the registry; version "0" for a folder that is not registered.
        run_id: the tracked run that made it, "" if unknown.
    """

    folder: Path
    name: str
    version: str
    run_id: str


def storage(config: JobConfig) -> str:
    """The storage folder, absolute where it is local.

    Raises:
        ConfigError: its path has letters with a meaning in addresses, as which MLflow takes it.
    """
    folder = absolute(config.storage)
    if letters := "".join(letter for letter in "%?#" if "://" not in folder and letter in folder):
        raise ConfigError(
            f"storage {folder!r}: {' and '.join(letters)} mean something else in the addresses that MLflow "
            "makes of a folder; choose or rename the folder so that its whole path is without"
        )
    return folder


def run_folder(config: JobConfig) -> str:
    """The folder of the run called ``config.name``."""
    return f"{storage(config)}/{config.name}"


def local_folder(config: JobConfig) -> Path:
    """Local folder for the run's small files (processor, answers): its own, or one that no run of the same name in
    another storage shares.
    """
    if "://" not in config.storage:
        return Path(run_folder(config))
    place = hashlib.sha256(config.storage.rstrip("/").encode()).hexdigest()
    return Path("build") / "runs" / f"{config.name}-{place[:8]}"


def tars(config: JobConfig) -> str:
    """The tars' folder, absolute where it is local."""
    return absolute(config.data.tars)


def absolute(folder: str) -> str:
    """A folder that is local, as workers find it, which have other working directories; a URI as it is."""
    return folder if "://" in folder else str(Path(folder).absolute())


def versions(config: JobConfig) -> dict[str, str]:
    """Hashes of the indexes that the run began with: "" is that of ``data.tars``, others are named as in ``data.mix``;
    {} where it has not begun.
    """
    try:
        found: dict[str, str] = json.loads(Folder(run_folder(config)).read(_VERSIONS))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    return found


def keep_versions(config: JobConfig, hashes: Mapping[str, str]) -> None:
    """Record the hashes of the indexes that the run begins with; those that are recorded stay."""
    before = versions(config)
    if not hashes.keys() <= before.keys():
        found = json.dumps({**hashes, **before}, indent=1, sort_keys=True)
        Folder(run_folder(config)).write(_VERSIONS, found.encode())


def open_index(config: JobConfig, name: str = "") -> Index:
    """The index that the run began with, though there are newer ones; the newest where it has not begun.

    Args:
        name: of a source of ``data.mix``; "" is ``data.tars``.

    Raises:
        DataError: there is no index, or not that version any more.
    """
    folder = absolute(config.data.mix[name].tars) if name else tars(config)
    begun_with = versions(config).get(name, "")
    if begun_with and (newest := Index.newest(folder)) != begun_with:
        print(
            f"run {config.name} goes on with index {begun_with[:12]} of {folder}, with which it began; start another "
            f"to use the newest, {newest[:12]}",
            flush=True,
        )
    return Index.open(folder, begun_with)


def source(
    config: JobConfig, index: Index, split: str, processor: str | Path, features: tuple[Features, ...] = ()
) -> Source:
    """Where the samples of a split come from."""
    return Source(tars(config), index.hash, split, str(processor), features)


def choose_model(config: JobConfig) -> ChosenModel:
    """The model that ``evaluate.model`` means.

    Raises:
        CheckpointError: it is a folder without a model, or the run has registered none.
        RegistryError: there is no such version.
    """
    wanted = config.evaluate.model
    if wanted and Path(wanted).is_dir():
        if not (Path(wanted) / "config.json").is_file():
            raise CheckpointError(f"{wanted!r} holds no model; name the `model` folder of a checkpoint")
        return ChosenModel(Path(wanted).absolute(), config.tracking.model_name, "0", "")
    registry = Registry.open(config.tracking, storage(config), config.registry)
    if wanted == CHAMPION:
        return _chosen(registry.champion())
    version = registry.version(wanted) if wanted else registry.newest(config.name)
    if version is None:
        raise CheckpointError(
            f"run {config.name!r} has registered no model; run the train job first, or set evaluate.model to "
            '"champion", a version number or a model folder'
        )
    return _chosen(registry.download(version))


def score_of(report: Report, index: Index) -> Score:
    """What the gate compares."""
    low, high = report.interval or (None, None)
    return Score(
        report.metric, report.value, report.floor, index.hash, report.split, report.rows, low, high, report.relation,
        report.verdict,
    )  # fmt: skip


def index_facts(index: Index, source_folder: str) -> dict[str, object]:
    """The data as tracking records it."""
    reasons: dict[str, int] = {}
    for reason in index.quarantine()["reason"].to_pylist():
        reasons[reason] = reasons.get(reason, 0) + 1
    return {"hash": index.hash, "source": source_folder, "counts": index.counts(), "quarantine": reasons}


def write_json(path: Path, tree: object) -> None:
    """Small results for scripts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(tree, indent=1, sort_keys=True), encoding="utf-8")


def _chosen(model: LocalModel) -> ChosenModel:
    return ChosenModel(model.folder, model.name, model.version, model.run_id)
