"""Kept features: what a frozen backbone gives of each input, an image or a text, computed once instead of every time.

They lie in a folder named by the encoder, a digest of its weights and all else that they depend on, so that every run
and every data set share them. There a file holds those of the samples of a tar, each under the hash of its input: of an
image's bytes, or of a text's token ids. ``feature_build.py`` writes them; reading them needs neither torch nor Ray.

A file begins with four numbers (a mark, inputs I, rows R, its own size), then has of each input, by hash, the hash, its
first row and the number of its rows, and then the R rows. An image has one row, and a text one for each token, or one.
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

from pipelines.data.index.index import Index, Shard
from pipelines.errors import DataError
from pipelines.storage.folder import Folder

Precision = Literal["float32", "float16"]

FACTS = "features.json"
"""What the features of a folder are of, for a person."""

_REQUESTS = 16
"""Files that are asked for at one time."""

_MARK = int.from_bytes(b"features", "little")
_HASH = np.dtype("S16")
_NUMBER = np.dtype("<u8")
_HEADER_BYTES = 4 * _NUMBER.itemsize
_INPUT_BYTES = _HASH.itemsize + 2 * _NUMBER.itemsize

Hashes = NDArray[np.bytes_]


class Table(NamedTuple):
    """Where in a file the features of its inputs lie.

    Attributes:
        hash_I: of each input, in rising order.
        row_I, rows_I: its first row, and how many it has.
        rows: of all of them.
    """

    hash_I: Hashes
    row_I: NDArray[np.uint64]
    rows_I: NDArray[np.uint64]
    rows: int

    @classmethod
    def of(cls, hashes: Sequence[bytes], rows: Sequence[int]) -> Table:
        """Of inputs that follow each other, each with so many rows."""
        hash_I, rows_I = np.array(hashes, _HASH), np.array(rows, _NUMBER)
        row_I = np.cumsum(rows_I, dtype=_NUMBER) - rows_I
        order_I = np.argsort(hash_I, kind="stable")
        return cls(hash_I[order_I], row_I[order_I], rows_I[order_I], sum(rows))

    def find(self, hash_N: Hashes) -> tuple[NDArray[np.bool_], NDArray[np.intp]]:
        """Which of N inputs are here, and the places of these."""
        if not len(self.hash_I):
            return np.zeros(len(hash_N), np.bool_), np.zeros(0, np.intp)
        place_N = np.searchsorted(self.hash_I, hash_N).clip(max=len(self.hash_I) - 1)
        is_here_N = self.hash_I[place_N] == hash_N
        return is_here_N, place_N[is_here_N]

    @property
    def size(self) -> int:
        """Bytes of a file before its first row."""
        return _HEADER_BYTES + len(self.hash_I) * _INPUT_BYTES

    def write(self, row_bytes: int) -> bytes:
        """A file's bytes before its first row."""
        size = self.size + self.rows * row_bytes
        header = np.array([_MARK, len(self.hash_I), self.rows, size], _NUMBER)
        return b"".join(array.tobytes() for array in (header, self.hash_I, self.row_I, self.rows_I))


