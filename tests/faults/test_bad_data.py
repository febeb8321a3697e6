"""Drill: too much of the data is bad; the index job ends with a report, and nothing can train on it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.faults.trainings import command, places
from tests.jobs.conftest import ROOT
from tests.pipelines.data.tar_maker import photo, samples, write_tar


def job(name: str, folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(name, *places(folder), *overrides), cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("bad", "good", "overrides", "says"),
    [
        (4, 196, [], "has faults in 4 of 200 samples (2.0%), above data.index.max_quarantine_fraction = 0.01"),
        (100, 100, ["data.index.max_quarantine_fraction=0.9"], "has 100 faults in a row"),
    ],
    ids=["2 percent", "100 in a row"],
)
def test_too_many_faults_stop_before_training(
    bad: int, good: int, overrides: list[str], says: str, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    cut = [(f"bad{n}.jpg", photo(n)[:300]) if member == "jpg" else (f"bad{n}.txt", b"a picture")
           for n in range(bad) for member in ("jpg", "txt")]  # fmt: skip
    write_tar(tmp_path / "data", "train-000000.tar", [*samples(range(good)), *cut])
    indexed = job("index", tmp_path, *overrides)
    assert indexed.returncode == 1
    assert says in indexed.stderr
    assert f"truncated_image{bad:>15,}" in indexed.stderr
    assert "train-000000.tar bad0.jpg at byte" in indexed.stderr
    assert "Traceback" not in indexed.stderr

    trained = job("train", tmp_path, "name=never")
    assert trained.returncode == 1
    assert "run the index job" in trained.stderr
    assert not (tmp_path / "runs" / "never").exists()
