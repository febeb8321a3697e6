"""VQA's normalization by hand, and what it means for two answers to be the same."""

from __future__ import annotations

import pytest

from vlmodel.answers import normalize_for_comparison, normalize_vqa_answer


@pytest.mark.parametrize(
    ("answer", "plain"),
    [
        ("Yes.", "yes"),
        ("The dog", "dog"),
        ("a the an", ""),
        ("Two", "2"),
        ("none", "0"),
        ("ten men", "10 men"),
        ("eleven", "eleven"),
        ("dont", "don't"),
        ("wouldn'tve", "wouldn't've"),
        ("ows'at 'ows'at", "ows'at 'ow's'at"),
        ("well", "well"),
        ("man's", "man's"),
        ("5:30", "5:30"),
        ("2.5", "2.5"),
        ("u.s.a.", "usa"),
        ("t-shirt", "t shirt"),
        ("yes, sir", "yes sir"),
        ("red,white", "red white"),
        ("red / white", "red white"),
        ("1,000 black-white", "1000 blackwhite"),
        ("red\nand\twhite", "red and white"),
        ("?", ""),
        ("", ""),
        ("Это КОТ!", "это кот"),
        ("猫", "猫"),
    ],
)
def test_normalized_answers(answer: str, plain: str) -> None:
    assert normalize_vqa_answer(answer) == plain


def test_answers_of_which_the_rules_leave_nothing_are_themselves() -> None:
    assert normalize_for_comparison("A", "vqa") == "a"
    assert normalize_for_comparison(" ? ", "vqa") == "?"
    assert normalize_for_comparison("The Cat.", "vqa") == "cat"
    assert normalize_for_comparison("The Cat.", "none") == "The Cat."
