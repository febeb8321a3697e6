"""Computes perceptual hashes: the hashes of similar pictures differ in few bits.

The hash is that of the discrete cosine transform (Zauner, Implementation and Benchmarking of Perceptual Image Hash
Functions, 2010), computed in integers, so that it does not depend on library or processor.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image

BITS = 64
MAX_DISTANCE = 10
"""Above it, the bands of ``NearHashIndex`` are so narrow that most hashes would be compared, and different pictures
match.
"""

_SIDE, _FREQUENCIES, _SCALE = 32, 8, 4096


def perceptual_hash(image: Image.Image) -> int:
    """Compute the perceptual hash (64 bits) of an upright RGB image: which of its 8 x 8 lowest frequencies are above
    their median.
    """
    grey = np.asarray(image.convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX)).astype(np.int64)
    cosines = _low_frequency_cosines()
    frequencies = cosines @ grey @ cosines.T
    return int.from_bytes(np.packbits(frequencies > np.median(frequencies)).tobytes(), "big")


def _low_frequency_cosines() -> NDArray[np.int64]:
    """The cosines (8, 32) of the frequencies 1 to 8, without frequency 0, the mean brightness."""
    frequency = np.arange(1, _FREQUENCIES + 1)[:, None]
    position = 2 * np.arange(_SIDE)[None] + 1
    return np.rint(_SCALE * np.cos(np.pi * frequency * position / (2 * _SIDE))).astype(np.int64)


class NearHashIndex:
    """A growing set of hashes that finds those near a given one without comparing it with all.

    The search is exact: the bits are divided into one band more than may differ, so near hashes have an equal band.

    Args:
        distance: how many bits may differ.
    """

    def __init__(self, distance: int) -> None:
        edges = [BITS * band // (distance + 1) for band in range(distance + 2)]
        self._bands = [(low, (1 << (high - low)) - 1) for low, high in pairwise(edges)]
        self._distance = distance
        self._hashes = array("Q")
        self._with_band: list[dict[int, array[int]]] = [defaultdict(lambda: array("q")) for _ in self._bands]

    def __len__(self) -> int:
        return len(self._hashes)

    def add(self, value: int) -> None:
        """Add a hash to the index; hashes are numbered from 0."""
        for (low, mask), with_band in zip(self._bands, self._with_band, strict=True):
            with_band[value >> low & mask].append(len(self._hashes))
        self._hashes.append(value)

    def find_near(self, value: int) -> int | None:
        """Find the lowest number of a hash that differs in few bits from this one; None if there is none."""
        best: int | None = None
        for (low, mask), with_band in zip(self._bands, self._with_band, strict=True):
            if (band := value >> low & mask) not in with_band:
                continue
            numbers = np.frombuffer(with_band[band], np.int64)
            differing = np.bitwise_count(np.frombuffer(self._hashes, np.uint64)[numbers] ^ np.uint64(value))
            near = numbers[differing <= self._distance]
            if len(near) and (best is None or near[0] < best):
                best = int(near[0])
        return best
