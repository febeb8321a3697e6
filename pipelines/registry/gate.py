"""Should a candidate replace the champion? The one place where that is decided; each decision has its reason."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Self

_TAGS = ("accuracy", "question_only", "index_hash", "split", "count")


@dataclass(frozen=True)
class Score:
    """What an evaluation says about a model.

    Attributes:
        accuracy: share of right answers, 0 to 1.
        question_only: accuracy of the best guess from the question alone, on the same data: the floor.
        index_hash: of the data.
        split: the part of the data, "val" as a rule; the test split is for reports, not for choices.
        count: questions answered.
    """

    accuracy: float
    question_only: float
    index_hash: str
    split: str
    count: int

    def to_tags(self) -> dict[str, str]:
        """As tags of a model version; numbers keep all their digits."""
        return {name: str(value) for name, value in asdict(self).items()}

    @classmethod
    def from_tags(cls, tags: Mapping[str, str]) -> Self | None:
        """The score in the tags of a version, None where it is not complete."""
        if not all(name in tags for name in _TAGS):
            return None
        accuracy, floor, count = float(tags["accuracy"]), float(tags["question_only"]), int(tags["count"])
        return cls(accuracy, floor, tags["index_hash"], tags["split"], count)


@dataclass(frozen=True)
class Decision:
    """Whether to promote, and why in one sentence."""

    promote: bool
    reason: str


def decide(candidate: Score, champion: Score | None, margin: float = 0.0) -> Decision:
    """The candidate must know more than the questions tell, and be no worse than the champion on the same data.

    Args:
        candidate: score of the model that would be promoted.
        champion: score of the one in use, None if there is none.
        margin: accuracy that the candidate may be short of the champion's.
    """
    if candidate.count == 0 or not math.isfinite(candidate.accuracy):
        return Decision(False, f"the candidate has no accuracy ({candidate.accuracy} on {candidate.count} questions)")
    ours = f"{candidate.accuracy:.4f} on {candidate.count} questions of {candidate.split}"
    if not candidate.accuracy > candidate.question_only:
        floor = f"{candidate.question_only:.4f}"
        return Decision(False, f"the candidate ({ours}) is not above the best guess from the question alone ({floor})")
    if champion is None:
        floor = f"{candidate.question_only:.4f}"
        return Decision(True, f"there is no champion, and the candidate ({ours}) is above the question alone ({floor})")
    for what, one, other in (
        ("data", candidate.index_hash[:12], champion.index_hash[:12]),
        ("split", candidate.split, champion.split),
        ("number of questions", candidate.count, champion.count),
    ):
        if one != other:
            return Decision(
                False,
                f"the two were not evaluated on the same {what} (candidate {one}, champion {other}); "
                "evaluate the champion on the candidate's data first",
            )
    theirs = f"{champion.accuracy:.4f}"
    if candidate.accuracy >= champion.accuracy - margin:
        return Decision(True, f"the candidate ({ours}) is at most {margin:g} below the champion ({theirs})")
    return Decision(False, f"the candidate ({ours}) is more than {margin:g} below the champion ({theirs})")
