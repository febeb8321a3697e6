"""The measuring pass of a preparation: one task filters the samples of a source shard, and encodes the images that
change.

The encoded images are stored, so an image is decoded once, and sizes are known when the shards are planned.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from pipelines.data.index.files import read_table, read_table_metadata, to_parquet_bytes
from pipelines.data.index.index import Index
from pipelines.data.prepare.config import PrepareConfig
from pipelines.data.prepare.files import MEASURE_SCHEMA, encoded_images_file, measurements_file
from pipelines.data.prepare.filters import (
    DropCause,
    DropReason,
    count_texts,
    find_size_fault,
    find_text_fault,
    texts_of_valid_length,
)
from pipelines.data.prepare.images import (
    EncodedImage,
    ImageFormatAndSize,
    encode_image,
    keep_image_as_stored,
    needs_decoding,
)
from pipelines.data.tars.errors import SampleError
from pipelines.data.tars.inputs import TEXT
from pipelines.data.tars.reader import ShardReader
from pipelines.data.tars.shards import make_sample_members, size_in_tar
from pipelines.storage.folder import StorageFolder
from vlmodel.sample import Sample

_CHUNK_BYTES = 32 << 20
_PART_BYTES = 64 << 20

Row = dict[str, Any]


def measure_shard(index: Index, shard: str, config: PrepareConfig, out: StorageFolder, identity: str) -> None:
    """Write the measurements of a shard's samples, unless they exist.

    Args:
        identity: of the preparation; measurements of another one are replaced.

    Raises:
        DataError: the shard cannot be read, or has changed since it was indexed.
    """
    facts = {"identity": identity, "sha256": index.shard(shard).sha256}
    if _read_measurement_settings(out, shard) == facts:
        return
    rows = index.rows(shard).to_pylist()
    reader, parts = ShardReader(index), _ImageWriter(out, shard)
    measured: list[Row] = []
    for chunk in _chunk_rows_by_image_bytes(rows):
        measured += _measure_chunk(reader, shard, rows, chunk, config, parts)
    parts.close()
    # Written last: where it exists, the images do too.
    out.write(measurements_file(shard), to_parquet_bytes(pa.Table.from_pylist(measured, MEASURE_SCHEMA), facts))


def lineage_entry(shard: str, key: str, sha256: str, before: dict[str, Any]) -> dict[str, Any]:
    """Build the metadata of a prepared sample: those of the source, and the source sample as ``prepared_from``.

    A sample that was prepared twice has the first entry inside the second.
    """
    entry = {"shard": shard, "key": key, "sha256": sha256}
    earlier = {"prepared_from": before["prepared_from"]} if "prepared_from" in before else {}
    return {**before, "prepared_from": {**entry, **earlier}}


def _read_measurement_settings(out: StorageFolder, shard: str) -> dict[str, Any]:
    try:
        return read_table_metadata(read_table(out.read(measurements_file(shard)), []))
    except (FileNotFoundError, NotADirectoryError, pa.ArrowException):
        return {}


def _chunk_rows_by_image_bytes(rows: Sequence[Row]) -> Iterator[range]:
    """Cut rows into ranges whose images are read together, limited by the images' bytes."""
    start = size = 0
    for number, row in enumerate(rows):
        size += row["image.size"]
        if size >= _CHUNK_BYTES:
            yield range(start, number + 1)
            start, size = number + 1, 0
    if start < len(rows):
        yield range(start, len(rows))


def _measure_chunk(
    reader: ShardReader, shard: str, rows: Sequence[Row], chunk: range, config: PrepareConfig, parts: _ImageWriter
) -> list[Row]:
    images = {n: ImageFormatAndSize(*(rows[n][f"image.{fact}"] for fact in ImageFormatAndSize._fields)) for n in chunk}
    drops = {n: find_size_fault(images[n].width, images[n].height, config) for n in chunk}
    left = [n for n in chunk if drops[n] is None]
    decoded = [n for n in left if needs_decoding(images[n], config)]
    others = sorted(set(left) - set(decoded))
    records = dict(zip(decoded, reader.read(shard, decoded, inputs=("image",)), strict=True))
    records |= dict(zip(others, reader.read(shard, others, inputs=()), strict=True))
    extras = dict(zip(left, reader.read_metadata(shard, left), strict=True))
    measured = []
    for n in chunk:
        outcome: Row | DropCause | None = drops[n]
        if outcome is None:
            extra = lineage_entry(shard, rows[n]["key"], rows[n]["image.sha256"], extras[n])
            outcome = _check_sample(
                records[n], images[n], _size_and_extension_of_inputs(rows[n], reader.index), extra, config, parts
            )
        if isinstance(outcome, DropCause):
            outcome = {"reason": str(outcome.reason), "detail": outcome.detail}
        measured.append(outcome)
    return measured


def _check_sample(
    record: Sample,
    image: ImageFormatAndSize,
    sizes: dict[str, tuple[int, str]],
    extra: Row,
    config: PrepareConfig,
    parts: _ImageWriter,
) -> Row | DropCause:
    texts = texts_of_valid_length(record.texts, config)
    if (drop := find_text_fault(texts, record.texts, config)) is not None:
        return drop
    try:
        stored = (
            encode_image(record.inputs["image"], image, config)
            if needs_decoding(image, config)
            else keep_image_as_stored(image)
        )
    except SampleError as error:
        return DropCause(DropReason.UNDECODABLE, error.detail)
    try:
        # What is kept was not read; only its size matters here.
        inputs = {name: (bytes(size), extension) for name, (size, extension) in sizes.items()}
        data = stored.data if stored.data is not None else inputs["image"][0]
        members = make_sample_members(
            record.key, {**inputs, "image": (data, stored.extension)}, texts, extra, [*inputs, TEXT]
        )
    except SampleError as error:
        return DropCause(DropReason.UNWRITABLE, error.detail)
    return _encoded_image_row(stored, size_in_tar(members), count_texts(record.texts) - count_texts(texts), parts)


def _size_and_extension_of_inputs(row: Row, index: Index) -> dict[str, tuple[int, str]]:
    """Return the number of bytes and the extension of each input that a sample has."""
    present = (name for name in index.inputs if row[f"{name}.size"] is not None)
    return {name: (row[f"{name}.size"], row[f"{name}.extension"]) for name in present}


def _encoded_image_row(stored: EncodedImage, size: int, left_out: int, parts: _ImageWriter) -> Row:
    part, offset = parts.add(stored.data) if stored.data is not None else (None, None)
    return {
        "left_out": left_out,
        "hash": stored.hash,
        "stored": size,
        "extension": stored.extension,
        "width": stored.width,
        "height": stored.height,
        "part": part,
        "offset": offset,
        "size": len(stored.data) if stored.data is not None else None,
    }


class _ImageWriter:
    """Writes encoded images one after the other, into files small enough for memory."""

    def __init__(self, out: StorageFolder, shard: str) -> None:
        self._out, self._shard = out, shard
        self._part = 0
        self._images = bytearray()

    def add(self, image: bytes) -> tuple[int, int]:
        """Write an encoded image. Returns the number of its file and its offset within that file in bytes."""
        if self._images and len(self._images) + len(image) > _PART_BYTES:
            self.close()
            self._part += 1
            self._images = bytearray()
        offset = len(self._images)
        self._images += image
        return self._part, offset

    def close(self) -> None:
        if self._images:
            self._out.write(encoded_images_file(self._shard, self._part), bytes(self._images))
