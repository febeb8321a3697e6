"""Caches decoded and resized images on the disk of the node that decoded them, for later epochs.

Two files for each shard: the pixels of its samples by row, sparse until they are written, and a checksum of each row, 0
while it is absent. A row whose checksum does not match, after a crash or on a failing disk, is decoded again. So the
cache does not change what a training sees, and processes of a node may share it.

Files are named by all that the pixels depend on: the tar's bytes, which of its samples are valid, the image settings.
The first shards that fit into ``max_gb`` are cached, and no others: an epoch reads every sample once, so replacing
cached shards would evict each before it is used. Pixels of other settings or data are deleted when space is needed, the
longest unused first. Nothing else is: the cache has a folder of its own that no other user may read, and deletes only
files that it names itself, in folders that carry its mark. Links are not followed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import shutil
import stat
import time
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.data.index.index import Index, IndexedShard
from pipelines.data.stream.config import PixelCacheConfig
from vlmodel.processor import ProcessorConfig

log = logging.getLogger(__name__)

FORMAT = 1
MARK = "KEPT_PIXELS"
"""File in each folder of cached pixels. A folder without it is never deleted."""
_CHECKSUM = np.dtype("<u4")
_FREE_SHARE = 0.8
"""Share of a disk's free space that may be used."""
_SUFFIXES = (".pixels", ".checksums")
_MIN_SPEEDUP = 3.0
_TRIAL_IMAGES = 16

_disabled: set[str] = set()
"""Folders that could not be read or written in this process."""


@dataclass(frozen=True)
class PixelCache:
    """The cached pixels of an index's samples. Small and picklable.

    Attributes:
        folder: of the files.
        size: height and width of the images.
        last: name of the last shard that is cached, in the order of names.
    """

    folder: str
    size: tuple[int, int]
    last: str

    @property
    def row_bytes(self) -> int:
        return 3 * math.prod(self.size)

    def read(self, shard: IndexedShard, rows: Sequence[int], out: Sequence[NDArray[np.uint8]]) -> NDArray[np.bool_]:
        """Read the images at these rows of ``Index.rows(shard)`` into ``out``; returns which of them were cached."""
        is_cached = np.zeros(len(rows), np.bool_)
        if (files := self._files_of_shard(shard)) is None:
            return is_cached
        try:
            checksums = np.frombuffer(
                os.pread(files.checksums.fileno(), _count_samples_of_shard(shard) * 4, 0), _CHECKSUM
            )
            for n, (row, image) in enumerate(zip(rows, out, strict=True)):
                if row < len(checksums) and checksums[row]:
                    data = image.data.cast("B")
                    size = os.preadv(files.pixels.fileno(), [data], row * self.row_bytes)
                    is_cached[n] = size == self.row_bytes and _row_checksum(data) == checksums[row]
        except OSError as error:  # training continues without the cache
            _disable_cache(self.folder, error)
        return is_cached

    def write(self, shard: IndexedShard, rows: Sequence[int], images: Sequence[NDArray[np.uint8]]) -> None:
        """Write decoded images into the cache, if their shard is among those that are cached."""
        if (files := self._files_of_shard(shard)) is None:
            return
        try:
            for row, image in zip(rows, images, strict=True):
                data = image.data.cast("B")
                if os.pwrite(files.pixels.fileno(), data, row * self.row_bytes) == self.row_bytes:
                    os.pwrite(files.checksums.fileno(), _row_checksum(data).to_bytes(4, "little"), row * 4)
        except OSError as error:
            _disable_cache(self.folder, error)

    def _files_of_shard(self, shard: IndexedShard) -> _ShardFiles | None:
        if shard.name > self.last or self.folder in _disabled:
            return None
        try:
            return _open_files(self.folder, _shard_file_name(shard), _count_samples_of_shard(shard), self.row_bytes)
        except OSError as error:
            _disable_cache(self.folder, error)
            return None


def open_pixel_cache(index: Index, processor: ProcessorConfig, config: PixelCacheConfig) -> PixelCache | None:
    """Open the cache of a data set's decoded images on this node; other caches are deleted if it needs their space.

    Returns:
        None where no shard fits, or the folder cannot be written.
    """
    resizing = processor.image_resizing
    facts = {
        "format": FORMAT,
        "image": asdict(resizing) | {"max_pixels": processor.max_pixels},
        "scan": index.validity_settings,
    }
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
    folder = config.root / key
    try:
        _make_private_folder(config.root)
        _make_private_folder(folder)
        (folder / MARK).touch(mode=0o600)
        os.utime(folder)
        row_bytes = 3 * math.prod(resizing.size)
        space = _make_space(
            folder, sum(map(_count_samples_of_shard, index.shards)) * row_bytes, int(config.max_gb * 1e9)
        )
    except OSError as error:
        _disable_cache(str(folder), error)
        return None
    last = ""
    for shard in index.shards:
        space -= _count_samples_of_shard(shard) * row_bytes
        if space < 0:
            break
        last = shard.name
    return PixelCache(str(folder), resizing.size, last) if last else None


