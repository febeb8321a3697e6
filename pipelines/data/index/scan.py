"""Reads one shard once: finds its valid samples (rows of the index), its faults and its hash."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipelines.data.index.fault import QuarantineEntry
from pipelines.data.index.sample_check import SampleRules, sample_schema
from pipelines.data.index.sample_groups import SampleGroups
from pipelines.data.tars.headers import TarCorruption, read_tar
from pipelines.data.tars.inputs import PAIRS, TEXT
from pipelines.data.tars.member_names import split_name
from pipelines.data.tars.sample import TextLimits
from vlmodel.media.base import CheckLimits
from vlmodel.media.registry import all_media


@dataclass(frozen=True)
class ShardScan:
    """The samples and faults that were found by reading one shard.

    Attributes:
        samples: a table of ``sample_schema``, in tar order.
        inputs: the medium of each input of these samples but texts.
        faults: in tar order.
        worst_run: the most faults in a row.
        passed_over: number of members that are part of no sample, by extension (".cls"), "hidden" or "no extension".
        sha256: of the tar, in hexadecimal.
        size: of the tar in bytes.
    """

    samples: pa.Table
    inputs: dict[str, str]
    faults: list[QuarantineEntry]
    worst_run: int
    passed_over: dict[str, int]
    sha256: str
    size: int


def scan_tar(
    read: Callable[[int], bytes],
    *,
    inputs: Sequence[str] = PAIRS,
    max_letters: int = TextLimits.letters,
    max_texts: int = TextLimits.texts,
    **limits_of_inputs: Any,
) -> ShardScan:
    """Read one tar from start to end, once, and check all of its samples.

    Args:
        read: gives the next bytes, b"" at the end.
        inputs: what a sample must have and may have (``IndexConfig.inputs``).
        max_letters, max_texts: see ``TextLimits``.
        limits_of_inputs: see ``CheckLimits``.

    Raises:
        OSError: what ``read`` raises.
    """
    digest = hashlib.sha256()
    size = 0

    def read_and_hash(n: int) -> bytes:
        nonlocal size
        data = read(n)
        digest.update(data)
        size += len(data)
        return data

    def is_data_needed(name: str, n: int) -> bool:
        return rules.reads_member((split_name(name) or ("", ""))[1], n)

    limits = CheckLimits(**limits_of_inputs)
    rules = SampleRules(tuple(inputs), limits, TextLimits(max_letters, max_texts))
    groups = SampleGroups(rules)
    for item in read_tar(read_and_hash, is_data_needed):
        groups.add_corruption(item) if isinstance(item, TarCorruption) else groups.add(item)
    groups.finish_group("end")
    rows = [outcome for outcome in groups.outcomes if isinstance(outcome, dict)]
    faults = [outcome for outcome in groups.outcomes if isinstance(outcome, QuarantineEntry)]
    worst = run = 0
    for outcome in groups.outcomes:
        run = run + 1 if isinstance(outcome, QuarantineEntry) else 0
        worst = max(worst, run)
    columns = {
        name: groups.inputs.get(name, name if name in all_media() else "")
        for name in rules.input_requirements
        if name != TEXT
    }
    table = pa.Table.from_pylist(rows, sample_schema(columns))
    return ShardScan(table, groups.inputs, faults, worst, dict(groups.passed_over), digest.hexdigest(), size)
