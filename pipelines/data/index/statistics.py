"""Computes statistics of all samples of an index: repeated inputs, inputs and texts that splits share, and image
shapes.

Of very many inputs or texts only those in a part of the hash range are compared: of two equal ones both are, or
neither, so shares are unbiased.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.data.index.files import READERS, TEXT_COUNTS, drop_rows, total_sample_count
from pipelines.data.tars.shards import SPLITS

_MAX_COMPARED = 20_000_000
"""Of an input, and texts: 8 bytes each, a few copies."""

_HELD_OUT = ("val", "test")
# A photograph of 4 by 3 loses a quarter where it is cropped to a square.
_ELONGATED = 1.25
_MIN_DIFFERENCE = 0.1
_STANDARD_ERRORS = 3.0


class _SplitHashes(NamedTuple):
    """The hashes of N inputs or texts, and the number of each one's split in ``SPLITS``."""

    hashes_N: NDArray[np.uint64]
    splits_N: NDArray[np.int8]


class _ShardHashes(NamedTuple):
    inputs: dict[str, _SplitHashes]
    texts: _SplitHashes
    ratios_N: NDArray[np.float32]


def compute_index_statistics(
    shards: Sequence[Mapping[str, Any]],
    inputs: Iterable[str],
    read: Callable[[str, list[str]], pa.Table],
    splits_of: Callable[[str, NDArray[np.uint64]], NDArray[np.str_]],
) -> dict[str, Any]:
    """Compute statistics of the repeated inputs and texts of an index, and of its image shapes, as plain JSON.

    ``inputs.NAME`` and ``texts`` hold, for each split that has some, how many were compared (``count``), how many equal
    another of the split (``repeated``) and, for val and test, how many are in train too (``in_train``). A text is
    counted once a split. ``shapes`` are of the input "image": ``count``, those whose longer side is at least 1.25 times
    the shorter one (``elongated``), and the ``median`` of that ratio.

    Args:
        shards: rows of ``SHARD_SCHEMA``.
        inputs: the names of the inputs but texts.
        read: reads some columns of a part of the index.
        splits_of: the split of each sample, from the split of its shard and ``split_hash``.
    """
    names = list(inputs)
    texts = sum(shard[f"{what}_{split}"] for shard in shards for split in SPLITS for what in TEXT_COUNTS)
    every_input, every_text = (
        math.ceil(count / _MAX_COMPARED) or 1 for count in (sum(map(total_sample_count, shards)), texts)
    )
    columns = ["split_hash", "text_hashes", "image.width", "image.height", *(f"{name}.sha256" for name in names)]

    def read_shard_hashes(shard: Mapping[str, Any]) -> _ShardHashes:
        table = drop_rows(read(shard["part"], columns), shard["repeated"])
        splits = splits_of(shard["split"], table["split_hash"].to_numpy())
        numbers_N = np.select([splits == split for split in SPLITS], range(len(SPLITS)), 0).astype(np.int8)
        of_inputs = {
            name: _subsample_hashes(
                _SplitHashes(_truncate_hashes(sha256), numbers_N[sha256.is_valid().to_numpy()]), every_input
            )
            for name in names
            for sha256 in [table[f"{name}.sha256"]]
        }
        lists = table["text_hashes"].combine_chunks()
        of_texts = _SplitHashes(
            lists.flatten().to_numpy().astype(np.uint64), np.repeat(numbers_N, lists.value_lengths().to_numpy())
        )
        return _ShardHashes(of_inputs, _subsample_hashes(of_texts, every_text), _aspect_ratios(table))

    with ThreadPoolExecutor(READERS) as pool:
        pieces = list(pool.map(read_shard_hashes, shards))
    if not pieces:
        return {"inputs": {}, "texts": {}, "shapes": _summarize_aspect_ratios(np.empty(0, np.float32))}
    return {
        "inputs": {
            name: _count_repeated(_concatenate_hashes([piece.inputs[name] for piece in pieces]), distinct=False)
            for name in names
        },
        "texts": _count_repeated(_concatenate_hashes([piece.texts for piece in pieces]), distinct=True),
        "shapes": _summarize_aspect_ratios(np.concatenate([piece.ratios_N for piece in pieces])),
    }


def describe_index_statistics(statistics: Mapping[str, Any]) -> list[str]:
    """Describe, in lines for people, what in the statistics is worth knowing before a training."""
    lines = []
    texts = statistics["texts"]
    for name, of_input in statistics["inputs"].items():
        what, remedy = ("images", "; the prepare job joins these") if name == "image" else (f"inputs {name!r}", "")
        if repeated := {split: of["repeated"] for split, of in of_input.items() if of["repeated"]}:
            counts = ", ".join(
                f"{split} {count:,} of {of_input[split]['count']:,}" for split, count in repeated.items()
            )
            lines.append(f"{what} that another sample of the same split has too: {counts}{remedy}")
        if any(of_input.get(split, {}).get("in_train") for split in _HELD_OUT):
            lines.append(
                f"{what} that train has too: {_describe_shared_with_train(of_input)}, where metrics are too high. "
                f"{_REMEDY}"
            )
    val, test = (texts.get(split) for split in _HELD_OUT)
    if val and test and _val_shares_more_with_train(val, test):
        lines.append(
            f"texts that train has too: {_describe_shared_with_train(texts)}; so metrics on val are higher than on "
            f"test. {_REMEDY}"
        )
    return lines


