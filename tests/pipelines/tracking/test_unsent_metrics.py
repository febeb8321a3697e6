"""Lines that tracking has not taken outlive the process that logged them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from pipelines.tracking.metric_queue import Line
from pipelines.tracking.unsent_metrics import WaitingLines

LINES = [Line("train/loss", 0.1, 4, 1000), Line("train/loss", math.inf, 8, 2000), Line("a b", -0.0, 8, 2000)]


def test_a_new_process_reads_what_former_ones_left_and_takes_it_over(tmp_path: Path) -> None:
    first = WaitingLines(str(tmp_path))
    assert first.read() == []
    first.keep(LINES[:2])
    first.keep(LINES[:1])
    second = WaitingLines(str(tmp_path))
    assert second.read() == LINES[:1]
    second.keep(LINES)
    assert len(list((tmp_path / "waiting").iterdir())) == 1
    third = WaitingLines(str(tmp_path))
    assert third.read() == LINES
    third.keep([])
    assert list((tmp_path / "waiting").iterdir()) == []


def test_a_line_that_was_kept_twice_is_read_once(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        WaitingLines(str(tmp_path)).keep([Line("loss", value, 3, 10)])
    assert len(WaitingLines(str(tmp_path)).read()) == 1


@pytest.mark.parametrize("row", ["", "{", "[1]", '["loss", "x", 1, 2]', '{"a": 1}', "null"])
def test_a_damaged_line_is_passed_over(tmp_path: Path, row: str) -> None:
    (tmp_path / "waiting").mkdir()
    (tmp_path / "waiting" / "1-1.jsonl").write_text(f'{row}\n["loss", 0.5, 3, 10]\n')
    assert WaitingLines(str(tmp_path)).read() == [Line("loss", 0.5, 3, 10)]


def test_what_cannot_be_written_leaves_what_was_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    WaitingLines(str(tmp_path)).keep(LINES)
    again = WaitingLines(str(tmp_path))
    again.read()
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        again.keep(LINES[:1])
    monkeypatch.undo()
    assert WaitingLines(str(tmp_path)).read() == LINES
    assert len(list((tmp_path / "waiting").iterdir())) == 1, "what could not be finished is removed"
