"""The cache of features: what a frozen backbone computes of each image, text or other input, shared by all runs and
data sets.

Its folder is named by the encoder, a digest of the weights and all else that the features depend on. In it, a file
holds the features of the samples of a tar, each under the hash of its input: of an image's bytes, or of a text's token
ids. ``feature_build.py`` writes it; reading it needs neither torch nor Ray.

A file begins with four numbers (a mark, inputs I, rows R, its own size). Then come, for each input in the order of
hashes, the hash, its first row and its number of rows, and then the R rows. An image has one row, another input one for
each token, a text the same or one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.data.index.index import Index, IndexedShard
from pipelines.errors import DataError
from pipelines.storage.folder import StorageFolder

Precision = Literal["float32", "float16"]

FACTS = "features.json"
"""What the features of a folder depend on, for people."""

_REQUESTS = 16
"""Files that are read at one time."""

_MARK = int.from_bytes(b"features", "little")
_HASH = np.dtype("S16")
_NUMBER = np.dtype("<u8")
_HEADER_BYTES = 4 * _NUMBER.itemsize
_INPUT_BYTES = _HASH.itemsize + 2 * _NUMBER.itemsize

Hashes = NDArray[np.bytes_]


class FeatureTable(NamedTuple):
    """The table at the beginning of a feature file, which says in which rows the features of each input are.

    Attributes:
        hash_I: of each input, ascending.
        row_I, rows_I: its first row, and its number of rows.
        rows: number of all rows.
    """

    hash_I: Hashes
    row_I: NDArray[np.uint64]
    rows_I: NDArray[np.uint64]
    rows: int

    @classmethod
    def from_row_counts(cls, hashes: Sequence[bytes], rows: Sequence[int]) -> FeatureTable:
        """Build the table of inputs that are stored one after the other, with ``rows`` rows of features each."""
        hash_I, rows_I = np.array(hashes, _HASH), np.array(rows, _NUMBER)
        row_I = np.cumsum(rows_I, dtype=_NUMBER) - rows_I
        order_I = np.argsort(hash_I, kind="stable")
        return cls(hash_I[order_I], row_I[order_I], rows_I[order_I], sum(rows))

    def find(self, hash_N: Hashes) -> tuple[NDArray[np.bool_], NDArray[np.intp]]:
        """Find inputs by their hash: which of N inputs the table has, and their positions in it."""
        if not len(self.hash_I):
            return np.zeros(len(hash_N), np.bool_), np.zeros(0, np.intp)
        position_N = np.searchsorted(self.hash_I, hash_N).clip(max=len(self.hash_I) - 1)
        is_present_N = self.hash_I[position_N] == hash_N
        return is_present_N, position_N[is_present_N]

    @property
    def header_size(self) -> int:
        """The number of bytes of a feature file before its first row."""
        return _HEADER_BYTES + len(self.hash_I) * _INPUT_BYTES

    def to_bytes(self, row_bytes: int) -> bytes:
        """Convert the table to the bytes that a feature file begins with."""
        size = self.header_size + self.rows * row_bytes
        header = np.array([_MARK, len(self.hash_I), self.rows, size], _NUMBER)
        return b"".join(array.tobytes() for array in (header, self.hash_I, self.row_I, self.rows_I))


@dataclass(frozen=True)
class FeatureCache:
    """The cached features that one encoder computed.

    Attributes:
        stream: the encoder's, such as "vision".
        folder: local, or a URI.
        width: numbers of one row, F.
        precision: of each number.
        backbone: digest of the weights that computed the features.
        inputs: what, besides the tar, decides which inputs a file holds.
    """

    stream: str
    folder: str
    width: int
    precision: Precision
    backbone: str
    inputs: str = ""

    @property
    def row_bytes(self) -> int:
        return self.width * np.dtype(self.precision).itemsize

    def file_name_of_shard(self, index: Index, shard: IndexedShard) -> str:
        """Return the name of a shard's feature file: a hash of everything that decides which inputs it holds."""
        facts = [shard.sha256, list(shard.repeated), index.validity_settings, self.inputs]
        return f"{hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]}.features"

    def find_complete_files(self, files: Iterable[str]) -> set[str]:
        """Find the feature files that exist and are as long as their headers say; others were cut off."""
        folder = StorageFolder(self.folder)
        wanted = set(files)
        sizes = {f.name: f.size for f in folder.files() if f.name in wanted and f.size >= _HEADER_BYTES}
        with ThreadPoolExecutor(_REQUESTS) as pool:
            stated = pool.map(lambda name: _size_stated_in_header(folder, name), sizes)
            return {name for name, size in zip(sizes, stated, strict=True) if size == sizes[name]}

    def read(self, files: Sequence[str], hashes: Sequence[bytes]) -> list[NDArray[np.floating]]:
        """Read the features (rows, F) of each input, in the order asked for, from the first file that has it.

        Raises:
            DataError: a file cannot be read, or none has one of the inputs.
        """
        wanted_N = np.array(hashes, _HASH)
        out: list[NDArray[np.floating] | None] = [None] * len(hashes)
        missing_M = np.arange(len(hashes))
        for file in files:
            if not len(missing_M):
                break
            try:
                table = _read_table(self.folder, file)
                is_present_M, positions = table.find(wanted_N[missing_M])
                pieces = self._read_rows(file, table, positions)
            except OSError as error:
                raise self._unreadable_error(f"{type(error).__name__}: {error}") from error
            for number, piece in zip(missing_M[is_present_M].tolist(), pieces, strict=True):
                out[number] = np.frombuffer(piece, self.precision).reshape(-1, self.width)
            missing_M = missing_M[~is_present_M]
        if len(missing_M):
            raise self._unreadable_error(f"{len(missing_M)} of {len(out)} inputs are in none of {len(files)} files")
        return [rows for rows in out if rows is not None]

    def _read_rows(self, file: str, table: FeatureTable, positions: NDArray[np.intp]) -> list[bytes]:
        """Read the rows of the inputs at some positions of a feature file's table."""
        offsets, sizes = (
            table.row_I[positions] * self.row_bytes + table.header_size,
            table.rows_I[positions] * self.row_bytes,
        )
        # A text without tokens has no row, and stores refuse empty ranges.
        nonempty = np.flatnonzero(sizes)
        ranges = list(zip(offsets[nonempty].tolist(), sizes[nonempty].tolist(), strict=True))
        pieces = iter(StorageFolder(self.folder).read_ranges(file, ranges) if ranges else ())
        return [next(pieces) if size else b"" for size in sizes.tolist()]

    def _unreadable_error(self, problem: str) -> DataError:
        return DataError(
            f"the features of the {self.stream} encoder in {self.folder!r} cannot be read ({problem}); start the job "
            "again, which computes the missing ones, or set train.feature_cache=off"
        )


