"""What two models answered: written whole by many, bounded, and read back without what is damaged."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipelines.records import comparisons
from pipelines.records.comparisons import (
    Comparison,
    ComparisonWriter,
    InvalidLine,
    ModelResult,
    TextPair,
    read_comparisons,
    text_hash,
)
from pipelines.records.corrections import SpoolFullError

DAY_NS = 86_400 * 10**9
ROOM = 1 << 20


def compared(number: int = 0, **changes: object) -> Comparison:
    fields: dict[str, object] = {
        "time_ns": number, "task": "vqa", "mode": "shadow", "model": "vqa", "image": "ab" * 32,
        "champion": ModelResult(version="1", seconds=0.25, confidence=0.5),
        "challenger": ModelResult(version="2", error="late"),
    }  # fmt: skip
    return Comparison.model_validate(fields | changes)


def test_what_is_written_is_read_by_day(tmp_path: Path) -> None:
    texts = (TextPair(asked=text_hash("what ?"), champion=text_hash("red"), challenger=text_hash("blue")),)
    first = [compared(n, texts=texts, agreement=0.0) for n in range(3)]
    second = [compared(DAY_NS + n, task="embed", image="", fallback=True) for n in range(2)]
    writer = ComparisonWriter(str(tmp_path / "kept"), ROOM)
    for one in (second[0], *first, second[1]):
        assert writer.add(one)
    writer.flush()
    writer.flush()
    assert list(read_comparisons(str(tmp_path / "kept"))) == first + second
    files = [file.relative_to(tmp_path / "kept") for file in tmp_path.rglob("*") if file.is_file()]
    assert sorted(file.parent.name for file in files) == ["1970-01-01", "1970-01-02"]
    assert {file.suffix for file in files} == {".jsonl"}, "nothing unfinished is left"


def test_no_two_writers_share_a_file(tmp_path: Path) -> None:
    writers = [ComparisonWriter(str(tmp_path), ROOM) for _ in range(3)]
    for number, writer in enumerate(writers * 2):
        writer.add(compared(number))
        writer.flush()
    assert sorted(one.time_ns for one in read_comparisons(str(tmp_path)) if isinstance(one, Comparison)) == list(
        range(6)
    )
    assert len(list(tmp_path.rglob("*.jsonl"))) == 6


def test_a_full_folder_takes_no_more_and_holds_what_it_has(tmp_path: Path) -> None:
    before = ComparisonWriter(str(tmp_path), ROOM)
    before.add(compared(1))
    before.flush()
    [file] = tmp_path.rglob("*.jsonl")
    size = file.stat().st_size
    writer = ComparisonWriter(str(tmp_path), 2 * size)
    writer.add(compared(2))
    writer.flush()
    writer.add(compared(3))
    with pytest.raises(SpoolFullError, match=rf"holds {2 * size} of {2 * size} bytes"):
        writer.flush()
    writer.flush()
    assert [one.time_ns for one in read_comparisons(str(tmp_path)) if isinstance(one, Comparison)] in ([1, 2], [2, 1])


def test_writers_share_one_limit_and_days_that_are_taken_away_make_room(tmp_path: Path) -> None:
    now = [0.0]
    first, second = (ComparisonWriter(str(tmp_path), 3000, lambda: now[0]) for _ in range(2))

    def fill(writer: ComparisonWriter) -> int:
        for count in range(1000):
            writer.add(compared(count))
            try:
                writer.flush()
            except SpoolFullError:
                return count
        raise AssertionError("it is never full")

    second.add(compared(0))
    second.flush()
    taken = fill(first)
    assert taken > 2
    now[0] = 61
    assert fill(second) == 0
    assert sum(file.stat().st_size for file in tmp_path.rglob("*.jsonl")) <= 3000
    shutil.rmtree(tmp_path / "1970-01-01")
    assert fill(second) == taken + 1


def test_a_writer_holds_only_so_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparisons, "_MAX_BUFFERED", 2)
    writer = ComparisonWriter(str(tmp_path), ROOM)
    assert [writer.add(compared(n)) for n in range(3)] == [True, True, False]
    writer.flush()
    assert writer.add(compared(3))


def test_damaged_lines_are_told_and_their_neighbours_read(tmp_path: Path) -> None:
    good = compared(1).model_dump_json().encode()
    text_in_it = compared(2).model_dump_json().replace('"task"', '"question":"who is she?","task"').encode()
    (tmp_path / "2026-01-31").mkdir()
    (tmp_path / "2026-01-31" / "a.jsonl").write_bytes(b"\n".join([good, b'{"time_ns": 1', text_in_it, good]))
    (tmp_path / "2026-01-31" / ".b.jsonl.partial").write_bytes(b"{")
    first, cut, foreign, last = read_comparisons(str(tmp_path))
    assert first == last == compared(1)
    assert isinstance(cut, InvalidLine)
    assert (cut.file, cut.line) == ("2026-01-31/a.jsonl", 2)
    assert isinstance(foreign, InvalidLine)
    assert list(read_comparisons(str(tmp_path / "nowhere"))) == []


def test_texts_are_equal_as_people_mean_them() -> None:
    assert text_hash(" Light  Blue\n") == text_hash("light blue")
    assert text_hash("lightblue") != text_hash("light blue")