def is_cache_faster_than_decoding(
    decode: Callable[[int], NDArray[np.uint8]], folder: str, count: int = _TRIAL_IMAGES
) -> tuple[bool, float, float]:
    """Measure whether the cache is much faster than decoding; also returns the seconds that an image takes to decode
    and to read back.

    Args:
        decode: decodes image ``n``.
    """
    start = time.perf_counter()
    images = [decode(number) for number in range(count)]
    decode_s = (time.perf_counter() - start) / count
    out = np.empty_like(images[0])
    data = out.data.cast("B")
    file = Path(folder) / f".trial-{os.getpid()}"
    try:
        with file.open("wb+", buffering=0) as opened:
            for image in images:
                opened.write(image.tobytes())
            start = time.perf_counter()
            for number in range(count):
                os.preadv(opened.fileno(), [data], number * out.nbytes)
                _row_checksum(data)
            read_s = (time.perf_counter() - start) / count
    finally:
        file.unlink(missing_ok=True)
    return decode_s >= _MIN_SPEEDUP * read_s, decode_s, read_s


class _ShardFiles(NamedTuple):
    """The open files of a shard's pixels, unbuffered; they close with their last reference."""

    pixels: FileIO
    checksums: FileIO


@lru_cache(maxsize=128)
def _open_files(folder: str, name: str, samples: int, row_bytes: int) -> _ShardFiles:
    return _ShardFiles(
        _open_file(Path(folder) / f"{name}.pixels", samples * row_bytes),
        _open_file(Path(folder) / f"{name}.checksums", samples * 4),
    )


def _open_file(path: Path, size: int) -> FileIO:
    file = FileIO(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600), "r+")
    if os.fstat(file.fileno()).st_size != size:
        os.ftruncate(file.fileno(), size)
    return file


def _shard_file_name(shard: IndexedShard) -> str:
    """Return the name of a shard's files: a hash of its bytes and of the samples that are left out as repeated."""
    return hashlib.sha256(f"{shard.sha256} {shard.repeated}".encode()).hexdigest() if shard.repeated else shard.sha256


def _count_samples_of_shard(shard: IndexedShard) -> int:
    return sum(shard.sample_counts.values())


def _row_checksum(data: Any) -> int:
    return zlib.crc32(data) or 1  # 0 stands for an absent row


def _make_space(folder: Path, wanted: int, limit: int) -> int:
    """Delete other cached pixels if their space is needed. Returns how many bytes ``folder`` may take."""
    others = [other for other in folder.parent.iterdir() if other != folder and _is_pixel_cache_folder(other)]
    used = {other: _count_cached_bytes(other) for other in others}
    own = _count_cached_bytes(folder)

    def available_bytes() -> int:
        free = int(_FREE_SHARE * shutil.disk_usage(folder).free)
        return min(limit - sum(used.values()), own + free)

    for other in sorted(others, key=lambda other: other.lstat().st_mtime):
        if wanted <= available_bytes():
            break
        _delete_pixel_folder(other)
        used[other] = _count_cached_bytes(other)
    return available_bytes()


def _make_private_folder(folder: Path) -> None:
    """Make a folder that only this user may read; raises OSError if it is a link or another user's."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    facts = folder.lstat()
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.geteuid():
        raise PermissionError(f"{folder} is a link, or another user's")
    if facts.st_mode & 0o077:
        folder.chmod(0o700)


def _is_pixel_cache_folder(folder: Path) -> bool:
    """Whether a folder is a pixel cache, and not a link to one."""
    try:
        return stat.S_ISDIR(folder.lstat().st_mode) and stat.S_ISREG((folder / MARK).lstat().st_mode)
    except OSError:
        return False


def _delete_pixel_folder(folder: Path) -> None:
    """Delete a folder of cached pixels; other files stay, and the folder with them."""
    with suppress(OSError):
        for file in folder.iterdir():
            if file.suffix in _SUFFIXES:
                file.unlink(missing_ok=True)
        if {file.name for file in folder.iterdir()} == {MARK}:
            (folder / MARK).unlink(missing_ok=True)
            folder.rmdir()


def _count_cached_bytes(folder: Path) -> int:
    """Count the bytes of cached pixels and checksums in a folder."""
    try:
        return sum(file.lstat().st_blocks * 512 for file in folder.iterdir() if file.suffix in _SUFFIXES)
    except FileNotFoundError:
        return 0


def _disable_cache(folder: str, error: OSError) -> None:
    if folder not in _disabled:
        _disabled.add(folder)
        log.warning("the pixel cache %s is no longer used: %s; set stream.cache.folder to another disk", folder, error)
