"""VQA's normalization by hand, and what it means for two answers to be the same."""

from __future__ import annotations

import pytest

from vlmodel.answers import normal_form, normalize_answer


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
    assert normalize_answer(answer) == plain


def test_answers_of_which_the_rules_leave_nothing_are_themselves() -> None:
    assert normal_form("A", "vqa") == "a"
    assert normal_form(" ? ", "vqa") == "?"
    assert normal_form("The Cat.", "vqa") == "cat"
    assert normal_form("The Cat.", "none") == "The Cat."
