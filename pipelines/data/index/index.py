"""The index of a folder of tars: where each sample lies, what it holds, which split it is in, and what was left out.

It lies beside the tars, in ``_index/``:

- ``samples/PART.parquet``: the sound samples of one tar, in tar order; a function of that tar's bytes alone. A part is
  named by the tar, its sha256 and what makes a sample sound, and never becomes another.
- ``faults/PART.parquet``: what is wrong in that tar; only where something is.
- ``versions/HASH.parquet``: one row a shard: its sha256, size and counts by split, its part, and the rows of that which
  are left out because an earlier shard has the same key. ``versions/HASH.quarantine.parquet``: everything that was left
  out, with its typed reason.
- ``index.json``: which version is the newest, and its facts. It is written last, as a whole, and only by a job that
  found no more faults than are allowed: until then, and where a job fails, the version before stays the newest.
- ``quarantine.parquet``: that of the last job, also of one that failed; ``quarantine.html``, if it is asked for, shows
  it.

Who has opened a version, and a run that began with one, keeps to it while newer ones are made. The last 100 versions
are kept, and the parts of all tars that are there; those of tars that were changed or removed go with the next index
job, as no version can read such a tar any more.

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

from pipelines.data.index.files import (
    COUNTS,
    FOLDER,
    FORMAT,
    metadata,
    quarantine_file,
    read_table,
    samples_file,
    version_file,
    without,
)
from pipelines.data.index.quarantine import describe_faults
from pipelines.data.index.survey import describe_survey
from pipelines.data.index.validate import PILLOW_MAX_PIXELS, Verify
from pipelines.data.tars.sample import Members, TextLimits
from pipelines.data.tars.shards import SPLITS, Split
from pipelines.errors import DataError, printable
from pipelines.storage.folder import Folder
from vlmodel.config import MAY_CHANGE, Section

_DIGITS = re.compile(r"\d+")
_PATTERNS = 4
_KINDS = 12

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
    max_letters: int = Field(TextLimits.letters, ge=1)
    """Samples with a caption, question or answer of more letters are left out."""
    max_texts: int = Field(TextLimits.texts, ge=1)
    """Samples with more captions and questions, or a question with more answers, are left out."""
    force: bool = Field(False, json_schema_extra=MAY_CHANGE)
    """Read every tar again, also those whose size and time of change are as they were."""
    report: bool = Field(False, json_schema_extra=MAY_CHANGE)
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
        names = {"max_pixels", "max_image_bytes", "max_letters", "max_texts", "verify", "members"}
        return self.model_dump(mode="json", include=names)


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
        part: its part of the index.
        samples, with_questions, with_captions: samples by split: all, and those with at least one such text.
        questions, captions: texts by split.
        repeated: rows of the samples file that are left out, as an earlier shard has the same key.
    """

    name: str
    split: str
    sha256: str
    size: int
    part: str
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
    def open(cls, tars: str, index_hash: str = "") -> Index:
        """The index that lies beside the tars.

        Args:
            index_hash: the version to open; the newest if not given.

        Raises:
            DataError: there is none, or it was made by another version of this program, or cannot be read.
        """
        folder = Folder(tars)
        index_hash = index_hash or Index.newest(tars)
        remedy = _remedy(tars)
        try:
            shards = read_table(folder.read(version_file(index_hash)))
            facts = metadata(shards)
        except (FileNotFoundError, NotADirectoryError):
            raise DataError(
                f"{tars!r} has no version {index_hash[:12]} of its index (any more): the data are others, or came back "
                "from elsewhere; to use what is there now, run the index job and start under another name"
            ) from None
        except (ValueError, pa.ArrowException) as error:
            raise DataError(f"the index of {tars!r} cannot be read ({error}); {remedy}") from None
        if (facts.get("format"), facts.get("hash")) != (FORMAT, index_hash):
            raise DataError(f"version {index_hash[:12]} of the index of {tars!r} is not what it was; {remedy}")
        return cls(tars, facts, shards)

    @classmethod
    def newest(cls, tars: str) -> str:
        """The hash of the newest version of the index that lies beside the tars; the errors of ``open``."""
        remedy = _remedy(tars)
        try:
            facts = json.loads(Folder(tars).read(f"{FOLDER}/index.json"))
            found, index_hash = facts.get("format"), facts["hash"]
        except (FileNotFoundError, NotADirectoryError):
            raise DataError(f"{tars!r} has no index; {remedy}") from None
        except (AttributeError, KeyError, ValueError) as error:
            raise DataError(f"the index of {tars!r} cannot be read ({error}); {remedy}") from None
        if found != FORMAT:
            raise DataError(f"the index of {tars!r} has format {found}, this version reads {FORMAT}; {remedy}")
        return str(index_hash)

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
        txt_size (these four may be null), captions, questions, sha256 (of the image bytes), texts_hash (of the text
        members, see ``hash_texts``), text_hashes (see ``SAMPLE_SCHEMA``). Of texts without images the
        columns that tell of an image are null, and of images without texts those that tell where texts are.

        Raises:
            DataError: the shard's part of the index is gone, as the tar was changed or removed since.
        """
        facts = self.shard(shard)
        changed = f"{shard!r} was changed or removed since the index was made; run the index job, then start again"
        try:
            table = read_table(self.folder.read(samples_file(facts.part)))
        except FileNotFoundError:
            raise DataError(f"{samples_file(facts.part)} of {self.tars!r} is gone: {changed}") from None
        if (metadata(table).get("sha256"), metadata(table).get("scan")) != (facts.sha256, self._facts["scan"]):
            raise DataError(f"{samples_file(facts.part)} of {self.tars!r} is of other bytes or settings: {changed}")
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
        members: Members = self._facts["scan"]["members"]
        return members

    @property
    def limits(self) -> TextLimits:
        """What its samples' texts are at most."""
        return TextLimits(self._facts["scan"]["max_letters"], self._facts["scan"]["max_texts"])

    def passed_over(self) -> dict[str, int]:
        """Members of tars that no sample is made of, by extension (".cls"), "hidden" or "no extension"."""
        return dict(self._facts["passed_over"])

    def having(self, reads: Literal["questions", "captions"], split: str = "") -> int:
        """Samples of a split, or of all, with at least one such text."""
        by_split = [shard.with_questions if reads == "questions" else shard.with_captions for shard in self.shards]
        return sum(counts.get(split, 0) if split else sum(counts.values()) for counts in by_split)

    def counts(self) -> dict[str, int]:
        """Samples of each split, zero where there are none."""
        return {split: int(pc.sum(self._table[f"samples_{split}"]).as_py() or 0) for split in SPLITS}

    def quarantine(self) -> pa.Table:
        """What was left out: shard, key, member, offset (bytes), reason, detail; by shard, then in tar order."""
        return read_table(self.folder.read(quarantine_file(self.hash)))

    def quarantine_counts(self) -> dict[str, int]:
        """Rows of the quarantine by reason."""
        return dict(self._facts["quarantine"])

    def survey(self) -> dict[str, Any]:
        """What all samples tell together; see ``pipelines.data.index.survey.survey``."""
        return dict(self._facts["survey"])

    def report(self) -> str:
        """A table of the splits, what they share, and what was left out with its first examples."""
        lines = [f"index {self.hash[:12]} of {self.tars}", "", f"{'split':<8}{'shards':>10}{'samples':>12}"]
        lines[-1] += f"{'questions':>12}{'captions':>12}"
        for split in SPLITS:
            samples = self._table[f"samples_{split}"].to_numpy()
            if samples.sum():
                texts = [int(self._table[f"{what}_{split}"].to_numpy().sum()) for what in ("questions", "captions")]
                row = f"{split:<8}{int((samples > 0).sum()):>10,}{int(samples.sum()):>12,}"
                lines.append(row + f"{texts[0]:>12,}{texts[1]:>12,}")
        lines += ["", *self._describe_tars()]
        if passed_over := sorted(self.passed_over().items(), key=lambda item: (-item[1], item[0])):
            shown = ", ".join(f"{printable(kind)} {count:,}" for kind, count in passed_over[:_KINDS])
            more = sum(count for _, count in passed_over[_KINDS:])
            lines.append(f"no part of a sample: {shown}{f', others {more:,}' if more else ''}")
        lines += describe_survey(self.survey())
        lines += ["", *describe_faults(self.quarantine(), self.quarantine_counts())]
        return "\n".join(lines)

    def _describe_tars(self) -> list[str]:
        """Which tars are of which split, by the patterns of their names."""
        lines = []
        for split in SPLITS:
            names = [row["name"] for row in self._table.select(["name", "split"]).to_pylist() if row["split"] == split]
            patterns = Counter(printable(_DIGITS.sub("*", name)) for name in names)
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
        force: read every shard again, as ``IndexConfig.force`` has it done.
        report_progress: called with (shards done, shards in all).

    Raises:
        DataError: no tars, or names that tell no split; or too many faults, and then ``quarantine.parquet`` is
            written, and the index is the one that was there before, if any.
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


def _remedy(tars: str) -> str:
    return f"run the index job: python -m jobs.index --config ... data.tars={tars}"


def _shard(row: Mapping[str, Any]) -> Shard:
    counts = {what: {s: row[f"{what}_{s}"] for s in SPLITS if row[f"samples_{s}"]} for what in COUNTS}
    return Shard(
        row["name"], row["split"], row["sha256"], row["size"], row["part"], **counts, repeated=tuple(row["repeated"])
    )
