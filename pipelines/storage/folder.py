"""Folders on any file system of fsspec: listings, sequential and ranged reads with retries, atomic writes.

Credentials come from the environment, as each fsspec back end documents; for S3 and compatible stores,
``AWS_ACCESS_KEY_ID`` and ``AWS_SECRET_ACCESS_KEY`` or ``~/.aws``, and ``AWS_ENDPOINT_URL`` where the store is not AWS.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import IO, Any, BinaryIO, Self, TypeVar

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from pipelines.errors import DataError
from pipelines.storage.retries import PERMANENT, AccessError, RefusedError, call_with_retries, to_os_error

T = TypeVar("T")

CHUNK = 4 << 20
# Reading a small gap is cheaper than another request.
_LOCAL_GAP, _REMOTE_GAP, _MAX_MERGED = 4 << 10, 64 << 10, 16 << 20
_COPY_CHUNK = 1 << 30
_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or ~/.aws, and AWS_ENDPOINT_URL where the store is not AWS",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
}


@dataclass(frozen=True)
class FileStamp:
    """Identifies a version of a file without reading it: its size and modification time or tag.

    Attributes:
        name: within its folder.
        size: bytes.
        stamp: ETag or modification time, or "" where the file system has neither.
    """

    name: str
    size: int
    stamp: str


class StorageFolder:
    """One folder, local or remote. Picklable; a relative local path is made absolute, so it means the same in every
    process.

    Raises:
        DataError: the URI's protocol is unknown, or its fsspec back end is not installed.
    """

    def __init__(self, uri: str | os.PathLike[str]) -> None:
        self.uri = os.fspath(uri)
        fs, root = self._open_filesystem()
        if isinstance(fs, LocalFileSystem):
            self.uri = root

    def __getstate__(self) -> dict[str, Any]:
        return {"uri": self.uri}

    @cached_property
    def _filesystem_and_path(self) -> tuple[AbstractFileSystem, str]:
        return self._open_filesystem()

    def _open_filesystem(self) -> tuple[AbstractFileSystem, str]:
        try:
            # No cached listings, as other processes write here too.
            fs, root = url_to_fs(self.uri, use_listings_cache=False)
        except (ValueError, ImportError) as error:
            raise DataError(f"folder {self.uri!r} cannot be opened: {error}") from None
        return fs, str(root).rstrip("/")

    @property
    def is_local(self) -> bool:
        return isinstance(self._filesystem_and_path[0], LocalFileSystem)

    def _retry_on_error(self, operation: Callable[[], T]) -> T:
        try:
            return call_with_retries(operation)
        except PermissionError as error:
            if self.is_local:
                remedy = "its owner can change the permissions"
            else:
                protocol = self.uri.partition(":")[0]
                where = _CREDENTIALS.get(protocol, f"as fsspec's back end for {protocol} documents")
                remedy = f"give every node credentials with access, in the environment: {where}"
            raise AccessError(f"{self.uri!r} denies access ({error}); {remedy}") from error

    def path(self, name: str) -> str:
        return f"{self._filesystem_and_path[1]}/{name}" if name else self._filesystem_and_path[1]

    def files(self, subfolder: str = "") -> list[FileStamp]:
        """List the files that are directly in the folder, or in ``subfolder``, sorted by name; [] if it does
        not exist.
        """
        fs, folder = self._filesystem_and_path[0], self.path(subfolder)

        def list_files() -> list[dict[str, Any]]:
            return [self._get_file_info(entry) for entry in fs.ls(folder, detail=True) if entry["type"] != "directory"]

        try:
            entries = self._retry_on_error(list_files)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(map(_file_stamp, entries), key=lambda stamp: stamp.name)

    def stamp(self, name: str) -> FileStamp:
        """Return the file's current stamp, comparable with other calls; a listing may format it differently.

        Raises:
            OSError: it does not exist, or the file system failed after several attempts.
        """
        fs, path = self._filesystem_and_path[0], self.path(name)
        return _file_stamp(self._retry_on_error(lambda: self._get_file_info(fs.info(path))))

    def subfolders(self) -> list[str]:
        """List the names of the folders directly in this one, sorted; [] if it does not exist."""
        fs, folder = self._filesystem_and_path
        try:
            entries = self._retry_on_error(lambda: fs.ls(folder, detail=True))
        except (FileNotFoundError, NotADirectoryError):
            return []
        names = (str(e["name"]).rstrip("/").rsplit("/", 1)[-1] for e in entries if e["type"] == "directory")
        return sorted(names)

    def subfolder(self, name: str) -> StorageFolder:
        """Return the subfolder with this name."""
        return StorageFolder(f"{self.uri.rstrip('/')}/{name}")

    @property
    def parent(self) -> StorageFolder:
        """The folder that contains this one."""
        return StorageFolder(self.uri.rstrip("/").rpartition("/")[0])

    def walk(self) -> list[str]:
        """List the paths of all files in the folder and its subfolders, sorted; [] if it does not exist."""
        fs, folder = self._filesystem_and_path
        try:
            found = self._retry_on_error(lambda: fs.find(folder, detail=True))
        except (FileNotFoundError, NotADirectoryError):
            return []
        paths = (str(path) for path, entry in found.items() if entry["type"] != "directory")
        return sorted(path.removeprefix(folder).lstrip("/") for path in paths)

    def exists(self, name: str) -> bool:
        fs, path = self._filesystem_and_path[0], self.path(name)
        return self._retry_on_error(lambda: bool(fs.exists(path)))

    def read(self, name: str) -> bytes:
        """Read a whole file.

        Raises:
            OSError: it does not exist, or could not be read after several attempts.
        """
        fs, path = self._filesystem_and_path[0], self.path(name)
        return self._retry_on_error(lambda: bytes(fs.cat_file(path)))

    def read_ranges(self, name: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Read the bytes of each (offset, size). Neighbouring ranges are read together; a retry reads only failed ones.

        Raises:
            OSError: after several attempts; also where the file ends before a range does.
        """
        merged = _merge_ranges(ranges, _LOCAL_GAP if self.is_local else _REMOTE_GAP)
        pieces: dict[tuple[int, int], bytes] = {}

        def read_missing() -> None:
            missing = [(start, stop) for start, stop, _ in merged if (start, stop) not in pieces]
            failures = []
            for span, piece in zip(missing, self._read_spans(name, missing), strict=True):
                if isinstance(piece, Exception):
                    failures.append(piece)
                elif len(piece) > span[1] - span[0]:
                    problem = f"{name}: the whole file came where {span[1] - span[0]} bytes were asked for"
                    failures.append(RefusedError(f"{problem}; serve it with a server that knows ranges"))
                elif len(piece) != span[1] - span[0]:
                    failures.append(OSError(f"{name}: read {len(piece)} of {span[1] - span[0]} bytes at {span[0]}"))
                else:
                    pieces[span] = piece
            if failures:
                raise failures[0]

        self._retry_on_error(read_missing)
        out: list[bytes] = [b""] * len(ranges)
        for start, stop, members in merged:
            piece = pieces[start, stop]
            for number in members:
                offset, size = ranges[number]
                out[number] = piece[offset - start : offset - start + size]
        return out

    def _read_spans(self, name: str, spans: Sequence[tuple[int, int]]) -> Sequence[bytes | Exception]:
        """Read the bytes of each span (start, stop), or return the error."""
        fs, path = self._filesystem_and_path[0], self.path(name)
        if self.is_local:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                return [_read_range(descriptor, start, stop) for start, stop in spans]
            finally:
                os.close(descriptor)
        starts, stops = [start for start, _ in spans], [stop for _, stop in spans]
        pieces: list[bytes | Exception] = fs.cat_ranges([path] * len(spans), starts, stops, on_error="return")
        return pieces

    def open_to_read(self, name: str) -> IO[bytes]:
        """Open a file to be read piece by piece, from any position; only opening it is retried.

        Raises:
            OSError: it does not exist, or could not be opened after several attempts.
        """
        fs, path = self._filesystem_and_path[0], self.path(name)
        opened: IO[bytes] = self._retry_on_error(lambda: fs.open(path, "rb"))
        return opened

    def stream(self, name: str, size: int) -> ResumingStream:
        """Open a file to read its bytes in order; see ``ResumingStream``.

        Named pipes, which may block for ever, and devices, which have no end, are refused.
        """
        fs, path = self._filesystem_and_path[0], self.path(name)

        def open_file() -> Any:
            if self.is_local and not stat.S_ISREG(os.stat(path).st_mode):
                raise RefusedError(f"{name!r} is no file, but a {_describe_file_type(os.stat(path).st_mode)}")
            return fs.open(path, "rb", block_size=CHUNK)

        return ResumingStream(open_file, name, size, self._retry_on_error)

    def write(self, name: str, data: bytes) -> None:
        """Write a file completely or not at all. A put is atomic on an object store; a local file is written under
        another name, flushed to the disk and renamed, and removed if that fails, as on a full disk.
        """
        if self.is_local:
            with self.open_for_writing(name) as file:
                file.write(data)
            return
        fs, path = self._filesystem_and_path[0], self.path(name)
        self._retry_on_error(lambda: fs.pipe_file(path, data))

    def put(self, local: Path, name: str) -> None:
        """Copy a local file into the folder, completely or not at all; it is not read into memory."""
        fs, path = self._filesystem_and_path[0], self.path(name)
        if not self.is_local:
            self._retry_on_error(lambda: fs.put_file(str(local), path))
            return
        with local.open("rb") as source, _replace_when_complete(Path(path)) as copy:
            _copy_file(source, copy)

    @contextmanager
    def open_for_writing(self, name: str) -> Iterator[IO[bytes]]:
        """Open a file to write piece by piece. It appears completely once the block ends without an error, or not at
        all; until then a file for an object store is on the local disk.
        """
        fs, path = self._filesystem_and_path[0], self.path(name)
        if not self.is_local:
            with tempfile.NamedTemporaryFile(prefix="upload-") as staged:
                yield staged
                staged.flush()
                self._retry_on_error(lambda: fs.put_file(staged.name, path))
            return
        with _replace_when_complete(Path(path)) as file:
            yield file

    def copy_file(self, name: str, second: str) -> None:
        """Copy a file within the folder, completely or not at all; replaces a file with the second name.

        On local file systems that support it (XFS, Btrfs, ZFS), both share their blocks until one is changed, which a
        hard link would not do. The copy has the file's permissions.

        Raises:
            FileNotFoundError: there is no such file.
        """
        fs, path, target = self._filesystem_and_path[0], self.path(name), self.path(second)
        if not self.is_local:
            self._retry_on_error(lambda: fs.cp_file(path, target))
            return
        with open(path, "rb") as source, _replace_when_complete(Path(target), _open_file_for_owner_only) as copy:
            _copy_file(source, copy)
            os.fchmod(copy.fileno(), stat.S_IMODE(os.fstat(source.fileno()).st_mode))

    def remove(self, name: str) -> None:
        """Delete a file, if it exists."""
        fs, path = self._filesystem_and_path[0], self.path(name)
        with suppress(FileNotFoundError):
            self._retry_on_error(lambda: fs.rm_file(path))

    def remove_folder(self, name: str) -> None:
        """Delete a folder and its contents, if it exists."""
        fs, path = self._filesystem_and_path[0], self.path(name)
        with suppress(FileNotFoundError):
            self._retry_on_error(lambda: fs.rm(path, recursive=True))

    def _get_file_info(self, entry: dict[str, Any]) -> dict[str, Any]:
        # A listing describes a symbolic link itself, and an HTTP listing has no sizes.
        fs: AbstractFileSystem = self._filesystem_and_path[0]
        try:
            if entry.get("islink"):
                target = os.stat(entry["name"])
                return {**entry, "size": target.st_size, "mtime": target.st_mtime}
            return entry if entry.get("size") is not None else {**entry, **fs.info(entry["name"])}
        except Exception as error:
            if not entry.get("islink") and not isinstance(to_os_error(error), (*PERMANENT, RefusedError)):
                raise
            return {"name": entry["name"], "size": 0}  # a dead link; opening it fails


