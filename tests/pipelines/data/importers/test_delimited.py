from __future__ import annotations

import csv
import io
import os
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipelines.data.importers._delimited import open_text_file, read_csv_rows, split_line_into_cells
from pipelines.data.tars.errors import FaultReason, SampleError
from pipelines.errors import DataError

_TEXT = st.text(
    st.one_of(st.sampled_from("\",;|\t\r\n '\\a"), st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
)


def _read(text: str, delimiter: str = ",", **settings: object) -> list[tuple[int, list[str] | str]]:
    rows = read_csv_rows(io.StringIO(text, newline=""), delimiter, **settings)  # type: ignore[arg-type]
    return [(number, str(row.reason) if isinstance(row, SampleError) else row) for number, row in rows]


@given(
    st.lists(st.lists(_TEXT, min_size=1, max_size=4), max_size=6),
    st.sampled_from(",;|\t"),
    st.sampled_from(["\r\n", "\n", "\r"]),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)
@example([["a"], ['x\n2.jpg,"y"'], ["\r", ""]], ",", "\n", csv.QUOTE_MINIMAL)
def test_what_csv_writes_is_read_again(rows: list[list[str]], delimiter: str, end: str, quoting: int) -> None:
    # csv does not quote a carriage return where it is not part of its own line end.
    quoting = csv.QUOTE_ALL if any("\r" in cell or "\n" in cell for row in rows for cell in row) else quoting
    out = io.StringIO(newline="")
    csv.writer(out, delimiter=delimiter, lineterminator=end, quoting=quoting).writerows(rows)  # type: ignore[arg-type]
    assert [row for _, row in _read(out.getvalue(), delimiter)] == rows


@given(st.lists(st.text(st.sampled_from('",a \n')), max_size=12), st.sampled_from(",\t"))
def test_each_line_is_read_once(lines: list[str], delimiter: str) -> None:
    text = "\n".join(lines)
    rows = _read(text, delimiter)
    numbers = [number for number, _ in rows]
    assert numbers == sorted(set(numbers))
    # No letter is lost or read twice, but those of rows that are refused.
    letters = sum("".join(row).count("a") for _, row in rows if not isinstance(row, str))
    physical = text.split("\n")
    refused = sum(physical[number - 1].count("a") for number, row in rows if isinstance(row, str))
    assert letters + refused == text.count("a")


def test_a_mark_that_does_not_close_costs_its_own_line() -> None:
    text = '1,"half\n2,a "red" door\n3,"stop" he said\n4,"so, ""quoted"""\n5,"two\nlines"\n\n6,"open\n7,end\n'
    assert _read(text) == [
        (1, "bad_schema"),
        (2, ["2", 'a "red" door']),
        (3, "bad_schema"),
        (4, ["4", 'so, "quoted"']),
        (5, ["5", "two\nlines"]),
        (8, "bad_schema"),
        (9, ["7", "end"]),
    ]


def test_between_tabs_a_mark_that_does_not_enclose_the_cell_is_text() -> None:
    text = '1\t"half\n2\t"a" door\n3\t"whole"\n4\t"two\nlines"\n5\t"tab\tinside"\n6\t"open\n'
    assert _read(text, "\t") == [
        (1, ["1", '"half']),
        (2, ["2", '"a" door']),
        (3, ["3", "whole"]),
        (4, ["4", "two\nlines"]),
        (6, ["5", "tab\tinside"]),
        (7, ["6", '"open']),
    ]


def test_a_mark_that_closes_in_another_row() -> None:
    text = '1.jpg,"half\n2.jpg,cat\n3.jpg,it is 5"\n4.jpg,"two, and\nthree"\n'

    def is_row(cells: list[str]) -> bool:
        return len(cells) == 2 and cells[0].endswith(".jpg")

    assert _read(text) == [(1, ["1.jpg", "half\n2.jpg,cat\n3.jpg,it is 5"]), (4, ["4.jpg", "two, and\nthree"])]
    assert _read(text, is_row=is_row) == [
        (1, "bad_schema"),
        (2, ["2.jpg", "cat"]),
        (3, ["3.jpg", 'it is 5"']),
        (4, ["4.jpg", "two, and\nthree"]),
    ]


def test_a_cell_of_too_many_letters() -> None:
    text = "a," + "x" * 200_000 + '\nb,"' + "y" * 200_000 + '"\nc,"\n' + "z\n" * 100_000
    assert _read(text) == [
        (1, "bad_schema"),
        (2, "bad_schema"),
        (3, "bad_schema"),
        *((number, ["z"]) for number in range(4, 100_004)),
    ]


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"a,caf\xe9\nb,nul\0\nc,\xef\xbf\xbd\n")
    with open_text_file(tmp_path / "t.csv") as lines:
        rows = [row for _, row in read_csv_rows(lines, ",")]
    assert isinstance(rows[0], SampleError)
    assert isinstance(rows[1], SampleError)
    assert "save the file as UTF-8 (or name a table's source.encoding)" in rows[0].detail
    assert (rows[0].reason, rows[1].reason, rows[2]) == (FaultReason.BAD_UTF8, FaultReason.BAD_UTF8, ["c", "\ufffd"])


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le", "utf-16-be", "utf-16-le BOM", "utf-16-be BOM"]
)
def test_encodings_that_show(tmp_path: Path, encoding: str) -> None:
    name, mark = encoding.partition(" ")[::2]
    text = "image,caption\r\n0.jpg,Straße\r\n"
    (tmp_path / "t.csv").write_bytes(("\ufeff" * bool(mark) + text).encode(name))
    with open_text_file(tmp_path / "t.csv") as lines:
        assert [row for _, row in read_csv_rows(lines, ",")] == [["image", "caption"], ["0.jpg", "Straße"]]


def test_a_broken_utf16_costs_its_row(tmp_path: Path) -> None:
    data = "a,b\nc,X\nd,e\n".encode("utf-16-le").replace("X".encode("utf-16-le"), b"\x00\xd8")
    (tmp_path / "t.csv").write_bytes(b"\xff\xfe" + data + b"\x41")
    with open_text_file(tmp_path / "t.csv") as lines:
        rows = [row for _, row in read_csv_rows(lines, ",")]
    assert (rows[0], rows[2]) == (["a", "b"], ["d", "e"])
    assert [isinstance(row, SampleError) for row in rows] == [False, True, False, True]


def test_what_is_no_text_file(tmp_path: Path) -> None:
    for start in (b"PK\3\4", b"\x1f\x8b\x08", b"PAR1", b"\xd0\xcf\x11\xe0"):
        (tmp_path / "t.csv").write_bytes(start + bytes(100))
        with pytest.raises(DataError, match="is no text but an archive, a spreadsheet or Parquet; save it as CSV"):
            open_text_file(tmp_path / "t.csv")
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(DataError, match="is a pipe, socket, device or folder"):
        open_text_file(tmp_path / "pipe.csv")


def test_cells_of_one_line() -> None:
    assert split_line_into_cells('a,"b,c"', ",") == ["a", "b,c"]
    assert split_line_into_cells('a,"b', ",") == ["a", '"b']
    assert split_line_into_cells("", ",") == []
