"""What samples have, in the files of an index: names of inputs and kinds of texts, joined by commas."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

CanUse = Callable[[frozenset[str]], bool]
"""Whether a sample that has these (``vlmodel.sample.Sample.present``) is of use."""


def join_input_names(present: Iterable[str]) -> str:
    """The names of a sample's inputs, sorted and joined: "captions,image"."""
    return ",".join(sorted(present))


@lru_cache(maxsize=4096)
def split_input_names(joined: str) -> frozenset[str]:
    """The names; the inverse of ``join_input_names``."""
    return frozenset(joined.split(","))


def mask_of_usable_samples(table: pa.Table, can_use: CanUse) -> NDArray[np.bool_]:
    """A mask of the rows (``Index.rows``) whose samples are usable."""
    codes = table["present"].combine_chunks().dictionary_encode()
    usable = np.array([can_use(split_input_names(joined)) for joined in codes.dictionary.to_pylist()], np.bool_)
    mask: NDArray[np.bool_] = usable[codes.indices.to_numpy()]
    return mask
