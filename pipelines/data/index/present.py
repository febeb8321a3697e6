"""Encodes which inputs and texts a sample has as a string in the index's files: their names, joined by commas."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

CanUse = Callable[[frozenset[str]], bool]
"""Whether a sample that has these (``vlmodel.sample.Sample.present``) is of use."""


def join_input_names(present: Iterable[str]) -> str:
    """Join the names of a sample's inputs, sorted: "captions,image"."""
    return ",".join(sorted(present))


@lru_cache(maxsize=4096)
def split_input_names(joined: str) -> frozenset[str]:
    """Split the names that ``join_input_names`` joined."""
    return frozenset(joined.split(","))


def mask_of_usable_samples(table: pa.Table, can_use: CanUse) -> NDArray[np.bool_]:
    """Mask the rows (``Index.rows``) whose samples are usable."""
    codes = table["present"].combine_chunks().dictionary_encode()
    usable = np.array([can_use(split_input_names(joined)) for joined in codes.dictionary.to_pylist()], np.bool_)
    mask: NDArray[np.bool_] = usable[codes.indices.to_numpy()]
    return mask
