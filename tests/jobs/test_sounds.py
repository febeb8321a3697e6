"""From recordings and series to a served class, with no image anywhere: the whole pipeline on tones.

Claims: a model of two inputs, which some samples lack, is trained, registered, promoted and asked over HTTP; the MLflow
model answers a table of these inputs; golden answers and own examples hold them.
"""

from __future__ import annotations

import base64
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import pytest

from pipelines.registry import golden, own_examples
from pipelines.registry.config import RegistryConfig
from pipelines.registry.registry import Registry
from pipelines.registry.versions import LocalModel
from pipelines.tracking.address import TrackingConfig
from tests.jobs.test_pipeline import free_port
from tests.vlmodel.media_files import saved_sound
from vlmodel.inference import Predictor
from vlmodel.media.registry import all_media

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

Job = Callable[..., subprocess.CompletedProcess[str]]
PITCHES = {"low": 300, "middle": 900, "high": 2400}
SMALL = [
    "data.index.inputs=audio?,imu?,text", "model.vision.kind=none", "model.task.kind=classify",
    'model.inputs={audio={kind="audio",rate=8000,mels=16,channels=4,width=16,depth=1,heads=2},'
    'imu={kind="series",channels=2,width=16,depth=1,heads=2}}',
    "model.fusion.kind=transformer", "model.fusion.width=16", "model.fusion.heads=2", "model.fusion.rounds=1",
    "train.epochs=12", "train.batch=16", "train.workers=1", "train.optimizer.head_lr=5e-3",
    "train.drop_streams.audio=0.2",
    "tracking.system_metrics=false", "cluster.object_store_mb=150", "tracking.model_name=tones", "name=tones",
]  # fmt: skip


def recording(name: str, rng: np.random.Generator) -> tuple[bytes, bytes]:
    """A tone of a class, and a series that swings so much faster."""
    t = np.arange(2000) / 8000
    tone_T = np.sin(2 * np.pi * PITCHES[name] * (t + rng.random())) * 0.3 + rng.normal(0, 0.02, 2000)
    speed = PITCHES[name] / 3000
    swing_TC = np.stack([np.sin(np.arange(40) * speed + phase) for phase in rng.uniform(0, 6, 2)], 1)
    return saved_sound(tone_T), "\n".join(["x,y", *(f"{x:.4f},{y:.4f}" for x, y in swing_TC)]).encode()


def write_table(folder: Path) -> list[str]:
    """Recordings with a table of their paths; a third each has the sound alone and the series alone."""
    rng, lines = np.random.default_rng(0), ["key,audio,imu,class,split"]
    for split, count in (("train", 96), ("val", 24), ("test", 24)):
        for number in range(count):
            # Drawn, as the gate asks about the inputs of the sample that is half a batch away.
            name, has = list(PITCHES)[rng.integers(3)], number % 3
            sound, series = recording(name, rng)
            key = f"{split}{number}"
            (folder / f"{key}.wav").write_bytes(sound)
            (folder / f"{key}.csv").write_bytes(series)
            lines.append(f"{key},{key + '.wav' if has != 1 else ''},{key + '.csv' if has != 2 else ''},{name},{split}")
    (folder / "tones.csv").write_text("\n".join(lines) + "\n")
    columns = 'source.columns={audio="audio",imu="imu"}'
    return ["source.kind=table", f"source.file={folder / 'tones.csv'}", "source.inputs=audio?,imu?,text", columns]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tones")


@pytest.fixture(scope="module")
def finished(job: Job, folder: Path) -> subprocess.CompletedProcess[str]:
    (folder / "files").mkdir()
    places = [f"storage={folder / 'runs'}", f"data.tars={folder / 'tars'}"]
    ports = [f"serve.port={free_port()}", f"tracking.page_port={free_port()}"]
    return job("pipeline", *write_table(folder / "files"), *SMALL, *places, *ports)


@pytest.fixture(scope="module")
def champion(finished: subprocess.CompletedProcess[str], folder: Path) -> LocalModel:
    return Registry.open(TrackingConfig(model_name="tones"), str(folder / "runs"), RegistryConfig()).champion()


def test_it_ends_with_a_class_beside_the_right_one(finished: subprocess.CompletedProcess[str]) -> None:
    (line,) = re.findall(r"^  class +(\w+) +0\.\d{3} +right: (\w+)$|^  class +(\w+) +1\.000 +right: (\w+)$",
                         finished.stdout, re.M)  # fmt: skip
    got, right = (text for text in line if text)
    assert got == right
    assert "irrelevant input" in finished.stdout
    assert "blank image" not in finished.stdout


def test_the_champion_answers_a_table_whose_cells_may_be_missing(champion: LocalModel, folder: Path) -> None:
    mlflow.set_tracking_uri(f"sqlite:///{folder / 'runs' / 'mlflow.db'}")
    model = mlflow.pyfunc.load_model("models:/tones@champion")
    assert model.metadata.get_input_schema().input_names() == ["audio", "imu"]
    sound, series = recording("high", np.random.default_rng(7))
    table = pd.DataFrame(
        [(sound, series), (sound, None), (None, series), (None, None), (sound[:100], None)],
        columns=["audio", "imu"], dtype=object,
    )  # fmt: skip
    answers = model.predict(table)
    assert list(answers["answer"][:3]) == ["high"] * 3
    assert answers["error"][3] == "audio, imu are all missing"
    assert answers["answer"].isna().tolist() == [False, False, False, True, True]


def test_golden_answers_and_examples_hold_the_inputs(champion: LocalModel) -> None:
    assert champion.golden_answers_file is not None
    answers = golden.read_golden_answers(champion.golden_answers_file)
    assert {name for one in answers for name in one.inputs} <= {"audio", "imu"}
    assert golden.differing_answers(Predictor.from_pretrained(champion.folder), answers, 1e-4) == []
    examples = own_examples.read_own_examples(champion.package / own_examples.FILE)
    assert examples
    kinds = {"audio": "audio/flac", "imu": "text/csv"}
    for example in examples:
        assert [text.text for text in example.texts] == [""]
        for name, given in example.inputs.items():
            assert given.media_type == kinds[name]
            medium = all_media()[{"audio": "audio", "imu": "series"}[name]]
            assert medium.display_copy(base64.b64decode(given.data)) is not None
