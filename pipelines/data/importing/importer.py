"""What a source of samples offers to an import, whatever its layout.

A source is a part (``pipelines/data/importers/KIND.py`` with a ``Config``): its settings say where it lies, and it
reads itself.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Self

from pydantic import Field, model_validator

from pipelines.data.tars.errors import Reason
from pipelines.data.tars.sample import GROUP, Modality, Texts
from pipelines.errors import DataError
from vlmodel.config import Part


class SourceSample(NamedTuple):
    """One sample as its source has it; ``image`` holds the source's own bytes, None where no image was looked for.

    What ``Importer.members`` does not ask for may be there, and is not written. ``file`` is the image's file itself,
    the same for all its names: a second record of one file is refused. None where the importer has seen to that, or
    there is no file. ``extra`` may name the sample's group by ``GROUP``.
    """

    split: str
    key: str
    image: bytes | None
    image_ext: str | None
    texts: Texts
    extra: Mapping[str, Any] | None = None
    file: str | None = None


class Reject(NamedTuple):
    """What the source holds and an import leaves out; ``key`` names the sample, or the line of the source."""

    key: str
    reason: Reason
    detail: str


class SourceContents(NamedTuple):
    """A source opened for reading.

    ``total`` is the number of its samples; ``records`` reads them as they are asked for; ``passed_over``, called after
    that, counts by kind what else the source holds.
    """

    total: int
    records: Iterator[SourceSample | Reject]
    passed_over: Callable[[], Mapping[str, int]] = dict


class Importer(Part):
    """Base of every importer's settings."""

    members: Modality = "pairs"
    """What is taken of each sample: "pairs" (the image with its texts), or "texts" or "images" alone.
    What is not taken need not be there. The index is told the same by data.mix.NAME.members or data.index.members."""
    samples_per_shard: int = Field(default=1000, ge=1)
    """Samples per tar."""
    bytes_per_shard: int = Field(default=256 << 20, ge=1)
    """Size per tar, in bytes; whichever limit comes first ends it."""
    validation_fraction: float = Field(default=0, ge=0, lt=1)
    """Share of the train samples that becomes split val, by hash of their group, or of their key where they have none,
    in a source without a split val. 0 leaves it to data.index.validation_fraction, which does the same."""
    test_fraction: float = Field(default=0, ge=0, lt=1)
    """Share of the train samples that becomes split test, in the same way, in a source without a split test."""

    @model_validator(mode="after")
    def _some_left_to_train_on(self) -> Self:
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError(
                f"validation_fraction = {self.validation_fraction} and test_fraction = {self.test_fraction} leave "
                "nothing to train on; lower them"
            )
        return self

    def split_of(self, record: SourceSample) -> str:
        """The split of a record, of which a share of train is cut off.

        Raises:
            DataError: the source has a split of its own that was to be cut.
        """
        fractions = {"test": self.test_fraction, "val": self.validation_fraction}
        if fractions.get(record.split):
            name = "test_fraction" if record.split == "test" else "validation_fraction"
            raise DataError(
                f"the source has a split {record.split} of its own (sample {record.key!r}); set source.{name}=0"
            )
        if record.split != "train":
            return record.split
        # Not the hash by which the index cuts off validation samples, of which these would be a part.
        group = (record.extra or {}).get(GROUP, record.key)
        digest = hashlib.sha256(f"split\0{group}".encode(errors="surrogatepass")).digest()
        place, end = int.from_bytes(digest[:8], "big") / 2**64, 0.0
        for split, fraction in fractions.items():
            end += fraction
            if place < end:
                return split
        return "train"

    @abstractmethod
    def fingerprint(self) -> str:
        """Changes when what is to be read has changed; reads no contents.

        Raises:
            DataError: the source, or a part of it that is needed, is not there.
        """

    @abstractmethod
    def read(self) -> SourceContents:
        """Open the source.

        Raises:
            DataError: as ``fingerprint``, or an annotation file that cannot be used as a whole.
        """