@dataclass(frozen=True)
class Features:
    """The kept features of one encoder.

    Attributes:
        stream: of the model whose encoder it is, such as "vision".
        folder: where they lie; local, or a URI.
        width: numbers of one row, F.
        precision: how each number is kept.
        backbone: digest of the weights that they were computed with.
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
        """Bytes of one row."""
        return self.width * np.dtype(self.precision).itemsize

    def file_of(self, index: Index, shard: Shard) -> str:
        """Name of the file with the features of a shard: of its bytes, and of what of them is read."""
        facts = [shard.sha256, list(shard.repeated), index.scan, self.inputs]
        return f"{hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]}.features"

    def complete(self, files: Iterable[str]) -> set[str]:
        """Those of the files that are there, and whole."""
        folder = Folder(self.folder)
        wanted = set(files)
        sizes = {file.name: file.size for file in folder.files() if file.name in wanted}
        begun = {name: size for name, size in sizes.items() if size >= _HEADER_BYTES}
        with ThreadPoolExecutor(_REQUESTS) as pool:
            told = pool.map(lambda name: _size(folder, name), begun)
            return {name for name, size in zip(begun, told, strict=True) if size == begun[name]}

    def read(self, files: Sequence[str], hashes: Sequence[bytes]) -> list[NDArray[np.floating]]:
        """(rows, F) of each input, in the order asked for, from whichever of the files has it.

        Raises:
            DataError: they cannot be read, or no file has one of them.
        """
        wanted_N = np.array(hashes, _HASH)
        out: list[NDArray[np.floating] | None] = [None] * len(hashes)
        missing_M = np.arange(len(hashes))
        for file in files:
            if not len(missing_M):
                break
            try:
                table = _table(self.folder, file)
                is_here_M, places = table.find(wanted_N[missing_M])
                pieces = self._pieces(file, table, places)
            except OSError as error:
                raise self._unreadable(f"{type(error).__name__}: {error}") from error
            for number, piece in zip(missing_M[is_here_M].tolist(), pieces, strict=True):
                out[number] = np.frombuffer(piece, self.precision).reshape(-1, self.width)
            missing_M = missing_M[~is_here_M]
        read = [rows for rows in out if rows is not None]
        if len(read) < len(out):
            raise self._unreadable(f"{len(out) - len(read)} of {len(out)} inputs are in none of {len(files)} files")
        return read

    def _pieces(self, file: str, table: Table, places: NDArray[np.intp]) -> list[bytes]:
        """The rows of the inputs at these places of a file."""
        at, sizes = table.row_I[places] * self.row_bytes + table.size, table.rows_I[places] * self.row_bytes
        # A text without tokens has no row, and a store no range of nothing.
        some = np.flatnonzero(sizes)
        ranges = list(zip(at[some].tolist(), sizes[some].tolist(), strict=True))
        read = iter(Folder(self.folder).read_ranges(file, ranges) if ranges else ())
        return [next(read) if size else b"" for size in sizes.tolist()]

    def _unreadable(self, problem: str) -> DataError:
        return DataError(
            f"the features of the {self.stream} encoder in {self.folder!r} cannot be read ({problem}); start the job "
            "again, which computes those that are gone, or set train.feature_cache=off"
        )


def text_hashes(ids_NT: NDArray[np.integer], mask_NT: NDArray[np.bool_]) -> list[bytes]:
    """The hash of each text's real token ids, the same on whichever side it is padded."""
    ids_NT = ids_NT.astype("<i4")
    return [
        hashlib.blake2b(ids_T[mask_T].tobytes(), digest_size=_HASH.itemsize).digest()
        for ids_T, mask_T in zip(ids_NT, mask_NT, strict=True)
    ]


def image_hashes(sha256s: Iterable[str]) -> list[bytes]:
    """The hash of each image, of the SHA-256 in the index."""
    return [bytes.fromhex(sha256)[: _HASH.itemsize] for sha256 in sha256s]


def _size(folder: Folder, name: str) -> int:
    """Size that a file says it has; 0 for one of another kind."""
    mark, _, _, size = np.frombuffer(folder.read_ranges(name, [(0, _HEADER_BYTES)])[0], _NUMBER).tolist()
    return int(size) if mark == _MARK else 0


@lru_cache(maxsize=256)
def _table(folder: str, file: str) -> Table:
    opened = Folder(folder)
    mark, inputs, rows, _ = np.frombuffer(opened.read_ranges(file, [(0, _HEADER_BYTES)])[0], _NUMBER).tolist()
    if mark != _MARK:
        raise OSError(f"{file} holds no features")
    at, ranges = _HEADER_BYTES, []
    for dtype in (_HASH, _NUMBER, _NUMBER):
        ranges.append((at, inputs * dtype.itemsize))
        at += inputs * dtype.itemsize
    hashes, first, counts = opened.read_ranges(file, ranges)
    return Table(np.frombuffer(hashes, _HASH), np.frombuffer(first, _NUMBER), np.frombuffer(counts, _NUMBER), int(rows))
