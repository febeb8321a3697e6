"""The quarantine, what was left out of an index: counted and described for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.errors import escape_unprintable

_EXAMPLES = 3


def reason_counts(quarantine: pa.Table) -> dict[str, int]:
    """Rows of a quarantine by reason."""
    return dict(sorted(Counter(quarantine["reason"].to_pylist()).items()))


def describe_faults(quarantine: pa.Table, counts: Mapping[str, int]) -> list[str]:
    """Lines: each reason with its number of rows and first examples."""
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
