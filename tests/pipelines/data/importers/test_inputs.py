"""Inputs other than images and texts: columns of a table that name files, and files beside the images of a folder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from pipelines.data.importers import folder, table
from pipelines.data.importing.run import REJECTS, import_data
from pipelines.errors import DataError
from tests.pipelines.data.tar_maker import members_of, photo, series
from vlmodel.config import ConfigError, parse_config

TEXT_OF = {"imu": "imu_file", "left": "left_file"}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Images, series and further images, and a table that names them."""
    root = tmp_path / "source"
    (root / "imu").mkdir(parents=True)
    for number in range(3):
        (root / f"{number}.jpg").write_bytes(photo(number))
        (root / "imu" / f"{number}.npy").write_bytes(series(number))
        (root / f"{number}l.png").write_bytes(photo(10 + number, form="PNG"))
    return root


def a_table(root: Path, *rows: dict[str, Any], name: str = "t.jsonl") -> str:
    (root / name).write_text("\n".join(map(json.dumps, rows)))
    return str(root / name)


def test_columns_of_a_table_name_files(source: Path, tmp_path: Path, read_all: Callable[..., Any]) -> None:
    file = a_table(
        source,
        {"image": "0.jpg", "imu_file": "imu/0.npy", "left_file": "0l.png", "caption": "a"},
        {"image": "0.jpg", "imu_file": "imu/0.npy", "left_file": "0l.png", "caption": "b"},
        {"image": "1.jpg", "imu_file": None, "left_file": "", "caption": "c"},
    )
    config = table.Config(file=file, inputs=["image", "text", "imu?", "left?"], columns=TEXT_OF)
    records, rejects = read_all(config)
    assert rejects == []
    assert records["0"].inputs == {
        "image": (photo(0), "jpg"), "imu": (series(0), "npy"), "left": (photo(10, form="PNG"), "png"),
    }  # fmt: skip
    assert records["0"].texts.captions == ("a", "b")
    assert records["1"].inputs == {"image": (photo(1), "jpg")}
    before = config.fingerprint()
    (source / "imu" / "0.npy").write_bytes(series(99, (40, 3)))
    assert config.fingerprint() != before

    summary = import_data(config, tmp_path / "out", progress=False)
    assert summary.splits["train"].inputs == {"imu": 1, "left": 1}
    assert import_data(config, tmp_path / "out", progress=False).splits == summary.splits, "as the manifest has it"
    written = members_of(tmp_path / "out" / "train-000000.tar")
    assert list(written) == ["0.jpg", "0.imu.npy", "0.left.png", "0.json", "1.jpg", "1.json"]
    assert written["0.imu.npy"] == series(99, (40, 3))


def test_rows_without_an_image_where_it_may_be_missing(source: Path, read_all: Callable[..., Any]) -> None:
    file = a_table(
        source,
        {"image": "0.jpg", "imu_file": "imu/0.npy", "caption": "a"},
        {"imu_file": "imu/1.npy"},
        {"imu_file": "imu/2.npy", "key": "two"},
    )
    config = table.Config(file=file, inputs=["image?", "text?", "imu"], columns={"imu": "imu_file"})
    records, rejects = read_all(config)
    assert rejects == []
    assert {key: set(record.inputs) for key, record in records.items()} == {
        "0": {"image", "imu"}, "t-00000002": {"imu"}, "two": {"imu"},
    }  # fmt: skip
    alone, rejects = read_all(table.Config(file=file, inputs=["imu"], columns={"imu": "imu_file"}))
    assert rejects == []
    assert [set(record.inputs) for record in alone.values()] == [{"imu"}] * 3


