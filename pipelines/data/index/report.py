"""Describes an index for a terminal."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import pyarrow as pa

from pipelines.data.index.files import TEXT_COUNTS
from pipelines.data.index.quarantine import describe_faults
from pipelines.data.index.statistics import describe_index_statistics
from pipelines.data.tars.inputs import input_of_extension
from pipelines.data.tars.shards import SPLITS
from pipelines.errors import escape_unprintable

if TYPE_CHECKING:
    from pipelines.data.index.index import Index

_DIGITS = re.compile(r"\d+")
_PATTERNS = 4
_KINDS = 12


def describe_index(index: Index, shards: pa.Table) -> str:
    """Describe an index: a table of its splits, what they share, the faults with examples, and what was not read.

    Args:
        shards: rows of ``SHARD_SCHEMA``.
    """
    lines = [f"index {index.hash[:12]} of {index.tars}", "", f"{'split':<8}{'shards':>10}{'samples':>12}"]
    # Few data have conversations.
    has_conversations = any(sum(shard.conversations.values()) for shard in index.shards)
    counted = [what for what in TEXT_COUNTS if what != "conversations" or has_conversations]
    lines[-1] += "".join(f"{what:>{_column_width(what)}}" for what in counted)
    for split in SPLITS:
        if of_split := [shard for shard in index.shards if split in shard.present]:
            texts = {what: sum(getattr(shard, what)[split] for shard in of_split) for what in counted}
            row = f"{split:<8}{len(of_split):>10,}{index.counts()[split]:>12,}"
            lines.append(row + "".join(f"{count:>{_column_width(what)},}" for what, count in texts.items()))
    lines += ["", *_describe_inputs(index), *_describe_tars(index, shards), *_describe_skipped_members(index)]
    lines += describe_index_statistics(index.statistics())
    lines += ["", *describe_faults(index.quarantine(), index.quarantine_counts())]
    return "\n".join(lines)


def _column_width(what: str) -> int:
    """Return the width, in characters, of the table column with this title."""
    return max(12, len(what) + 3)


def _describe_inputs(index: Index) -> Iterator[str]:
    """Describe how many samples have each input, unless it is the image and all have it."""
    for name, medium in index.inputs.items():
        if name != "image" or not index.input_requirements[name]:
            yield f"input {name} ({medium}): {index.count(partial(_contains_input, name)):,} samples"


def _contains_input(name: str, present: frozenset[str]) -> bool:
    return name in present


def _describe_tars(index: Index, shards: pa.Table) -> Iterator[str]:
    """Describe the name patterns of each split's tars."""
    for split in SPLITS:
        names = [row["name"] for row in shards.select(["name", "split"]).to_pylist() if row["split"] == split]
        patterns = Counter(escape_unprintable(_DIGITS.sub("*", name)) for name in names)
        shown = [f"{pattern} ({count:,})" for pattern, count in patterns.most_common(_PATTERNS)]
        more = f", and {len(patterns) - _PATTERNS:,} other names" if len(patterns) > _PATTERNS else ""
        if names:
            yield f"tars of {split}: {', '.join(shown)}{more}"
    if fraction := index.split_assignment.fraction:
        yield f"val: {fraction:.0%} of the samples of these tars of train, by their keys' hash"


def _describe_skipped_members(index: Index) -> Iterator[str]:
    """List the tar members that belong to no sample, and say how those that are inputs can be read."""
    passed_over = sorted(index.skipped_member_counts().items(), key=lambda item: (-item[1], item[0]))
    if passed_over:
        shown = ", ".join(f"{escape_unprintable(kind)} {count:,}" for kind, count in passed_over[:_KINDS])
        more = sum(count for _, count in passed_over[_KINDS:])
        yield f"no part of a sample: {shown}{f', others {more:,}' if more else ''}"
    found = (input_of_extension(kind.removeprefix(".")) for kind, _ in passed_over)
    if unread := sorted({member.name for member in found if member is not None} - index.input_requirements.keys()):
        read = json.dumps([*index.validity_settings["inputs"], *(f"{name}?" for name in unread)])
        yield f"inputs that are not read: {', '.join(unread)}; data.index.inputs={read} reads them too"
