"""Training on several sources: what is refused, and that a stopped training sees what an unstopped one sees."""

from __future__ import annotations

import io
import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
from PIL import Image
from safetensors.numpy import load_file

from jobs.job import main
from pipelines.data.index.build import build_index
from pipelines.data.index.config import IndexConfig
from pipelines.data.index.index import Index
from pipelines.data.stream.dataset import Source
from pipelines.data.stream.plan import StepSchedule
from pipelines.data.tars.sample import dump_texts
from pipelines.data.tars.shards import ShardWriter
from pipelines.errors import DataError
from pipelines.evaluate.baselines import Baselines, check_baselines_are_learnable
from pipelines.evaluate.predict import iterate_answer_tables, predict_dataset
from pipelines.search.trial_controller import create_trial_controller
from pipelines.train import checkpoint
from pipelines.workflows import index, train, training_data
from pipelines.workflows.config import JobConfig
from pipelines.workflows.fit import fit as fit_model
from pipelines.workflows.workspace import Workspace
from tests.jobs.conftest import ROOT, SMALL
from tests.pipelines.data.tar_maker import write_tar
from vlmodel.config import ConfigError, load_config
from vlmodel.processor import VLProcessor
from vlmodel.sample import Question, SampleTexts

COLOURS = {"red": (210, 40, 40), "green": (40, 180, 60), "blue": (50, 70, 220)}
TASKS = [
    "model.task.kind=multitask", "model.task.heads.ask.kind=vqa", "model.task.heads.find.kind=contrastive",
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
                asked = SampleTexts((), (Question("what colour is it?", name),))
                texts = asked if kind == "asked" else SampleTexts((f"a picture that is {name}",), ())
                writer.add(f"{split}{number:03d}", {"image": (image.getvalue(), "png")}, texts)
    build_index(str(folder), IndexConfig(validation_fraction=0.0))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, ray_local: None) -> Path:
    folder = tmp_path_factory.mktemp("mix")
    write(folder / "asked", "asked", {"train": 20, "val": 8})
    write(folder / "named", "named", {"train": 44})
    return folder


def workspace(data: Path, *more: str) -> Workspace:
    sources = [f"data.tars={data / 'asked'}", *(f"data.mix.{name}.tars={data / name}" for name in ("asked", "named"))]
    overrides = [*SMALL, *sources, f"storage={data / 'runs'}", *more]
    return Workspace(load_config(JobConfig, ROOT / "jobs/configs/demo.toml", overrides))


