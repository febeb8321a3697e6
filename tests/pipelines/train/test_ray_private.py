"""Ray's own list of checkpoints, which may be torn, never keeps a run from continuing."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import ray
from ray.train.v2._internal.constants import CHECKPOINT_MANAGER_SNAPSHOT_FILENAME

from pipelines.train.launch import _CHECKPOINTS
from pipelines.train.ray_private import rename_unreadable_checkpoint_list

CHECKPOINT = {"version": 0, "checkpoint_dir_name": "step-00000004", "metrics": {"selection": -1.0, "step": 4}}
VALID = json.dumps(
    {
        "ray_version": ray.__version__,
        "checkpoint_results": [CHECKPOINT],
        "checkpoint_report_indices": [0],
        "latest_checkpoint_result": CHECKPOINT,
        "pending_training_results": [],
        "pending_validation_specs": [],
        "current_report_index": 1,
        "validated_checkpoint_dir_names": [],
        "timed_out_validation_checkpoint_dir_names": [],
        "failed_validation_checkpoint_dir_names": [],
    }
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "demo"
    (folder / "step-00000004").mkdir(parents=True)
    (folder / "step-00000004" / "state.json").write_text("{}")
    return folder


@pytest.mark.parametrize("uri", ["", "file://"])
def test_a_valid_list_and_none_are_left_alone(run: Path, uri: str) -> None:
    rename_unreadable_checkpoint_list(f"{uri}{run}", _CHECKPOINTS)
    (run / CHECKPOINT_MANAGER_SNAPSHOT_FILENAME).write_text(VALID)
    rename_unreadable_checkpoint_list(f"{uri}{run}", _CHECKPOINTS)
    assert {file.name for file in run.iterdir()} == {"step-00000004", CHECKPOINT_MANAGER_SNAPSHOT_FILENAME}


@pytest.mark.parametrize(
    "contents",
    [b"", VALID[:200].encode(), b"\xff\xfe", b"{}", b"[]", VALID.replace(ray.__version__, "1.0", 1).encode()[:-1],
     VALID.replace("step-00000004", "step-00000008").encode(), VALID.replace("[0]", "[]").encode()],
    ids=["empty", "torn", "no text", "no fields", "no object", "of another version", "names a lost one", "uneven"],
)  # fmt: skip
def test_an_unusable_list_is_set_aside(contents: bytes, run: Path, caplog: pytest.LogCaptureFixture) -> None:
    snapshot = run / CHECKPOINT_MANAGER_SNAPSHOT_FILENAME
    snapshot.write_bytes(contents)
    with caplog.at_level(logging.WARNING):
        rename_unreadable_checkpoint_list(str(run), _CHECKPOINTS)
    assert not snapshot.exists()
    assert snapshot.with_name(f"{snapshot.name}.unusable").read_bytes() == contents
    assert f"{snapshot} cannot be used and was set aside" in caplog.text
    rename_unreadable_checkpoint_list(str(run), _CHECKPOINTS)


def test_a_new_run_has_no_list(tmp_path: Path) -> None:
    rename_unreadable_checkpoint_list(str(tmp_path / "none" / "yet"), _CHECKPOINTS)
    assert list(tmp_path.iterdir()) == []
