"""Chooses one answer from those of several annotators."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence


def consensus_answer(answers: Sequence[str], preferred: str | None = None) -> str | None:
    """Choose the most common of several people's answers; of equally common ones ``preferred``, else the first.

    None where nobody answered.
    """
    counts = Counter(answer for answer in answers if answer.strip())
    if not counts:
        return None
    most = max(counts.values())
    tied = [answer for answer, count in counts.items() if count == most]
    return preferred if preferred in tied else tied[0]