def spent(work: Workspace) -> tuple[Any, Any]:
    indexes = training_data.open_indexes(work, work.newest_index())
    return training_data.training_samples_and_order(work, indexes, work.local_folder / "processor", ())


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
        ("data.mix.a.tar=x", "unknown key 'data.mix.a.tar'; did you mean 'data.mix.a.tars'? valid keys of"),
        ("data.mix={'a/b'={tars='x'}}", "'a/b': a source's name has letters, digits, _ and - only"),
        ("data.mix_temperature=[]", "name at least one temperature, all above 0"),
        ("data.mix_temperature=[1.0, 0.0]", "[1.0, 0.0]: name at least one temperature"),
    ],
)
def test_wrong_mixes_are_refused(override: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main("train", [override]) == 2
    assert says in capsys.readouterr().err


def test_a_source_without_an_index_names_the_job(data: Path) -> None:
    work = workspace(data, f"data.mix.none.tars={data}")
    with pytest.raises(Exception, match=rf"has no index; run the index job: .* data\.tars={data}"):
        training_data.open_indexes(work, work.newest_index())


def test_the_same_samples_twice_are_refused(data: Path) -> None:
    work = workspace(data, f"data.mix.again.tars={data / 'named'}")
    with pytest.raises(ConfigError, match=r"data\.mix\.again and data\.mix\.named hold the same samples"):
        training_data.open_indexes(work, work.newest_index())


def test_without_a_mix_data_tars_is_trained_on(data: Path) -> None:
    work = workspace(data, "data.mix={}")
    judged = work.newest_index()
    assert training_data.open_indexes(work, judged) == {"": judged}
    assert training_data.describe_data(work, judged) == training_data.describe_index_for_tracking(judged, work.tars)


def test_the_record_changes_with_every_source(data: Path) -> None:
    one, other = (
        workspace(data),
        workspace(data, f"data.mix.named.tars={data / 'asked'}", f"data.mix.asked.tars={data / 'named'}"),
    )
    judged = one.newest_index()
    found = training_data.describe_data(one, judged)
    assert isinstance(found["mix"], dict)
    assert set(found["mix"]) == {"asked", "named"}
    assert len({found["hash"], training_data.describe_data(other, judged)["hash"], judged.hash}) == 3


def test_a_set_that_was_indexed_as_another_is_refused(data: Path) -> None:
    work = workspace(data, "data.mix.named.inputs=text")
    with pytest.raises(
        DataError,
        match=r"named was indexed as \[\"image\", \"text\"\], and data\.mix\.named\.inputs=\[\"text\"\]; run the index",
    ):
        training_data.open_indexes(work, work.newest_index())


def test_one_folder_cannot_be_two_things(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    override = f"data={{tars='{data}', mix={{a={{tars='{data}', inputs='text'}}}}}}"
    assert main("train", [override]) == 2
    shown = capsys.readouterr().err
    assert "data.mix.a.inputs=['text'] says another thing of it than data.index.inputs=['image', 'text']" in shown


@pytest.fixture(scope="module")
def said(data: Path) -> Path:
    """Questions without images, of a word that is in no other source, not indexed yet."""
    folder = data / "said"
    folder.mkdir()
    for split, count in (("train", 30), ("val", 6)):
        asked = [SampleTexts((), (Question("what colour is grass?", "green"),)) for _ in range(count)]
        write_tar(folder, f"{split}-000000.tar", [(f"{split}{n}.json", dump_texts(t)) for n, t in enumerate(asked)])
    return folder


def test_the_index_job_knows_what_each_source_is_made_of(data: Path, said: Path) -> None:
    all_train = "data.index.validation_fraction=0.0"
    index.run(workspace(data, all_train, f"data.mix.said.tars={said}", "data.mix.said.inputs=text"))
    assert Index.open(str(said)).input_requirements == {"text": True}
    assert Index.open(str(said)).counts() == {"train": 30, "val": 6, "test": 0}
    assert Index.open(str(data / "named")).input_requirements == {"image": True, "text": True}


def test_models_are_not_judged_on_texts_alone(data: Path, said: Path) -> None:
    build_index(str(said), IndexConfig(validation_fraction=0.0, inputs=("text",)))
    with pytest.raises(
        DataError, match=r"judged on inputs with texts or a class, and .*said is .* indexed as \['text'\].* data\.mix"
    ):
        train.open_checked_index(workspace(data, f"data.tars={said}", "data.index.inputs=text", "data.mix={}"))


def test_a_task_that_would_learn_of_the_data_is_named(tmp_path: Path) -> None:
    captions = frozenset({"image", "captions"})
    index: Any = SimpleNamespace(tars="photos", count=lambda can_learn, split: 5 * can_learn(captions))
    asks = Workspace(load_config(JobConfig, None, ["model.task.kind=vqa", f"storage={tmp_path}"]))
    says = r"no train sample of photos has questions.*; choose data that has some, or .* model\.task\.kind=caption and"
    with pytest.raises(DataError, match=says):
        training_data.check_tasks_have_training_samples(asks, {"": index})


@pytest.mark.parametrize(
    ("more", "says"),
    [
        # Both sources together have what both tasks learn of, but the one that is judged by has no captions.
        (
            TASKS,
            r"no val sample of .*asked has captions with an image, by which task 'find' is judged; .* or leave",
        ),
        (
            [*TASKS, "data.mix={}"],
            r"no train sample of .*asked has captions with an image, of which task 'find' learns",
        ),
        (
            ["model.task.kind=caption", "data.mix={}"],
            r"asked has captions with an input, of which the model learns;",
        ),
    ],
)
def test_each_task_needs_its_texts(data: Path, more: list[str], says: str) -> None:
    with pytest.raises(DataError, match=says):
        train.open_checked_index(workspace(data, *more))
    assert train.open_index(workspace(data, *more)).tars.endswith("asked")


def test_splits_that_are_read_after_a_training_are_checked_before_it(data: Path) -> None:
    asked = Index.open(str(data / "asked"))
    with pytest.raises(DataError, match=r"no test sample .* \(evaluate\.split='test'\); .* val 8.* raise that"):
        training_data.check_data_for_evaluation_and_gate(workspace(data), asked)
    training_data.check_data_for_evaluation_and_gate(workspace(data, "evaluate.split=val"), asked)
    named = Index.open(str(data / "named"))
    with pytest.raises(DataError, match=r"captions and no questions, .*=vqa learns from .*; set model\.task\.kind=cap"):
        training_data.check_data_for_evaluation_and_gate(workspace(data), named)
    with pytest.raises(DataError, match=r"questions and no captions, .*=caption learns from .*; set .*kind=vqa"):
        training_data.check_data_for_evaluation_and_gate(workspace(data, "model.task.kind=caption"), asked)
    with pytest.raises(DataError, match=r"no test sample .* \(registry\.gate\.split='test'\)"):
        training_data.check_data_for_evaluation_and_gate(
            workspace(data, "evaluate.split=val", "registry.gate.split=test"), asked
        )


def test_what_is_judged_on_has_texts_to_learn_floors_from(data: Path) -> None:
    named = Index.open(str(data / "named"))
    tasks = workspace(data, *TASKS).config.model.task.tasks_by_name()
    check_baselines_are_learnable(named, {"find": tasks["find"]})  # chance is known without texts
    with pytest.raises(DataError, match=r"no train sample of .*named has questions, from which .* 'ask' is compared"):
        check_baselines_are_learnable(named, tasks)
    # A training learns them from what it is trained on.
    asked = Index.open(str(data / "asked"))
    found = Baselines.learn_from_training_split(named, [asked], {"ask": tasks["ask"]}, "none")
    assert list(found.tasks) == ["ask"]
    assert found.trained_on == (asked.hash,)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_training_on_pairs_and_texts(data: Path, said: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers, shared BatchNorm, every sample once an epoch; then the set of texts is answered."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    build_index(str(said), IndexConfig(validation_fraction=0.0, inputs=("text",)))
    work = workspace(
        data, *TASKS, "train.ledger=true", "train.workers=2", "train.step.sync_batchnorm=true", "train.epochs=1",
        "train.batch=4", f"data.mix.said.tars={said}", "data.mix.said.inputs=text", "name=with-texts",
    )  # fmt: skip
    ended = fit(work)
    counted = Counter(sample for samples in seen(work).values() for sample in samples)
    assert Counter(source for source, *_ in counted) == {0: 20, 1: 44, 2: 30}
    assert set(counted.values()) == {1}

    model = f"{ended.path}/model"
    assert "grass" in VLProcessor.from_pretrained(model).tokenizer.get_vocab()
    source = Source(str(said), Index.open(str(said)).hash, "val", model)
    asked = predict_dataset(model, source, work.config.predict, work.config.stream, "ask")
    answers = pa.concat_tables(list(iterate_answer_tables(asked, "evaluate", 6)))
    assert answers["key"].to_pylist() == [f"val{n}" for n in range(6)]
    assert answers["target"].to_pylist() == ["green"] * 6
    assert answers["shuffled"].null_count == 6
    with pytest.raises(DataError, match="the model's task 'find' is about captions with an image; name data"):
        predict_dataset(model, source, work.config.predict, work.config.stream, "find")


def lines(folder: Path) -> Iterator[dict[str, Any]]:
    for file in sorted(folder.glob("*.jsonl"), key=lambda f: int(f.stem.split("-")[1])):
        yield from map(json.loads, file.read_text().splitlines())


def seen(work: Workspace) -> dict[tuple[int, int], list[tuple[int, ...]]]:
    """The samples of each (step, rank), by the ledger; a step that was done again counts as it was done last."""
    found: defaultdict[tuple[int, int], list[tuple[int, ...]]] = defaultdict(list)
    for line in lines(Path(work.run_folder) / "ledger"):
        columns = (line[name] for name in ("source", "epoch", "shard", "row"))
        found[line["step"], line["rank"]] = list(zip(*columns, strict=True))
    return dict(found)


def fit(work: Workspace, trial_controller: Any = None) -> checkpoint.StoredCheckpoint:
    with work.track() as tracker:
        fit_model(work, train.open_index(work), tracker, trial_controller=trial_controller)
    newest = next(checkpoint.find_valid_checkpoints(work.run_folder), None)
    assert newest is not None
    return newest


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_stopped_training_goes_on_with_the_samples_that_were_due(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    more = [*TASKS, "train.ledger=true", "train.workers=2", "train.epochs=3", "data.mix_temperature=[1.0, 3.0]"]
    calm = workspace(data, *more, "name=calm")
    ended = fit(calm)

    _, order = spent(calm)
    schedule = StepSchedule(order, calm.config.train.batch, 3)
    ledger = seen(calm)
    assert set(ledger) == {(step, rank) for step in range(schedule.step_count) for rank in (0, 1)}
    for (step, rank), samples in ledger.items():
        due = schedule.samples_of_part(step, rank, 2)
        columns = (due.source, due.epoch, due.shard, due.row)
        assert samples == list(zip(*(column.tolist() for column in columns), strict=True))
    assert ended.state["step"] == schedule.step_count

    stopped = workspace(data, *more, "name=stopped")
    trial_controller = create_trial_controller()
    ray.get(trial_controller.stop.remote())
    assert 0 < fit(stopped, trial_controller).step < schedule.step_count
    again = fit(stopped)
    assert seen(stopped) == ledger
    assert again.step == schedule.step_count
    one, other = (load_file(f"{stored.path}/model/model.safetensors") for stored in (ended, again))
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert value.tobytes() == other[key].tobytes(), key
