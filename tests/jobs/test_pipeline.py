"""The whole pipeline at a small size: from nothing to an answer over HTTP, and what it leaves behind."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import mlflow
import pandas as pd  # type: ignore[import-untyped]
import pyarrow.parquet as pq
import pytest

from pipelines.data.index.index import Index
from pipelines.data.tars.reader import ShardReader
from pipelines.serve.client import Client, is_ready
from pipelines.train import checkpoint
from tests.jobs.conftest import ROOT

# Whole jobs, each of which starts a cluster: slow machines take minutes.
pytestmark = pytest.mark.timeout(1200)

Job = Callable[..., subprocess.CompletedProcess[str]]
DEMO = ("--config", "jobs/configs/demo.toml", "tracking.model_name=vlmodel")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def setting(small: list[str], key: str) -> str:
    return next(override.split("=", 1)[1] for override in small if override.startswith(f"{key}="))


@pytest.fixture(scope="module")
def finished(job: Job, small: list[str]) -> subprocess.CompletedProcess[str]:
    ports = [f"serve.port={free_port()}", f"tracking.page_port={free_port()}"]
    return job("pipeline", *DEMO, *small, *ports)


def test_it_ends_with_an_answer_beside_the_right_one(finished: subprocess.CompletedProcess[str]) -> None:
    assert "HTTP answers about" in finished.stdout
    rows = re.findall(r"^  .*\?\s+\S+\s+0\.\d{3}\s+right: \S+$|^  .*\?\s+\S+.* right: \S+$", finished.stdout, re.M)
    assert rows
    assert re.search(r"MLflow\s+http://127\.0\.0\.1:\d+", finished.stdout)


def test_progress_comes_line_by_line_where_there_is_no_terminal(finished: subprocess.CompletedProcess[str]) -> None:
    assert re.search(r"^train  step \d+/12  (left|took) \d+:\d\d  loss \d.*images/s", finished.stderr, re.M)
    assert re.search(r"^evaluate val  sample 24/24  took \d+:\d\d$", finished.stderr, re.M)
    assert max(map(len, finished.stderr.splitlines())) <= 80, finished.stderr


def test_no_line_is_a_librarys(finished: subprocess.CompletedProcess[str]) -> None:
    shown = finished.stdout + finished.stderr
    # A raylet on a busy machine may warn of that.
    assert not re.search(r"\(\w+ pid=|graceful_shutdown|core_worker|Traceback|WARNING:? \w+\.|ERROR", shown), shown


@pytest.fixture(scope="module")
def run(finished: subprocess.CompletedProcess[str], small: list[str]) -> mlflow.entities.Run:
    mlflow.set_tracking_uri(f"sqlite:///{setting(small, 'storage')}/mlflow.db")
    (only,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    return only


def test_one_finished_run_holds_settings_data_curves_and_pictures(run: mlflow.entities.Run) -> None:
    assert run.info.status == "FINISHED"
    assert run.data.params["train.epochs"] == "2"
    (data,) = run.inputs.dataset_inputs
    assert json.loads(data.dataset.profile)["counts"] == {"test": 50, "train": 96, "val": 24}
    client = mlflow.MlflowClient()
    for name in ("train/loss", "val/accuracy", "speed/images_per_s", "test/accuracy", "test/floor_question_only"):
        steps = [metric.step for metric in client.get_metric_history(run.info.run_id, name)]
        assert steps == sorted(set(steps))
        assert steps
    pictures = {file.path for file in client.list_artifacts(run.info.run_id, "pictures")}
    assert {f"pictures/{name}.png" for name in ("curves", "val-confusion", "val-examples")} <= pictures


def test_best_and_last_checkpoints_are_kept(run: mlflow.entities.Run, small: list[str]) -> None:
    folder = f"{setting(small, 'storage')}/demo"
    kept = list(checkpoint.find_valid_checkpoints(folder))
    assert kept[0].step == 12
    assert len(kept) <= 2
    scores = [entry["val/accuracy"] for entry in kept[0].state["history"]]
    with checkpoint.open_best_checkpoint(folder) as (best, _):
        assert best.state["selection"] == max(scores)


def test_the_champion_is_an_mlflow_model(run: mlflow.entities.Run, small: list[str]) -> None:
    model = mlflow.pyfunc.load_model("models:/vlmodel@champion")
    image = next(Path(setting(small, "data.tars")).glob("test-*.tar"))
    import webdataset

    sample = next(iter(webdataset.WebDataset(str(image), shardshuffle=False)))
    question = json.loads(sample["json"])["questions"][0]["question"]
    answer = model.predict(pd.DataFrame({"image": [sample["png"]], "question": [question]}))
    table = pq.read_table(Path(setting(small, "storage")) / "demo" / "answers-test.parquet").to_pylist()
    expected = next(row for row in table if row["key"] == sample["__key__"] and row["text"] == question)
    assert answer["answer"][0] == expected["predicted"]
    assert answer["probability"][0] == pytest.approx(expected["probability"], abs=1e-5)


@pytest.mark.slow
def test_a_second_run_does_nothing_again(job: Job, small: list[str], finished: object) -> None:
    again = job("train", *DEMO, *small)
    assert "images/s" not in again.stderr
    assert "registered vlmodel version 1" in again.stdout


@pytest.mark.slow
def test_a_changed_setting_under_the_same_name_is_refused(job: Job, small: list[str], finished: object) -> None:
    refused = job("train", *DEMO, *small, "train.batch=32", check=False)
    assert refused.returncode == 1
    assert "train.batch: 16 -> 32" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.slow
def test_evaluation_is_the_same_at_any_number_of_workers(job: Job, small: list[str], finished: object) -> None:
    out = Path(setting(small, "storage")) / "two.parquet"
    job("evaluate", *DEMO, *small, "predict.workers=2", f"evaluate.out={out}")
    one = pq.read_table(Path(setting(small, "storage")) / "demo" / "answers-test.parquet")
    assert pq.read_table(out).equals(one)


@pytest.mark.slow
def test_offline_prediction_needs_no_answers(job: Job, small: list[str], finished: object, tmp_path: Path) -> None:
    out = tmp_path / "all.parquet"
    job("predict", *DEMO, *small, f"evaluate.out={out}", "evaluate.split=")
    assert len(set(pq.read_table(out)["key"].to_pylist())) == 170


@pytest.mark.slow
def test_promotion_repeats_without_effect(job: Job, small: list[str], finished: object) -> None:
    assert "version 1 is the champion" in job("promote", *DEMO, *small).stdout


def test_the_serve_job_gives_the_answers_of_the_evaluate_job(small: list[str], finished: object) -> None:
    """And stops when it is told to."""
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "jobs.serve", *DEMO, *small, f"serve.port={port}"],
        cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        address = f"http://127.0.0.1:{port}"
        while not is_ready(address):
            assert server.poll() is None, "the serve job ended"
            time.sleep(0.5)
        expected = pq.read_table(Path(setting(small, "storage")) / "demo" / "answers-test.parquet").to_pylist()
        asked = answered_over_http(address, setting(small, "data.tars"), {row["key"] for row in expected})
        assert len(asked) >= 100
        for row in expected:
            best, probability = asked[row["key"], row["text"]]
            assert best == row["predicted"], row
            assert probability == pytest.approx(row["probability"], abs=1e-4)
    finally:
        server.send_signal(signal.SIGINT)
        server.communicate(timeout=100)
    assert not is_ready(address)


def answered_over_http(address: str, tars: str, keys: set[str]) -> dict[tuple[str, str], tuple[str, float]]:
    index = Index.open(tars)
    found = {}
    with Client(address) as client:
        for shard in index.shards:
            for row, key in enumerate(index.rows(shard.name)["key"].to_pylist()):
                if key in keys and shard.name.startswith("test"):
                    (record,) = ShardReader(index).read(shard.name, [row])
                    questions = [q.question for q in record.texts.questions]
                    for answer in client.ask(record.inputs["image"], questions).answers:
                        found[key, answer.question] = (answer.answers[0].answer, answer.answers[0].probability)
    return found
