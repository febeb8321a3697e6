"""Defines how the vectors of a data set are stored: Parquet files, and a manifest that names them.

    embeddings.json        written last: model, index, and the files with the number of their vectors
    parts/NAME.parquet     the vectors of some samples of one tar; written as a whole, and never changed
    search/                derived from these on a local disk (``search_files.py``), and made anew where it is missing

A file of ``parts`` is named by all that its vectors depend on: so a job that was stopped, or that comes upon a new tar,
computes only what is missing. Each also holds its lineage in the metadata of its schema.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from pipelines.data.index.index import Index, IndexedShard
from pipelines.embeddings.errors import EmbeddingsError
from pipelines.storage.folder import StorageFolder

MANIFEST, PARTS = "embeddings.json", "parts"
LINEAGE = b"lineage"
"""Key of the lineage in the metadata of a file's schema, as JSON."""

_FORMAT = 1
_COUNTS = b"vectors"


class EmbeddedModel(BaseModel):
    """Identifies the model that computed the vectors.

    Attributes:
        name, version: in the registry; version "0" for a folder that is not registered.
        digest: of its folder (``manifest.folder_digest``).
        task: the contrastive one.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    name: str
    version: str
    digest: str
    task: str


class EmbeddingsFile(BaseModel):
    """Describes one Parquet file of vectors.

    Attributes:
        name: within the folder ``parts``.
        width: numbers of a vector.
        vectors: how many it has, by what was embedded: "text", "image".
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    name: str
    width: int
    vectors: dict[str, int]


class EmbeddingsManifest(BaseModel):
    """The manifest of stored vectors: the model, the data set and the files.

    Attributes:
        tars: folder or URI of the samples.
        index: hash of the version of their index.
        split: "" for all samples.
        inputs: what was embedded.
        parts: in the order of the tars and of their samples.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    format: int = _FORMAT
    model: EmbeddedModel
    tars: str
    index: str
    split: str
    inputs: list[str]
    parts: list[EmbeddingsFile]

    @classmethod
    def read(cls, folder: StorageFolder) -> EmbeddingsManifest:
        """Read the manifest of the stored vectors in a folder.

        Raises:
            EmbeddingsError: there is none, it is damaged, or another version of this program wrote it.
            OSError: it cannot be read.
        """
        remedy = f"run the embed job: python -m jobs.embed --config ... embed.out={folder.uri}"
        try:
            text = folder.read(MANIFEST)
        except (FileNotFoundError, NotADirectoryError):
            raise EmbeddingsError(f"{folder.uri!r} holds no vectors (no {MANIFEST}); {remedy}") from None
        try:
            read = cls.model_validate_json(text)
        except ValidationError as error:
            reason = str(error).splitlines()[0]
            raise EmbeddingsError(f"{MANIFEST} of {folder.uri!r} is damaged ({reason}); {remedy}") from None
        if read.format != _FORMAT:
            raise EmbeddingsError(
                f"{folder.uri!r} has format {read.format}, and this version reads {_FORMAT}; {remedy}"
            )
        return read

    def write(self, folder: StorageFolder) -> None:
        """Write the manifest atomically."""
        folder.write(MANIFEST, self.model_dump_json(indent=1).encode())

    @cached_property
    def hash(self) -> str:
        """The SHA-256 of the manifest."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    @property
    def width(self) -> int:
        """The number of components of a vector."""
        return self.parts[0].width

    def count(self, name: str) -> int:
        """Count the vectors of an input, or of "text"."""
        return sum(part.vectors.get(name, 0) for part in self.parts)

    def check_model(self, digest: str, model: str, where: str) -> None:
        """Raise EmbeddingsError if the vectors are of another model than this one, as they cannot be compared.

        Args:
            digest: of the model that asks.
            model: what it is called.
            where: the folder of the vectors.

        Raises:
            EmbeddingsError: the digests differ.
        """
        if digest != self.model.digest:
            raise EmbeddingsError(
                f"the vectors in {where!r} are of model {self.model.name} version {self.model.version} (digest "
                f"{self.model.digest[:12]}), and {model} (digest {digest[:12]}) gives others; run the embed job with "
                "this model (evaluate.model), or serve the model of the vectors"
            )


