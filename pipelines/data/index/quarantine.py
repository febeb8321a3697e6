"""Counts and describes the quarantine, which lists the samples that were left out of an index."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.errors import escape_unprintable

_EXAMPLES = 3


def count_reasons(quarantine: pa.Table) -> dict[str, int]:
    """Count the faults in a quarantine by reason."""
    return dict(sorted(Counter(quarantine["reason"].to_pylist()).items()))


def describe_faults(quarantine: pa.Table, counts: Mapping[str, int]) -> list[str]:
    """Describe each reason of a quarantine with its number of faults and first examples, a line each."""
    if not counts:
        return ["nothing was left out"]
    lines = [f"left out: {sum(counts.values()):,}"]
    for reason, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        lines.append(f"  {reason:<20}{count:>10,}")
        examples = quarantine.filter(pc.equal(quarantine["reason"], reason)).slice(0, _EXAMPLES)
        for row in examples.to_pylist():
            what = row["member"] or row["key"] or ""
            place = f" at byte {row['offset']}" if row["offset"] is not None else ""
            lines.append(escape_unprintable(f"      {row['shard']} {what}{place}: {row['detail']}"))
        if count > _EXAMPLES:
            lines.append(f"      ... and {count - _EXAMPLES:,} more")
    return lines