class ResumingStream:
    """Reads a file sequentially; after an error or an early end it opens the file again and continues at the same
    position.

    An early end is one before ``size`` bytes: some stores deliver a short body without an error.
    """

    def __init__(
        self, open_file: Callable[[], Any], name: str, size: int, retry: Callable[[Callable[[], bytes]], bytes]
    ) -> None:
        self._open_file, self._name, self._size, self._retry = open_file, name, size, retry
        self._file: Any = None
        self.position = 0

    def read(self, size: int) -> bytes:
        """Read up to ``size`` bytes; b"" at the end of the file.

        Raises:
            OSError: after several attempts in a row.
        """
        data = self._retry(lambda: self._read_once(size))
        self.position += len(data)
        return data

    def _read_once(self, size: int) -> bytes:
        try:
            if self._file is None:
                self._file = self._open_file()
                if self.position:
                    self._file.seek(self.position)
            data: bytes = self._file.read(size)
        except Exception:
            self.close()
            raise
        if not data and size and self.position < self._size:
            self.close()
            raise OSError(f"{self._name}: ends at byte {self.position}, its listed size is {self._size}")
        return data

    def close(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


@contextmanager
def _replace_when_complete(target: Path, opener: Callable[[str, int], int] | None = None) -> Iterator[BinaryIO]:
    """Yield a file that replaces ``target`` once the block ends without an error."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.partial")
    try:
        with open(temporary, "xb", opener=opener) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _open_file_for_owner_only(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _copy_file(source: BinaryIO, copy: BinaryIO) -> None:
    """Copy a local file, by shared blocks where the file system has them."""
    try:
        while os.copy_file_range(source.fileno(), copy.fileno(), _COPY_CHUNK):
            pass
    except OSError as error:
        # The file systems do not support it, or the file has no blocks.
        if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF):
            raise
        source.seek(0)
        copy.seek(0)
        copy.truncate()
        shutil.copyfileobj(source, copy, CHUNK)


def _file_stamp(entry: dict[str, Any]) -> FileStamp:
    return FileStamp(str(entry["name"]).rsplit("/", 1)[-1], int(entry["size"] or 0), _change_stamp(entry))


def _change_stamp(entry: dict[str, Any]) -> str:
    for name in ("ETag", "etag", "mtime", "LastModified", "Last-Modified", "last_modified", "updated", "created"):
        if entry.get(name):
            value = entry[name]
            return str(value.isoformat() if hasattr(value, "isoformat") else value)
    return ""


def _describe_file_type(mode: int) -> str:
    kinds = {"p": "named pipe", "d": "folder", "c": "device", "b": "device", "s": "socket"}
    return kinds.get(stat.filemode(mode)[0], "special file")


def _merge_ranges(ranges: Sequence[tuple[int, int]], gap: int) -> list[tuple[int, int, list[int]]]:
    merged: list[tuple[int, int, list[int]]] = []
    for number in sorted(range(len(ranges)), key=ranges.__getitem__):
        offset, size = ranges[number]
        if merged:
            start, stop, members = merged[-1]
            if offset <= stop + gap and max(stop, offset + size) - start <= _MAX_MERGED:
                merged[-1] = (start, max(stop, offset + size), [*members, number])
                continue
        merged.append((offset, offset + size, [number]))
    return merged


def _read_range(descriptor: int, start: int, stop: int) -> bytes:
    data = os.pread(descriptor, stop - start, start)
    while len(data) < stop - start:  # one call gives at most 2 GiB, and less when a signal comes
        more = os.pread(descriptor, stop - start - len(data), start + len(data))
        if not more:
            break
        data += more
    return data
