"""Functions shared by tasks whose answers are either right or wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from vlmodel.answers import Normalizer, answers_match
from vlmodel.judging import AnsweredRows, Metrics
from vlmodel.metrics.scores import ExampleScores

_MIN_CLASSES_PER_TOP_K = 10
"""Top-k accuracy is reported only with more classes than this many times k: with fewer, nearly all answers count."""


def score_right_answers(answered: AnsweredRows, normalizer: Normalizer) -> ExampleScores:
    """Score each right answer 1 and each wrong one 0; rows without a right answer are left out."""
    row_N = np.array([n for n, target in enumerate(answered.targets) if target is not None], np.int64)
    pairs = [(answered.targets[n] or "", answered.predicted[n]) for n in row_N]
    right_N = np.array(answers_match((t for t, _ in pairs), (p for _, p in pairs), normalizer), np.float64)
    return ExampleScores.with_one_group(right_N, answered.sample_N, row_N, binary=True)


def top_k_accuracy(
    answered: AnsweredRows, targets: Sequence[str], labels: Sequence[str], normalizer: Normalizer
) -> Metrics:
    """Compute the share of rows whose right answer is among the first few; {} if these are nearly all classes."""
    k = max(len(best) for best in answered.ranked)
    if k < 2 or len(labels) <= _MIN_CLASSES_PER_TOP_K * k:
        return {}
    ranked = zip(targets, answered.ranked, strict=True)
    hits = (any(answers_match([target] * len(best), best, normalizer)) for target, best in ranked)
    return {f"top{k}_accuracy": sum(hits) / len(targets)}


def accuracy_by_answer(forms: Sequence[str], right: Sequence[bool]) -> list[tuple[str, int, float]]:
    """Compute for each right answer its number of rows and their accuracy, the most frequent answer first."""
    totals, hit = Counter(forms), Counter(form for form, ok in zip(forms, right, strict=True) if ok)
    return [(form, n, hit[form] / n) for form, n in sorted(totals.items(), key=lambda item: (-item[1], item[0]))]
