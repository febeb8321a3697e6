from __future__ import annotations

import inspect
import json
import logging
import os
import pickle
import signal
import socket
import sqlite3
import subprocess
import sys
import textwrap
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from matplotlib.figure import Figure
from mlflow.exceptions import MlflowException

from pipelines.tracking import address as tracking_address
from pipelines.tracking import metric_writer, store
from pipelines.tracking import tracker as tracker_module
from pipelines.tracking.address import TrackingConfig, TrackingError, check_reachable, tracking_uri
from pipelines.tracking.metric_queue import MetricQueue
from pipelines.tracking.store import connect_to_store, wait_until_reachable
from pipelines.tracking.tracker import NullTracker, Tracker
from pipelines.tracking.unsent_metrics import UnsentMetrics
from vlmodel.config import ConfigError, parse_config

REPOSITORY = Path(__file__).resolve().parents[3]


def status_of(tracker: Tracker) -> str:
    return str(connect_to_store(tracker.handle.uri).get_run(tracker.run_id).info.status)


def artifacts_of(tracker: Tracker) -> Path:
    uri = connect_to_store(tracker.handle.uri).get_run(tracker.run_id).info.artifact_uri
    return Path(uri.removeprefix("file://"))


def lines_of(tracker: Tracker, key: str) -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in connect_to_store(tracker.handle.uri).get_metric_history(tracker.run_id, key)]


def test_a_run_is_continued_by_its_name_and_steps_done_again_are_recorded_once(
    storage: str, tracking: TrackingConfig
) -> None:
    driver = Tracker.open(tracking, storage, "run-1", tags={"seed": "3"})
    worker = Tracker.attach(driver.handle, UnsentMetrics(storage))
    for step in range(1, 6):
        worker.log_metrics({"train/loss": 1 / step, "train/accuracy": step / 10}, step)
    worker.close()

    # Both processes die; the new ones start from the checkpoint of step 2.
    again = Tracker.open(tracking, storage, "run-1")
    assert again.run_id == driver.run_id
    worker = Tracker.attach(pickle.loads(pickle.dumps(again.handle)), UnsentMetrics(storage))  # noqa: S301
    for step in range(3, 9):
        worker.log_metrics({"train/loss": 1 / step, "train/accuracy": step / 10}, step)
    worker.log_metrics({"val/loss": 0.25}, 4)
    worker.close()

    assert lines_of(again, "train/loss") == [(step, 1 / step) for step in range(1, 9)]
    history = again.history()
    assert [row["step"] for row in history] == list(range(1, 9))
    assert history[3] == {"step": 4, "train/loss": 0.25, "train/accuracy": 0.4, "val/loss": 0.25}
    assert connect_to_store(again.handle.uri).get_run(again.run_id).data.tags["seed"] == "3"
    again.close()


def test_values_recorded_by_another_process_are_skipped(storage: str, tracking: TrackingConfig) -> None:
    driver = Tracker.open(tracking, storage, "handover")
    with Tracker.attach(driver.handle, UnsentMetrics(storage)) as worker:
        worker.log_metrics({"val/accuracy": 0.5}, 10)
    driver.log_metrics({"val/accuracy": 0.5, "val/floor": 0.25}, 10)
    assert driver.history() == [{"step": 10, "val/accuracy": 0.5, "val/floor": 0.25}]
    assert len(lines_of(driver, "val/accuracy")) == 1
    driver.close()


def test_a_run_that_does_not_exist_is_reported(storage: str, tracking: TrackingConfig) -> None:
    with pytest.raises(TrackingError, match=r"could not read run 0{32}: .*not found"):
        Tracker.reopen_run(tracking, storage, "0" * 32)


