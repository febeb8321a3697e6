"""Lines that tracking has not taken outlive the process that logged them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from pipelines.tracking.metric_queue import MetricPoint
from pipelines.tracking.unsent_metrics import UnsentMetrics

LINES = [
    MetricPoint("train/loss", 0.1, 4, 1000),
    MetricPoint("train/loss", math.inf, 8, 2000),
    MetricPoint("a b", -0.0, 8, 2000),
]


def test_a_new_process_reads_what_previous_ones_left_and_takes_it_over(tmp_path: Path) -> None:
    first = UnsentMetrics(str(tmp_path))
    assert first.read() == []
    first.write(LINES[:2])
    first.write(LINES[:1])
    second = UnsentMetrics(str(tmp_path))
    assert second.read() == LINES[:1]
    second.write(LINES)
    assert len(list((tmp_path / "waiting").iterdir())) == 1
    third = UnsentMetrics(str(tmp_path))
    assert third.read() == LINES
    third.write([])
    assert list((tmp_path / "waiting").iterdir()) == []


def test_a_line_that_was_kept_twice_is_read_once(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        UnsentMetrics(str(tmp_path)).write([MetricPoint("loss", value, 3, 10)])
    assert len(UnsentMetrics(str(tmp_path)).read()) == 1


@pytest.mark.parametrize("row", ["", "{", "[1]", '["loss", "x", 1, 2]', '{"a": 1}', "null"])
def test_a_damaged_line_is_passed_over(tmp_path: Path, row: str) -> None:
    (tmp_path / "waiting").mkdir()
    (tmp_path / "waiting" / "1-1.jsonl").write_text(f'{row}\n["loss", 0.5, 3, 10]\n')
    assert UnsentMetrics(str(tmp_path)).read() == [MetricPoint("loss", 0.5, 3, 10)]


def test_what_cannot_be_written_leaves_what_was_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    UnsentMetrics(str(tmp_path)).write(LINES)
    again = UnsentMetrics(str(tmp_path))
    again.read()
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        again.write(LINES[:1])
    monkeypatch.undo()
    assert UnsentMetrics(str(tmp_path)).read() == LINES
    assert len(list((tmp_path / "waiting").iterdir())) == 1, "what could not be finished is removed"
