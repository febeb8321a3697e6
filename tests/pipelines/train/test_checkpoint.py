"""A checkpoint is there as a whole or not at all."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch

from pipelines.storage import bases, manifest
from pipelines.storage.folder import StorageFolder
from pipelines.train import checkpoint
from pipelines.train.checkpoint import CheckpointError
from pipelines.train.config import OptimizerConfig, StepConfig
from pipelines.train.step import TrainStep
from tests.pipelines.train.conftest import TINY, images_and_texts
from vlmodel.bases import BaseWeightsError
from vlmodel.config import load_config
from vlmodel.inference import Predictor
from vlmodel.model import VLModel
from vlmodel.model_config import ModelConfig
from vlmodel.processor import VLProcessor


@pytest.fixture
def store(
    tiny_model: Callable[[], VLModel], tiny_processor: VLProcessor, tmp_path: Path
) -> Callable[[int, float], Path]:
    """Make a checkpoint of a run after ``step`` steps."""

    def make(step: int, selection: float) -> Path:
        trainer = TrainStep(tiny_model(), OptimizerConfig(), StepConfig(), steps=10, seed=0)
        trainer(0, [images_and_texts(2, [1, 2])], 1)
        local = tmp_path / f"local-{step}"
        trainer.evaluated_model.save_pretrained(local / checkpoint.MODEL)
        tiny_processor.save_pretrained(local / checkpoint.MODEL)
        checkpoint.write_checkpoint_state(local, trainer.state(), {"step": step, "selection": selection, "history": []})
        target = tmp_path / "run" / checkpoint.checkpoint_folder_name(step)
        checkpoint.upload_checkpoint(local, StorageFolder(target))
        return target

    return make


def newest_step(run: str) -> int | None:
    with checkpoint.open_newest_checkpoint(run) as found:
        return found[0].step if found is not None else None


def best_step(run: str) -> int:
    with checkpoint.open_best_checkpoint(run) as (found, _):
        return found.step


def test_newest_and_best(store: Callable[[int, float], Path], tmp_path: Path) -> None:
    store(10, 0.7), store(20, 0.9), store(25, -1.0), store(30, 0.8)
    run = str(tmp_path / "run")
    assert (newest_step(run), best_step(run)) == (30, 20)
    assert newest_step(str(tmp_path / "elsewhere")) is None
    with pytest.raises(CheckpointError, match="run the train job first"):
        best_step(str(tmp_path / "elsewhere"))


def test_the_inference_part_loads_alone_and_the_state_without_code(store: Callable[[int, float], Path]) -> None:
    folder = store(10, 0.5)
    predictor = Predictor.from_pretrained(folder / checkpoint.MODEL)
    assert predictor.processor.labels == ["red", "green", "blue"]
    state = checkpoint.read_trainer_tensors(folder, torch.device("cpu"))
    for name, value in predictor.model.state_dict().items():
        assert torch.equal(state["model"][name], value)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda f: (f / "manifest.json").unlink(), "never completed"),
        (lambda f: (f / "manifest.json").write_text('{"a'), "damaged"),
        (lambda f: (f / "trainer.pt").unlink(), "trainer.pt is missing"),
        (lambda f: _flip(f / "model" / "model.safetensors"), "model.safetensors was altered"),
        (lambda f: _flip(f / "state.json"), "state.json was altered"),
        (lambda f: (f / "manifest.json").write_text("[]"), "damaged"),
        (lambda f: (f / "manifest.json").write_text("{}"), "damaged"),
        (lambda f: _list(f, "../other"), "names '../other', outside of it"),
        (lambda f: _list(f, "/etc/hostname"), "names '/etc/hostname', outside of it"),
        (lambda f: (f / "model" / "added.json").write_text("{}"), "model/added.json is not in manifest"),
        (lambda f: _link(f / "model" / "config.json"), "config.json' is a link"),
        (lambda f: os.mkfifo(f / "model" / "pipe"), "pipe' is neither a file nor a folder"),
    ],
    ids=[
        "no manifest", "torn manifest", "missing file", "flipped weight", "flipped state", "list", "empty", "above",
        "absolute", "added", "link", "pipe",
    ],
)  # fmt: skip
def test_a_damaged_checkpoint_is_passed_over_and_the_one_before_is_used(
    damage: Callable[[Path], None],
    says: str,
    store: Callable[[int, float], Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    store(10, 0.5)
    broken = store(20, 0.9)
    damage(broken)
    with caplog.at_level(logging.WARNING):
        assert newest_step(str(tmp_path / "run")) == 10
    assert best_step(str(tmp_path / "run")) == 10
    assert says in caplog.text
    with (
        pytest.raises(CheckpointError, match="use an earlier checkpoint"),
        checkpoint.find_checkpoint(StorageFolder(broken)).as_local(),
    ):
        pass


def test_the_manifest_is_uploaded_last(store: Callable[[int, float], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = store(10, 0.5)
    order: list[str] = []

    def noted(method: str) -> None:
        original = getattr(StorageFolder, method)

        def write(self: StorageFolder, *arguments: Any) -> None:
            order.append(arguments[1] if method == "put" else arguments[0])
            original(self, *arguments)

        monkeypatch.setattr(StorageFolder, method, write)

    noted("put")
    noted("write")
    (folder / "manifest.json").unlink()
    checkpoint.upload_checkpoint(folder, StorageFolder(f"{folder}-copy"))
    assert order[-1] == "manifest.json"
    assert sorted(order) == sorted(p.relative_to(f"{folder}-copy").as_posix() for p in files_in(Path(f"{folder}-copy")))


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_what_a_killed_upload_has_left_is_replaced(store: Callable[[int, float], Path]) -> None:
    folder = store(10, 0.5)
    for left in (".trainer.pt.0123456789abcdef.partial", "model/of_before.json"):
        (folder / left).write_bytes(b"half")
    assert newest_step(str(folder.parent)) is None
    store(10, 0.5)
    assert newest_step(str(folder.parent)) == 10


FROZEN = [*TINY, "vision.stages=4", "vision.frozen=true", "language.frozen_layers=1"]


def new_trainer(processor: VLProcessor, seed: int) -> TrainStep:
    torch.manual_seed(seed)
    model = VLModel.create_from_config(load_config(ModelConfig, None, FROZEN), processor)
    return TrainStep(model, OptimizerConfig(), StepConfig(ema=0.5), steps=10, seed=0)


def store_frozen(trainer: TrainStep, processor: VLProcessor, run: str, step: int) -> StorageFolder:
    """A checkpoint as a worker makes it."""
    folder = StorageFolder(run).subfolder(checkpoint.checkpoint_folder_name(step))
    with TemporaryDirectory() as scratch:
        stored = bases.store_base_weights_of_model(trainer.model, StorageFolder(run).parent)
        trainer.evaluated_model.save_pretrained(Path(scratch) / checkpoint.MODEL, stored=stored)
        processor.save_pretrained(Path(scratch) / checkpoint.MODEL)
        checkpoint.write_checkpoint_state(
            Path(scratch), trainer.state(), {"step": step, "selection": 0.5, "history": []}
        )
        checkpoint.upload_checkpoint(Path(scratch), folder)
    return folder


@pytest.fixture(params=["local", "memory"])
def run(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The folder of a run in a storage."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    storage = str(tmp_path / "storage") if request.param == "local" else f"memory://store/{tmp_path.name}"
    return f"{storage}/run"


def test_a_frozen_tower_lies_once_and_a_checkpoint_holds_what_was_trained(
    run: str, tiny_processor: VLProcessor
) -> None:
    trainer = new_trainer(tiny_processor, 0)
    for step in (1, 2):
        trainer(step - 1, [images_and_texts(4, [1, 2, 1, 1], seed=step)], 1)
        folder = store_frozen(trainer, tiny_processor, run, step)
        trained = 4 * sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
        copies = {"model/model.safetensors": 1, "trainer.pt": 4}  # weights, their average, two moments
        for name, count in copies.items():
            assert folder.stamp(name).size < count * trained + (1 << 20)
    storage = StorageFolder(run).parent
    tower, texts = sorted(storage.subfolder("_bases").files(), key=lambda file: -file.size)
    assert tower.size > 4 * 11_000_000 > 100 * trained, "ResNet-18"
    assert texts.size < trained


def test_a_training_on_frozen_weights_continues_bit_for_bit(run: str, tiny_processor: VLProcessor) -> None:
    batches = [images_and_texts(4, [1, 2, 1, 1], seed=step) for step in range(6)]
    whole = new_trainer(tiny_processor, 0)
    for step in range(3):
        whole(step, [batches[step]], 1)
    store_frozen(whole, tiny_processor, run, 3)
    for step in range(3, 6):
        whole(step, [batches[step]], 1)

    with checkpoint.open_newest_checkpoint(run) as found:
        assert found is not None
        model = VLModel.from_pretrained(found[1] / checkpoint.MODEL)
        again = TrainStep(model, OptimizerConfig(), StepConfig(ema=0.5), steps=10, seed=0)
        again.load_state(checkpoint.read_trainer_tensors(found[1], torch.device("cpu")))
    for step in range(3, 6):
        again(step, [batches[step]], 1)
    for one, other in ((whole.model, again.model), (whole.evaluated_model, again.evaluated_model)):
        state = other.state_dict()
        assert [name for name, value in one.state_dict().items() if not torch.equal(value, state[name])] == []


@pytest.mark.parametrize("damage", ["missing", "altered"])
def test_a_run_whose_base_is_missing_or_altered_is_refused(run: str, tiny_processor: VLProcessor, damage: str) -> None:
    checkpoint.check_base_weights_exist(run)
    store_frozen(new_trainer(tiny_processor, 0), tiny_processor, run, 1)
    checkpoint.check_base_weights_exist(run)
    folder = StorageFolder(run).parent.subfolder("_bases")
    tower = max(folder.files(), key=lambda file: file.size)
    if damage == "missing":
        folder.remove(tower.name)
    else:
        folder.write(tower.name, folder.read(tower.name)[:-1])
    with pytest.raises(
        BaseWeightsError, match=rf"{tower.name}.* restore it from a backup|{tower.name}.* altered or cut off"
    ):
        checkpoint.check_base_weights_exist(run)
    with pytest.raises(BaseWeightsError), checkpoint.open_best_checkpoint(run, checkpoint.MODEL) as (_, local):
        VLModel.from_pretrained(local / checkpoint.MODEL)


def test_a_checkpoint_of_another_version_is_not_passed_over(store: Callable[[int, float], Path]) -> None:
    store(10, 0.5)
    folder = store(20, 0.9)
    state = json.loads((folder / "state.json").read_text())
    del state["format"]
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "manifest.json").write_bytes(manifest.manifest_to_bytes(manifest.manifest_of_folder(folder)))
    run, says = (
        str(folder.parent),
        r"another version .*\(format 1, .* reads 2\); train anew with this version, under another",
    )
    with pytest.raises(CheckpointError, match=says):
        newest_step(run)
    with pytest.raises(CheckpointError, match=says):
        best_step(run)
    with pytest.raises(CheckpointError, match=says):
        checkpoint.state_of_newest_checkpoint(run)


@pytest.mark.parametrize("place", ["file", "memory"])
def test_storage_may_be_anywhere(store: Callable[[int, float], Path], tmp_path: Path, place: str) -> None:
    local = store(10, 0.5)
    (local / "manifest.json").unlink()
    run = f"file://{tmp_path}/elsewhere" if place == "file" else f"memory://{tmp_path.name}/run"
    checkpoint.upload_checkpoint(local, StorageFolder(run).subfolder(checkpoint.checkpoint_folder_name(10)))
    with checkpoint.open_newest_checkpoint(run) as found:
        assert found is not None
        stored, folder = found
        assert checkpoint.read_trainer_tensors(folder, torch.device("cpu")).keys() == {"model", "optimizer", "average"}
    with checkpoint.open_best_checkpoint(run, checkpoint.MODEL) as (_, folder):
        Predictor.from_pretrained(folder / checkpoint.MODEL)
        assert (folder / "trainer.pt").exists() == (place == "file"), "only the part is downloaded"
    trainer = stored.folder.read("trainer.pt")
    stored.folder.write("trainer.pt", trainer[:-1])
    assert newest_step(run) is None
    with checkpoint.open_best_checkpoint(run, checkpoint.MODEL) as (found_best, _):
        assert found_best.step == 10


def test_the_newest_state_is_read_without_the_weights(store: Callable[[int, float], Path], tmp_path: Path) -> None:
    store(10, 0.5)
    newest = store(20, 0.9)
    (newest / "trainer.pt").unlink()
    run = str(tmp_path / "run")
    state = checkpoint.state_of_newest_checkpoint(run)
    assert state is not None
    assert state["step"] == 20
    _flip(newest / "state.json")
    state = checkpoint.state_of_newest_checkpoint(run)
    assert state is not None
    assert state["step"] == 10
    assert checkpoint.state_of_newest_checkpoint(str(tmp_path / "none")) is None


def test_a_file_within_that_is_called_as_the_manifest_is_kept(tmp_path: Path) -> None:
    (tmp_path / "local" / "model").mkdir(parents=True)
    (tmp_path / "local" / "model" / "manifest.json").write_text("of another program")
    checkpoint.write_checkpoint_state(tmp_path / "local", {}, {"step": 3})
    checkpoint.upload_checkpoint(tmp_path / "local", StorageFolder(tmp_path / "stored"))
    with checkpoint.find_checkpoint(StorageFolder(tmp_path / "stored")).as_local() as folder:
        assert (folder / "model" / "manifest.json").read_text() == "of another program"


def _list(folder: Path, name: str) -> None:
    """Add a file to the manifest that it does not have."""
    listed = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**listed, name: {"sha256": "0" * 64, "bytes": 1}}))


def _link(file: Path) -> None:
    """Put a link to a copy in the place of a file."""
    copy = file.parents[2] / "step-99999999"  # in the run's folder, where it is no checkpoint
    file.rename(copy)
    file.symlink_to(copy)


def _flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))
