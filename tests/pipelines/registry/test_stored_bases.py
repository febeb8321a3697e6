"""Versions that are built on the same frozen weights share them, in storage and in the cache."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mlflow
import pandas as pd  # type: ignore[import-untyped, unused-ignore]
import pytest
import torch
from torchvision.models import resnet18

from pipelines.registry.config import RegistryConfig
from pipelines.registry.errors import ArtifactError
from pipelines.registry.gate.stored import check_smoke_test, check_stored_files
from pipelines.registry.registry import Registry
from pipelines.registry.smoke import answer_in_fresh_process
from pipelines.registry.version_score import VersionScore
from pipelines.storage import manifest
from pipelines.storage.folder import StorageFolder
from pipelines.tracking.address import TrackingConfig
from tests.pipelines.registry.conftest import FAST, save_model
from vlmodel.bases import BaseWeightsError, read_base_weights_list
from vlmodel.inference import Predictor
from vlmodel.processor import Example

TOWER_BYTES = 44_000_000  # ResNet-18 without its classifier: 11.2 million weights


@pytest.fixture(scope="session")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("tower") / "resnet18.pth"
    torch.manual_seed(7)
    torch.save(resnet18().state_dict(), file)
    return file


@pytest.fixture
def checkpoint(tower: Path, tmp_path: Path) -> Path:
    """A model's folder with its base in it."""
    return save_model(tmp_path / "made" / "model", 0, tower)


@pytest.fixture
def base_name(checkpoint: Path) -> str:
    return read_base_weights_list(checkpoint)["vision"].name


def distinct_bytes(folder: Path) -> int:
    """Bytes of all files; a file with several links counts once."""
    facts = [path.stat() for path in folder.rglob("*") if path.is_file()]
    return sum({(fact.st_dev, fact.st_ino): fact.st_size for fact in facts}.values())


def answers(folder: Path, asked: Example) -> list[tuple[str, float]]:
    ((prediction,),) = Predictor.from_pretrained(folder).predict([asked])
    return prediction.answers


