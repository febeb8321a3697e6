"""A champion that knows few of the hold-out's answers is no opponent."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.data.index.build import build_index
from pipelines.data.index.config import IndexConfig
from pipelines.data.index.index import Index
from pipelines.data.tars.shards import ShardWriter
from pipelines.registry.config import GateConfig
from pipelines.registry.gate.opponent import check_champion_is_comparable
from pipelines.registry.versions import LocalModel
from tests.pipelines.registry.conftest import picture
from vlmodel.sample import Question, SampleTexts

pytestmark = pytest.mark.usefixtures("ray_local")


def holdout(folder: Path, answers: list[str]) -> Index:
    with ShardWriter(folder, "val") as writer:
        for number, answer in enumerate(answers):
            texts = SampleTexts(("a picture",), (Question("what is it?", answer),))
            writer.add(f"k{number}", {"image": (picture(number), "png")}, texts)
    return build_index(str(folder), IndexConfig())


@pytest.fixture
def champion(checkpoint: Path) -> LocalModel:
    """Its labels are yes, no, red and blue."""
    return LocalModel("vlmodel", "3", "", {}, package=checkpoint, folder=checkpoint)


@pytest.mark.parametrize(
    ("answers", "passed", "share"),
    [
        (["yes", "red", "horse", "cart"], True, "50.0% of the 4"),
        (["yes", "horse", "cart", "dog"], None, "25.0% of the 4"),
    ],
)
def test_a_champion_is_an_opponent_if_it_knows_half_of_the_answers(
    tmp_path: Path, champion: LocalModel, answers: list[str], passed: bool | None, share: str
) -> None:
    check = check_champion_is_comparable(champion, holdout(tmp_path, answers), GateConfig())
    assert check.passed is passed
    assert check.compares
    assert f"version 3 knows {share} right answers" in check.measured
    assert ("it is no opponent" in check.measured) == (passed is None)


def test_how_much_it_must_know_is_a_setting(tmp_path: Path, champion: LocalModel) -> None:
    index = holdout(tmp_path, ["yes", "horse", "cart", "dog"])
    assert check_champion_is_comparable(champion, index, GateConfig(known_answers=0.25)).passed
