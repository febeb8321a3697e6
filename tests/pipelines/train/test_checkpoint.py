"""A checkpoint is there as a whole or not at all."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow.fs as pafs
import pytest
import torch

from pipelines.train import checkpoint
from pipelines.train.checkpoint import CheckpointError
from pipelines.train.optim import OptimizerConfig
from pipelines.train.step import StepConfig, TrainStep
from tests.pipelines.train.conftest import images_and_texts
from vlmodel.inference import Predictor
from vlmodel.model import VLModel
from vlmodel.processor import VLProcessor

FS = pafs.LocalFileSystem()


@pytest.fixture
def store(
    tiny_model: Callable[[], VLModel], tiny_processor: VLProcessor, tmp_path: Path
) -> Callable[[int, float], Path]:
    """Make a checkpoint of a run after ``step`` steps."""

    def make(step: int, selection: float) -> Path:
        trainer = TrainStep(tiny_model(), OptimizerConfig(), StepConfig(), steps=10, seed=0)
        trainer(0, [images_and_texts(2, [1, 2])], 1)
        local = tmp_path / f"local-{step}"
        trainer.evaluated.save_pretrained(local / checkpoint.MODEL)
        tiny_processor.save_pretrained(local / checkpoint.MODEL)
        checkpoint.write(local, trainer.state(), {"step": step, "selection": selection, "history": []})
        target = tmp_path / "run" / checkpoint.folder_name(step)
        checkpoint.upload(local, FS, str(target))
        return target

    return make


def test_newest_and_best(store: Callable[[int, float], Path], tmp_path: Path) -> None:
    store(10, 0.7), store(20, 0.9), store(25, -1.0), store(30, 0.8)
    run = str(tmp_path / "run")
    newest = checkpoint.latest(FS, run)
    assert newest is not None
    assert (newest.step, checkpoint.best(FS, run).step) == (30, 20)
    assert checkpoint.latest(FS, str(tmp_path / "elsewhere")) is None
    with pytest.raises(CheckpointError, match="run the train job first"):
        checkpoint.best(FS, str(tmp_path / "elsewhere"))


def test_the_inference_part_loads_alone_and_the_state_without_code(store: Callable[[int, float], Path]) -> None:
    folder = store(10, 0.5)
    predictor = Predictor.from_pretrained(folder / checkpoint.MODEL)
    assert predictor.processor.labels == ["red", "green", "blue"]
    state = checkpoint.read_trainer(folder, torch.device("cpu"))
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
        (lambda f: _link(f / "model" / "config.json"), "config.json is a link or no file"),
        (lambda f: os.mkfifo(f / "model" / "pipe"), "pipe is a link or no file"),
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
        newest = checkpoint.latest(FS, str(tmp_path / "run"))
    assert newest is not None
    assert newest.step == 10
    assert checkpoint.best(FS, str(tmp_path / "run")).step == 10
    assert says in caplog.text
    with pytest.raises(CheckpointError, match="use an earlier checkpoint"):
        checkpoint.verify(FS, str(broken))


def test_the_manifest_is_uploaded_last(store: Callable[[int, float], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    class Watched:
        def __init__(self) -> None:
            self.order: list[str] = []

        def create_dir(self, path: str, recursive: bool) -> None:
            FS.create_dir(path, recursive=recursive)

        def open_output_stream(self, path: str) -> object:
            self.order.append(path)
            return FS.open_output_stream(path)

    watched = Watched()
    folder = store(10, 0.5)
    checkpoint.upload(folder, watched, f"{folder}-copy")  # type: ignore[arg-type]
    assert watched.order[-1].endswith("manifest.json")
    assert len(watched.order) == len([p for p in folder.rglob("*") if p.is_file()])


def test_the_newest_state_is_read_without_the_weights(store: Callable[[int, float], Path], tmp_path: Path) -> None:
    store(10, 0.5)
    newest = store(20, 0.9)
    (newest / "trainer.pt").unlink()
    run = str(tmp_path / "run")
    state = checkpoint.newest_state(FS, run)
    assert state is not None
    assert state["step"] == 20
    _flip(newest / "state.json")
    state = checkpoint.newest_state(FS, run)
    assert state is not None
    assert state["step"] == 10
    assert checkpoint.newest_state(FS, str(tmp_path / "none")) is None


def test_a_file_within_that_is_called_as_the_manifest_is_kept(tmp_path: Path) -> None:
    (tmp_path / "local" / "model").mkdir(parents=True)
    (tmp_path / "local" / "model" / "manifest.json").write_text("of another program")
    checkpoint.write(tmp_path / "local", {}, {"step": 3})
    checkpoint.upload(tmp_path / "local", FS, str(tmp_path / "stored"))
    assert checkpoint.verify(FS, str(tmp_path / "stored")) == {"step": 3}


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