def test_other_names_and_other_experiments_are_other_runs(storage: str, tracking: TrackingConfig) -> None:
    one = Tracker.open(tracking, storage, "a")
    assert Tracker.open(tracking, storage, "b").run_id != one.run_id
    elsewhere = TrackingConfig(experiment="other", system_metrics=False)
    assert Tracker.open(elsewhere, storage, "a").run_id != one.run_id
    with pytest.raises(TrackingError, match='run name "a\'b"'):
        Tracker.open(tracking, storage, "a'b")


def test_metrics_written_before_a_kill_are_kept_and_replayed_ones_not_doubled(
    storage: str, tracking: TrackingConfig
) -> None:
    driver = Tracker.open(tracking, storage, "killed")
    program = """
        import sys
        from pipelines.tracking.tracker import RunHandle, Tracker
        from pipelines.tracking.unsent_metrics import UnsentMetrics
        tracker = Tracker.attach(RunHandle(sys.argv[1], sys.argv[2], system_metrics=False), UnsentMetrics(sys.argv[3]))
        for step in range(10):
            tracker.log_metrics({"loss": step / 4}, step)
        tracker.flush()
        tracker.log_metrics({"loss": 99.0}, 10_000)
        import os, signal
        os.kill(os.getpid(), signal.SIGKILL)
    """
    command = [sys.executable, "-c", textwrap.dedent(program), driver.handle.uri, driver.run_id, storage]
    done = subprocess.run(command, cwd=REPOSITORY, timeout=200, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    with Tracker.attach(driver.handle, UnsentMetrics(storage)) as worker:
        for step in range(6, 14):
            worker.log_metrics({"loss": step / 4}, step)
    assert [line for line in lines_of(driver, "loss") if line[0] < 10_000] == [(s, s / 4) for s in range(14)]
    driver.close()


def test_the_end_of_a_run_is_recorded(storage: str, tracking: TrackingConfig) -> None:
    with Tracker.open(tracking, storage, "good") as good:
        with Tracker.attach(good.handle, UnsentMetrics(storage)):
            pass
        assert status_of(good) == "RUNNING", "a worker does not end the run"
    assert status_of(good) == "FINISHED"
    with pytest.raises(ZeroDivisionError), Tracker.open(tracking, storage, "bad") as bad:
        _ = 1 / 0
    assert status_of(bad) == "FAILED"
    with pytest.raises(KeyboardInterrupt), Tracker.open(tracking, storage, "killed") as killed:
        raise KeyboardInterrupt
    assert status_of(killed) == "KILLED"
    with Tracker.reopen_run(tracking, storage, killed.run_id) as later:
        later.log_metrics({"test/accuracy": 0.5}, 9)
    assert status_of(killed) == "KILLED", "adding to a run that has ended does not change how it ended"
    assert later.history() == [{"step": 9, "test/accuracy": 0.5}]
    assert status_of(Tracker.open(tracking, storage, "killed")) == "RUNNING"


def test_parameters_are_recorded_flat_and_changes_are_refused_by_name(storage: str, tracking: TrackingConfig) -> None:
    tree: dict[str, Any] = {"train": {"lr": 0.001, "epochs": 8}, "cluster": {"address": "local"}, "name": "x"}
    tracker = Tracker.open(tracking, storage, "params")
    tracker.log_params(tree, volatile=["cluster"])
    tracker.log_params({**tree, "cluster": {"address": "ray://head"}, "new": [1, None]}, volatile=["cluster"])
    params = connect_to_store(tracker.handle.uri).get_run(tracker.run_id).data.params
    assert params == {"train.lr": "0.001", "train.epochs": "8", "name": "x", "new": "[1, null]"}
    assert json.loads((artifacts_of(tracker) / "config.json").read_text())["cluster"] == {"address": "ray://head"}

    changed = {**tree, "train": {"lr": 0.002, "epochs": 8}}
    with pytest.raises(TrackingError, match=r"under a new name.*train\.lr: 0\.001 -> 0\.002") as refused:
        tracker.log_params(changed, volatile=["cluster"])
    assert "epochs" not in str(refused.value)
    assert connect_to_store(tracker.handle.uri).get_run(tracker.run_id).data.params == params


def test_parameters_beyond_the_limits_are_shortened_and_still_compared(storage: str, tracking: TrackingConfig) -> None:
    many = {f"option{index}": index for index in range(230)}
    long = {"labels": ["answer"] * 5000, **many}
    tracker = Tracker.open(tracking, storage, "long")
    tracker.log_params(long)
    tracker.log_params(long)
    params = connect_to_store(tracker.handle.uri).get_run(tracker.run_id).data.params
    assert len(params) == 231
    assert len(params["labels"]) == 6000
    assert json.loads((artifacts_of(tracker) / "config.json").read_text())["labels"] == ["answer"] * 5000
    with pytest.raises(TrackingError, match="labels: "):
        tracker.log_params({**long, "labels": ["answer"] * 4999 + ["other"]})
    with pytest.raises(TrackingError, match="more than 250 characters"):
        tracker.log_params({"x" * 251: 1})


def test_no_secret_reaches_the_store(
    storage: str, tracking: TrackingConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    canary = "canary-0f3a"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", canary)
    caplog.set_level(logging.DEBUG)
    with Tracker.open(tracking, storage, "secrets", tags={"origin": f"http://me:{canary}@host/"}) as tracker:
        tracker.log_params({"store": {"secret": canary, "url": f"http://me:{canary}@host/x"}, "api_key": canary})
        tracker.log_data({"hash": "1" * 64, "source": f"s3://me:{canary}@host/tars", "counts": {"train": 1}})
        tracker.log_metrics({"loss": 1.0}, 1)
    files = [path for path in Path(storage).rglob("*") if path.is_file()]
    assert any(path.name == "config.json" for path in files)
    assert [path for path in files if canary.encode() in path.read_bytes()] == []
    assert canary not in caplog.text


def test_page_command_hides_passwords(
    storage: str, tracking: TrackingConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker = Tracker.open(tracking, storage, "a")
    monkeypatch.setattr(
        tracker._client, "set_terminated", lambda *_: print("View run a at: http://me:hunter2@host/#/1")
    )
    tracker.close()
    assert capsys.readouterr().out == "View run a at: http://***@host/#/1\n"


def test_credentials_in_the_address_are_refused_or_hidden(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"http://\*\*\*@host.*MLFLOW_TRACKING_URI"):
        parse_config(TrackingConfig, {"uri": "http://me:hunter2@host"})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hunter2@127.0.0.1:1/")
    with pytest.raises(TrackingError) as failed:
        Tracker.open(TrackingConfig(), str(tmp_path), "a")
    assert "hunter2" not in str(failed.value)


@pytest.mark.parametrize("user", ["", "me:hunter2@"])
def test_a_server_is_reached_with_credentials_in_its_address_and_without(user: str) -> None:
    asked = []

    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(401)

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Server) as server:
        Thread(target=server.handle_request, daemon=True).start()
        check_reachable(f"http://{user}127.0.0.1:{server.server_port}/mlflow/")
    assert asked == ["/mlflow/health"]


def test_a_password_is_not_taken_for_a_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: (_ for _ in ()).throw(ConnectionRefusedError()))
    with pytest.raises(TrackingError, match=r"http://\*\*\*@host cannot be reached"):
        check_reachable("http://me:hunter2@host")


def test_data_is_recorded_as_a_dataset_and_other_data_is_refused(storage: str, tracking: TrackingConfig) -> None:
    facts = {"hash": "ab" * 32, "source": "/data/easy-vqa/tars", "counts": {"train": 9}, "quarantine": {"bad_json": 1}}
    tracker = Tracker.open(tracking, storage, "data")
    for _ in range(2):
        tracker.log_data(facts)
    tracker.log_data({**facts, "hash": "cd" * 32}, context="test")
    run = connect_to_store(tracker.handle.uri).get_run(tracker.run_id)
    assert run.inputs is not None
    first, second = sorted(run.inputs.dataset_inputs, key=lambda found: str(found.dataset.digest))
    assert (first.dataset.name, first.dataset.digest) == ("tars", "ab" * 18)
    assert json.loads(first.dataset.profile or "")["quarantine"] == {"bad_json": 1}
    assert json.loads(first.dataset.source) == {"uri": "/data/easy-vqa/tars"}
    assert [(tag.key, tag.value) for tag in second.tags] == [("mlflow.data.context", "test")]
    assert run.data.tags["data.training.hash"] == "ab" * 32
    with pytest.raises(TrackingError, match=r"training data .*: abab.* -> efef"):
        tracker.log_data({**facts, "hash": "ef" * 32})


def test_pictures_tables_and_files_are_stored(storage: str, tracking: TrackingConfig, tmp_path: Path) -> None:
    figure = Figure()
    figure.subplots().plot([1, 2])
    (tmp_path / "note.txt").write_text("hello")
    with Tracker.open(tracking, storage, "files") as tracker:
        tracker.log_figure(figure, "pictures/curves.png")
        for _ in range(2):
            tracker.log_table([{"question": 'a "b", c', "answer": "yes"}], "tables/examples.csv")
        tracker.log_artifact(tmp_path / "note.txt", "notes")
    folder = artifacts_of(tracker)
    assert (folder / "pictures" / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "tables" / "examples.csv").read_text() == 'question,answer\n"a ""b"", c",yes\n'
    assert (folder / "notes" / "note.txt").read_text() == "hello"
    assert folder.is_relative_to(Path(storage) / "mlartifacts")


def test_the_load_of_the_machine_is_recorded_and_continued(storage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    driver = Tracker.open(TrackingConfig(), storage, "load")
    key = "system/cpu_utilization_percentage"

    def wait_for(count: int) -> list[int]:
        for _ in range(600):
            if len(lines := lines_of(driver, key)) >= count:
                return [step for step, _ in lines]
            time.sleep(0.1)
        raise AssertionError(f"{count} lines of {key} were not written")

    with Tracker.attach(driver.handle, UnsentMetrics(storage)):
        wait_for(2)
    before = len(lines_of(driver, key))
    with Tracker.attach(driver.handle, UnsentMetrics(storage)):
        steps = wait_for(before + 2)
    assert len(set(steps)) == len(steps)
    assert driver.history() == []
    driver.close()


def test_a_metric_name_that_mlflow_refuses_is_refused_at_once(storage: str, tracking: TrackingConfig) -> None:
    with Tracker.open(tracking, storage, "names") as tracker, pytest.raises(TrackingError, match="metric name 'a,b'"):
        tracker.log_metrics({"a,b": 1.0}, 1)


def test_a_server_that_does_not_answer_is_reported_with_the_remedy(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with pytest.raises(TrackingError, match=rf"http://127\.0\.0\.1:{port} cannot be reached.*start the server"):
        Tracker.open(TrackingConfig(uri=f"http://127.0.0.1:{port}"), str(tmp_path), "a")
    with pytest.raises(TrackingError, match=r"postgresql://127\.0\.0\.1.*cannot be reached"):
        Tracker.open(TrackingConfig(uri=f"postgresql://127.0.0.1:{port}/mlflow"), str(tmp_path), "a")


def test_a_database_that_is_none_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "mlflow.db").write_bytes(b"not a database, but long enough to be taken for one" * 50)
    with pytest.raises(TrackingError, match=r"mlflow\.db cannot be reached: file is not a database; .*damaged file"):
        Tracker.open(TrackingConfig(), str(tmp_path), "a")
    (tmp_path / "file").write_text("")
    with pytest.raises(TrackingError, match="choose a storage folder"):
        Tracker.open(TrackingConfig(), str(tmp_path / "file"), "a")


def test_a_deleted_experiment_is_reported(storage: str, tracking: TrackingConfig) -> None:
    tracker = Tracker.open(tracking, storage, "a")
    client = connect_to_store(tracker.handle.uri)
    experiment = client.get_run(tracker.run_id).info.experiment_id
    client.delete_experiment(experiment)
    with pytest.raises(TrackingError, match=f"'vlmodel' was deleted; restore it .*-x {experiment}"):
        Tracker.open(tracking, storage, "a")


class Outage:
    """Makes a store unreachable, and reachable again."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.error: Exception | None = None
        self._check = check_reachable
        for module in (metric_writer, store, tracker_module):
            monkeypatch.setattr(module, "check_reachable", self)

    def __call__(self, uri: str) -> None:
        if self.error is not None:
            raise self.error
        self._check(uri)


@pytest.fixture
def outage(monkeypatch: pytest.MonkeyPatch) -> Outage:
    return Outage(monkeypatch)


def test_metrics_of_an_outage_wait_and_are_recorded_when_the_store_is_back(
    storage: str, tracking: TrackingConfig, outage: Outage, caplog: pytest.LogCaptureFixture
) -> None:
    driver = Tracker.open(tracking, storage, "outage")
    worker = Tracker.attach(driver.handle, UnsentMetrics(f"{storage}/outage"))
    worker.log_metrics({"loss": 1.0}, 1)
    worker.flush()
    outage.error = TrackingError("nobody answers")
    for step in (2, 3):
        worker.log_metrics({"loss": 1 / step}, step)
        worker.persist()
    assert len(list(Path(storage, "outage", "waiting").iterdir())) == 1
    outage.error = None
    worker.flush()
    worker.persist()
    worker.close()
    worker._writer._queue._thread.join(60)
    assert lines_of(driver, "loss") == [(1, 1.0), (2, 1 / 2), (3, 1 / 3)]
    assert list(Path(storage, "outage", "waiting").iterdir()) == []
    told = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert [line.partition(",")[0] for line in told] == [
        "metrics are not recorded for now",
        "metrics are recorded again",
    ]
    driver.close()


def test_metrics_of_an_outage_outlive_the_worker_and_the_training(
    storage: str, tracking: TrackingConfig, outage: Outage
) -> None:
    driver = Tracker.open(tracking, storage, "killed")
    outage.error = TrackingError("nobody answers")
    worker = Tracker.attach(driver.handle, UnsentMetrics(f"{storage}/killed"))
    worker.log_metrics({"loss": 1.0}, 1)
    worker.persist()
    worker.log_metrics({"loss": 0.5}, 2)  # never persisted: a killed worker's step 2 is run again

    again = Tracker.attach(driver.handle, UnsentMetrics(f"{storage}/killed"))
    again.log_metrics({"loss": 0.5}, 2)
    again.close()
    patient = driver._writer._new_queue
    driver._writer._new_queue = lambda points: Impatient(patient(points))  # type: ignore[assignment, method-assign, misc]
    with pytest.raises(TrackingError, match="2 metric values are not written"):
        driver.log_unsent_metrics(UnsentMetrics(f"{storage}/killed"))
    outage.error = None
    driver._writer._new_queue = patient  # type: ignore[method-assign]
    driver.log_unsent_metrics(UnsentMetrics(f"{storage}/killed"))
    assert lines_of(driver, "loss") == [(1, 1.0), (2, 0.5)]
    driver.log_unsent_metrics(UnsentMetrics(f"{storage}/killed"))
    assert list(Path(storage, "killed", "waiting").iterdir()) == []
    worker._writer._queue.close()
    driver.close()


class Impatient:
    """A queue that is closed at once."""

    def __init__(self, queue: MetricQueue) -> None:
        self._queue = queue

    def close(self) -> None:
        self._queue.close(0.1)


def test_a_worker_begins_and_ends_while_the_database_is_locked(storage: str, tracking: TrackingConfig) -> None:
    driver = Tracker.open(tracking, storage, "locked")
    database = sqlite3.connect(f"{storage}/mlflow.db", isolation_level=None)
    database.execute("BEGIN EXCLUSIVE")
    worker = Tracker.attach(driver.handle, UnsentMetrics(f"{storage}/locked"))
    worker.log_metrics({"loss": 1.0}, 1)
    worker.persist()
    assert len(list(Path(storage, "locked", "waiting").iterdir())) == 1
    database.execute("ROLLBACK")
    database.close()
    worker.close()
    driver.log_unsent_metrics(UnsentMetrics(f"{storage}/locked"))
    assert lines_of(driver, "loss") == [(1, 1.0)]
    driver.close()


def test_a_locked_database_is_not_taken_for_a_damaged_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def locked(_: Path) -> None:
        raise sqlite3.OperationalError("database is locked")

    monkeypatch.setattr(tracking_address, "_check_sqlite", locked)
    with pytest.raises(TrackingError, match=r"held by another process \(see which: lsof .*m\.db\)"):
        check_reachable(f"sqlite:///{tmp_path}/m.db")


def test_an_error_of_a_database_is_told_without_its_statement() -> None:
    text = "(sqlite3.OperationalError) database or disk is full\n[SQL: INSERT INTO metrics]\n[parameters: [(1, 2)" * 99
    with pytest.raises(TrackingError) as failed, store.mlflow_errors("write metrics"):
        raise MlflowException(text)
    assert str(failed.value) == "could not write metrics: (sqlite3.OperationalError) database or disk is full"


def test_a_store_that_comes_back_is_waited_for(
    outage: Outage, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    outage.error = TrackingError("nobody answers")
    with pytest.raises(TrackingError, match="nobody answers"):
        wait_until_reachable("http://server", 0.0)
    monkeypatch.setattr(time, "sleep", lambda _: setattr(outage, "error", None))
    wait_until_reachable(f"sqlite:///{tmp_path}/m.db", 60.0)
    assert capsys.readouterr().out == "tracking  waits up to 60 s: nobody answers\n"


@pytest.mark.timeout(600)
def test_two_that_make_the_database_at_once_both_have_it(tmp_path: Path) -> None:
    program = "import sys; from pipelines.tracking.address import TrackingConfig\n"
    program += "from pipelines.tracking.tracker import Tracker\n"
    program += "print(Tracker.open(TrackingConfig(), sys.argv[1], sys.argv[2]).run_id)"
    jobs = [
        subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "runs"), name], cwd=REPOSITORY, text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=without_address())
        for name in ("a", "b")
    ]  # fmt: skip
    outputs = [job.communicate(timeout=500) for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], outputs
    assert outputs[0][0] != outputs[1][0]


def without_address() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}


def test_the_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    assert tracking_uri(TrackingConfig(), "build/runs") == f"sqlite:///{tmp_path}/build/runs/mlflow.db"
    assert tracking_uri(TrackingConfig(uri="sqlite:///a.db"), "s3://bucket/runs") == f"sqlite:///{tmp_path}/a.db"
    with pytest.raises(TrackingError, match=r"storage 's3://bucket/runs' is not a local folder.*set tracking\.uri"):
        tracking_uri(TrackingConfig(), "s3://bucket/runs")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert tracking_uri(TrackingConfig(), "build/runs") == "http://server:5000"


def test_the_null_tracker_takes_every_call_of_the_tracker() -> None:
    calls = {name: call for name, call in inspect.getmembers(Tracker, inspect.isfunction) if not name.startswith("_")}
    assert {"log_params", "log_data", "log_metrics", "log_figure", "log_table", "flush", "close"} <= calls.keys()
    for name, call in calls.items():
        assert inspect.signature(getattr(NullTracker, name)) == inspect.signature(call), name
    with NullTracker() as tracker:
        tracker.log_metrics({"loss": 1.0}, 1)


def test_the_module_does_not_import_mlflow_before_it_is_needed() -> None:
    program = "import sys, pipelines.tracking.tracker; print('mlflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "False", done.stderr
