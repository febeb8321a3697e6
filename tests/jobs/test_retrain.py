"""Whole cycles with real jobs: killed on the way, started again in the same window, and given unlike data."""

from __future__ import annotations

import io
import json
from pathlib import Path

import mlflow
import numpy as np
import pytest
from PIL import Image

from jobs.job import main
from pipelines.data.index.build import build_index
from pipelines.data.index.config import IndexConfig
from pipelines.data.index.index import Index
from pipelines.data.stream.mixture import MixedSource
from pipelines.data.tars.inputs import PAIRS
from pipelines.data.tars.shards import ShardWriter
from pipelines.errors import DataError
from pipelines.retrain.ledger import STEPS, Facts, RetrainCycle
from pipelines.tracking.store import connect_to_store
from pipelines.workflows import import_data, index, promote, retrain, retrain_steps, train
from pipelines.workflows.config import JobConfig
from pipelines.workflows.workspace import Workspace
from tests.jobs.conftest import ROOT, SMALL, coloured_pictures
from tests.pipelines.data.tar_maker import photo
from vlmodel.config import load_config
from vlmodel.sample import Question, SampleTexts

COLOURS = {"red": (210, 40, 40), "green": (40, 180, 60), "blue": (50, 70, 220)}
MONDAY, TUESDAY = "20260105T0000Z", "20260106T0000Z"


def drop(incoming: Path, name: str, seed: int, colours: dict[str, tuple[int, int, int]] = COLOURS) -> None:
    """Move a finished tar of forty pictures in, with the questions of ``coloured_pictures``."""
    rng = np.random.default_rng(seed)
    elsewhere = incoming / f".{name}"
    elsewhere.mkdir(parents=True)
    with ShardWriter(elsewhere, "train", max_samples=100) as writer:
        for number in range(40):
            colour, asked = (list(colours)[int(n)] for n in rng.integers(0, len(colours), 2))
            pixels = (np.array(colours[colour]) + rng.normal(0, 12, (32, 32, 3))).clip(0, 255).astype(np.uint8)
            image = io.BytesIO()
            Image.fromarray(pixels).save(image, "PNG")
            pairs = (("what colour is it?", colour), (f"is it {asked}?", "yes" if asked == colour else "no"))
            questions = tuple(Question(question, answer) for question, answer in pairs)
            writer.add(f"{name}{number}", {"image": (image.getvalue(), "png")}, SampleTexts((), questions))
    (tar,) = elsewhere.glob("*.tar")
    tar.rename(incoming / f"{name}.tar")


def workspace(folder: Path, *more: str) -> Workspace:
    pictures = folder / "pictures"
    source = [f"source.file={pictures / 'questions.csv'}", "source.kind=table", "source.samples_per_shard=40"]
    places = [f"storage={folder / 'runs'}", f"data.tars={folder / 'data'}"]
    overrides = [*SMALL, *source, *places, "registry.smoke_test=false", f"retrain.window={MONDAY}", *more]
    return Workspace(load_config(JobConfig, ROOT / "jobs/configs/demo.toml", overrides))