def hash_token_ids(ids_NT: NDArray[np.integer], mask_NT: NDArray[np.bool_]) -> list[bytes]:
    """Hash each text's token ids, without padding."""
    ids_NT = ids_NT.astype("<i4")
    return [
        hashlib.blake2b(ids_T[mask_T].tobytes(), digest_size=_HASH.itemsize).digest()
        for ids_T, mask_T in zip(ids_NT, mask_NT, strict=True)
    ]


def shorten_input_hash(sha256: str) -> bytes:
    """Shorten the SHA-256 of an input in the index to the hash that the cache uses."""
    return bytes.fromhex(sha256)[: _HASH.itemsize]


def _size_stated_in_header(folder: StorageFolder, name: str) -> int:
    """Return the size that a file's header states; 0 for a file of another kind."""
    mark, _, _, size = np.frombuffer(folder.read_ranges(name, [(0, _HEADER_BYTES)])[0], _NUMBER).tolist()
    return int(size) if mark == _MARK else 0


@lru_cache(maxsize=256)
def _read_table(folder: str, file: str) -> FeatureTable:
    opened = StorageFolder(folder)
    mark, inputs, rows, _ = np.frombuffer(opened.read_ranges(file, [(0, _HEADER_BYTES)])[0], _NUMBER).tolist()
    if mark != _MARK:
        raise OSError(f"{file} holds no features")
    offset, ranges = _HEADER_BYTES, []
    for dtype in (_HASH, _NUMBER, _NUMBER):
        ranges.append((offset, inputs * dtype.itemsize))
        offset += inputs * dtype.itemsize
    hashes, first, counts = opened.read_ranges(file, ranges)
    return FeatureTable(
        np.frombuffer(hashes, _HASH), np.frombuffer(first, _NUMBER), np.frombuffer(counts, _NUMBER), int(rows)
    )
