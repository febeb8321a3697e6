"""Reading samples by their rows in the index: ranged reads of the tars."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import pyarrow as pa

from pipelines.data.index.index import Index
from pipelines.data.tars.sample import hash_texts, parse_metadata, parse_texts
from pipelines.errors import DataError
from vlmodel.sample import Sample, Texts

_CACHED_SHARDS = 256
_COLUMNS = [
    "key", "split", "image_offset", "image_size", "json_offset", "json_size", "txt_offset", "txt_size", "sha256",
    "texts_hash", "captions", "questions",
]  # fmt: skip

Range = tuple[int, int]


class ShardReader:
    """Reads samples of indexed shards, from any file system; transient errors are retried with back-off.

    It compares each image, and each sample's texts, with their hashes in the index. It caches the rows of the last
    ``cached_shards`` shards, and keeps no files open. Threads may share it.
    """

    def __init__(self, index: Index, *, cached_shards: int = _CACHED_SHARDS) -> None:
        self.index = index
        self._rows = lru_cache(maxsize=cached_shards)(self._read_rows)

    def read(self, shard: str, rows: Sequence[int], *, images: bool = True, texts: bool = True) -> list[Sample]:
        """The samples at these rows of ``index.rows(shard)``, in the order asked for.

        Args:
            images, texts: False leaves these unread and empty.

        Raises:
            DataError: the shard cannot be read, or is not the one that was indexed.
            IndexError: there is no such row.
        """
        samples = self._index_rows(shard, rows)
        has_image = self.index.modality != "texts"
        images = images and has_image
        ranges, texts_at = [_image_range(sample) for sample in samples] if images else [], []
        if texts:
            for sample in samples:
                start = len(ranges)
                ranges.extend(_text_ranges(sample))
                texts_at.append(slice(start, len(ranges)))
        pieces = self._read_ranges(shard, ranges)
        records = []
        for number, sample in enumerate(samples):
            image = pieces[number] if images else b""
            if images and not _is_image_of(sample, image):
                image = self._read_ranges(shard, [_image_range(sample)])[0]
                if not _is_image_of(sample, image):
                    raise self._changed_error(shard, sample)
            parsed = self._parse_texts(shard, sample, pieces[texts_at[number]]) if texts else Texts()
            present = {name for name in ("captions", "questions") if sample[name]} | ({"image"} if has_image else set())
            inputs = {"image": image} if images else {}
            records.append(Sample(sample["key"], inputs, parsed, frozenset(present), sample["split"]))
        return records

    def read_texts(self, shard: str, rows: Sequence[int]) -> list[Texts]:
        """As ``read``, without the images."""
        return [record.texts for record in self.read(shard, rows, images=False)]

    def keys(self, shard: str, rows: Sequence[int]) -> list[str]:
        """Keys of the samples at these rows, without reading the shard.

        Raises:
            DataError: the shard's part of the index cannot be read.
        """
        keys: list[str] = self._rows(shard)["key"].take(pa.array(rows, pa.int64())).to_pylist()
        return keys

    def image_sha256s(self, shard: str, rows: Sequence[int]) -> list[str]:
        """SHA-256 hashes of the encoded images at these rows, as the index has them. Raises what ``keys`` raises."""
        sha256s: list[str] = self._rows(shard)["sha256"].take(pa.array(rows, pa.int64())).to_pylist()
        return sha256s

    def read_metadata(self, shard: str, rows: Sequence[int]) -> list[dict[str, Any]]:
        """The metadata in the JSON of each sample beside its texts; the errors of ``read``."""
        samples = self._index_rows(shard, rows)
        stored = [sample for sample in samples if sample["json_offset"] is not None]
        pieces = iter(self._read_ranges(shard, [(sample["json_offset"], sample["json_size"]) for sample in stored]))
        metadata = []
        for sample in samples:
            json = next(pieces) if sample["json_offset"] is not None else None
            try:
                metadata.append(parse_metadata(json))
            except (DataError, ValueError) as error:
                raise self._changed_error(shard, sample) from error
        return metadata

    def _read_rows(self, shard: str) -> pa.Table:
        return self.index.rows(shard).select(_COLUMNS)

    def _index_rows(self, shard: str, rows: Sequence[int]) -> list[dict[str, Any]]:
        samples: list[dict[str, Any]] = self._rows(shard).take(pa.array(rows, pa.int64())).to_pylist()
        return samples

    def _read_ranges(self, shard: str, ranges: Sequence[Range]) -> list[bytes]:
        try:
            return self.index.folder.read_ranges(shard, ranges)
        except OSError as error:
            problem = f"shard {shard!r} of {self.index.tars!r} cannot be read ({type(error).__name__}: {error})"
            remedy = "if it was changed or removed, run the index job again; else check that its storage is reachable"
            raise DataError(f"{problem}; {remedy}") from error

    def _parse_texts(self, shard: str, sample: dict[str, Any], pieces: Sequence[bytes]) -> Texts:
        """The texts of a sample's text members, which are read once more where their hash differs from the index."""
        if not pieces:
            return Texts()
        json, txt = _text_members(sample, pieces)
        if hash_texts(json, txt) != sample["texts_hash"]:
            json, txt = _text_members(sample, self._read_ranges(shard, _text_ranges(sample)))
            if hash_texts(json, txt) != sample["texts_hash"]:
                raise self._changed_error(shard, sample)
        try:
            return parse_texts(json, txt, limits=None)
        except DataError as error:
            raise self._changed_error(shard, sample) from error

    def _changed_error(self, shard: str, sample: dict[str, Any]) -> DataError:
        where = f"sample {sample['key']!r} in shard {shard!r} of {self.index.tars!r}"
        remedy = "run the index job again, with data.index.force=true where the tar's size and time are unchanged"
        return DataError(f"{where} is not what was indexed; the shard has changed: {remedy}")


def _image_range(sample: dict[str, Any]) -> Range:
    return sample["image_offset"], sample["image_size"]


def _text_ranges(sample: dict[str, Any]) -> list[Range]:
    kinds = [kind for kind in ("json", "txt") if sample[f"{kind}_offset"] is not None]
    return [(sample[f"{kind}_offset"], sample[f"{kind}_size"]) for kind in kinds]


def _text_members(sample: dict[str, Any], pieces: Sequence[bytes]) -> tuple[bytes | None, bytes | None]:
    """The .json and the .txt of a sample, from the pieces of ``_text_ranges``."""
    json = pieces[0] if sample["json_offset"] is not None else None
    return json, pieces[-1] if sample["txt_offset"] is not None else None


def _is_image_of(sample: dict[str, Any], image: bytes) -> bool:
    return hashlib.sha256(image).hexdigest() == sample["sha256"]