@dataclass(frozen=True)
class EmbeddingsFileRange:
    """Says which samples a file of vectors covers.

    Attributes:
        start, stop: rows of the shard in its index.
        lineage: all that its vectors depend on.
    """

    shard: str
    start: int
    stop: int
    lineage: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The name of the file for this range of samples."""
        key = hashlib.sha256(json.dumps(self.lineage, sort_keys=True).encode()).hexdigest()
        return f"{self.shard}.{self.start:07d}.{key[:24]}.parquet"


def plan_embeddings_files(
    index: Index, split: str, model: EmbeddedModel, inputs: list[str], samples_per_file: int
) -> list[EmbeddingsFileRange]:
    """List the files in which the vectors of a split will be stored, in order."""
    return [
        EmbeddingsFileRange(shard.name, start, min(start + samples_per_file, size), lineage)
        for shard in index.shards
        if not split or split in shard.sample_counts
        for size in [sum(shard.sample_counts.values())]
        for start in range(0, size, samples_per_file)
        for lineage in [_lineage_of_part(index, shard, split, model, inputs, start, samples_per_file)]
    ]


def _lineage_of_part(
    index: Index, shard: IndexedShard, split: str, model: EmbeddedModel, inputs: list[str], start: int, samples: int
) -> dict[str, Any]:
    return {
        "format": _FORMAT,
        "model": model.digest,
        "task": model.task,
        "inputs": inputs,
        "split": split,
        "shard": shard.name,
        "sha256": shard.sha256,
        "scan": index.validity_settings,
        "validation_fraction": index.split_assignment.fraction,
        "repeated": list(shard.repeated),
        "samples": [start, samples],
    }


def arrow_schema(width: int) -> pa.Schema:
    """The columns of a file of vectors, which has a row for each vector.

    ``input`` is what was embedded ("image", "text"), ``row`` the sample's row in the index of its shard, ``text`` null
    for what is no text.
    """
    return pa.schema(
        [
            pa.field("key", pa.string()),
            pa.field("split", pa.string()),
            pa.field("shard", pa.string()),
            pa.field("row", pa.int32()),
            pa.field("input", pa.string()),
            pa.field("text", pa.string()),
            pa.field("vector", pa.list_(pa.float32(), width)),
        ]
    )


def write_embeddings_file(
    folder: StorageFolder, part: EmbeddingsFileRange, index_hash: str, table: pa.Table
) -> EmbeddingsFile:
    """Store a file of vectors, completely or not at all.

    Args:
        index_hash: of the version of the index by which its samples were read.
        table: of ``arrow_schema``.
    """
    counts = table.group_by("input").aggregate([("input", "count")])
    vectors = dict(zip(counts["input"].to_pylist(), counts["input_count"].to_pylist(), strict=True))
    lineage = json.dumps({**part.lineage, "index": index_hash}, sort_keys=True)
    table = table.replace_schema_metadata({LINEAGE: lineage, _COUNTS: json.dumps(vectors)})
    plain = [name for name in table.column_names if name != "vector"]
    with folder.open_for_writing(f"{PARTS}/{part.name}") as file:
        # Vectors are as good as random: neither a dictionary nor a compression makes them smaller.
        pq.write_table(
            table, file, use_dictionary=[name for name in plain if name != "row"],
            compression={**dict.fromkeys(plain, "zstd"), "vector": "none"},
        )  # fmt: skip
    return EmbeddingsFile(name=part.name, width=_width_of(table.schema), vectors=vectors)


def describe_written_file(folder: StorageFolder, name: str) -> EmbeddingsFile:
    """Describe a file that was written before, from its footer.

    Raises:
        EmbeddingsError: it cannot be read.
    """
    try:
        with folder.open_to_read(f"{PARTS}/{name}") as file:
            schema = pq.read_schema(file)
        return EmbeddingsFile(name=name, width=_width_of(schema), vectors=json.loads((schema.metadata or {})[_COUNTS]))
    except (ValueError, KeyError, pa.ArrowException) as error:
        raise EmbeddingsError(
            f"{PARTS}/{name} of {folder.uri!r} cannot be read ({error}); delete it, and run the embed job again"
        ) from None


def _width_of(schema: pa.Schema) -> int:
    return int(schema.field("vector").type.list_size)


def read_embeddings_file(folder: StorageFolder, name: str) -> pa.Table:
    """Read the rows of a file of vectors.

    Raises:
        EmbeddingsError: it is missing, or cannot be read.
    """
    try:
        with folder.open_to_read(f"{PARTS}/{name}") as file:
            return pq.read_table(file)
    except (FileNotFoundError, pa.ArrowException) as error:
        raise EmbeddingsError(
            f"{PARTS}/{name} of {folder.uri!r} cannot be read ({error}); delete it if it is there, and run the embed "
            "job again"
        ) from None
