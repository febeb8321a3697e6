"""Kept pixels: decoded and shrunken images on the disk of the node that decoded them, for the epochs to come.

A file for each shard holds the pixels of its samples at their rows, sparse until they are written; another holds a
checksum of each row, 0 while it is not there. A row whose checksum does not fit, after a crash or on a failing disk, is
decoded anew. So what a training sees does not depend on what is kept, and several processes of a node may share it.

Files are named by what the pixels are of: the tar's bytes, which of its samples are sound, the settings of the images.
The first shards that fit into ``max_gb`` are kept, and no others: an epoch reads all samples once, so giving up old
ones for new ones would keep nothing until it is needed. Pixels of other settings or data make room, longest unused
first. Only they do: the cache has a folder of its own that no other user may read, and deletes nothing but the files
that it names itself, in folders there that carry its mark. Links are not followed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import stat
import time
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from io import FileIO
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipelines.data.index.index import Index, Shard
from vlmodel.config import Section
from vlmodel.locations import Location
from vlmodel.processor import ProcessorConfig

log = logging.getLogger(__name__)

FORMAT = 1
SUBFOLDER = "raylm-pixels"
MARK = "KEPT_PIXELS"
"""File in each folder of kept pixels. A folder without it is never deleted."""
_CHECKSUM = np.dtype("<u4")
_FREE_SHARE = 0.8
"""Of a disk's free space that may be taken."""
_SUFFIXES = (".pixels", ".checksums")
_PAYS = 3.0
_TRIED = 16

_given_up: set[str] = set()
"""Folders that could not be written in this process."""


class PixelCacheConfig(Section):
    """Decoded images on the local disks, from the second epoch on."""

    keep: Literal["auto", "always", "never"] = "auto"
    """"auto" keeps them where there is more than one epoch and reading them back is at least three times as fast as
    decoding, as measured at the start. Where stream.threads=0, nothing is kept."""
    folder: Location = ""
    """Folder on each node's own disk, which may hold other things: they are kept in its subfolder raylm-pixels, which
    no other user may read, and nothing else there is touched. "" takes raylm/pixels in $XDG_CACHE_HOME or ~/.cache."""
    max_gb: float = Field(20.0, gt=0)
    """Most that all kept pixels of a node take."""

    @property
    def root(self) -> Path:
        if self.folder:
            return Path(self.folder).expanduser().absolute() / SUBFOLDER
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "raylm" / "pixels"


@dataclass(frozen=True)
class PixelCache:
    """The kept pixels of an index's samples. Small and picklable; equal where the same is kept in the same place.

    Attributes:
        folder: where they lie.
        size: side of the square images.
        last: name of the last shard that is kept, in the order of names.
    """

    folder: str
    size: int
    last: str

    @property
    def row_bytes(self) -> int:
        return 3 * self.size * self.size

    def read(self, shard: Shard, rows: Sequence[int], out: Sequence[NDArray[np.uint8]]) -> NDArray[np.bool_]:
        """Fill in the images at these rows of ``Index.rows(shard)`` as far as they are kept; which ones were."""
        found = np.zeros(len(rows), np.bool_)
        if (files := self._files(shard)) is None:
            return found
        try:
            checksums = np.frombuffer(os.pread(files.checksums.fileno(), _samples(shard) * 4, 0), _CHECKSUM)
            for place, (row, image) in enumerate(zip(rows, out, strict=True)):
                if row < len(checksums) and checksums[row]:
                    data = image.data.cast("B")
                    read = os.preadv(files.pixels.fileno(), [data], row * self.row_bytes)
                    found[place] = read == self.row_bytes and _checksum(data) == checksums[row]
        except OSError as error:  # a failing disk costs decoding, not the training
            _give_up(self.folder, error)
        return found

    def write(self, shard: Shard, rows: Sequence[int], images: Sequence[NDArray[np.uint8]]) -> None:
        """Keep the images of these rows, if the shard is among those that are kept and there is room on the disk."""
        if (files := self._files(shard)) is None:
            return
        try:
            for row, image in zip(rows, images, strict=True):
                data = image.data.cast("B")
                if os.pwrite(files.pixels.fileno(), data, row * self.row_bytes) == self.row_bytes:
                    os.pwrite(files.checksums.fileno(), _checksum(data).to_bytes(4, "little"), row * 4)
        except OSError as error:
            _give_up(self.folder, error)

    def _files(self, shard: Shard) -> _Files | None:
        if shard.name > self.last or self.folder in _given_up:
            return None
        try:
            return _opened(self.folder, _name(shard), _samples(shard), self.row_bytes)
        except OSError as error:
            _give_up(self.folder, error)
            return None


