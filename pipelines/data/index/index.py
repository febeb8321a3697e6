"""The opened index of a folder of tars: where each sample lies, what it holds, which split it is in, and what was left
out.

It lies beside the tars, in ``_index/``:

- ``samples/PART.parquet``: the valid samples of one tar, in tar order. A part is named by all that it depends on (the
  tar, its sha256, the settings that make a sample valid) and is never changed.
- ``faults/PART.parquet``: what is wrong in that tar; absent where nothing is.
- ``versions/HASH.parquet``: a row for each shard: its sha256, size, counts by split and by what samples have, part, and
  the rows of the part that are left out because an earlier shard has the same key.
  ``versions/HASH.quarantine.parquet``: all faults.
- ``index.json``: which version is the newest, and its facts. It is written last, and only where there are no more
  faults than are allowed: where an index job fails, the version before stays the newest.
- ``quarantine.parquet``: the faults of the last job, also of one that failed; ``quarantine.html`` shows them.

An opened version stays readable while newer ones are made. The last 100 versions are kept, and the parts of all tars
that are there. The parts of changed or removed tars are deleted by the next index job: no version can read such a tar.

An opened ``Index`` takes memory for its shards, not for its samples.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.data.index.files import (
    FOLDER,
    FORMAT,
    TEXT_COUNTS,
    drop_rows,
    quarantine_file,
    read_table,
    read_table_metadata,
    samples_file,
    version_file,
)
from pipelines.data.index.present import CanUse, split_input_names
from pipelines.data.index.report import describe_index
from pipelines.data.index.sample_check import input_columns
from pipelines.data.tars.inputs import input_requirements
from pipelines.data.tars.shards import SPLITS
from pipelines.errors import DataError
from pipelines.storage.folder import StorageFolder


@dataclass(frozen=True)
class SplitAssignment:
    """The rule that moves some train samples to the validation split.

    Attributes:
        fraction: share of the train samples; 0 where there is a shard of the validation split.
    """

    fraction: float

    def assign_splits(self, shard_split: str, split_hash: NDArray[np.uint64]) -> NDArray[np.str_]:
        """Return the split of each sample of a shard."""
        splits = np.full(len(split_hash), shard_split, "<U5")
        if shard_split == "train" and self.fraction:
            splits[split_hash < np.uint64(int(self.fraction * 2**64))] = "val"
        return splits


@dataclass(frozen=True)
class IndexedShard:
    """A tar file that the index describes. Its mappings are by split, without splits of which it has no sample.

    Attributes:
        name: file name.
        split: by its file name.
        sha256: of its bytes, in hexadecimal.
        size: in bytes.
        part: its part of the index.
        present: number of samples by what they have (``vlmodel.sample.Sample.present``).
        questions, captions, conversations: number of texts.
        repeated: rows of the samples file that are left out, as an earlier shard has the same key.
    """

    name: str
    split: str
    sha256: str
    size: int
    part: str
    present: dict[str, dict[frozenset[str], int]]
    questions: dict[str, int]
    captions: dict[str, int]
    conversations: dict[str, int]
    repeated: tuple[int, ...] = field(default=(), repr=False)

    @property
    def sample_counts(self) -> dict[str, int]:
        """The number of samples of each split."""
        return {split: sum(counts.values()) for split, counts in self.present.items()}

    def count(self, usable: CanUse, split: str = "") -> int:
        """Count the usable samples of a split, or of all splits."""
        of_splits = [self.present.get(split, {})] if split else self.present.values()
        return sum(count for counts in of_splits for present, count in counts.items() if usable(present))


class Index:
    """An opened index of a folder of tars. Picklable; equal hashes mean equal samples in equal splits.

    Attributes:
        tars: folder or URI of the tars.
        hash: sha256, in hexadecimal, of all that decides what the samples are.
    """

    def __init__(self, tars: str, facts: Mapping[str, Any], shards: pa.Table) -> None:
        self.folder = StorageFolder(tars)
        self.tars = self.folder.uri
        self.hash: str = facts["hash"]
        self._facts, self._table = dict(facts), shards

    @classmethod
    def open(cls, tars: str, index_hash: str = "") -> Index:
        """Open the index that lies beside the tars of a folder.

        Args:
            index_hash: the version to open; the newest if not given.

        Raises:
            DataError: there is none, it has another format, or it cannot be read.
        """
        folder = StorageFolder(tars)
        index_hash = index_hash or Index.newest(tars)
        remedy = _index_job_command(tars)
        try:
            shards = read_table(folder.read(version_file(index_hash)))
            facts = read_table_metadata(shards)
        except (FileNotFoundError, NotADirectoryError):
            raise DataError(
                f"{tars!r} has no version {index_hash[:12]} of its index (any more): the data were replaced; to use "
                "the present data, run the index job and start under another name"
            ) from None
        except (ValueError, pa.ArrowException) as error:
            raise DataError(f"the index of {tars!r} cannot be read ({error}); {remedy}") from None
        if (facts.get("format"), facts.get("hash")) != (FORMAT, index_hash):
            raise DataError(f"version {index_hash[:12]} of the index of {tars!r} was changed; {remedy}")
        return cls(tars, facts, shards)

    @classmethod
    def newest(cls, tars: str) -> str:
        """Return the hash of the newest version of the index beside the tars; raises the errors of ``open``."""
        remedy = _index_job_command(tars)
        try:
            facts = json.loads(StorageFolder(tars).read(f"{FOLDER}/index.json"))
            stored_format, index_hash = facts.get("format"), facts["hash"]
        except (FileNotFoundError, NotADirectoryError):
            raise DataError(f"{tars!r} has no index; {remedy}") from None
        except (AttributeError, KeyError, ValueError) as error:
            raise DataError(f"the index of {tars!r} cannot be read ({error}); {remedy}") from None
        if stored_format != FORMAT:
            raise DataError(f"the index of {tars!r} has format {stored_format}, this version reads {FORMAT}; {remedy}")
        return str(index_hash)

    @cached_property
    def shards(self) -> list[IndexedShard]:
        """The shards that have samples, sorted by name."""
        return [shard for row in self._table.to_pylist() if (shard := _parse_shard(row)).present]

    @cached_property
    def _shards_by_name(self) -> dict[str, IndexedShard]:
        return {shard.name: shard for shard in self.shards}

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("shards", "_shards_by_name")}

    def shard(self, name: str) -> IndexedShard:
        """Return the shard with this name; raises DataError if no shard with samples has it."""
        try:
            return self._shards_by_name[name]
        except KeyError:
            raise DataError(f"the index of {self.tars!r} has no samples of shard {name!r}") from None

    def rows(self, shard: str) -> pa.Table:
        """Read the rows of a shard's samples, in tar order, from storage at every call.

        The columns are those of ``sample_schema``, with ``split`` in the place of ``key_hash``. All shards have the
        columns of all ``inputs``.

        Raises:
            DataError: the shard's part of the index is gone, as the tar was changed or removed since.
        """
        facts = self.shard(shard)
        changed = f"{shard!r} was changed or removed since the index was made; run the index job, then start again"
        try:
            table = read_table(self.folder.read(samples_file(facts.part)))
        except FileNotFoundError:
            raise DataError(f"{samples_file(facts.part)} of {self.tars!r} is gone: {changed}") from None
        if (read_table_metadata(table).get("sha256"), read_table_metadata(table).get("scan")) != (
            facts.sha256,
            self._facts["scan"],
        ):
            raise DataError(f"{samples_file(facts.part)} of {self.tars!r} is of other bytes or settings: {changed}")
        table = self._with_columns_of_inputs(drop_rows(table, facts.repeated))
        splits = self.split_assignment.assign_splits(facts.split, table["split_hash"].to_numpy())
        return table.set_column(1, "split", pa.array(splits, pa.string())).replace_schema_metadata()

    def _with_columns_of_inputs(self, table: pa.Table) -> pa.Table:
        """Return the table with the columns of exactly these inputs; columns that were absent are null."""
        columns = {
            f"{name}.{column}": kind
            for name, medium in self.inputs.items()
            for column, kind in input_columns(medium).items()
        }
        own = [name for name in table.column_names if "." not in name]
        for name in columns.keys() - set(table.column_names):
            table = table.append_column(name, pa.nulls(table.num_rows, columns[name]))
        return table.select([*own, *columns])

    @property
    def split_assignment(self) -> SplitAssignment:
        return SplitAssignment(self._facts["validation_fraction"])

    @property
    def validity_settings(self) -> dict[str, Any]:
        """The settings that decided which samples are valid (``IndexConfig.validity_settings``)."""
        return dict(self._facts["scan"])

    @property
    def inputs(self) -> dict[str, str]:
        """Map each input that any sample has to its medium, texts left out."""
        return dict(self._facts["inputs"])

    @property
    def input_requirements(self) -> dict[str, bool]:
        """Map each input that was read, texts among them, to whether every sample must have it
        (``IndexConfig.inputs``).
        """
        return input_requirements(self._facts["scan"]["inputs"])

    def skipped_member_counts(self) -> dict[str, int]:
        """The number of tar members that belong to no sample, by extension (".cls"), "hidden" or "no extension"."""
        return dict(self._facts["passed_over"])

    def count(self, usable: CanUse, split: str = "") -> int:
        """Count the usable samples of a split, or of all splits."""
        return sum(shard.count(usable, split) for shard in self.shards)

    def counts(self) -> dict[str, int]:
        """The number of samples of each split, zero included."""
        return {split: self.count(lambda present: True, split) for split in SPLITS}

    def quarantine(self) -> pa.Table:
        """The table of faults for which samples were left out: shard, key, member, offset (bytes), reason, detail; in
        tar order.
        """
        return read_table(self.folder.read(quarantine_file(self.hash)))

    def quarantine_counts(self) -> dict[str, int]:
        """The number of faults in the quarantine by reason."""
        return dict(self._facts["quarantine"])

    def statistics(self) -> dict[str, Any]:
        """Statistics of all samples, such as how many inputs are repeated (``pipelines.data.index.statistics``)."""
        return dict(self._facts["survey"])

    def report(self) -> str:
        """Describe the index for a terminal, by ``describe_index``."""
        return describe_index(self, self._table)


def _index_job_command(tars: str) -> str:
    return f"run the index job: python -m jobs.index --config ... data.tars={tars}"


def _parse_shard(row: Mapping[str, Any]) -> IndexedShard:
    present = {
        split: {split_input_names(joined): count for joined, count in counts.items()}
        for split, counts in json.loads(row["present"]).items()
    }
    texts = {what: {split: row[f"{what}_{split}"] for split in present} for what in TEXT_COUNTS}
    return IndexedShard(
        row["name"], row["split"], row["sha256"], row["size"], row["part"], present, **texts,
        repeated=tuple(row["repeated"]),
    )  # fmt: skip
