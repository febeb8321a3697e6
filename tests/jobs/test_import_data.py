"""What the import job says of what it wrote."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.job import main
from tests.pipelines.data.tar_maker import photo


@pytest.fixture
def table(tmp_path: Path) -> list[str]:
    (tmp_path / "said.csv").write_text("caption,question,answer\na dog,,\n,what is grass?,green\n,,\n")
    return ["source.kind=table", f"source.file={tmp_path / 'said.csv'}", f"data.tars={tmp_path / 'tars'}"]


def test_texts_alone_are_counted_and_the_next_setting_is_named(
    table: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main("import_data", [*table, "source.inputs=text"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert "import train: 2 samples, 1 questions, 1 captions" in shown
    assert "import left out: 1 missing_text" in shown
    assert shown[-1] == 'other jobs are told what these are by data.mix.NAME.inputs=["text"]'
    assert main("import_data", [*table, "source.inputs=text"]) == 0
    assert "import was complete already" in capsys.readouterr().out


def test_what_lacks_an_answer_and_what_is_passed_over_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "0.png").write_bytes(photo(0))
    (tmp_path / "1.png").write_bytes(photo(1))
    (tmp_path / "t.csv").write_text("image,question,reply\n0.png,what is it?,grass\n")
    table = ["source.kind=table", f"source.file={tmp_path / 't.csv'}", f"data.tars={tmp_path / 'tars'}"]
    assert main("import_data", table) == 0
    shown = capsys.readouterr().out.splitlines()
    assert "import train: 1 of these questions have no answer; source.answer names their column" in shown
    assert "import passed over: 1 images that nothing names" in shown


def test_a_table_of_texts_alone_is_no_table_of_pairs(table: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main("import_data", table) == 1
    assert "has no column 'image' (source.image)" in capsys.readouterr().err
    assert main("import_data", [*table, "source.inputs=Text"]) == 2
    assert "source.inputs: 'Text' is no name of an input" in capsys.readouterr().err
