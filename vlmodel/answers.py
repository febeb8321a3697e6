"""When two answers in words mean the same: the rules of VQA's evaluation, and none."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Literal

Normalizer = Literal["vqa", "none"]
"""By which rules answers are compared."""

_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_ARTICLES = frozenset(("a", "an", "the"))
_NUMBERS = {"none": "0"} | {
    word: str(number)
    for number, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
}
# Those that VQA's evaluation mends; forms that are words without their apostrophe (we'll, she'd) are not among them.
_CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't needn't
    not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd somebody'd've
    somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's
    there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't
    what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're
    why's won't would've wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're you've
"""
_MENDED = {
    word[:at] + word[at + 1 :]: word for word in _CONTRACTED.split() for at, letter in enumerate(word) if letter == "'"
}
"""A contraction that lacks one apostrophe -> the contraction."""


def normal_form(answer: str, normalizer: Normalizer) -> str:
    """What two answers have in common that mean the same by the rules: ``normalize``, or the answer itself by "none".

    An answer of which the rules leave nothing (an article alone, such as the choice "A", or marks alone) is its own
    normal form, in lower case.
    """
    if normalizer == "none":
        return answer
    return normalize(answer) or answer.strip().lower()


@lru_cache(maxsize=2**16)  # a data set repeats few answers very often
def normalize(answer: str) -> str:
    """An answer as VQA's evaluation compares it.

    Lower case, no punctuation but apostrophe, colon and decimal point, digits for the numbers to ten, no articles,
    contractions with their apostrophe. This is ``processPunctuation`` and ``processDigitArticle`` of
    github.com/GT-Vision-Lab/VQA, PythonEvaluationTools/vqaEvaluation/vqaEval.py, with what is odd in them: a mark next
    to a blank goes, and any other becomes a blank, unless a comma stands between digits, when all go.
    """
    text = answer.replace("\n", " ").replace("\t", " ").strip()
    plain, thousands = text, re.search(r"\d,\d", text)
    for mark in _MARKS:
        plain = plain.replace(mark, "" if thousands or f"{mark} " in text or f" {mark}" in text else " ")
    words = [_NUMBERS.get(word, word) for word in re.sub(r"\.(?!\d)", "", plain).lower().split()]
    return " ".join(_MENDED.get(word, word) for word in words if word not in _ARTICLES)
