"""Bases in storage: written once, by several at once too, fetched once, and never others."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from torch import nn

from pipelines.storage import bases
from pipelines.storage.folder import StorageFolder
from vlmodel.bases import BaseWeights, BaseWeightsError
from vlmodel.parts import Encoder


class Tower(nn.Module):
    """A model with a frozen part of a megabyte."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.vision = Encoder()
        self.vision.backbone = nn.Linear(512, 512)
        self.vision.freeze_submodules("backbone")


@pytest.fixture(params=["local", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> StorageFolder:
    return StorageFolder(tmp_path / "storage" if request.param == "local" else f"memory://bases/{tmp_path.name}")


@pytest.fixture
def stored(storage: StorageFolder) -> dict[str, BaseWeights]:
    return bases.store_base_weights_of_model(Tower(0), storage)


def only_name(storage: StorageFolder) -> str:
    (name,) = storage.subfolder("_bases").walk()
    return name


def test_a_base_is_written_once(storage: StorageFolder, stored: dict[str, BaseWeights]) -> None:
    stamp = storage.subfolder("_bases").stamp(only_name(storage))
    assert only_name(storage) == stored["vision"].name
    assert bases.store_base_weights_of_model(Tower(0), storage) == stored
    assert storage.subfolder("_bases").stamp(only_name(storage)) == stamp
    assert bases.store_base_weights_of_model(Tower(1), storage) != stored
    assert len(storage.subfolder("_bases").walk()) == 2


def test_runs_that_write_one_at_once_share_it(storage: StorageFolder) -> None:
    found: list[dict[str, BaseWeights]] = []
    tower = Tower(0)
    threads = [
        threading.Thread(target=lambda: found.append(bases.store_base_weights_of_model(tower, storage)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({base["vision"].sha256 for base in found}) == 1
    bases.verify_base_weights(found[0], storage)
    assert only_name(storage) == found[0]["vision"].name


def test_a_base_that_was_cut_off_is_written_again(storage: StorageFolder, stored: dict[str, BaseWeights]) -> None:
    folder = storage.subfolder("_bases")
    whole = folder.read(only_name(storage))
    folder.write(only_name(storage), whole[:-1])
    with pytest.raises(BaseWeightsError):
        bases.verify_base_weights(stored, storage)
    bases.store_base_weights_of_model(Tower(0), storage)
    assert folder.read(only_name(storage)) == whole
    bases.verify_base_weights(stored, storage)


def test_a_fetched_base_is_kept(storage: StorageFolder, stored: dict[str, BaseWeights], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    bases.download_base_weights(stored, storage, cache)
    file = cache / stored["vision"].name
    if storage.is_local:
        assert file.samefile(storage.subfolder("_bases").path(file.name)), "no second copy on one disk"
    inode = file.stat().st_ino
    bases.download_base_weights(stored, storage, cache)
    assert (file.stat().st_ino, [path.name for path in cache.iterdir()]) == (inode, [file.name])


@pytest.mark.parametrize("damage", ["missing", "other"])
def test_what_is_missing_or_another_is_refused(
    storage: StorageFolder, stored: dict[str, BaseWeights], tmp_path: Path, damage: str
) -> None:
    folder, name = storage.subfolder("_bases"), only_name(storage)
    folder.remove(name)
    if damage == "other":
        folder.write(name, b"other")
    for refused in (
        lambda: bases.verify_base_weights(stored, storage),
        lambda: bases.download_base_weights(stored, storage, tmp_path / "cache"),
    ):
        with pytest.raises(BaseWeightsError, match=name):
            refused()
    assert not (tmp_path / "cache" / name).exists()


def test_the_bases_of_a_model_are_published(storage: StorageFolder, tmp_path: Path) -> None:
    from vlmodel import bases as in_folders

    in_folders.write_base_weights_list(in_folders.store_base_weights(Tower(0), tmp_path / "_bases"), tmp_path)
    bases.copy_base_weights_to_storage(tmp_path, storage)
    bases.verify_base_weights(in_folders.read_base_weights_list(tmp_path), storage)
    (tmp_path / "_bases" / only_name(storage)).write_bytes(b"other")
    with pytest.raises(BaseWeightsError, match="altered or cut off"):
        bases.copy_base_weights_to_storage(tmp_path, storage)
