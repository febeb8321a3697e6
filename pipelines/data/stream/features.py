"""Kept features: what a frozen vision backbone gives of each image, computed once instead of in every epoch.

They lie in a folder named by all that they depend on, one file a shard. Row ``r`` of ``Index.rows(shard)`` has the
``r``-th equal piece of its file, so any sample is one ranged read. ``feature_build.py`` writes them; reading them needs
neither torch nor Ray.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipelines.data.errors import DataError
from pipelines.data.index.index import Shard
from pipelines.data.storage import Folder

Precision = Literal["float32", "float16"]

FACTS = "features.json"
"""What the features of a folder are of, for a person."""


@dataclass(frozen=True)
class Features:
    """The features of an index's samples.

    Attributes:
        folder: where they lie; local, or a URI.
        width: numbers of one image, F.
        precision: how each number is kept.
        backbone: digest of the weights that they were computed with.
    """

    folder: str
    width: int
    precision: Precision
    backbone: str

    @property
    def row_bytes(self) -> int:
        """Bytes of one image."""
        return self.width * np.dtype(self.precision).itemsize

    def file_bytes(self, shard: Shard) -> int:
        """Bytes of a shard's file."""
        return sum(shard.samples.values()) * self.row_bytes

    def read(self, shard: str, rows: Sequence[int]) -> np.ndarray:
        """(len(rows), F): the features of the samples at these rows of ``Index.rows(shard)``, in the order asked for.

        Raises:
            DataError: they cannot be read.
        """
        try:
            ranges = [(row * self.row_bytes, self.row_bytes) for row in rows]
            pieces = Folder(self.folder).read_ranges(file_of(shard), ranges)
        except OSError as error:
            raise DataError(
                f"the features of shard {shard!r} in {self.folder!r} cannot be read ({type(error).__name__}: {error}); "
                "start the train job again, which computes those that are gone, or set train.feature_cache=off"
            ) from error
        return np.frombuffer(b"".join(pieces), self.precision).reshape(len(rows), self.width)


def file_of(shard: str) -> str:
    """Name of a shard's file within the folder."""
    return f"{shard}.features"
