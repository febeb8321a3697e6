"""What a run keeps of its data: it goes on with the versions of the indexes that it began with."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.data.index.build import build_index
from pipelines.data.index.config import IndexConfig
from pipelines.data.index.index import Index
from pipelines.errors import DataError
from pipelines.tracking.tracker import Tracker
from pipelines.workflows import training_data
from pipelines.workflows.config import JobConfig
from pipelines.workflows.workspace import Workspace
from tests.pipelines.data.tar_maker import samples, write_tar
from vlmodel.config import parse_config

pytestmark = pytest.mark.usefixtures("ray_local")


def grown(folder: Path, number: int) -> Index:
    """The index of the folder with one more tar."""
    folder.mkdir(exist_ok=True)
    write_tar(folder, f"train-{number}.tar", samples(range(10 * number, 10 * number + 10)))
    return build_index(str(folder), IndexConfig(validation_fraction=0.0))


def workspace(folder: Path, name: str = "kept") -> Workspace:
    mix = {"one": {"tars": str(folder / "one")}, "two": {"tars": str(folder / "two")}}
    data = {"tars": str(folder / "tars"), "mix": mix}
    return Workspace(parse_config(JobConfig, {"name": name, "storage": str(folder / "runs"), "data": data}))


class Recorded:
    """Of a tracked run, what data it was told of."""

    def __init__(self) -> None:
        self.data: list[dict[str, object]] = []

    def log_data(self, facts: dict[str, object]) -> None:
        self.data.append(facts)


def test_a_run_goes_on_with_the_versions_that_it_began_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work, tracker = workspace(tmp_path), Recorded()
    first = {name: grown(tmp_path / name, number).hash for number, name in enumerate(("tars", "one", "two"))}
    assert work.index_versions() == {}
    as_tracker: Tracker = tracker  # type: ignore[assignment]
    training_data.record_data(work, work.index(), as_tracker)
    assert work.index_versions() == {"": first["tars"], "one": first["one"], "two": first["two"]}
    assert capsys.readouterr().out == ""

    newest = {name: grown(tmp_path / name, 5 + number).hash for number, name in enumerate(("tars", "one", "two"))}
    judged = work.index()
    assert judged.hash == first["tars"]
    out = capsys.readouterr().out
    assert f"run kept continues with index {first['tars'][:12]} of {tmp_path / 'tars'}, with which it began" in out
    assert newest["tars"][:12] in out
    assert {name: index.hash for name, index in training_data.open_indexes(work, judged).items()} == {
        name: first[name] for name in ("one", "two")
    }
    training_data.record_data(work, judged, as_tracker)
    assert tracker.data[0] == tracker.data[1]
    of_newest = training_data.open_indexes(work, judged, newest=True)
    assert {name: index.hash for name, index in of_newest.items()} == {name: newest[name] for name in ("one", "two")}
    assert workspace(tmp_path, "another").index().hash == newest["tars"]


def test_versions_that_are_recorded_stay(tmp_path: Path) -> None:
    work = workspace(tmp_path)
    work.record_index_versions({"": "a" * 64})
    work.record_index_versions({"": "b" * 64, "one": "c" * 64})
    assert work.index_versions() == {"": "a" * 64, "one": "c" * 64}
    grown(tmp_path / "tars", 0)
    with pytest.raises(DataError, match=r"has no version aaaaaaaaaaaa of its index .* start under another name"):
        work.index()
