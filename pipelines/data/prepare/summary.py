"""The counts of a preparation, stored in its manifest and printed as a table."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from pipelines.data.prepare.filters import DropReason
from pipelines.data.tars.shards import SPLITS


@dataclass(frozen=True)
class PreparationSummary:
    """How many samples a preparation read, kept and dropped, and why.

    Attributes:
        tars: the source.
        out: the prepared folder.
        before, after: samples by split.
        bytes_before, bytes_after: of all tars.
        shards_before, shards_after: tars.
        dropped: samples by reason, then by split; every reason is there.
        quarantined: what the source's index had left out, by its reason; none of it was read.
        texts_left_out: captions and questions of invalid length, of kept samples.
        joined: duplicates whose texts went to the kept sample.
        rewritten: images that were encoded anew.
    """

    tars: str
    out: str
    before: dict[str, int]
    after: dict[str, int]
    bytes_before: int
    bytes_after: int
    shards_before: int
    shards_after: int
    dropped: dict[str, dict[str, int]]
    quarantined: dict[str, int]
    texts_left_out: int
    joined: int
    rewritten: int

    def to_json_tree(self) -> dict[str, Any]:
        """Convert the counts to plain JSON values, of which the constructor makes an equal summary."""
        return asdict(self)

    def table_rows(self) -> list[tuple[str, list[int]]]:
        """Return the rows of the summary's table: a name, the number of each split, and the total."""
        counts = [("before", self.before), *((str(reason), self.dropped[reason]) for reason in DropReason)]
        counts.append(("after", self.after))
        return [(name, [*(of.get(s, 0) for s in SPLITS), sum(of.values())]) for name, of in counts]

    def describe_notable_counts(self) -> list[str]:
        """Describe further counts of a preparation, in lines below its table."""
        size = f"{self.shards_before:,} tars of {_format_megabytes(self.bytes_before)} became"
        lines = [f"{size} {self.shards_after:,} of {_format_megabytes(self.bytes_after)}"]
        lines.append(f"{self.rewritten:,} images were encoded anew, the others keep their bytes")
        if self.joined:
            lines.append(f"the texts of {self.joined:,} duplicates went to the kept sample")
        if self.texts_left_out:
            lines.append(f"{self.texts_left_out:,} texts of invalid length were left out of kept samples")
        if self.quarantined:
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.quarantined.items())
            lines.append(f"{sum(self.quarantined.values()):,} were in quarantine and not read: {reasons}")
        return lines

    def __str__(self) -> str:
        head = f"{'':<16}" + "".join(f"{name:>12}" for name in (*SPLITS, "all"))
        lines = [f"{name:<16}" + "".join(f"{number:>12,}" for number in numbers) for name, numbers in self.table_rows()]
        return "\n".join([f"prepared {self.tars} as {self.out}", "", head, *lines, "", *self.describe_notable_counts()])


def _format_megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
