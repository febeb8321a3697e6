from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

from pipelines.data.importers.uea import Config
from pipelines.errors import DataError

HEAD = "# a comment\n@problemName Tiny\n@timeStamps false\n@classLabel true up down\n@data\n"
ARCHIVE = Path(__file__).resolve().parents[5] / "shared" / "data" / "uea-timeseries"


def test_lines_are_samples(tmp_path: Path, read_all) -> None:
    (tmp_path / "Tiny_TRAIN.ts").write_text(HEAD + "1,2,3:4,5,6:up\n1,?:2,3:up\n1,2:3:down\n1,x:2,3:down\n")
    (tmp_path / "Tiny_TEST.ts").write_text(HEAD + "0,1:-1,2.5:down\n")
    records, rejects = read_all(Config(folder=str(tmp_path)))
    assert {key: (one.split, one.texts.label) for key, one in records.items()} == {
        "Tiny_TEST-000000": ("test", "down"), "Tiny_TRAIN-000000": ("train", "up"),
    }  # fmt: skip
    data, extension = records["Tiny_TRAIN-000000"].inputs["series"]
    assert extension == "npy"
    assert np.load(io.BytesIO(data)).tolist() == [[1, 4], [2, 5], [3, 6]]
    assert [reject.reason for reject in rejects] == ["not_finite_series", "wrong_shape_series", "wrong_column_series"]


@pytest.mark.parametrize("head", ["@data\n", HEAD.replace("timeStamps false", "timeStamps true"), "nothing"])
def test_other_files_are_refused(tmp_path: Path, head: str) -> None:
    (tmp_path / "Tiny_TRAIN.ts").write_text(head + "1:up\n")
    with pytest.raises(DataError, match=r"Tiny_TRAIN\.ts has"):
        Config(folder=str(tmp_path)).read()


@pytest.mark.skipif(not ARCHIVE.is_dir(), reason=f"{ARCHIVE} is not there")
def test_the_archive(read_all) -> None:
    records, rejects = read_all(Config(folder=str(ARCHIVE / "BasicMotions")))
    assert rejects == []
    assert len(records) == 80
    assert {one.texts.label for one in records.values()} == {"Standing", "Running", "Walking", "Badminton"}
