"""Warm start: training begins with the weights, tokenizer and answers of a model that was trained before.

The model is copied into the run's folder once. So workers on every node can read it, and a training that is restarted
before its first checkpoint begins with the same weights, even if the champion has changed since.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from pipelines.tracking.provenance import flatten
from pipelines.train import checkpoint
from vlmodel.config import ConfigError, dump, parse
from vlmodel.model_config import ModelConfig, VLConfig, vocabulary_of
from vlmodel.processor import ProcessorConfig, VLProcessor
from vlmodel.task_spec import TaskSpec
from vlmodel.weights import WeightsError

_FOLDER, _LAST = "init", "config.json"


def find_model(run: str) -> str:
    """The folder of a run's initial model in storage; "" if there is none."""
    filesystem, folder = checkpoint.open_storage(run)
    exists = filesystem.get_file_info(f"{folder}/{_FOLDER}/{_LAST}").type != pafs.FileType.NotFound
    return f"{run}/{_FOLDER}" if exists else ""


def store_model(model: Path, run: str) -> str:
    """Copy a model's folder into that of a run in storage. Returns the copy's folder."""
    filesystem, folder = checkpoint.open_storage(run)
    files = [file for file in sorted(model.rglob("*")) if file.is_file() and file.name != _LAST]
    # The last file marks the copy as complete.
    for file in [*files, model / _LAST]:
        name = f"{folder}/{_FOLDER}/{file.relative_to(model).as_posix()}"
        filesystem.create_dir(name.rpartition("/")[0], recursive=True)
        pafs.copy_files(str(file), f"{name}.partial", destination_filesystem=filesystem)
        filesystem.move(f"{name}.partial", name)
    return f"{run}/{_FOLDER}"


@contextmanager
def local_folder(folder: str) -> Iterator[Path]:
    """A folder that ``store_model`` returned, locally: in place if storage is local, else a temporary download."""
    filesystem, path = checkpoint.open_storage(folder)
    with checkpoint.local_copy(checkpoint.StoredCheckpoint(filesystem, path, 0, {})) as model:
        yield model


def load_matching_processor(
    model: Path, config: ModelConfig, processor: ProcessorConfig, tasks: Mapping[str, TaskSpec]
) -> VLProcessor:
    """The processor of a model folder, with which training continues. Refuses a model whose settings differ from the
    configured ones: weights of the same shape can mean something else.

    Raises:
        ConfigError: naming each setting that differs, with both values.
        WeightsError: the folder's configuration is of another version.
    """
    loaded = VLProcessor.from_pretrained(model)
    stored = VLConfig.from_pretrained(str(model)).model
    if stored is None:
        raise WeightsError(f"{str(model / _LAST)!r} describes no parts; train that model anew with this version")
    changes = [
        *_setting_differences("model", dump(config.resolve(vocabulary_of(loaded))), dump(parse(ModelConfig, stored))),
        *_setting_differences("processor", dump(with_inferred_limits(processor, loaded.config)), dump(loaded.config)),
        *_setting_differences("tasks", _as_trees(tasks), _as_trees(loaded.tasks)),
    ]
    if changes:
        raise ConfigError(
            f"train.init names a model of other settings than are configured ({'; '.join(changes)}); take over its "
            'settings, or train from scratch (train.init="")'
        )
    return loaded


def with_inferred_limits(configured: ProcessorConfig, existing: ProcessorConfig) -> ProcessorConfig:
    """The configured settings; those limits that are 0 (inferred from data) are taken from ``existing``."""
    limits = [name for name in ("max_tokens", "max_target_tokens") if not getattr(configured, name)]
    return configured.model_copy(update={name: getattr(existing, name) for name in limits})


def _as_trees(tasks: Mapping[str, TaskSpec]) -> dict[str, Any]:
    return {task: dump(spec) for task, spec in tasks.items()}


def _setting_differences(prefix: str, configured: Mapping[str, Any], stored: Mapping[str, Any]) -> list[str]:
    here, there = flatten({prefix: configured}), flatten({prefix: stored})
    return [
        f"{key}: {there.get(key, 'nothing')} there, {here.get(key, 'nothing')} here"
        for key in sorted(here.keys() | there.keys())
        if here.get(key) != there.get(key)
    ]
