"""What an evaluation says about a version, as it stands in the version's tags."""

from __future__ import annotations

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