@pytest.mark.parametrize("count", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_versions_on_one_base_store_it_once(
    registry: Registry, storage: str, run_id: str, tower: Path, example: Example, score: VersionScore, tmp_path: Path,
    count: int,
) -> None:  # fmt: skip
    before = distinct_bytes(Path(storage))
    versions = []
    for seed in range(count):
        made = save_model(tmp_path / "made" / str(seed), seed, tower)
        versions.append(registry.log_model(run_id, made, example, score))
        trained = (made / "model.safetensors").stat().st_size
        expected = answers(made, example)
        shutil.rmtree(made)
        local = registry.download(versions[-1])
        assert answers(local.folder, example) == expected
        assert manifest.folder_digest(local.folder) == local.digest
    [base] = (Path(storage) / "_bases").iterdir()
    assert base.stat().st_size > TOWER_BYTES
    packages = distinct_bytes(Path(storage)) - before - base.stat().st_size
    assert packages < count * 2 * (trained + 2_000_000), "a package, and its copy in the cache, with the code"
    assert count * trained < TOWER_BYTES / 4
    for version in versions:
        registry.verify_stored(version)


def test_the_stored_model_answers_by_itself_on_its_base(
    storage: str, tracking: TrackingConfig, run_id: str, checkpoint: Path, example: Example, score: VersionScore,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base_name: str,
) -> None:  # fmt: skip
    """In a fresh process: at its registration, and as a copy elsewhere that has its base; never on another."""
    registry = Registry.open(tracking, storage, RegistryConfig(smoke_test=True))
    local = registry.download(registry.log_model(run_id, checkpoint, example, score))
    assert check_smoke_test(local, example).passed
    copy = tmp_path / "elsewhere" / "package"
    shutil.copytree(local.package, copy)
    (tmp_path / "elsewhere" / "_bases").mkdir()
    shutil.copy(Path(storage) / "_bases" / base_name, tmp_path / "elsewhere" / "_bases")
    assert answer_in_fresh_process(copy, [example]) == [answers(checkpoint, example)[0][0]]

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{storage}/mlflow.db")
    rows = pd.DataFrame({"image": [example.inputs["image"]], "question": list(example.texts)})
    loaded = mlflow.pyfunc.load_model("models:/vlmodel/1")  # where it is stored
    assert list(loaded.predict(rows)["answer"]) == [answers(checkpoint, example)[0][0]]
    other = tmp_path / "elsewhere" / "_bases" / base_name
    other.write_bytes(other.read_bytes()[:-1] + b"?")
    with pytest.raises(BaseWeightsError, match="is not the base of"):
        mlflow.pyfunc.load_model(str(copy))
    other.unlink()
    with pytest.raises(BaseWeightsError, match=rf"{base_name} .*which was not found.*VLMODEL_BASES"):
        mlflow.pyfunc.load_model(str(copy))
    monkeypatch.setenv("VLMODEL_BASES", f"{storage}/_bases")
    assert len(mlflow.pyfunc.load_model(str(copy)).predict(rows)) == 1


@pytest.mark.parametrize("damage", ["missing", "altered"])
def test_a_version_whose_base_is_missing_or_altered_is_refused(
    registry: Registry, storage: str, run_id: str, checkpoint: Path, example: Example, score: VersionScore,
    base_name: str, damage: str,
) -> None:  # fmt: skip
    version = registry.log_model(run_id, checkpoint, example, score)
    base = Path(storage) / "_bases" / base_name
    whole = base.read_bytes()
    base.unlink()
    if damage == "altered":
        base.write_bytes(whole[:-1] + b"?")
    with pytest.raises(ArtifactError, match=rf"version 1 of model 'vlmodel': .*{base_name}"):
        registry.promote("1", "without its base", over=None)
    assert registry.find() is None
    assert not check_stored_files(registry, version).passed
    base.unlink(missing_ok=True)
    base.write_bytes(whole)
    assert registry.promote("1", "restored", over=None).version == "1"


def test_a_damaged_base_in_the_cache_is_copied_again(
    tracking: TrackingConfig, storage: str, run_id: str, checkpoint: Path, example: Example, score: VersionScore,
    base_name: str, tmp_path: Path,
) -> None:  # fmt: skip
    config = FAST.model_copy(update={"cache": str(tmp_path / "cache")})
    registry = Registry.open(tracking, storage, config)
    local = registry.download(registry.log_model(run_id, checkpoint, example, score))
    cached = tmp_path / "cache" / "_bases" / base_name
    whole = cached.read_bytes()
    cached.unlink()
    cached.write_bytes(whole[:-1])
    assert registry.download(registry.version("1")) == local
    assert cached.read_bytes() == whole
    answers(local.folder, example)


def test_the_bases_of_a_remote_storage_are_downloaded_once(
    registry: Registry, run_id: str, checkpoint: Path, example: Example, score: VersionScore, tmp_path: Path,
    base_name: str, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    place = f"memory://bases/{tmp_path.name}"
    remote = Registry(
        registry.client, "vlmodel", StorageFolder(place), tmp_path / "cache", tmp_path / ".lock", smoke_test=False
    )
    version = remote.log_model(run_id, checkpoint, example, score)
    [stored] = StorageFolder(place).subfolder("_bases").files()
    assert (stored.name, stored.size) == (base_name, read_base_weights_list(checkpoint)["vision"].bytes)
    local = remote.download(version)
    assert answers(local.folder, example) == answers(checkpoint, example)
    remote.verify_stored(version)
    StorageFolder(place).subfolder("_bases").write(base_name, b"other")
    assert remote.download(version) == local, "the cache has it"
    with pytest.raises(ArtifactError, match="was altered after it was written"):
        remote.verify_stored(version)


def test_a_registered_model_is_found_again_by_its_files(
    registry: Registry, run_id: str, checkpoint: Path, example: Example, score: VersionScore, tmp_path: Path
) -> None:
    first = registry.log_model(run_id, checkpoint, example, score)
    apart = tmp_path / "apart" / "model"
    shutil.copytree(checkpoint, apart)
    shutil.move(apart / "_bases", tmp_path / "apart" / "_bases")
    assert registry.log_model(run_id, apart, example, score) == first
    assert json.loads((registry.download(first).folder / "bases.json").read_bytes()).keys() == {"vision"}
