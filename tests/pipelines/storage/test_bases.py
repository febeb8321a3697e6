"""Bases in storage: written once, by several at once too, fetched once, and never others."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from torch import nn

from pipelines.storage import bases
from pipelines.storage.folder import Folder
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
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    return Folder(tmp_path / "storage" if request.param == "local" else f"memory://bases/{tmp_path.name}")


@pytest.fixture
def stored(storage: Folder) -> dict[str, BaseWeights]:
    return bases.store_bases(Tower(0), storage)


def only_name(storage: Folder) -> str:
    (name,) = storage.child("_bases").walk()
    return name


def test_a_base_is_written_once(storage: Folder, stored: dict[str, BaseWeights]) -> None:
    stamp = storage.child("_bases").stamp(only_name(storage))
    assert only_name(storage) == stored["vision"].name
    assert bases.store_bases(Tower(0), storage) == stored
    assert storage.child("_bases").stamp(only_name(storage)) == stamp
    assert bases.store_bases(Tower(1), storage) != stored
    assert len(storage.child("_bases").walk()) == 2


def test_runs_that_write_one_at_once_share_it(storage: Folder) -> None:
    found: list[dict[str, BaseWeights]] = []
    tower = Tower(0)
    threads = [threading.Thread(target=lambda: found.append(bases.store_bases(tower, storage))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({base["vision"].sha256 for base in found}) == 1
    bases.check_bases(found[0], storage)
    assert only_name(storage) == found[0]["vision"].name


def test_a_base_that_was_cut_off_is_written_again(storage: Folder, stored: dict[str, BaseWeights]) -> None:
    folder = storage.child("_bases")
    whole = folder.read(only_name(storage))
    folder.write(only_name(storage), whole[:-1])
    with pytest.raises(BaseWeightsError):
        bases.check_bases(stored, storage)
    bases.store_bases(Tower(0), storage)
    assert folder.read(only_name(storage)) == whole
    bases.check_bases(stored, storage)


def test_a_fetched_base_is_kept(storage: Folder, stored: dict[str, BaseWeights], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    bases.download_bases(stored, storage, cache)
    file = cache / stored["vision"].name
    if storage.is_local:
        assert file.samefile(storage.child("_bases").path(file.name)), "no second copy on one disk"
    inode = file.stat().st_ino
    bases.download_bases(stored, storage, cache)
    assert (file.stat().st_ino, [path.name for path in cache.iterdir()]) == (inode, [file.name])


@pytest.mark.parametrize("damage", ["missing", "other"])
def test_what_is_missing_or_another_is_refused(
    storage: Folder, stored: dict[str, BaseWeights], tmp_path: Path, damage: str
) -> None:
    folder, name = storage.child("_bases"), only_name(storage)
    folder.remove(name)
    if damage == "other":
        folder.write(name, b"other")
    for refused in (
        lambda: bases.check_bases(stored, storage),
        lambda: bases.download_bases(stored, storage, tmp_path / "cache"),
    ):
        with pytest.raises(BaseWeightsError, match=name):
            refused()
    assert not (tmp_path / "cache" / name).exists()


def test_the_bases_of_a_model_are_published(storage: Folder, tmp_path: Path) -> None:
    from vlmodel import bases as in_folders

    in_folders.write_base_weights_list(in_folders.store_base_weights(Tower(0), tmp_path / "_bases"), tmp_path)
    bases.copy_bases_to_storage(tmp_path, storage)
    bases.check_bases(in_folders.read_base_weights_list(tmp_path), storage)
    (tmp_path / "_bases" / only_name(storage)).write_bytes(b"other")
    with pytest.raises(BaseWeightsError, match="altered or cut off"):
        bases.copy_bases_to_storage(tmp_path, storage)
