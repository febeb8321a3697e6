"""Warm start: a training begins with the weights, tokenizer and labels of a model that was trained before.

The model is copied into the run's folder once. So workers on every node can read it, and a training that is restarted
before its first checkpoint begins with the same weights, even if the champion has changed since.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.storage import bases, stored
from pipelines.storage.folder import StorageFolder
from pipelines.storage.manifest import MANIFEST, ManifestError
from pipelines.tracking.provenance import flatten_settings
from vlmodel.bases import FOLDER
from vlmodel.config import ConfigError, dump_config, parse_config
from vlmodel.images.preprocessing import as_height_and_width
from vlmodel.model_config import ModelConfig, vocabulary_of_processor
from vlmodel.processor import ProcessorConfig, VLProcessor
from vlmodel.weights import WeightsError

if TYPE_CHECKING:
    pass


INIT, TEACHER = "init", "teacher"
"""Folders of a run: of the model that it begins with, and of the one that it learns from."""


def find_initial_model(run: str, name: str = INIT) -> str:
    """Return the folder of a run's initial model in storage, or of its teacher; "" if there is none."""
    folder = StorageFolder(run).subfolder(name)
    return folder.uri if folder.exists(MANIFEST) else ""


def store_initial_model(model: Path, run: str, name: str = INIT) -> str:
    """Copy a model's folder into the folder of a run, and its base weights to the storage that contains it. Returns the
    copy's folder.

    Raises:
        BaseWeightsError: a base is missing or another.
    """
    folder = StorageFolder(run).subfolder(name)
    bases.copy_base_weights_to_storage(model, folder.parent.parent)
    stored.store_folder(model, folder, without=FOLDER)
    return folder.uri


@contextmanager
def as_local(folder: str) -> Iterator[Path]:
    """Yield a local folder with the files of one that ``store_initial_model`` returned: the folder itself if storage is
    local, else a temporary download.

    Raises:
        WeightsError: a file or a base is missing, or was altered since.
    """
    source = StorageFolder(folder)
    with ExitStack() as stack:
        try:
            model = stack.enter_context(stored.local_copy_of(source, stored.read_manifest(source)))
        except ManifestError as error:
            raise WeightsError(
                f"{error}; delete {folder}, and it is copied again from train.init or train.teacher.model"
            ) from error
        if not source.is_local:
            bases.link_downloaded_base_weights(model, source.parent.parent)
        yield model


def load_matching_processor(model: Path, config: ModelConfig, processor: ProcessorConfig) -> VLProcessor:
    """Load the processor of a model folder, with which training continues. A model whose settings differ from the
    configured ones is refused, as weights of the same shape can mean something else.

    Raises:
        ConfigError: naming each setting that differs, with both values; or the folder is of another version.
    """
    from vlmodel.saved_config import VLConfig

    loaded = VLProcessor.from_pretrained(model)
    saved = VLConfig.from_pretrained(str(model)).checked_model_settings(str(model))
    resolved = config.resolve_settings(vocabulary_of_processor(loaded), as_height_and_width(loaded.config.image_size))
    changes = [
        *_setting_differences("model", dump_config(resolved), dump_config(parse_config(ModelConfig, saved))),
        *_setting_differences(
            "processor", dump_config(fill_in_inferred_limits(processor, loaded.config)), dump_config(loaded.config)
        ),
    ]
    if changes:
        raise ConfigError(
            f"train.init names a model of other settings than are configured ({'; '.join(changes)}); take over its "
            'settings, or train from scratch (train.init="")'
        )
    return loaded


def fill_in_inferred_limits(configured: ProcessorConfig, existing: ProcessorConfig) -> ProcessorConfig:
    """Fill in the configured settings that follow the data or the weights (0, null) from ``existing``."""
    follows = ("max_tokens", "max_target_tokens", "image_size", "resize", "crop", "interpolation")
    names = [name for name in follows if not getattr(configured, name)]
    return configured.model_copy(update={name: getattr(existing, name) for name in names})


def _setting_differences(prefix: str, configured: Mapping[str, Any], stored: Mapping[str, Any]) -> list[str]:
    here, there = flatten_settings({prefix: configured}), flatten_settings({prefix: stored})
    return [
        f"{key}: {there.get(key, 'nothing')} there, {here.get(key, 'nothing')} here"
        for key in sorted(here.keys() | there.keys())
        if here.get(key) != there.get(key)
    ]
