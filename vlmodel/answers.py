"""Decides whether two answers in words are equal: by the text normalization of VQA's evaluation, or by exact
comparison.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Literal

Normalizer = Literal["vqa", "none"]
"""The rules by which answers are compared."""

_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_ARTICLES = frozenset(("a", "an", "the"))
_NUMBERS = {"none": "0"} | {
    word: str(number)
    for number, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
}
# The contractions that VQA's evaluation corrects; it leaves those that are words without their apostrophe (we'll).
_CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't needn't
    not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd somebody'd've
    somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's
    there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't
    what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're
    why's won't would've wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're you've
"""
_CORRECTED = {
    word[:at] + word[at + 1 :]: word
    for word in _CONTRACTIONS.split()
    for at, letter in enumerate(word)
    if letter == "'"
}
"""Contractions without one of their apostrophes, and the correct ones."""


def normalize_for_comparison(answer: str, normalizer: Normalizer) -> str:
    """Normalize an answer so that answers that count as equal become identical strings: by ``normalize_vqa_answer``, or
    unchanged for the normalizer "none".

    An answer of which ``normalize_vqa_answer`` leaves nothing (an article, such as the choice "A", or punctuation)
    stays as it is, in lower case.
    """
    if normalizer == "none":
        return answer
    return normalize_vqa_answer(answer) or answer.strip().lower()


def answers_match(targets: Iterable[str], predicted: Iterable[str], normalizer: Normalizer) -> list[bool]:
    """Whether each predicted answer equals its target after normalization."""
    return [
        normalize_for_comparison(target, normalizer) == normalize_for_comparison(answer, normalizer)
        for target, answer in zip(targets, predicted, strict=True)
    ]


@lru_cache(maxsize=2**16)  # a data set repeats few answers many times
def normalize_vqa_answer(answer: str) -> str:
    """Normalize an answer as VQA's evaluation does before it compares answers.

    Lower case, no punctuation but apostrophe, colon and decimal point, digits for the numbers to ten, no articles,
    contractions with their apostrophe. This is ``processPunctuation`` and ``processDigitArticle`` of
    github.com/GT-Vision-Lab/VQA, PythonEvaluationTools/vqaEvaluation/vqaEval.py, including their oddity: a mark next to
    a blank is deleted and any other becomes a blank; if there is a comma between digits, all are deleted.
    """
    text = answer.replace("\n", " ").replace("\t", " ").strip()
    plain, thousands = text, re.search(r"\d,\d", text)
    for mark in _MARKS:
        plain = plain.replace(mark, "" if thousands or f"{mark} " in text or f" {mark}" in text else " ")
    words = [_NUMBERS.get(word, word) for word in re.sub(r"\.(?!\d)", "", plain).lower().split()]
    return " ".join(_CORRECTED.get(word, word) for word in words if word not in _ARTICLES)
