"""Describes what is wrong with a sample or a shard: a row of the quarantine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

FAULT_SCHEMA = pa.schema(
    [
        ("shard", pa.string()),
        ("key", pa.string()),
        ("member", pa.string()),
        ("offset", pa.int64()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)


@dataclass(frozen=True)
class QuarantineEntry:
    """One row of the quarantine: a fault of a sample or a shard.

    Attributes:
        key: of the sample; None where there is no sample (a stray link, an unreadable shard).
        member: the faulty member, or the sample's first one.
        offset: where its data, or the damage, begins in the tar, in bytes.
        reason: a ``FaultReason``, or what ``missing_input_reason`` or ``medium_reason`` gives.
    """

    key: str | None
    member: str | None
    offset: int | None
    reason: str
    detail: str

    def to_row(self, shard: str) -> dict[str, Any]:
        return {
            "shard": shard,
            "key": self.key,
            "member": self.member,
            "offset": self.offset,
            "reason": str(self.reason),
            "detail": self.detail,
        }


def fault_table(shard: str, faults: Sequence[QuarantineEntry]) -> pa.Table:
    """Build a table of ``FAULT_SCHEMA`` from the faults of one shard."""
    return pa.Table.from_pylist([fault.to_row(shard) for fault in faults], FAULT_SCHEMA)
