"""A training continues what its name was begun with, and nothing else."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.storage.folder import StorageFolder
from pipelines.tracking.address import TrackingError
from pipelines.train import checkpoint
from pipelines.train.errors import RunInUseError
from pipelines.workflows import fit, train, training_data
from pipelines.workflows.config import JobConfig
from pipelines.workflows.workspace import Workspace
from tests.jobs.test_pipeline import DEMO
from tests.pipelines.registry.conftest import save_model
from vlmodel.config import ConfigError, dump_config, load_config

Begun = Callable[..., Workspace]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Begun:
    """The workspace of a configuration with these overrides, on data whose index has the hash ``abc``."""
    monkeypatch.setattr(train, "open_checked_index", lambda _: None)
    monkeypatch.setattr(training_data, "describe_data", lambda *_: {"hash": "abc"})

    def make(*overrides: str) -> Workspace:
        return Workspace(load_config(JobConfig, None, [f"storage={tmp_path / 'runs'}", "name=base", *overrides]))

    return make


def store_checkpoint(of: Workspace, tmp_path: Path, step: int, **state: Any) -> None:
    local = tmp_path / f"local-{step}"
    local.mkdir(exist_ok=True)
    history = [{"step": 4.0, "epoch": 1.0, "train/loss": 0.5, "val/accuracy": 0.75}]
    checkpoint.write_checkpoint_state(
        local, {}, {"step": step, "history": history, "config": dump_config(of.config), "data": "abc", **state}
    )
    checkpoint.upload_checkpoint(local, StorageFolder(of.run_folder).subfolder(checkpoint.checkpoint_folder_name(step)))


def claim(work: Workspace) -> None:
    with train.locked_run(work):
        pass


@pytest.mark.parametrize("trained", [False, True], ids=["before the first checkpoint", "with a checkpoint"])
def test_other_settings_are_refused_and_those_that_change_nothing_are_not(
    config: Begun, tmp_path: Path, trained: bool
) -> None:
    claim(config())
    if trained:
        store_checkpoint(config(), tmp_path, 8)
    elsewhere = ["tracking.experiment=other", "tracking.uri=http://localhost:1"]
    claim(config(*elsewhere, "train.workers=2", "stream.tasks=2"))
    with pytest.raises(ConfigError, match=r"choose another name, or restore: seed: 0 -> 7; train\.batch: 64 -> 32"):
        claim(config(*elsewhere, "seed=7", "train.batch=32", "train.threads=3"))
    claim(config())


def test_a_checkpoint_counts_for_more_than_the_note_beside_it(config: Begun, tmp_path: Path) -> None:
    store_checkpoint(config("seed=3"), tmp_path, 8)
    claim(config("seed=3"))
    (tmp_path / "runs" / "base" / "run.json").write_text("{")
    with pytest.raises(ConfigError, match="seed: 3 -> 0"):
        claim(config())


def test_other_data_are_refused(config: Begun, monkeypatch: pytest.MonkeyPatch) -> None:
    claim(config())
    monkeypatch.setattr(training_data, "describe_data", lambda *_: {"hash": "def"})
    with pytest.raises(ConfigError, match=r"data \(hash of the index\): abc -> def"):
        claim(config())


def test_a_source_that_was_added_to_a_mix_is_another_setting(config: Begun) -> None:
    claim(config("data.mix.a.tars=a"))
    claim(config("data.mix.a.tars=moved"))
    with pytest.raises(ConfigError, match=r"data\.mix\.b\.inputs: nothing -> "):
        claim(config("data.mix.a.tars=a", "data.mix.b.tars=b"))


def test_settings_that_are_newer_than_the_run_have_their_defaults(config: Begun, tmp_path: Path) -> None:
    old = dump_config(config().config)
    del old["train"]["window"], old["seed"]
    store_checkpoint(config(), tmp_path, 8, config=old)
    claim(config())
    with pytest.raises(ConfigError, match=r"train\.window: 65536 -> 10"):
        claim(config("train.window=10"))
    # One that is no more cannot be restored.
    store_checkpoint(config(), tmp_path, 12, config={**old, "gone": {"a": 1}, "train": {**old["train"], "gone": 1}})
    claim(config())
    with pytest.raises(ConfigError, match=r"restore: train\.batch: 64 -> 32$"):
        claim(config("train.batch=32"))


def test_a_renamed_folder_is_the_same_run(config: Begun, tmp_path: Path) -> None:
    claim(config())
    (tmp_path / "runs" / "base").rename(tmp_path / "runs" / "renamed")
    claim(config("name=renamed"))


@pytest.mark.parametrize("letter", ["%2F", "?", "#", "100%"])
def test_a_storage_folder_that_is_no_address_is_refused_before_anything_is_made(
    config: Begun, tmp_path: Path, letter: str
) -> None:
    with pytest.raises(ConfigError, match=r"choose or rename the folder"):
        claim(config(f"storage={tmp_path}/a{letter}b"))
    assert list(tmp_path.iterdir()) == []


def test_the_processor_is_that_of_the_checkpoints(config: Begun, tmp_path: Path) -> None:
    save_model(tmp_path / "local-8" / "model", seed=0)
    store_checkpoint(config(), tmp_path, 8)
    folder = config().local_folder / "processor"
    assert fit._get_processor(config(), [], folder, "", "train").labels == ["yes", "no", "red", "blue"]
    assert (folder / "processor.json").is_file()


def test_runs_of_one_name_in_two_buckets_share_no_local_folder(config: Begun) -> None:
    folders = [config(f"storage=s3://{bucket}/runs").local_folder for bucket in ("a", "b")]
    assert folders[0] != folders[1]
    assert folders[0] == config("storage=s3://a/runs/").local_folder


def test_what_comes_after_training_can_be_repeated() -> None:
    with (
        pytest.raises(TrackingError, match=r"gone\. The training is done .* the same command"),
        fit.add_remedy_to_tracking_errors(),
    ):
        raise TrackingError("gone.")


def test_a_second_training_of_a_name_is_refused(config: Begun) -> None:
    with train.locked_run(config()), pytest.raises(RunInUseError, match=r"the run in .*base is under way: process"):
        claim(config())


def test_a_run_without_its_record_is_recorded_anew(
    config: Begun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store_checkpoint(config(), tmp_path, 8)
    kept = config("tracking.system_metrics=false")
    with kept.track() as tracker:
        fit._restore_tracked_run(kept, tracker)
        assert tracker.history() == [{"step": 4, "train/loss": 0.5, "val/accuracy": 0.75}]
    assert "checkpoints up to step 8, and no record in experiment 'vlmodel'; a new record" in capsys.readouterr().out
    with kept.track() as tracker:
        fit._restore_tracked_run(kept, tracker)
    assert capsys.readouterr().out == ""


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_weights_that_are_not_there_end_a_training_at_once(
    job: Callable[..., subprocess.CompletedProcess[str]], small: list[str], indexed: None
) -> None:
    """Not when workers were started again and again."""
    lacks = ["name=lacks", "model.vision.weights=nowhere.pth", "train.workers=2"]
    refused = job("train", *DEMO, *small, *lacks, check=False)
    assert refused.returncode == 1
    assert refused.stderr == (
        "train: vision.weights='nowhere.pth' is no file; give a state dict (.safetensors, .pth), 'imagenet', or '' for "
        "none\n"
    )
    assert "failed" not in refused.stdout


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_without_a_network_a_name_of_the_hub_is_refused_in_one_line(
    job: Callable[..., subprocess.CompletedProcess[str]], small: list[str], indexed: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    refused = job("train", *DEMO, *small, "name=hub", "model.language.pretrained=bert-base-uncased", check=False)
    assert refused.returncode == 1
    assert refused.stderr.startswith("train: language.pretrained='bert-base-uncased' cannot be opened: ")
    assert refused.stderr.endswith("; without a network, name the folder of a copy\n")
    assert refused.stderr.count("\n") == 1
