"""Answers to questions about images: exact agreement with one right answer, agreement with several annotators."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from sklearn.metrics import accuracy_score

from pipelines.evaluate.metrics.check import same_length

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


def accuracy(predicted: Sequence[str], answers: Sequence[str]) -> dict[str, float]:
    """``accuracy``, the share of answers that are the right one letter by letter.

    Raises:
        ValueError: empty, or of different lengths.
    """
    same_length(predicted=predicted, answers=answers)
    return {"accuracy": float(accuracy_score(answers, predicted))}


def vqa_accuracy(predicted: Sequence[str], given: Sequence[Sequence[str]]) -> dict[str, float]:
    """``vqa_accuracy``, the mean of ``agreement`` over all questions.

    Args:
        given: the annotators' answers to each question; VQA v2 has ten.

    Raises:
        ValueError: empty, of different lengths, or a question to which no annotator gave an answer.
    """
    same_length(predicted=predicted, given=given)
    return {"vqa_accuracy": sum(map(agreement, predicted, given)) / len(predicted)}


def agreement(predicted: str, given: Sequence[str]) -> float:
    """How far annotators agree with an answer, from 0 to 1: the rule of VQA (Antol et al. 2015, arXiv 1505.00468).

    Leave out one annotator; the answer is worth as many thirds as others gave it, and at most 1; this is averaged over
    the annotator left out. Fewer than four annotators cannot agree three times with one left out: there all that remain
    must agree, and a single answer is compared as it is, so that the best answer is worth 1 however many were given.

    Both sides are normalized. The official program leaves the annotators' answers as they are where all are equal;
    those of VQA v2 are normalized already.

    Raises:
        ValueError: no answer was given.
    """
    same_length(given=given)
    answer = normalize(predicted)
    agree = sum(normalize(other) == answer for other in given)
    if len(given) == 1:
        return float(agree)
    needed = min(3, len(given) - 1)
    if_one_who_agrees_is_left_out = min(1.0, (agree - 1) / needed)
    if_another_is_left_out = min(1.0, agree / needed)
    return (agree * if_one_who_agrees_is_left_out + (len(given) - agree) * if_another_is_left_out) / len(given)


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