def open_pixel_cache(index: Index, processor: ProcessorConfig, config: PixelCacheConfig) -> PixelCache | None:
    """Where the pixels of an index's images are kept on this node; room is made for them.

    Returns:
        None where not a single shard has room, or the folder cannot be written.
    """
    facts = {
        "format": FORMAT,
        "image": {"size": processor.image_size, "resize": processor.resize, "max_pixels": processor.max_pixels},
        "sound": index.scan,
    }
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
    folder = config.root / key
    try:
        _make_own(config.root)
        _make_own(folder)
        (folder / MARK).touch(mode=0o600)
        os.utime(folder)
        row_bytes = 3 * processor.image_size**2
        room = _make_room(folder, sum(map(_samples, index.shards)) * row_bytes, int(config.max_gb * 1e9))
    except OSError as error:
        _give_up(str(folder), error)
        return None
    last = ""
    for shard in index.shards:
        room -= _samples(shard) * row_bytes
        if room < 0:
            break
        last = shard.name
    return PixelCache(str(folder), processor.image_size, last) if last else None


def is_cache_faster(
    decode: Callable[[int], NDArray[np.uint8]], folder: str, count: int = _TRIED
) -> tuple[bool, float, float]:
    """Whether reading kept pixels is worth it, with the seconds an image takes to decode and to read back.

    Args:
        decode: image ``n`` from its file.
    """
    begun = time.perf_counter()
    images = [decode(number) for number in range(count)]
    decoding = (time.perf_counter() - begun) / count
    out = np.empty_like(images[0])
    data = out.data.cast("B")
    file = Path(folder) / f".trial-{os.getpid()}"
    try:
        with file.open("wb+", buffering=0) as opened:
            for image in images:
                opened.write(image.tobytes())
            begun = time.perf_counter()
            for number in range(count):
                os.preadv(opened.fileno(), [data], number * out.nbytes)
                _checksum(data)
            reading = (time.perf_counter() - begun) / count
    finally:
        file.unlink(missing_ok=True)
    return decoding >= _PAYS * reading, decoding, reading


class _Files(NamedTuple):
    """Open files of a shard, unbuffered; they close when nothing refers to them any more."""

    pixels: FileIO
    checksums: FileIO


@lru_cache(maxsize=128)
def _opened(folder: str, name: str, samples: int, row_bytes: int) -> _Files:
    return _Files(
        _sized(Path(folder) / f"{name}.pixels", samples * row_bytes),
        _sized(Path(folder) / f"{name}.checksums", samples * 4),
    )


def _sized(path: Path, size: int) -> FileIO:
    file = FileIO(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600), "r+")
    if os.fstat(file.fileno()).st_size != size:
        os.ftruncate(file.fileno(), size)
    return file


def _name(shard: Shard) -> str:
    """Of a shard's files: what its rows are hangs on its bytes and on which samples other shards have already."""
    return hashlib.sha256(f"{shard.sha256} {shard.repeated}".encode()).hexdigest() if shard.repeated else shard.sha256


def _samples(shard: Shard) -> int:
    return sum(shard.samples.values())


def _checksum(data: Any) -> int:
    return zlib.crc32(data) or 1  # 0 says that there is nothing


def _make_room(folder: Path, wanted: int, limit: int) -> int:
    """Delete other kept pixels, as far as they are in the way. Returns how many bytes ``folder`` may take."""
    others = [other for other in folder.parent.iterdir() if other != folder and _is_marked(other)]
    taken = {other: _used(other) for other in others}
    own = _used(folder)

    def room() -> int:
        free = int(_FREE_SHARE * shutil.disk_usage(folder).free)
        return min(limit - sum(taken.values()), own + free)

    for other in sorted(others, key=lambda other: other.lstat().st_mtime):
        if wanted <= room():
            break
        _delete(other)
        taken[other] = _used(other)
    return room()


def _make_own(folder: Path) -> None:
    """A folder that is this user's alone, and no link to another place.

    Raises:
        OSError: it is not, and cannot be made so.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    facts = folder.lstat()
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.geteuid():
        raise PermissionError(f"{folder} is a link, or another user's")
    if facts.st_mode & 0o077:
        folder.chmod(0o700)


def _is_marked(folder: Path) -> bool:
    """Whether it is a folder of kept pixels, and no link to one."""
    try:
        return stat.S_ISDIR(folder.lstat().st_mode) and stat.S_ISREG((folder / MARK).lstat().st_mode)
    except OSError:
        return False


def _delete(folder: Path) -> None:
    """Delete a folder of kept pixels; what another program has put there stays, and the folder with it."""
    with suppress(OSError):
        for file in folder.iterdir():
            if file.suffix in _SUFFIXES:
                file.unlink(missing_ok=True)
        if {file.name for file in folder.iterdir()} == {MARK}:
            (folder / MARK).unlink(missing_ok=True)
            folder.rmdir()


def _used(folder: Path) -> int:
    """Bytes of the pixels and checksums that are kept in a folder."""
    try:
        return sum(file.lstat().st_blocks * 512 for file in folder.iterdir() if file.suffix in _SUFFIXES)
    except FileNotFoundError:
        return 0


def _give_up(folder: str, error: OSError) -> None:
    if folder not in _given_up:
        _given_up.add(folder)
        log.warning("no more pixels are kept in %s: %s; set stream.cache.folder to a disk with room", folder, error)
