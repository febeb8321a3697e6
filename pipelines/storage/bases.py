"""Stores the base weights of models (``vlmodel.bases``) in a storage folder: ``STORAGE/_bases/SHA256.safetensors``.

Every run, warm start and registered version of that storage shares them. They are written once and never changed, and
nothing deletes them: a base to which no model refers any more may stay, or be deleted by hand while no job runs.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from pipelines.storage import stored
from pipelines.storage.folder import StorageFolder
from pipelines.storage.manifest import FileSizeAndHash, ManifestError
from vlmodel import bases
from vlmodel.bases import Bases, BaseWeights, BaseWeightsError

if TYPE_CHECKING:
    from torch import nn


def store_base_weights_of_model(model: nn.Module, storage: StorageFolder) -> dict[str, BaseWeights]:
    """Write the base weights of a model's parts to storage, unless they are there. Each file appears completely or not
    at all, also if two jobs write it at once.

    Raises:
        OSError: after several attempts.
    """
    folder = storage.subfolder(bases.FOLDER)
    if folder.is_local:
        return bases.store_base_weights(model, Path(folder.path("")))
    with TemporaryDirectory(prefix="bases-") as scratch:
        found = bases.store_base_weights(model, Path(scratch))
        for base in found.values():
            _upload_unless_present(Path(scratch) / base.name, base, folder)
    return found


def copy_base_weights_to_storage(model: Path, storage: StorageFolder) -> None:
    """Copy the base weights of the model in a local folder to storage, unless they are there.

    Raises:
        BaseWeightsError: one is missing or another.
        OSError: after several attempts.
    """
    files, named = bases.find_base_weights_files(model), bases.read_base_weights_list(model)
    for part, file in files.items():
        _upload_unless_present(file, named[part], storage.subfolder(bases.FOLDER))


def download_base_weights(named: Bases, storage: StorageFolder, cache: Path) -> None:
    """Put base weights from storage into a local folder, each once: as a hard link if possible, else as a copy.

    Raises:
        BaseWeightsError: one is missing or another.
        OSError: after several attempts.
    """
    for base in named.values():
        file = cache / base.name
        if not _is_complete_copy(file, base):
            _copy_verified(storage.subfolder(bases.FOLDER), base, file)


def verify_base_weights(named: Bases, storage: StorageFolder) -> None:
    """Verify the hashes of base weights in storage.

    Raises:
        BaseWeightsError: one is missing or another.
        OSError: after several attempts.
    """
    folder = storage.subfolder(bases.FOLDER)
    for base in named.values():
        if folder.is_local:
            _verify_stored(Path(folder.path(base.name)), base)
            continue
        with TemporaryDirectory(prefix="bases-") as scratch:
            _copy_verified(folder, base, Path(scratch) / base.name)


def link_downloaded_base_weights(model: Path, storage: StorageFolder) -> None:
    """Link downloaded base weights into the temporary copy of a model from remote storage.

    Raises:
        BaseWeightsError, OSError: as ``download_base_weights``.
    """
    if named := bases.read_base_weights_list(model):
        cache = cache_folder()
        download_base_weights(named, storage, cache)
        (model / bases.FOLDER).symlink_to(cache)


def cache_folder() -> Path:
    """Return the folder in which this machine keeps downloaded base weights."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "raylm" / bases.FOLDER


def _upload_unless_present(file: Path, base: BaseWeights, folder: StorageFolder) -> None:
    if not folder.exists(base.name) or folder.stamp(base.name).size != base.bytes:
        folder.put(file, base.name)


def _is_complete_copy(file: Path, base: BaseWeights) -> bool:
    try:
        bases.verify_base_weights_file(file, base)
    except (BaseWeightsError, FileNotFoundError):
        return False
    return True


def _verify_stored(file: Path, base: BaseWeights) -> None:
    if not file.is_file():
        raise BaseWeightsError(f"{str(file)!r}, on which a model is built, is missing; restore it from a backup")
    bases.verify_base_weights_file(file, base)


def _copy_verified(folder: StorageFolder, base: BaseWeights, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".download-", dir=file.parent) as scratch:
        copy = Path(scratch) / base.name
        if folder.is_local:
            source = Path(folder.path(base.name))
            _verify_stored(source, base)
            with suppress(OSError):  # another file system, or one without links
                copy.hardlink_to(source)
        if not copy.exists():
            try:
                stored.download_file(folder, base.name, FileSizeAndHash(base.bytes, base.sha256), copy)
            except ManifestError as error:
                raise BaseWeightsError(f"{error}; a model is built on it: restore it from a backup") from error
        copy.replace(file)
    bases.verify_base_weights_file(file, base)
