"""The index of a folder of tars: where each sample lies, what it holds, which split it is in, and what was left out.

It lies beside the tars, in ``_index/``:

- ``samples/SHARD.parquet``: the sound samples of one tar, in tar order; a function of that tar's bytes alone.
- ``faults/SHARD.parquet``: what is wrong in that tar; only where something is.
- ``shards.parquet``: one row a shard: its sha256, size and counts by split, and the rows of ``samples`` that are left
  out because an earlier shard has the same key.
- ``quarantine.parquet``: everything that was left out, with its typed reason; ``quarantine.html``, if it is asked for,
  shows it.
- ``index.json``: written last; without it, and unless all of these belong together, there is no index.

An opened ``Index`` holds memory for its shards, not its samples. Opening one does not import Ray.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field

from pipelines.data.errors import DataError, printable
from pipelines.data.index.files import COUNTS, FOLDER, metadata, read_table, samples_file, without
from pipelines.data.index.quarantine import describe_faults
from pipelines.data.index.validate import PILLOW_MAX_PIXELS, Verify
from pipelines.data.sample import Members
from pipelines.data.shards import SPLITS, Split
from pipelines.data.storage import Folder
from vlmodel.config import Section

FORMAT = 1

_DIGITS = re.compile(r"\d+")
_PATTERNS = 4

Patterns = Annotated[list[str], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]
"""One shell pattern, or several."""


class IndexConfig(Section):
    """What makes a sample sound, and when there are too many that are not."""

    validation_fraction: float = Field(0.1, ge=0, lt=1)
    """Share of the train samples that becomes the validation split, where no shard is one: by hash of the group that
    KEY.json names (source.group of an import), so that none is on both sides, or of the key."""
    max_quarantine_fraction: float = Field(0.01, ge=0, le=1)
    """The index job fails above this share of faults."""
    max_quarantine_run: int = Field(100, ge=1)
    """The index job fails where this many samples in a row are at fault."""
    max_pixels: int = Field(100_000_000, ge=1, le=PILLOW_MAX_PIXELS)
    """Images of more pixels are left out; no more are decoded."""
    max_image_bytes: int = Field(256 << 20, ge=1)
    """Image files of more bytes are left out."""
    report: bool = False
    """Also write _index/quarantine.html: what was left out, counted and shown."""
    verify: Verify = "decode"
    """"decode" decodes every image; "header" reads its header and looks for its end, at the speed of the disk."""
    splits: dict[Split, Patterns] = {}
    """Which tars are of which split, by shell patterns of their names, as in {val = "held-out-*"}; other tars say it by
    a word of their names: train, val, validation, valid, dev, test, eval, ... (train-000.tar, coco-val2017.tar)."""
    members: Members = "pairs"
    """What a sample is: "pairs", an image with its texts; "texts" or "images", one without the other, which is passed
    over where there is some."""

    @property
    def scan(self) -> dict[str, Any]:
        """The settings that decide which samples are sound."""
        settings = {"max_pixels": self.max_pixels, "max_image_bytes": self.max_image_bytes, "verify": self.verify}
        # Not told of pairs, so that their indexes have the hash that they always had.
        return settings if self.members == "pairs" else settings | {"members": self.members}


@dataclass(frozen=True)
class Assignment:
    """How train samples become validation samples.

    Attributes:
        fraction: of the train samples; 0 where a shard is already of the validation split.
    """

    fraction: float

    def splits(self, shard_split: str, split_hash: NDArray[np.uint64]) -> NDArray[np.str_]:
        """The split of each sample of a shard."""
        splits = np.full(len(split_hash), shard_split, "<U5")
        if shard_split == "train" and self.fraction:
            splits[split_hash < np.uint64(int(self.fraction * 2**64))] = "val"
        return splits


@dataclass(frozen=True)
class Shard:
    """One tar. The mappings hold the splits that it has samples of.

    Attributes:
        name: file name.
        split: by its file name.
        sha256: of its bytes, in hexadecimal.
        size: in bytes.
        samples, with_questions, with_captions: samples by split: all, and those with at least one such text.
        questions, captions: texts by split.
        repeated: rows of the samples file that are left out, as an earlier shard has the same key.
    """

    name: str
    split: str
    sha256: str
    size: int
    samples: dict[str, int]
    with_questions: dict[str, int]
    with_captions: dict[str, int]
    questions: dict[str, int]
    captions: dict[str, int]
    repeated: tuple[int, ...] = field(default=(), repr=False)


class Index:
    """An opened index. Picklable; equal hashes mean equal samples in equal splits.

    Attributes:
        tars: folder or URI of the tars.
        hash: sha256, in hexadecimal, over all that decides what the samples are.
    """

    def __init__(self, tars: str, facts: Mapping[str, Any], shards: pa.Table) -> None:
        self.folder = Folder(tars)
        self.tars = self.folder.uri
        self.hash: str = facts["hash"]
        self._facts, self._table = dict(facts), shards

    @classmethod
    def open(cls, tars: str) -> Index:
        """The index that lies beside the tars.

        Raises:
            DataError: there is none, or it is being written, or it was interrupted, or made by another version.
        """
        folder = Folder(tars)
        remedy = f"run the index job: python -m jobs.index --config ... data.tars={tars}"
        try:
            facts = json.loads(folder.read(f"{FOLDER}/index.json"))
            shards = read_table(folder.read(f"{FOLDER}/shards.parquet"))
        except (FileNotFoundError, NotADirectoryError):
            raise DataError(f"{tars!r} has no index; {remedy}") from None
        except (ValueError, pa.ArrowException) as error:
            raise DataError(f"the index of {tars!r} cannot be read ({error}); {remedy}") from None
        if facts.get("format") != FORMAT:
            found = facts.get("format")
            raise DataError(f"the index of {tars!r} has format {found}, this version reads {FORMAT}; {remedy}")
        if metadata(shards).get("hash") != facts["hash"]:
            raise DataError(f"the index of {tars!r} is being written, or its job was interrupted; {remedy}")
        return cls(tars, facts, shards)

    @cached_property
    def shards(self) -> list[Shard]:
        """Shards that have samples, by name."""
        return [_shard(row) for row in self._table.to_pylist() if any(row[f"samples_{split}"] for split in SPLITS)]

    @cached_property
    def _by_name(self) -> dict[str, Shard]:
        return {shard.name: shard for shard in self.shards}

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("shards", "_by_name")}

    def shard(self, name: str) -> Shard:
        """
        Raises:
            DataError: no shard with samples has this name.
        """
        try:
            return self._by_name[name]
        except KeyError:
            raise DataError(f"the index of {self.tars!r} has no samples of shard {name!r}") from None

    def rows(self, shard: str) -> pa.Table:
        """The samples of a shard, in tar order; read anew at every call.

        Columns: key, split, image_offset, image_size, image_format, width, height, json_offset, json_size, txt_offset,
        txt_size (these four may be null), captions, questions, sha256 (of the image bytes). Of texts without images the
        columns that tell of an image are null, and of images without texts those that tell where texts are.

        Raises:
            DataError: the shard's part of the index was rewritten since this index was opened, or is gone.
        """
        facts = self.shard(shard)
        reopen = "the data changed since the index was opened; run the index job, then start again"
        try:
            table = read_table(self.folder.read(samples_file(shard)))
        except FileNotFoundError:
            raise DataError(f"{samples_file(shard)} of {self.tars!r} is gone; {reopen}") from None
        if (metadata(table).get("sha256"), metadata(table).get("scan")) != (facts.sha256, self._facts["scan"]):
            raise DataError(f"{samples_file(shard)} of {self.tars!r} is of other bytes or settings; {reopen}")
        table = without(table, facts.repeated)
        splits = self.assignment.splits(facts.split, table["split_hash"].to_numpy())
        return table.set_column(1, "split", pa.array(splits, pa.string())).replace_schema_metadata()

    @property
    def assignment(self) -> Assignment:
        return Assignment(self._facts["validation_fraction"])

    @property
    def scan(self) -> dict[str, Any]:
        """The settings that decided which samples are sound (``IndexConfig.scan``)."""
        return dict(self._facts["scan"])

    @property
    def members(self) -> Members:
        """What its samples are made of."""
        members: Members = self._facts["scan"].get("members", "pairs")
        return members

    def having(self, reads: Literal["questions", "captions"], split: str = "") -> int:
        """Samples of a split, or of all, with at least one such text."""
        by_split = [shard.with_questions if reads == "questions" else shard.with_captions for shard in self.shards]
        return sum(counts.get(split, 0) if split else sum(counts.values()) for counts in by_split)

    def counts(self) -> dict[str, int]:
        """Samples of each split, zero where there are none."""
        return {split: int(pc.sum(self._table[f"samples_{split}"]).as_py() or 0) for split in SPLITS}

    def quarantine(self) -> pa.Table:
        """What was left out: shard, key, member, offset (bytes), reason, detail; by shard, then in tar order."""
        return read_table(self.folder.read(f"{FOLDER}/quarantine.parquet"))

    def quarantine_counts(self) -> dict[str, int]:
        """Rows of the quarantine by reason."""
        return dict(self._facts["quarantine"])

    def report(self) -> str:
        """A table of the splits, and of what was left out with its first examples."""
        lines = [f"index {self.hash[:12]} of {self.tars}", "", f"{'split':<8}{'shards':>10}{'samples':>12}"]
        lines[-1] += f"{'questions':>12}{'captions':>12}"
        for split in SPLITS:
            samples = self._table[f"samples_{split}"].to_numpy()
            if samples.sum():
                texts = [int(self._table[f"{what}_{split}"].to_numpy().sum()) for what in ("questions", "captions")]
                row = f"{split:<8}{int((samples > 0).sum()):>10,}{int(samples.sum()):>12,}"
                lines.append(row + f"{texts[0]:>12,}{texts[1]:>12,}")
        lines += ["", *self._describe_tars(), "", *describe_faults(self.quarantine(), self.quarantine_counts())]
        return "\n".join(lines)

    def _describe_tars(self) -> list[str]:
        """Which tars are of which split, by the patterns of their names."""
        lines = []
        for split in SPLITS:
            names = [row["name"] for row in self._table.select(["name", "split"]).to_pylist() if row["split"] == split]
            patterns = Counter(_DIGITS.sub("*", printable(name)) for name in names)
            shown = [f"{pattern} ({count:,})" for pattern, count in patterns.most_common(_PATTERNS)]
            more = f", and {len(patterns) - _PATTERNS:,} other names" if len(patterns) > _PATTERNS else ""
            if names:
                lines.append(f"tars of {split}: {', '.join(shown)}{more}")
        if self.assignment.fraction:
            lines.append(
                f"val: {self.assignment.fraction:.0%} of the samples of these tars of train, by their keys' hash"
            )
        return lines


def build_index(
    tars: str,
    config: IndexConfig | None = None,
    *,
    force: bool = False,
    report_progress: Callable[[int, int], None] | None = None,
) -> Index:
    """Index the tars of a folder through Ray Data, a task a shard; shards that have not changed are not read again.

    Keys are unique within the shards of one split: where two shards have the same, the first by name keeps it, and
    the other's sample is a DUPLICATE_KEY. (Train and test may both have a sample "0".)

    Args:
        tars: local folder or URI that holds ``*.tar``.
        force: read every shard again.
        report_progress: called with (shards done, shards in all).

    Raises:
        DataError: no tars; or too many faults, and then ``quarantine.parquet`` is written, and no index.
    """
    from pipelines.data.index.build import build

    return build(tars, config or IndexConfig(), force=force, report_progress=report_progress)


def index_hash(shards: Sequence[tuple[str, str, str]], scan: Mapping[str, Any], assignment: Assignment) -> str:
    """Hash of an index.

    Args:
        shards: name, sha256 and split of each, by name.
        scan: what makes a sample sound.
        assignment: how samples of train become ones of val.
    """
    facts = [FORMAT, [list(shard) for shard in shards], dict(scan), assignment.fraction]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _shard(row: Mapping[str, Any]) -> Shard:
    counts = {what: {s: row[f"{what}_{s}"] for s in SPLITS if row[f"samples_{s}"]} for what in COUNTS}
    return Shard(row["name"], row["split"], row["sha256"], row["size"], **counts, repeated=tuple(row["repeated"]))
