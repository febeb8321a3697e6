"""Models of sounds, images, series and films, each beside a linear model: trained by the jobs' own workflows.

    python -m tests.bench.test_media ROW SEEDS val [SETTING=VALUE ...]
    python -m tests.bench.test_media ROW SEEDS ask [SETTING=VALUE ...]
    python -m tests.bench.test_media ROW SEEDS test

"val" trains without the samples that are held back, and prints how many of these are right: by that the settings of
jobs/configs were chosen. "ask" asks the test split of the model of "val". "test" trains on all training samples, to the
last epoch, and asks the test split. Rows: motions, gestures, images, sounds, speaker, pairs, films.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from pipelines.data.stream.loader import EvaluationBatches
from pipelines.train import checkpoint
from pipelines.workflows import train
from pipelines.workflows.config import JobConfig
from pipelines.workflows.fit import fit
from pipelines.workflows.workspace import Workspace
from tests.bench import in_process, linear_floors, media_sets
from tests.bench.conftest import Figure
from tests.bench.linear_floors import Vector
from vlmodel.answers import answers_match
from vlmodel.config import load_config
from vlmodel.inference import Predictor

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"
OUT = ROOT / "build" / "media"
SETTINGS = ["tracking.system_metrics=false", "data.index.validation_fraction=0.0", "train.threads=1"]
MODES = ("val", "ask", "test")
IMU = [f"{name}_{axis}" for name in ("linear_acceleration", "gyroscope") for axis in "xyz"]


@dataclass(frozen=True)
class Row:
    """A data set, the recipe that learns from it, and a linear model's view of it.

    Attributes:
        recipe: the file of jobs/configs.
        prepare: writes the files of the set into a folder (data, folder, for choice, seed).
        vectors: by name, what a linear model sees of a sample's inputs.
        goal: accuracy on the test split; None where single streams are compared with both.
        source: the setting that names the folder of the files, or the table in it.
        held_back: settings that hold back samples, where ``prepare`` does not.
        needed: inputs of the samples that the linear models learn from.
    """

    recipe: str
    prepare: Callable[[Path, Path, bool, int], None]
    vectors: Mapping[str, Vector]
    goal: float | None
    source: str = "source.folder={}"
    held_back: Sequence[str] = ()
    needed: Sequence[str] = ()


_SPECTRUM: Mapping[str, Vector] = {"linear": linear_floors.spectrum_vector}
ROWS = {
    "motions": Row(
        "series", media_sets.motions, linear_floors.series_vectors("series"), 0.975,
        held_back=["data.index.validation_fraction=0.3"],
    ),
    "gestures": Row("gestures", media_sets.gestures, linear_floors.series_vectors("imu", IMU), 0.90),
    "images": Row("images", media_sets.handwritten_digits, {"linear": linear_floors.pixel_vector}, 0.98),
    "sounds": Row("sounds", media_sets.spoken_digits, _SPECTRUM, 0.99),
    "speaker": Row("sounds", media_sets.unknown_speaker, _SPECTRUM, 0.85),
    "pairs": Row(
        "image_and_sound", media_sets.pairs,
        {"linear, image": linear_floors.pixel_vector, "linear, sound": linear_floors.spectrum_vector}, None,
        source="source.file={}/pairs.csv", needed=("image", "audio"),
    ),
    "films": Row(
        "films", media_sets.films, {"linear, middle frame": linear_floors.middle_frame_vector}, 0.95,
        source="source.file={}/films.csv",
    ),
}  # fmt: skip
ALONE = {
    "image": ["model.inputs={}", "train.drop_streams={}"],
    "sound": ["model.vision.kind=none", "train.drop_streams={}"],
}
"""Settings with which a model of the pairs reads one of both."""


def workspace_of(row: str, seed: int, for_choice: bool, overrides: Sequence[str], name: str) -> Workspace:
    """Return the job's settings over the data of a row, whose files are written if they are not there."""
    of = ROWS[row]
    folder = OUT / f"{row}{seed if row == 'speaker' else ''}-{'val' if for_choice else 'test'}"
    if not (folder / "done").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "files").mkdir(parents=True)
        of.prepare(DATA, folder / "files", for_choice, seed)
        (folder / "done").touch()
    settings = [of.source.format(folder / "files"), f"data.tars={folder / 'tars'}", f"storage={folder / 'runs'}",
                f"name={name}-{seed}", f"seed={seed}", *SETTINGS, *(of.held_back if for_choice else ()),
                *overrides]  # fmt: skip
    return Workspace(load_config(JobConfig, str(ROOT / "jobs" / "configs" / f"{of.recipe}.toml"), settings))