@pytest.mark.parametrize(
    ("overrides", "status", "says"),
    [
        (["retrain.window=monday"], 2, "retrain.window = 'monday'"),
        (["retrain.watch=true"], 2, "unknown key 'retrain.watch'; valid keys of retrain: abandon,"),
        (["retrain.ledger=s3://bucket/ledger"], 1, "'s3://bucket/ledger' is no folder of a file system"),
    ],
)
def test_wrong_settings_are_named(
    overrides: list[str], status: int, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main("retrain", [f"storage={tmp_path}", *overrides]) == status
    assert says in capsys.readouterr().err


def test_what_a_source_holds_stays_so_in_a_cycle(tmp_path: Path, ray_local: None) -> None:
    for name, inputs in (("pairs", PAIRS), ("said", ("text",)), ("new", PAIRS)):
        (tmp_path / name).mkdir()
        with ShardWriter(tmp_path / name, "train", inputs=inputs) as writer:
            for number in range(30):
                writer.add(
                    f"{name}{number}", {"image": (photo(number), "jpg")}, SampleTexts((f"the {number}th of {name}",))
                )
        build_index(str(tmp_path / name), IndexConfig(validation_fraction=0.0, inputs=inputs))
    mix = [f"data.mix.pairs.tars={tmp_path}/pairs", f"data.mix.said={{tars='{tmp_path}/said', inputs='text'}}"]
    work = workspace(tmp_path, *mix, f"data.tars={tmp_path}/pairs")
    judged, new = (Index.open(str(tmp_path / name)) for name in ("pairs", "new"))
    found = retrain_steps._choose_training_mix(work, judged, RetrainCycle(MONDAY, {}), new)
    assert {name: MixedSource(**source).inputs for name, source in found.items()} == {
        f"cycle-{MONDAY}": PAIRS, "pairs": PAIRS, "said": ("text",),
    }  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, ray_local: None) -> Path:
    """A champion, and the data that it was trained on."""
    folder = tmp_path_factory.mktemp("retrain")
    (folder / "pictures").mkdir()
    coloured_pictures(folder / "pictures", train=96)
    work = workspace(folder)
    for job in (import_data, index, train, promote):
        job.run(work)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_cycles_from_incoming_tars_to_a_decision(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    incoming, runs = folder / "data" / "incoming", folder / "runs"
    drop(incoming, "d", seed=1)
    (incoming / "copy-of-old.tar").write_bytes((folder / "data" / "train-000000.tar").read_bytes())

    # Killed when the training is done and not yet recorded; another process then looks in and continues.
    def killed(work: Workspace, cycle: RetrainCycle) -> Facts:
        really_train(work, cycle)
        raise KeyboardInterrupt

    really_train = retrain_steps.train_candidate
    monkeypatch.setitem(retrain_steps.STEP_FUNCTIONS, "trained", killed)
    with pytest.raises(KeyboardInterrupt):
        retrain.run(workspace(folder))
    assert retrain_steps.open_ledger(workspace(folder)).unfinished_cycle().last_step == "checked"
    monkeypatch.undo()
    with retrain_steps.open_ledger(workspace(folder)).hold_lock():
        assert retrain.run(workspace(folder)) is None
    (cycle,) = retrain.run(workspace(folder)).finished

    assert list(cycle.records) == list(STEPS)
    assert [tar.name for tar in cycle.tars] == ["d.tar"]
    checked, evaluated = cycle.records["checked"], cycle.records["evaluated"]
    assert checked["init"] == "1"
    assert checked["mix"] == {
        f"cycle-{MONDAY}": {"tars": checked["tars"], "inputs": ["image", "text"], "weight": 0.5},
        "old": {"tars": str(folder / "data"), "inputs": ["image", "text"], "weight": 0.5},
    }
    # The training that was killed after its end was not done again: there are two versions and two runs.
    client = connect_to_store(f"sqlite:///{runs}/mlflow.db")
    assert sorted(int(v.version) for v in client.search_model_versions("name = 'vlmodel'")) == [1, 2]
    for where, rows in (("hold_out", 48), ("new", 2 * checked["counts"]["val"])):
        one, other = evaluated["candidate"][where][""], evaluated["champion"][where][""]
        assert one["rows"] == other["rows"] == rows > 0
        assert one["index"] == other["index"]
    champion = client.get_model_version_by_alias("vlmodel", "champion").version
    assert str(champion) == ("2" if cycle.records["gated"]["promoted"] else "1")
    run = client.get_run(cycle.records["trained"]["run_id"])
    assert run.data.tags["retrain.cycle"] == MONDAY
    audit = mlflow.artifacts.load_text(f"{run.info.artifact_uri}/retrain/audit.json")
    assert json.loads(audit)["evaluated"] == evaluated
    decision = mlflow.artifacts.load_text(f"{run.info.artifact_uri}/gate/2-against-1/decision.json")
    (on_new,) = (check for check in json.loads(decision)["checks"] if check["name"] == "no worse on new data")
    assert on_new["passed"] is None, "so few rows are not judged"

    drop(incoming, "b", seed=2)
    again = retrain.run(workspace(folder))
    assert again.finished == ()
    assert "has had its cycle" in again.reason

    # Data that are unlike those before are refused, and what is mended is planned anew.
    drop(incoming, "odd", seed=3, colours={"mauve": (180, 130, 200)})
    tuesday = workspace(folder, f"retrain.window={TUESDAY}", "retrain.max_drift=0.1")
    with pytest.raises(DataError, match=r"differs from cycle 20260105T0000Z: answers .*above retrain\.max_drift"):
        retrain.run(tuesday)
    (incoming / "odd.tar").unlink()
    (second,) = retrain.run(tuesday).finished
    assert [tar.name for tar in second.tars] == ["b.tar"]
    assert set(second.records["checked"]["mix"]) == {f"cycle-{TUESDAY}", f"cycle-{MONDAY}", "old"}
    assert sum(source["weight"] for source in second.records["checked"]["mix"].values()) == pytest.approx(1.0)
    assert sorted(file.name for file in incoming.glob("*.tar")) == ["b.tar", "copy-of-old.tar", "d.tar"]
