"""The audit itself: what it must accept, and what it must find."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.faults.ledger import audit

Line = tuple[int, int, int, int, list[int]]
"""When the worker was started, its rank, of how many, the step, the rows it saw."""

# Four samples in steps of two: two workers, killed in the second step; then one, which begins again at the second.
SOUND: list[Line] = [
    (1, 0, 2, 0, [3]), (2, 1, 2, 0, [1]), (1, 0, 2, 1, [0]), (3, 0, 1, 1, [0, 2]),
]  # fmt: skip


def write(folder: Path, lines: list[Line]) -> None:
    for started, rank, world, step, rows in lines:
        line = {"step": step, "rank": rank, "world": world, "pid": started, "epoch": [0] * len(rows),
                "shard": [0] * len(rows), "row": rows}  # fmt: skip
        with (folder / f"rank{rank}-{started}-{started}.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")


def test_a_sound_ledger(tmp_path: Path) -> None:
    write(tmp_path, SOUND)
    (tmp_path / "rank1-2-2.jsonl").open("a").write('{"step": 1, "ra')
    found = audit(tmp_path, samples=4, epochs=1)
    assert found.faults == []
    assert found.steps == {0: [(0, 0, 3), (0, 0, 1)], 1: [(0, 0, 0), (0, 0, 2)]}
    assert found.replayed == 1


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ([*SOUND[:3], (3, 0, 1, 1, [0, 3])], "1 samples seen more than once"),
        ([*SOUND[:3], (3, 0, 1, 1, [0])], "3 of 4 samples seen"),
        ([*SOUND[:3], (3, 0, 1, 2, [0, 2])], "rank 1 of 2 is missing"),
        ([SOUND[0], SOUND[1], (3, 0, 1, 2, [0, 2])], r"steps are missing: \[1\]"),
        ([*SOUND[:2], (1, 0, 2, 1, [1]), SOUND[3]], "seen only before it was run again"),
        ([*SOUND, (4, 0, 1, 1, [2, 0])], "a replay saw other samples"),
    ],
    ids=["twice", "never", "without a rank", "without a step", "others before", "other order"],
)
def test_faults_are_found(lines: list[Line], says: str, tmp_path: Path) -> None:
    write(tmp_path, lines)
    with pytest.raises(AssertionError, match=says):
        assert audit(tmp_path, samples=4, epochs=1).faults == []