_REMEDY = "To keep related samples in one split, import with source.group, or provide tars of val (data.index.splits)"


def describe_shapes(statistics: Mapping[str, Any], resize: str) -> list[str]:
    """Warn in one line if most images are far from square, as they are distorted or cropped.

    Args:
        statistics: returned by ``compute_index_statistics``.
        resize: the setting ``processor.resize``.
    """
    shapes = statistics["shapes"]
    effects = {
        "squash": "distorts them to squares; crop would keep their shape and the middle square, pad all of them",
        "crop": f"cuts off {1 - 1 / max(shapes['median'], 1):.0%} of the median one; squash would distort it instead",
    }
    if resize not in effects or 2 * shapes["elongated"] <= shapes["count"]:
        return []
    return [
        f"{shapes['elongated'] / shapes['count']:.0%} of the images have a side at least {_ELONGATED} times the other "
        f"(median {shapes['median']:.2f}): processor.resize={resize} {effects[resize]}"
    ]


def _truncate_hashes(sha256: pa.ChunkedArray) -> NDArray[np.uint64]:
    """Convert the first 16 of the 64 digits of each hash to a number, nulls left out."""
    digits = "".join(sha256.drop_null().to_pylist())
    return np.frombuffer(bytes.fromhex(digits), ">u8").reshape(-1, 4)[:, 0].astype(np.uint64)


def _subsample_hashes(all_: _SplitHashes, every: int) -> _SplitHashes:
    if every == 1:
        return all_
    chosen_N = all_.hashes_N % np.uint64(every) == 0
    return _SplitHashes(all_.hashes_N[chosen_N], all_.splits_N[chosen_N])


def _concatenate_hashes(pieces: Sequence[_SplitHashes]) -> _SplitHashes:
    return _SplitHashes(*(np.concatenate(arrays) for arrays in zip(*pieces, strict=True)))


def _count_repeated(all_: _SplitHashes, *, distinct: bool) -> dict[str, dict[str, int]]:
    of_split = {split: all_.hashes_N[all_.splits_N == number] for number, split in enumerate(SPLITS)}
    train = np.unique(of_split["train"])
    counts = {}
    for split, hashes in of_split.items():
        unique = np.unique(hashes)
        counted = unique if distinct else hashes
        if len(counted):
            counts[split] = {"count": len(counted), "repeated": len(counted) - len(unique)}
            if split in _HELD_OUT:
                counts[split]["in_train"] = int(np.isin(counted, train).sum())
    return counts


def _aspect_ratios(table: pa.Table) -> NDArray[np.float32]:
    """Compute the ratio of the longer to the shorter side of each image."""
    if "image.width" not in table.column_names:
        return np.empty(0, np.float32)
    sides = (table[f"image.{side}"].drop_null().to_numpy().astype(np.float32) for side in ("width", "height"))
    width_N, height_N = sides
    ratios_N: NDArray[np.float32] = np.maximum(width_N, height_N) / np.minimum(width_N, height_N)
    return ratios_N


def _summarize_aspect_ratios(ratios_N: NDArray[np.float32]) -> dict[str, float]:
    if not len(ratios_N):
        return {"count": 0, "elongated": 0, "median": 1.0}
    elongated = int((ratios_N >= _ELONGATED).sum())
    return {"count": len(ratios_N), "elongated": elongated, "median": round(float(np.median(ratios_N)), 3)}


def _describe_shared_with_train(counts: Mapping[str, Mapping[str, int]]) -> str:
    held_out = {split: counts[split] for split in _HELD_OUT if split in counts}
    return ", ".join(f"{split} {n['in_train']:,} of {n['count']:,}" for split, n in held_out.items())


def _val_shares_more_with_train(val: Mapping[str, int], test: Mapping[str, int]) -> bool:
    """Whether val shares significantly and much more inputs or texts with train than test does."""
    share = {name: of["in_train"] / of["count"] for name, of in (("val", val), ("test", test))}
    pooled = (val["in_train"] + test["in_train"]) / (val["count"] + test["count"])
    error = math.sqrt(pooled * (1 - pooled) * (1 / val["count"] + 1 / test["count"]))
    more = share["val"] - share["test"]
    return more > _MIN_DIFFERENCE and more > _STANDARD_ERRORS * error
