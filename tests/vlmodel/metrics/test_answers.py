"""VQA's rule against its definition."""

from __future__ import annotations

import random

import pytest

from vlmodel.metrics.answers import annotator_agreement, vqa_accuracy


@pytest.mark.parametrize(("agree", "value"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_of_ten_annotators_four_that_agree_are_enough(agree: int, value: float) -> None:
    given = ["yes"] * agree + ["no"] * (10 - agree)
    random.Random(agree).shuffle(given)
    assert annotator_agreement("Yes", given) == pytest.approx(value)


@pytest.mark.parametrize("annotators", range(4, 12))
def test_agreement_is_the_mean_over_all_who_are_left_out(annotators: int) -> None:
    rng = random.Random(annotators)
    for _ in range(20):
        given = rng.choices("abc", [3, 2, 1], k=annotators)
        others = [given[:out] + given[out + 1 :] for out in range(annotators)]
        expected = sum(min(some.count("b") / 3, 1) for some in others) / annotators
        assert annotator_agreement("b", given) == pytest.approx(expected)


def test_few_annotators_can_agree_fully() -> None:
    assert [annotator_agreement("cat", ["cat"] * n) for n in (1, 2, 3, 4)] == [1, 1, 1, 1]
    assert [annotator_agreement("cat", ["dog"] * n) for n in (1, 2, 3, 4)] == [0, 0, 0, 0]
    assert annotator_agreement("cat", ["cat", "dog"]) == pytest.approx(1 / 2)
    assert annotator_agreement("cat", ["cat", "dog", "cow"]) == pytest.approx(1 / 3)
    assert annotator_agreement("cat", ["cat", "cat", "cow"]) == pytest.approx((1 / 2 + 1 / 2 + 1) / 3)


def test_both_sides_are_normalized() -> None:
    assert annotator_agreement("a T-shirt", ["t shirt"] * 10) == 1
    assert annotator_agreement("2", ["Two"] * 10) == 1


def test_the_accuracy_is_the_mean() -> None:
    given = [["yes"] * 10, ["2"] * 3 + ["3"] * 7]
    assert vqa_accuracy(["yes", "two"], given) == {"vqa_accuracy": pytest.approx(0.95)}
