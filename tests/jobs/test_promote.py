"""The promote job: the first model, a worse one, and back."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest

from tests.jobs.test_pipeline import DEMO, setting

# Whole jobs, each of which starts a cluster: slow machines take minutes. (test_pipeline.py promotes a model each time.)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

Job = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def promoted(job: Job, small: list[str], indexed: None) -> subprocess.CompletedProcess[str]:
    """The promotion of a first model, when a second one that has learned nothing is registered too."""
    job("train", *DEMO, *small, "name=first", "train.epochs=4")
    job("train", *DEMO, *small, "name=worse", "train.optimizer.head_lr=1e-9", "train.optimizer.backbone_lr=1e-9")
    return job("promote", *DEMO, *small, "name=first")


@pytest.fixture
def client(promoted: object, small: list[str]) -> mlflow.MlflowClient:
    return mlflow.MlflowClient(f"sqlite:///{setting(small, 'storage')}/mlflow.db")


def aliases(client: mlflow.MlflowClient) -> dict[str, str]:
    return {alias: str(version) for alias, version in client.get_registered_model("vlmodel").aliases.items()}


def test_the_first_model_is_checked_as_far_as_it_can_be(
    promoted: subprocess.CompletedProcess[str], client: mlflow.MlflowClient
) -> None:
    assert re.search(r"vlmodel version 1 is the champion: all \d+ checks passed", promoted.stdout)
    names = re.findall(r"^  [✓–] (.+?)  ", promoted.stdout, re.M)
    assert names == [
        "not rolled back", "stored files", "schema", "smoke test", "paraphrase: case", "paraphrase: punctuation",
        "paraphrase: politeness", "irrelevant image", "blank image", "better than without looking",
    ]  # fmt: skip
    assert aliases(client) == {"champion": "1"}


def test_a_worse_model_is_refused_and_its_report_says_why(
    job: Job, small: list[str], client: mlflow.MlflowClient, tmp_path: Path
) -> None:
    refused = job("promote", *DEMO, *small, "name=worse")
    assert "vlmodel version 2 was not promoted: " in refused.stdout
    assert re.search(r"^  ✗ better on the hold-out +accuracy 0\.\d+ against \d\.\d+", refused.stdout, re.M)
    assert aliases(client)["champion"] == "1"
    run_id = str(client.get_model_version("vlmodel", "2").run_id)
    folder = Path(client.download_artifacts(run_id, "gate/2-against-1", str(tmp_path)))
    decision = json.loads((folder / "decision.json").read_text())
    (whole, *_) = decision["differences"]
    assert whole["rows"] == 48
    assert whole["candidate"] < whole["champion"]
    assert (folder / "decision.png").read_bytes().startswith(b"\x89PNG")
    assert "✗ failed" in (folder / "decision.md").read_text()


def test_a_repetition_changes_nothing(job: Job, small: list[str], client: mlflow.MlflowClient) -> None:
    before = client.get_model_version("vlmodel", "1").tags
    assert "vlmodel version 1 is the champion already" in job("promote", *DEMO, *small, "name=first").stdout
    assert client.get_model_version("vlmodel", "1").tags == before


def test_without_a_former_champion_there_is_nothing_to_roll_back_to(
    job: Job, small: list[str], promoted: object
) -> None:
    refused = job("promote", *DEMO, *small, "--rollback", check=False)
    assert refused.returncode == 1
    assert "version 1 of model 'vlmodel' took no champion's place" in refused.stderr
    assert "Traceback" not in refused.stderr
