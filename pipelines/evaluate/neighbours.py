"""A baseline that copies captions: finds the training images that look most like an image to a frozen encoder.

A model that writes captions should be better than a look-up of the nearest image that it was trained on
(Devlin et al. 2015, arXiv:1505.04467).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.data.index.index import Index, IndexedShard
from pipelines.data.stream.feature_cache import FeatureCache, shorten_input_hash
from pipelines.data.tars.reader import ShardReader
from vlmodel.encoder_parts import IMAGE

NEIGHBOURS = 10
"""Training images whose captions are candidates (of Devlin et al.'s 50 to 200, for 80,000 images)."""
MOST_TRAINING_IMAGES = 50_000
"""Of more, so many are compared: the first in the order of their hashes."""
_AT_ONCE = 1024

Layout = Sequence[tuple[int, int, int]]
"""Of the numbers of a feature row: height, width and channels of each of its grids."""
Neighbours = Mapping[tuple[str, str], Sequence[str]]
"""By split and key of an image: captions of its neighbours, the nearest first."""


class _ImageVectors(NamedTuple):
    """Images with their vectors of length one, (N, D)."""

    names: list[tuple[str, str]]
    sha256s: list[str]
    vectors_ND: NDArray[np.float32]


def captions_of_neighbours(
    index: Index, cache: FeatureCache, layout: Layout, split: str, count: int = NEIGHBOURS
) -> Neighbours | None:
    """Return the captions of the ``count`` training images that are nearest to each image of a split, by the cosine of
    their mean features. An image is no neighbour of itself, nor of the same file under another key.

    Args:
        cache: kept features of images.
        layout: of their rows.
        split: "" for all samples.

    Returns:
        None where they are not kept of both splits, or no training image has captions.
    """
    if not _are_features_cached(index, cache, ("train", split)):
        return None
    training = _drop_repeated_images(_read_images(index, cache, layout, "train", captioned=True), MOST_TRAINING_IMAGES)
    if not training.names:
        return None
    queries = _read_images(index, cache, layout, split)
    own_N = np.array(training.sha256s)
    chosen: list[NDArray[np.intp]] = []
    for first in range(0, len(queries.names), _AT_ONCE):
        rows = slice(first, first + _AT_ONCE)
        cosine_QN = queries.vectors_ND[rows] @ training.vectors_ND.T
        cosine_QN[np.array(queries.sha256s[rows])[:, None] == own_N] = -np.inf
        order_QN = np.argsort(-cosine_QN, axis=1, kind="stable")[:, :count]
        chosen += [order[np.isfinite(cosine[order])] for order, cosine in zip(order_QN, cosine_QN, strict=True)]
    captions = _read_captions(index, {training.names[n] for near in chosen for n in near.tolist()})
    return {
        name: [caption for n in near.tolist() for caption in captions[training.names[n]]]
        for name, near in zip(queries.names, chosen, strict=True)
    }


def _shards_of(index: Index, split: str) -> list[IndexedShard]:
    return [shard for shard in index.shards if not split or split in shard.sample_counts]


def _are_features_cached(index: Index, cache: FeatureCache, splits: Sequence[str]) -> bool:
    wanted = {cache.file_name_of_shard(index, shard) for split in splits for shard in _shards_of(index, split)}
    return cache.find_complete_files(wanted) == wanted


def _rows_with_images(index: Index, shard: IndexedShard, split: str) -> pa.Table:
    """Return the split, the key, the number of captions and the hash of the image of those samples of a shard that have
    one.
    """
    table = index.rows(shard.name)
    table = table.append_column("row", pa.array(range(table.num_rows), pa.int64()))
    chosen = pc.is_valid(table[f"{IMAGE}.sha256"])
    if split:
        chosen = pc.and_(chosen, pc.equal(table["split"], split))
    return table.filter(chosen)


def _read_images(
    index: Index, cache: FeatureCache, layout: Layout, split: str, captioned: bool = False
) -> _ImageVectors:
    names, sha256s, vectors = [], [], [np.zeros((0, sum(channels for *_, channels in layout)), np.float32)]
    for shard in _shards_of(index, split):
        table = _rows_with_images(index, shard, split)
        if captioned:
            table = table.filter(pc.greater(table["captions"], 0))
        found = table[f"{IMAGE}.sha256"].to_pylist()
        names += list(zip(table["split"].to_pylist(), table["key"].to_pylist(), strict=True))
        sha256s += found
        rows = cache.read([cache.file_name_of_shard(index, shard)], [shorten_input_hash(sha256) for sha256 in found])
        vectors += [_mean_of_cells(row_1F[0], layout)[None] for row_1F in rows]
    return _ImageVectors(names, sha256s, np.concatenate(vectors))


def _mean_of_cells(row_F: NDArray[np.floating], layout: Layout) -> NDArray[np.float32]:
    ends = np.cumsum([height * width * channels for height, width, channels in layout])
    pieces = np.split(row_F.astype(np.float32), ends[:-1])
    means = [piece.reshape(-1, channels).mean(0) for piece, (*_, channels) in zip(pieces, layout, strict=True)]
    vector_D = np.concatenate(means)
    return (vector_D / max(float(np.linalg.norm(vector_D)), 1e-12)).astype(np.float32)


def _drop_repeated_images(images: _ImageVectors, most: int) -> _ImageVectors:
    if len(images.names) <= most:
        return images
    kept = np.sort(np.argsort(np.array(images.sha256s), kind="stable")[:most])
    names, sha256s = ([of_all[n] for n in kept.tolist()] for of_all in (images.names, images.sha256s))
    return _ImageVectors(names, sha256s, images.vectors_ND[kept])


def _read_captions(index: Index, names: set[tuple[str, str]]) -> dict[tuple[str, str], tuple[str, ...]]:
    return dict(_captions_of_shards(index, names))


def _captions_of_shards(index: Index, names: set[tuple[str, str]]) -> Iterator[tuple[tuple[str, str], tuple[str, ...]]]:
    reader = ShardReader(index)
    for shard in _shards_of(index, "train"):
        table = _rows_with_images(index, shard, "train")
        found = [
            (name, row)
            for *name_parts, row in zip(*(table[column].to_pylist() for column in ("split", "key", "row")), strict=True)
            if (name := (name_parts[0], name_parts[1])) in names
        ]
        texts = reader.read_texts(shard.name, [row for _, row in found])
        yield from ((name, given.captions) for (name, _), given in zip(found, texts, strict=True))
