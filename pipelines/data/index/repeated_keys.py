"""Finds keys that several shards of one split have; the first shard, by name, keeps its sample."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa

from pipelines.data.index.fault import QuarantineEntry
from pipelines.data.index.files import READERS, read_indexed_samples, total_sample_count
from pipelines.data.index.index_shard import Summary
from pipelines.data.tars.errors import FaultReason
from pipelines.data.tars.inputs import TEXT_EXTENSIONS
from pipelines.data.tars.shards import SPLITS
from pipelines.storage.folder import StorageFolder

# Above this many samples, keys are compared in several passes over ranges of their hashes: 8 bytes each, a few copies.
_KEYS_PER_PASS = 50_000_000


def find_repeated_keys(folder: StorageFolder, shards: Sequence[Summary]) -> list[tuple[str, int, QuarantineEntry]]:
    """Find samples whose key an earlier shard of the same split has: (shard, row, fault), sorted by shard and row."""
    inputs = dict.fromkeys(name for shard in shards for name in shard["inputs"])
    offsets = [*(f"{name}.offset" for name in inputs), *(f"{kind}_offset" for kind in TEXT_EXTENSIONS)]
    repeated: list[tuple[str, int, QuarantineEntry]] = []
    for split in SPLITS:
        of_split = [shard for shard in shards if shard["split"] == split]
        if len(of_split) < 2:
            continue
        parts = {shard["name"]: shard["part"] for shard in of_split}
        passes = -(-sum(total_sample_count(shard) for shard in of_split) // _KEYS_PER_PASS)
        for number in range(passes):
            first_shard: dict[str, str] = {}
            for name, rows in _find_equal_hashes(folder, parts, number, passes):
                samples = read_indexed_samples(folder, parts[name], ["key", *offsets]).take(pa.array(rows))
                for row, sample in zip(rows.tolist(), samples.to_pylist(), strict=True):
                    key = sample["key"]
                    if (earlier := first_shard.setdefault(key, name)) != name:
                        detail = f"shard {earlier} has this key too; keys are unique within a split"
                        offset = min(sample[column] for column in offsets if sample[column] is not None)
                        repeated.append(
                            (name, row, QuarantineEntry(key, None, offset, FaultReason.DUPLICATE_KEY, detail))
                        )
    return sorted(repeated, key=lambda repeat: repeat[:2])


def _find_equal_hashes(
    folder: StorageFolder, parts: Mapping[str, str], number: int, passes: int
) -> Iterator[tuple[str, np.ndarray]]:
    """Find keys whose hash occurs more than once: (shard, rows), among the hashes of pass ``number``."""

    def hash_keys_of_shard(part: str) -> tuple[np.ndarray, np.ndarray]:
        hashes = read_indexed_samples(folder, part, ["key_hash"])["key_hash"].to_numpy()
        rows = np.flatnonzero(hashes % np.uint64(passes) == number)
        return hashes[rows], rows.astype(np.int32)

    with ThreadPoolExecutor(READERS) as pool:
        pieces = list(pool.map(hash_keys_of_shard, parts.values()))
    hashes = np.concatenate([piece[0] for piece in pieces])
    order = np.argsort(hashes)
    equal_to_next = hashes[order[1:]] == hashes[order[:-1]]
    repeated = np.zeros(len(hashes), np.bool_)
    repeated[order[1:][equal_to_next]] = True
    repeated[order[:-1][equal_to_next]] = True
    start = 0
    for name, (of_shard, rows) in zip(parts, pieces, strict=True):
        in_shard = repeated[start : start + len(of_shard)]
        start += len(of_shard)
        if in_shard.any():
            yield name, rows[in_shard]
