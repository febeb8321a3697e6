"""Should a candidate replace the champion? The one place where that is decided; each decision has its reason."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Self

_TAGS = ("metric", "value", "floor", "index_hash", "split", "count")


@dataclass(frozen=True)
class Score:
    """What an evaluation says about a model.

    Attributes:
        metric: the figure, such as "accuracy"; the higher, the better.
        value: of the model.
        floor: what is reached without looking, on the same data: by the question alone, by one caption for all.
        index_hash: of the data.
        split: the part of the data, "val" as a rule; the test split is for reports, not for choices.
        count: rows (questions, images, pairs) that it is the figure of.
    """

    metric: str
    value: float
    floor: float
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
        value, floor, count = float(tags["value"]), float(tags["floor"]), int(tags["count"])
        return cls(tags["metric"], value, floor, tags["index_hash"], tags["split"], count)


@dataclass(frozen=True)
class Decision:
    """Whether to promote, and why in one sentence."""

    promote: bool
    reason: str


def decide(candidate: Score, champion: Score | None, margin: float = 0.0) -> Decision:
    """The candidate must be above what is reached without looking, and no worse than the champion on the same data.

    Args:
        candidate: score of the model that would be promoted.
        champion: score of the one in use, None if there is none.
        margin: what the candidate's figure may be short of the champion's.
    """
    metric, floor = candidate.metric, f"{candidate.floor:.4f}"
    if candidate.count == 0 or not math.isfinite(candidate.value):
        return Decision(False, f"the candidate has no {metric} ({candidate.value} on {candidate.count} rows)")
    ours = f"{metric} {candidate.value:.4f} on {candidate.count} rows of {candidate.split}"
    if not candidate.value > candidate.floor:
        return Decision(False, f"the candidate ({ours}) is not above what is reached without looking ({floor})")
    if champion is None:
        return Decision(
            True, f"there is no champion, and the candidate ({ours}) is above what is reached without looking ({floor})"
        )
    for what, one, other in (
        ("figure", candidate.metric, champion.metric),
        ("data", candidate.index_hash[:12], champion.index_hash[:12]),
        ("split", candidate.split, champion.split),
        ("number of rows", candidate.count, champion.count),
    ):
        if one != other:
            return Decision(
                False,
                f"the two were not evaluated on the same {what} (candidate {one}, champion {other}); "
                "evaluate the champion on the candidate's data first",
            )
    theirs = f"{champion.value:.4f}"
    if candidate.value >= champion.value - margin:
        return Decision(True, f"the candidate ({ours}) is at most {margin:g} below the champion ({theirs})")
    return Decision(False, f"the candidate ({ours}) is more than {margin:g} below the champion ({theirs})")
