"""The database of the tracking store: made whole, or not at all."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import mlflow
import pytest

from pipelines.errors import find_expected_cause, message_for_user
from pipelines.tracking.store import connect_to_store


def test_a_database_whose_making_was_cut_off_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"

    def fail(**_: str) -> None:
        # Some of the tables are there: MLflow alone could not go on with them.
        with sqlite3.connect(tmp_path / "mlflow.db.unfinished") as database:
            database.execute("CREATE TABLE experiments (experiment_id INTEGER)")
        raise RuntimeError("a store failed") from _full_disk(tmp_path)

    with monkeypatch.context() as patch:
        patch.setattr(mlflow, "MlflowClient", fail)
        with pytest.raises(RuntimeError) as refused:
            connect_to_store(uri)
    known = find_expected_cause(refused.value)
    assert known is not None
    assert message_for_user(known).startswith("database or disk is full; make room and start the job again")
    assert not (tmp_path / "mlflow.db").stat().st_size

    experiments = connect_to_store(uri).search_experiments()
    assert [experiment.name for experiment in experiments] == ["Default"]
    assert sorted(path.name for path in tmp_path.glob("mlflow*")) == ["mlflow.db"]


def _full_disk(folder: Path) -> sqlite3.Error:
    """sqlite's own error where there is no room."""
    database = sqlite3.connect(folder / "small.db")
    database.execute("PRAGMA max_page_count = 2")
    database.execute("CREATE TABLE rows (text TEXT)")
    try:
        database.execute("INSERT INTO rows VALUES (?)", ("x" * 100_000,))
    except sqlite3.Error as error:
        return error
    finally:
        database.close()
    raise AssertionError("it had room")
