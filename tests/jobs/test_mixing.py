"""Training on several sources: what is refused, and that a stopped training sees what an unstopped one sees."""

from __future__ import annotations

import io
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from PIL import Image
from safetensors.numpy import load_file

from jobs import mixing, runs, train
from jobs.config import JobConfig
from jobs.job import main
from pipelines.data.index import Index, IndexConfig, build_index
from pipelines.data.plan import Schedule
from pipelines.data.sample import Question, Texts
from pipelines.data.shards import ShardWriter
from pipelines.search.referee import create_referee
from pipelines.train import checkpoint
from pipelines.train.tracking import Tracker
from tests.jobs.conftest import ROOT, SMALL
from vlmodel.config import ConfigError, load

COLOURS = {"red": (210, 40, 40), "green": (40, 180, 60), "blue": (50, 70, 220)}
TASKS = [
    "model.decoder.kind=multitask", "model.decoder.heads.ask.kind=vqa", "model.decoder.heads.find.kind=contrastive",
]  # fmt: skip


def write(folder: Path, kind: str, counts: dict[str, int]) -> None:
    """Plain pictures with a question each, or a caption each, and their index."""
    folder.mkdir()
    rng = np.random.default_rng(len(kind))
    for split, count in counts.items():
        with ShardWriter(folder, split, max_samples=10) as writer:
            for number in range(count):
                name = list(COLOURS)[int(rng.integers(3))]
                image = io.BytesIO()
                Image.new("RGB", (32, 32), COLOURS[name]).save(image, "PNG")
                asked = Texts((), (Question("what colour is it?", name),))
                texts = asked if kind == "asked" else Texts((f"a picture that is {name}",), ())
                writer.add(f"{split}{number:03d}", image.getvalue(), "png", texts)
    build_index(str(folder), IndexConfig(validation_fraction=0.0))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, ray_local: None) -> Path:
    folder = tmp_path_factory.mktemp("mix")
    write(folder / "asked", "asked", {"train": 20, "val": 8})
    write(folder / "named", "named", {"train": 44})
    return folder


def settings(data: Path, *more: str) -> JobConfig:
    sources = [f"data.tars={data / 'asked'}", *(f"data.mix.{name}.tars={data / name}" for name in ("asked", "named"))]
    return load(JobConfig, ROOT / "jobs/configs/demo.toml", [*SMALL, *sources, f"storage={data / 'runs'}", *more])


def spent(config: JobConfig) -> tuple[Any, Any]:
    judged = Index.open(runs.tars(config))
    return mixing.training(config, mixing.indexes(config, judged), runs.local_folder(config) / "processor", {})


@pytest.mark.parametrize(
    ("override", "says"),
    [
        (
            "data.mix={a={tars='x', weight=1.0}, b={tars='y'}}",
            "b without a weight; give every source a weight, or none",
        ),
        ("data.mix={a={tars='x', weight=0}}", "data.mix.a.weight = 0: Input should be greater than 0"),
        ("data.mix={a={tars='x', weight=inf}}", "data.mix.a.weight"),
        ("data.mix={a={tars=''}}", "data.mix.a.tars"),
        ("data.mix={a={weight=1.0}}", "key 'data.mix.a.tars' is required"),
        ("data.mix.a.tar=x", "unknown key 'data.mix.a.tar'; valid keys of data.mix.a: tars, weight"),
        ("data.mix={'a/b'={tars='x'}}", "'a/b': a source's name has letters, digits, _ and - only"),
        ("data.mix_temperature=[]", "name at least one temperature, all above 0"),
        ("data.mix_temperature=[1.0, 0.0]", "[1.0, 0.0]: name at least one temperature"),
    ],
)
def test_wrong_mixes_are_refused(override: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(train.run, "train", [override]) == 2
    assert says in capsys.readouterr().err


def test_a_source_without_an_index_names_the_job(data: Path) -> None:
    config = settings(data, f"data.mix.none.tars={data}")
    with pytest.raises(Exception, match=rf"has no index; run the index job: .* data\.tars={data}"):
        mixing.indexes(config, Index.open(runs.tars(config)))


def test_the_same_samples_twice_are_refused(data: Path) -> None:
    config = settings(data, f"data.mix.again.tars={data / 'named'}")
    with pytest.raises(ConfigError, match=r"data\.mix\.again and data\.mix\.named hold the same samples"):
        mixing.indexes(config, Index.open(runs.tars(config)))


def test_without_a_mix_data_tars_is_trained_on(data: Path) -> None:
    config = settings(data, "data.mix={}")
    judged = Index.open(runs.tars(config))
    assert mixing.indexes(config, judged) == {"": judged}
    assert mixing.facts(config, judged) == runs.index_facts(judged, runs.tars(config))


def test_the_record_changes_with_every_source(data: Path) -> None:
    one, other = (
        settings(data),
        settings(data, f"data.mix.named.tars={data / 'asked'}", f"data.mix.asked.tars={data / 'named'}"),
    )
    judged = Index.open(runs.tars(one))
    found = mixing.facts(one, judged)
    assert isinstance(found["mix"], dict)
    assert set(found["mix"]) == {"asked", "named"}
    assert len({found["hash"], mixing.facts(other, judged)["hash"], judged.hash}) == 3


def lines(folder: Path) -> Iterator[dict[str, Any]]:
    for file in sorted(folder.glob("*.jsonl"), key=lambda f: int(f.stem.split("-")[1])):
        yield from map(json.loads, file.read_text().splitlines())


def seen(config: JobConfig) -> dict[tuple[int, int], list[tuple[int, ...]]]:
    """The samples of each (step, rank), by the ledger; a step that was done again counts as it was done last."""
    found: defaultdict[tuple[int, int], list[tuple[int, ...]]] = defaultdict(list)
    for line in lines(Path(runs.run_folder(config)) / "ledger"):
        columns = (line[name] for name in ("source", "epoch", "shard", "row"))
        found[line["step"], line["rank"]] = list(zip(*columns, strict=True))
    return dict(found)


def fit(config: JobConfig, referee: Any = None) -> checkpoint.Stored:
    with Tracker.open(config.tracking, runs.storage(config), config.name) as tracker:
        train.fit(config, train.ready(config), tracker, has_dashboard=False, referee=referee)
    newest = checkpoint.latest(*checkpoint.open_storage(runs.run_folder(config)))
    assert newest is not None
    return newest


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_stopped_training_goes_on_with_the_samples_that_were_due(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    more = [*TASKS, "train.ledger=true", "train.workers=2", "train.epochs=3", "data.mix_temperature=[1.0, 3.0]"]
    calm = settings(data, *more, "name=calm")
    ended = fit(calm)

    _, order = spent(calm)
    schedule = Schedule(order, calm.train.batch, 3)
    ledger = seen(calm)
    assert set(ledger) == {(step, rank) for step in range(schedule.steps) for rank in (0, 1)}
    for (step, rank), samples in ledger.items():
        due = schedule.part(step, rank, 2)
        columns = (due.source, due.epoch, due.shard, due.row)
        assert samples == list(zip(*(column.tolist() for column in columns), strict=True))
    assert ended.state["step"] == schedule.steps

    stopped = settings(data, *more, "name=stopped")
    referee = create_referee()
    ray.get(referee.stop.remote())
    assert 0 < fit(stopped, referee).step < schedule.steps
    again = fit(stopped)
    assert seen(stopped) == ledger
    assert again.step == schedule.steps
    one, other = (load_file(f"{stored.path}/model/model.safetensors") for stored in (ended, again))
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert value.tobytes() == other[key].tobytes(), key
