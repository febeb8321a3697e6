"""Answers to questions about images: exact agreement with one right answer, agreement with several annotators."""

from __future__ import annotations

from collections.abc import Sequence

from sklearn.metrics import accuracy_score

from pipelines.evaluate.metrics.check import same_length
from vlmodel.answers import normalize


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
