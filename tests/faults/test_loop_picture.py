"""The picture of a retraining under load, of a made-up one that takes no time."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from tests.faults.loop_picture import Loop, Phase, Request, draw


@pytest.fixture
def loop() -> Loop:
    requests = [Request(n / 5, 0.1 + n % 7 / 50, "1" if n < 1000 else "2", n % 5 > 0) for n in range(1400)]
    ends = (30.0, 50.0, 60.0, 150.0, 170.0, 195.0, 205.0)
    names = ("job starts", "check", "training", "compare", "gate", "swap")
    return Loop(requests, 30.0, [Phase(name, *span) for name, span in zip(names, pairwise(ends), strict=True)])


def words(loop: Loop) -> list[str]:
    figure = draw(loop)
    figure.draw_without_rendering()
    return [figure.get_suptitle(), *(text.get_text() for axes in figure.axes for text in axes.texts)]


def test_it_says_what_happened(loop: Loop) -> None:
    said = words(loop)
    assert said[0] == "Retrained and swapped under load: 1,400 requests, none failed"
    assert {"tars arrive", "training", "gate", "swap", "version 1: 80.0% of 1,000 answers"} <= set(said)
    assert not any("failed" in text for text in said[1:])


def test_a_failure_is_not_hidden(loop: Loop) -> None:
    said = words(replace(loop, requests=[replace(loop.requests[0], version="", right=False), *loop.requests[1:]]))
    assert said[0].endswith("1,400 requests, 1 failed")
    assert "1 failed" in said


def test_it_can_be_drawn_again_from_its_figures(loop: Loop, tmp_path: Path) -> None:
    loop.save(tmp_path / "loop.json")
    assert Loop.open(tmp_path / "loop.json") == loop
