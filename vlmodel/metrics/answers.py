"""Metrics of answers to questions about images: agreement with several annotators."""

from __future__ import annotations

from collections.abc import Sequence

from vlmodel.answers import normalize_vqa_answer


def vqa_accuracy(predicted: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Compute ``vqa_accuracy``, the mean of ``annotator_agreement`` over all questions.

    Args:
        references: the annotators' answers to each question, at least one; VQA v2 has ten.
    """
    total = sum(annotator_agreement(answer, given) for answer, given in zip(predicted, references, strict=True))
    return {"vqa_accuracy": total / len(predicted)}


def annotator_agreement(predicted: str, references: Sequence[str]) -> float:
    """Measure how far annotators agree with an answer, from 0 to 1, by the rule of VQA (Antol et al. 2015, arXiv
    1505.00468).

    Leave out one annotator; the score is the number of the others who gave the answer, divided by 3, and at most 1;
    this is averaged over the annotator left out. Fewer than four annotators cannot agree three times with one left out:
    then all that remain must agree, and a single answer is compared as it is, so that the best answer scores 1 with any
    number of annotators.

    Both sides are normalized. The official program does not normalize the annotators' answers if all are equal; those
    of VQA v2 are normalized already.
    """
    answer = normalize_vqa_answer(predicted)
    agree = sum(normalize_vqa_answer(reference) == answer for reference in references)
    if len(references) == 1:
        return float(agree)
    needed = min(3, len(references) - 1)
    if_agreeing_is_left_out = min(1.0, (agree - 1) / needed)
    if_other_is_left_out = min(1.0, agree / needed)
    return (agree * if_agreeing_is_left_out + (len(references) - agree) * if_other_is_left_out) / len(references)