def share_of_right_answers(work: Workspace, split: str) -> dict[str, float]:
    """Return how many of a split are answered right; of the pairs by what the keys say is missing."""
    model = Path(work.run_folder) / in_process.MODEL
    predictor = Predictor.from_pretrained(model)
    (name,) = predictor.processor.tasks
    batches = EvaluationBatches(replace(work.source(work.newest_index(), split, model), answering=name), 64)
    right: dict[str, list[bool]] = {}
    for number in range(len(batches)):
        arrays = batches[number]
        rows = json.loads(arrays["rows_json"].tobytes())
        answers = predictor.predict_collated(arrays, 1, name)
        for (key, _, _, target, *_), ((best, _),) in zip(rows, answers, strict=True):
            ending = next((end for end in media_sets.ALONE if key.endswith(end)), "")
            right.setdefault(ending, []).extend(answers_match([target], [best], predictor.processor.normalizer))
    return {f"{split}{ending}": float(np.mean(of)) for ending, of in sorted(right.items())}


def measure(row: str, seed: int, mode: str, overrides: Sequence[str] = (), name: str = "model") -> dict[str, Any]:
    """Train one model, or ask one that is trained; ``mode`` is one of ``MODES``."""
    work = workspace_of(row, seed, mode != "test", overrides, name)
    history = [] if mode == "ask" else in_process.learn(work)
    if mode == "val":
        found = [round(entry["val/accuracy"], 3) for entry in history]
        return {"val": found[-1], "epochs": found[:: max(1, len(found) // 8)]}
    return share_of_right_answers(work, "test")


def measure_floors(row: str, seed: int, mode: str) -> dict[str, float]:
    """Return the accuracy of the linear models."""
    of, samples = ROWS[row], workspace_of(row, seed, mode != "test", [], "model").newest_index()
    split = "val" if mode == "val" else "test"
    return {
        name: linear_floors.linear_accuracy(samples, vector, split, of.needed) for name, vector in of.vectors.items()
    }


@pytest.mark.parametrize("row", [name for name, row in ROWS.items() if row.goal is not None])
def test_goal(row: str, figure: Figure, shared_data: Callable[[str], Path]) -> None:
    shared_data("fsdd")
    found = measure(row, 0, "test")["test"]
    for floor, value in measure_floors(row, 0, "test").items():
        figure(f"accuracy on {row}", found, "", peer=floor, peer_value=value)
    goal = ROWS[row].goal
    assert goal is not None
    assert found >= goal


def test_both_streams_are_more_than_one_and_either_may_be_missing(
    figure: Figure, shared_data: Callable[[str], Path]
) -> None:
    shared_data("fsdd")
    both = measure("pairs", 0, "test")
    alone = {name: measure("pairs", 0, "test", settings, name)["test"] for name, settings in ALONE.items()}
    for name, value in alone.items():
        figure("accuracy on pairs", both["test"], "", peer=f"{name} alone", peer_value=value)
        figure(f"the same without the other stream than {name}", both[f"test-{name}"], "", peer=f"{name} alone",
               peer_value=value)  # fmt: skip
        assert both[f"test-{name}"] >= value - 0.01
    assert max(alone.values()) < 0.8
    assert both["test"] >= max(alone.values()) + 0.08


def test_a_worker_learns_the_same(ray_local: None, shared_data: Callable[[str], Path]) -> None:
    shared_data("uea-timeseries")
    here, worker = (workspace_of("motions", 0, False, ["train.epochs=2"], name) for name in ("here", "worker"))
    in_process.learn(here)
    with train.locked_run(worker) as samples, worker.track() as tracker:
        fit(worker, samples, tracker)
    with checkpoint.open_best_checkpoint(worker.run_folder, checkpoint.MODEL) as (_, local):
        states = [load_file(folder / "model.safetensors") for folder in (
            Path(here.run_folder) / in_process.MODEL, local / checkpoint.MODEL)]  # fmt: skip
    assert states[0].keys() == states[1].keys()
    assert [name for name, value in states[0].items() if not value.equal(states[1][name])] == []


def main(arguments: Sequence[str]) -> None:
    row, seeds, mode, *overrides = arguments
    if row not in ROWS or mode not in MODES:
        raise SystemExit(f"{row!r} {mode!r}: name a row of {', '.join(ROWS)} and one of {', '.join(MODES)}")
    name = f"model-{zlib.crc32(' '.join(overrides).encode()):08x}" if overrides else "model"
    for seed in map(int, seeds.split(",")):
        begun = time.process_time()
        found = {"row": row, "seed": seed, "settings": overrides, **measure(row, seed, mode, overrides, name)}
        if row == "pairs":
            for alone, settings in ALONE.items():
                found[f"{alone} alone"] = measure(row, seed, mode, [*settings, *overrides], f"{alone}-{name}")
        found["cpu s"] = round(time.process_time() - begun)
        print(json.dumps(found), flush=True)
        print(json.dumps(measure_floors(row, seed, mode)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