def test_a_file_that_cannot_be_read_costs_its_sample(source: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.npy").write_bytes(series(7))
    os.mkfifo(source / "pipe.npy")
    rows = [
        {"image": "0.jpg", "imu_file": "imu/9.npy"},
        {"image": "1.jpg", "imu_file": "../secret.npy"},
        {"image": "2.jpg", "imu_file": "pipe.npy"},
        {"image": "0l.png", "imu_file": "imu/0.pkl"},
        {"image": "1l.png", "imu_file": None},
        {"image": "2l.png", "imu_file": "imu/0.npy"},
        {"image": "2l.png", "imu_file": "imu/1.npy"},
    ]
    config = table.Config(file=a_table(source, *rows), inputs=["image", "imu"], columns={"imu": "imu_file"})
    summary = import_data(config, tmp_path / "out", progress=False)
    assert summary.splits["train"].samples == 1
    assert summary.rejected == {"bad_schema": 1, "missing_imu": 2, "unknown_member": 1, "unsafe_member": 2}
    rejects = [json.loads(line) for line in (tmp_path / "out" / REJECTS).read_text().splitlines()]
    details = " ".join(reject["detail"] for reject in rejects)
    assert "'../secret.npy' leads out of" in details
    assert "is in imu 'imu/0.npy' by another row, 'imu/1.npy' by this one" in details


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_columns_of_a_table_are_rows_of_values(
    form: str, source: Path, tmp_path: Path, read_all: Callable[..., Any]
) -> None:
    columns = {
        "image": ["0.jpg", "1.jpg", "2.jpg", "0l.png"],
        "age": [41, 2.5, None, None],
        "code": ["007", "B", "-1e3", ""],
        "left": [True, None, False, None],
    }
    file = source / f"t.{form}"
    rows = [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]
    if form == "parquet":
        pyarrow.parquet.write_table(pyarrow.table(columns), file)
    elif form == "jsonl":
        a_table(source, *rows)
    else:
        lines = [",".join("" if cell is None else str(cell) for cell in row.values()) for row in rows]
        file.write_text("\n".join([",".join(columns), *lines]))
    config = table.Config(file=str(file), inputs=["image", "row?"], rows={"row": ["age", "code", "left"]})
    records, rejects = read_all(config)
    assert rejects == []
    assert {key: json.loads(r.inputs["row"][0]) for key, r in records.items() if "row" in r.inputs} == {
        "0": {"age": 41, "code": "007", "left": True},
        "1": {"age": 2.5, "code": "B", "left": None},
        "2": {"age": None, "code": -1000.0, "left": False},
    }
    import_data(config, tmp_path / "out", progress=False)
    assert "0.row.json" in members_of(tmp_path / "out" / "train-000000.tar")


def test_values_that_a_row_cannot_have(source: Path, read_all: Callable[..., Any]) -> None:
    file = a_table(
        source,
        {"image": "0.jpg", "age": [1, 2]},
        {"image": "1.jpg", "age": 1e999},
        {"image": "2.jpg", "age": 3},
        {"image": "2.jpg", "age": 4},
    )
    records, rejects = read_all(table.Config(file=file, inputs=["image", "row"], rows={"row": ["age"]}))
    assert list(records) == ["2"]
    assert [reject.reason for reject in rejects] == ["bad_schema", "not_finite_row", "bad_schema"]
    for columns in ([], ["age", "age"]):
        with pytest.raises(ConfigError, match=r"name its columns, each once"):
            parse_config(table.Config, {"file": file, "inputs": ["image", "row"], "rows": {"row": columns}})
    (source / "t.csv").write_text("image,age\n0.jpg,1\n")
    config = table.Config(file=str(source / "t.csv"), inputs=["image", "row"], rows={"row": ["size"]})
    with pytest.raises(DataError, match=r"has 0 columns 'size' \(source\.rows\.row\); its columns are"):
        config.read()


def test_columns_and_inputs_name_the_same(source: Path) -> None:
    file = a_table(source, {"image": "0.jpg", "caption": "a"})
    for settings in ({"inputs": ["image", "imu"]}, {"columns": {"imu": "imu_file"}}):
        with pytest.raises(ConfigError, match="each input but image and text needs a column"):
            parse_config(table.Config, {"file": file, **settings})
    (source / "t.csv").write_text("image,caption\n0.jpg,a\n")
    config = table.Config(file=str(source / "t.csv"), inputs=["image", "imu"], columns={"imu": "imu_file"})
    with pytest.raises(DataError, match=r"has 0 columns 'imu_file' \(source\.columns\.imu\); its columns are"):
        config.read()


def test_files_beside_the_images_of_a_folder(tmp_path: Path) -> None:
    root = tmp_path / "source"
    (root / "deep").mkdir(parents=True)
    (root / "a.jpg").write_bytes(photo(0))
    (root / "a.IMU.npy").write_bytes(series(0))
    (root / "a.left.png").write_bytes(photo(1, form="PNG"))
    (root / "deep" / "b.jpg").write_bytes(photo(2))
    (root / "deep" / "b.imu.csv").write_bytes(b"1,2\n")
    (root / "deep" / "c.jpg").write_bytes(photo(3))
    (root / "deep" / "a.imu.npy").write_bytes(series(9))
    (root / "notes.md").write_text("x")
    config = folder.Config(folder=str(root), inputs=["image", "imu?", "left?"])
    before = config.fingerprint()
    summary = import_data(config, tmp_path / "out", progress=False)
    written = members_of(tmp_path / "out" / "train-000000.tar")
    assert written == {
        "a.jpg": photo(0), "a.imu.npy": series(0), "a.left.png": photo(1, form="PNG"), "deep/b.jpg": photo(2),
        "deep/b.imu.csv": b"1,2\n", "deep/c.jpg": photo(3),
    }  # fmt: skip
    assert summary.passed_over == {".md files": 1, ".npy files": 1}
    (root / "a.IMU.npy").write_bytes(series(5, (7, 3)))
    assert config.fingerprint() != before


def test_files_beside_that_are_needed_or_are_two(tmp_path: Path) -> None:
    root = tmp_path / "source"
    root.mkdir()
    for name in ("a", "b", "c"):
        (root / f"{name}.jpg").write_bytes(photo(ord(name)))
    (root / "a.imu.npy").write_bytes(series(0))
    (root / "b.imu.npy").write_bytes(series(0))
    (root / "b.imu.csv").write_bytes(b"1,2\n")
    summary = import_data(folder.Config(folder=str(root), inputs=["image", "imu"]), tmp_path / "out", progress=False)
    assert list(members_of(tmp_path / "out" / "train-000000.tar")) == ["a.jpg", "a.imu.npy"]
    assert summary.rejected == {"duplicate_key": 1, "missing_imu": 1}
