"""Reads samples by their rows in the index, with ranged reads of the tars."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import Any

import pyarrow as pa

from pipelines.data.index.index import Index
from pipelines.data.index.present import split_input_names
from pipelines.data.tars.inputs import TEXT_EXTENSIONS
from pipelines.data.tars.sample import hash_texts, parse_metadata, parse_texts
from pipelines.errors import DataError
from vlmodel.sample import Sample, SampleTexts

_CACHED_SHARDS = 256
_COLUMNS = ("key", "split", "present")
_TEXT_COLUMNS = (*(f"{kind}_{what}" for kind in TEXT_EXTENSIONS for what in ("offset", "size")), "texts_hash")

Range = tuple[int, int]


class ShardReader:
    """Reads samples of indexed shards from any file system; transient errors are retried with back-off.

    It compares each input, and each sample's texts, with their hashes in the index. It caches the rows of the last
    ``cached_shards`` shards, and keeps no files open. Threads may share it.
    """

    def __init__(self, index: Index, *, cached_shards: int = _CACHED_SHARDS) -> None:
        self.index = index
        self._inputs = tuple(index.inputs)
        self._rows = lru_cache(maxsize=cached_shards)(self._read_rows)

    def read(
        self, shard: str, rows: Sequence[int], *, inputs: Collection[str] | None = None, texts: bool = True
    ) -> list[Sample]:
        """Read the samples at some rows of a shard, in the order asked for.

        Args:
            inputs: names of those that are read, where a sample has them; None for all.
            texts: False leaves these unread and empty.

        Raises:
            DataError: the shard cannot be read, or is not the one that was indexed.
            IndexError: there is no such row.
        """
        names = [name for name in self._inputs if inputs is None or name in inputs]
        samples = self._index_rows(shard, rows, names, texts)
        ranges: list[Range] = []
        places: list[tuple[dict[str, int], slice]] = []
        for sample in samples:
            of_inputs = {}
            for name in names:
                if sample[f"{name}.offset"] is not None:
                    of_inputs[name] = len(ranges)
                    ranges.append(_byte_range_of_input(sample, name))
            start = len(ranges)
            ranges += _byte_ranges_of_texts(sample) if texts else []
            places.append((of_inputs, slice(start, len(ranges))))
        pieces = self._read_ranges(shard, ranges)
        records = []
        for sample, (of_inputs, of_texts) in zip(samples, places, strict=True):
            read = {name: self._read_and_check_input(shard, sample, name, pieces[at]) for name, at in of_inputs.items()}
            parsed = self._parse_texts(shard, sample, pieces[of_texts]) if texts else SampleTexts()
            records.append(Sample(sample["key"], read, parsed, split_input_names(sample["present"]), sample["split"]))
        return records

    def read_texts(self, shard: str, rows: Sequence[int]) -> list[SampleTexts]:
        """Read the texts of the samples at some rows of a shard, without their inputs."""
        return [record.texts for record in self.read(shard, rows, inputs=())]

    def keys(self, shard: str, rows: Sequence[int]) -> list[str]:
        """Return the keys of the samples at some rows of a shard, from the index alone.

        Raises:
            DataError: the shard's part of the index cannot be read.
        """
        keys: list[str] = self._rows(shard)["key"].take(pa.array(rows, pa.int64())).to_pylist()
        return keys

    def input_sha256s(self, shard: str, rows: Sequence[int], name: str) -> list[str | None]:
        """Return the SHA-256 hashes of the bytes of an input at some rows of a shard, from the index; None for samples
        without it. Raises what ``keys`` raises.
        """
        if name not in self._inputs:
            return [None] * len(rows)
        sha256s: list[str | None] = self._rows(shard)[f"{name}.sha256"].take(pa.array(rows, pa.int64())).to_pylist()
        return sha256s

    def read_metadata(self, shard: str, rows: Sequence[int]) -> list[dict[str, Any]]:
        """Read the metadata that each sample's JSON holds beside its texts; raises the errors of ``read``."""
        samples = self._index_rows(shard, rows, (), True)
        stored = [sample for sample in samples if sample["json_offset"] is not None]
        pieces = iter(self._read_ranges(shard, [(sample["json_offset"], sample["json_size"]) for sample in stored]))
        metadata = []
        for sample in samples:
            json = next(pieces) if sample["json_offset"] is not None else None
            try:
                metadata.append(parse_metadata(json))
            except (DataError, ValueError) as error:
                raise self._tar_changed_error(shard, sample) from error
        return metadata

    def _read_rows(self, shard: str) -> pa.Table:
        return self.index.rows(shard).select([*_COLUMNS, *_TEXT_COLUMNS, *_input_columns(self._inputs)])

    def _index_rows(self, shard: str, rows: Sequence[int], inputs: Sequence[str], texts: bool) -> list[dict[str, Any]]:
        """Select the index's rows with only the columns of some inputs and of the texts, as each column costs time in
        every batch.
        """
        columns = [*_COLUMNS, *(_TEXT_COLUMNS if texts else ()), *_input_columns(inputs)]
        samples: list[dict[str, Any]] = self._rows(shard).select(columns).take(pa.array(rows, pa.int64())).to_pylist()
        return samples

    def _read_ranges(self, shard: str, ranges: Sequence[Range]) -> list[bytes]:
        try:
            return self.index.folder.read_ranges(shard, ranges)
        except OSError as error:
            problem = f"shard {shard!r} of {self.index.tars!r} cannot be read ({type(error).__name__}: {error})"
            remedy = "if it was changed or removed, run the index job again; else check that its storage is reachable"
            raise DataError(f"{problem}; {remedy}") from error

    def _read_and_check_input(self, shard: str, sample: dict[str, Any], name: str, data: bytes) -> bytes:
        """Return an input's bytes, reading them once more if their hash differs from the index."""
        if not _has_input_columns(sample, name, data):
            (data,) = self._read_ranges(shard, [_byte_range_of_input(sample, name)])
            if not _has_input_columns(sample, name, data):
                raise self._tar_changed_error(shard, sample)
        return data

    def _parse_texts(self, shard: str, sample: dict[str, Any], pieces: Sequence[bytes]) -> SampleTexts:
        """Parse the texts of a sample's text members, reading them once more if their hash differs from the index."""
        if not pieces:
            return SampleTexts()
        members = _split_text_members(sample, pieces)
        if hash_texts(*members) != sample["texts_hash"]:
            members = _split_text_members(sample, self._read_ranges(shard, _byte_ranges_of_texts(sample)))
            if hash_texts(*members) != sample["texts_hash"]:
                raise self._tar_changed_error(shard, sample)
        json, txt, cls = members
        try:
            return parse_texts(json, txt, None, cls)
        except DataError as error:
            raise self._tar_changed_error(shard, sample) from error

    def _tar_changed_error(self, shard: str, sample: dict[str, Any]) -> DataError:
        where = f"sample {sample['key']!r} in shard {shard!r} of {self.index.tars!r}"
        remedy = "run the index job again, with data.index.force=true where the tar's size and time are unchanged"
        return DataError(f"{where} is not what was indexed; the shard has changed: {remedy}")


def _input_columns(inputs: Sequence[str]) -> list[str]:
    return [f"{name}.{column}" for name in inputs for column in ("offset", "size", "sha256")]


def _byte_range_of_input(sample: dict[str, Any], name: str) -> Range:
    return sample[f"{name}.offset"], sample[f"{name}.size"]


def _byte_ranges_of_texts(sample: dict[str, Any]) -> list[Range]:
    kinds = [kind for kind in TEXT_EXTENSIONS if sample[f"{kind}_offset"] is not None]
    return [(sample[f"{kind}_offset"], sample[f"{kind}_size"]) for kind in kinds]


def _split_text_members(sample: dict[str, Any], pieces: Sequence[bytes]) -> list[bytes | None]:
    """Split the bytes that were read for a sample's texts into its text members, in the order of
    ``TEXT_EXTENSIONS``.
    """
    found = iter(pieces)
    return [next(found) if sample[f"{kind}_offset"] is not None else None for kind in TEXT_EXTENSIONS]


def _has_input_columns(sample: dict[str, Any], name: str, data: bytes) -> bool:
    return hashlib.sha256(data).hexdigest() == sample[f"{name}.sha256"]
