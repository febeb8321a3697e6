"""The interface of importers. An importer is a part (``pipelines/data/importers/KIND.py`` with a ``Config``) whose
settings say where a source is, and which reads the source's samples.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

from pydantic import Field

from pipelines.data.tars.inputs import PAIRS, InputNames, input_requirements
from pipelines.data.tars.sample import GROUP
from pipelines.data.tars.shards import Inputs
from pipelines.errors import DataError
from vlmodel.config import PartConfig
from vlmodel.sample import SampleTexts


class SourceSample(NamedTuple):
    """One sample of a source; inputs and texts that ``Importer.inputs`` does not name are not written.

    Attributes:
        inputs: the source's own bytes of each input that was read, with the extension of their file.
        extra: stored beside the texts; may name the sample's group by ``GROUP``.
        file: identity of the image's file, the same for all its names, of which a second sample is refused. None where
            the importer makes sure of that, or there is no file.
    """

    split: str
    key: str
    inputs: Inputs
    texts: SampleTexts
    extra: Mapping[str, Any] | None = None
    file: str | None = None


class RejectedSample(NamedTuple):
    """A sample or row that an import leaves out.

    Attributes:
        key: of the sample, or the line of the source.
        reason: a ``FaultReason``, or what ``missing_input_reason`` or ``medium_reason`` gives.
    """

    key: str
    reason: str
    detail: str


class SourceContents(NamedTuple):
    """A source that was opened for reading: its samples and rejects.

    Attributes:
        total: number of its samples.
        samples: read lazily.
        count_skipped_files: to be called after that, counts by kind what else the source holds.
        splits: those that the source itself has.
    """

    total: int
    samples: Iterator[SourceSample | RejectedSample]
    count_skipped_files: Callable[[], Mapping[str, int]] = dict
    splits: Collection[str] = ("train",)


class Importer(PartConfig):
    """The base class of every importer's settings."""

    inputs: InputNames = PAIRS
    """What is imported of each sample, as ["image", "text"], ["text"] or ["image"]; those with ? may be missing, others
    are not read. Set data.index.inputs, or data.mix.NAME.inputs, to the same."""
    samples_per_shard: int = Field(default=1000, ge=1)
    """Most samples of a tar, which also has at most 256 MB."""
    test_fraction: float = Field(default=0.1, ge=0, lt=1)
    """Share of the train samples that becomes split test where the source has none, by hash of their group, or of their
    key where they have none. A share for validation is data.index.validation_fraction."""

    def split_of(self, sample: SourceSample, test_fraction: float) -> str:
        """Return the split of a sample: its own, or test for a share of the train samples.

        Raises:
            DataError: a share becomes test, and the sample is of a split test of the source's own.
        """
        if sample.split == "test" and test_fraction:
            raise DataError(
                f"the source has a split test of its own (sample {sample.key!r}), which SourceContents.splits of its "
                "importer does not name; set source.test_fraction=0"
            )
        # Independent of the hash by which the index chooses validation samples.
        group = (sample.extra or {}).get(GROUP, sample.key)
        digest = hashlib.sha256(f"split\0{group}".encode(errors="surrogatepass")).digest()
        is_test = int.from_bytes(digest[:8], "big") / 2**64 < test_fraction
        return "test" if sample.split == "train" and is_test else sample.split

    def imports_input(self, name: str) -> bool:
        """Whether an input is imported from the samples that have it."""
        return name in input_requirements(self.inputs)

    @abstractmethod
    def fingerprint(self) -> str:
        """Compute a hash of the source's files without reading them.

        Raises:
            DataError: the source, or a part of it that is needed, does not exist.
        """

    @abstractmethod
    def read(self) -> SourceContents:
        """Open the source for reading.

        Raises:
            DataError: as ``fingerprint``, or an annotation file that cannot be used as a whole.
        """
