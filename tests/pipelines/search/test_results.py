"""What a repeated search knows of an earlier one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipelines.search.results import (
    TrainingResult,
    TrainingResults,
    count_parameters,
    result_of_run,
    sample_standard_deviation,
)
from pipelines.storage.folder import StorageFolder
from pipelines.tracking.tracker import NullTracker
from pipelines.train import checkpoint


def test_a_record_is_read_back(tmp_path: Path) -> None:
    records = TrainingResults(f"{tmp_path}/grid")
    assert records.read("a") is None
    record = TrainingResult("finished", score=0.5, epochs=3, parameters=7, seconds=2.5)
    records.write("a", record)
    assert TrainingResults(f"{tmp_path}/grid").read("a") == record


def test_half_a_record_is_none(tmp_path: Path) -> None:
    records = TrainingResults(str(tmp_path))
    records.write("a", TrainingResult("finished"))
    (tmp_path / "records" / "a.json").write_text('{"status": "fini')
    assert records.read("a") is None


def test_the_seconds_of_all_attempts_count(tmp_path: Path) -> None:
    records = TrainingResults(str(tmp_path))
    records.add("a", TrainingResult("interrupted", seconds=10.0))
    assert records.add("a", TrainingResult("finished", score=1.0, seconds=5.0)) == records.read("a")
    assert records.read("a").seconds == 15.0


@pytest.mark.parametrize(
    ("status", "done"),
    [("finished", True), ("stopped", True), ("refused", True), ("failed", False), ("interrupted", False)],
)
def test_what_failed_is_tried_again(status: str, done: bool) -> None:
    assert TrainingResult(status).is_done is done


def test_spread_is_the_sample_standard_deviation() -> None:
    assert sample_standard_deviation([1.0, 2.0, 3.0, 4.0]) == pytest.approx(1.2909944)
    assert sample_standard_deviation([1.0]) is None


class _Tracked(NullTracker):
    def history(self) -> list[dict[str, float]]:
        return [{"step": n, "speed/images_per_s": rate} for n, rate in enumerate([1.0, 50.0, 60.0])] + [{"step": 9}]


def kept(run: Path, tiny_model, step: int, selection: float, epochs: int) -> None:
    folder = run / f"local-{step}"
    tiny_model().save_pretrained(folder / checkpoint.MODEL)
    checkpoint.write_checkpoint_state(
        folder, {}, {"step": step, "selection": selection, "epochs_done": epochs, "history": []}
    )
    checkpoint.upload_checkpoint(folder, StorageFolder(run / checkpoint.checkpoint_folder_name(step)))


def test_the_outcome_is_that_of_the_best_checkpoint(tmp_path: Path, tiny_model) -> None:
    kept(tmp_path, tiny_model, 10, 0.75, 1)
    kept(tmp_path, tiny_model, 20, 0.5, 2)
    found = result_of_run(str(tmp_path), 2, _Tracked())
    assert (found.status, found.score, found.best_epoch, found.epochs) == ("finished", 0.75, 1, 2)
    assert found.images_per_s == 50.0
    assert found.parameters == sum(p.numel() for p in tiny_model().parameters())
    assert result_of_run(str(tmp_path), 3, NullTracker()).status == "stopped"


def test_counting_reads_no_weights(tmp_path: Path, tiny_model) -> None:
    tiny_model().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    assert count_parameters(str(tmp_path)) > 0
    assert torch.get_default_device() == torch.device("cpu")
