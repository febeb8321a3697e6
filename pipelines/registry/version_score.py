"""Stores the evaluation result of a model version in the version's tags."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Self

_TAGS = ("metric", "value", "floor", "index_hash", "split", "count")
_LONGEST = 4000
"""Characters of a tag; MLflow takes no more than 5000."""


@dataclass(frozen=True)
class VersionScore:
    """The evaluation result of a model version. The names of the fields are those of the tags.

    Attributes:
        metric: its name, such as "accuracy"; higher is better.
        value: of the model.
        floor: the best baseline that does not look at the image, on the same data: the question alone, one caption for
            all.
        index_hash: of the data.
        split: usually "val"; the test split is for reports, not for choices.
        count: number of rows (questions, images, pairs).
        low, high: 95 % interval of the value; None if unknown, as in versions that were registered earlier.
        relation: of the value to the baselines: significantly "better" or "worse", or "unclear".
        verdict: the same in words, with the values.
    """

    metric: str
    value: float
    floor: float
    index_hash: str
    split: str
    count: int
    low: float | None = None
    high: float | None = None
    relation: str = ""
    verdict: str = ""

    def to_tags(self) -> dict[str, str]:
        """Convert the result to tags of a model version; numbers keep all their digits."""
        known = {name: value for name, value in asdict(self).items() if value is not None and value != ""}
        return {name: str(value)[:_LONGEST] for name, value in known.items()}

    @classmethod
    def from_tags(cls, tags: Mapping[str, str]) -> Self | None:
        """Parse the result from the tags of a version; None if it is incomplete."""
        if not all(name in tags for name in _TAGS):
            return None
        value, floor, count = float(tags["value"]), float(tags["floor"]), int(tags["count"])
        low, high = (float(tags[name]) if name in tags else None for name in ("low", "high"))
        relation, verdict = tags.get("relation", ""), tags.get("verdict", "")
        return cls(tags["metric"], value, floor, tags["index_hash"], tags["split"], count, low, high, relation, verdict)
