"""Finds, reads and fingerprints the files of a source."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import posixpath
import re
import stat
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, BinaryIO

from pipelines.data.tars.errors import FaultReason, SampleError
from pipelines.data.tars.member_names import is_hidden
from pipelines.data.tars.shards import parse_split_name
from pipelines.errors import DataError

HIDDEN = "hidden files and folders"
LINKS_TO_READ = "links to folders that were read already"
UNREADABLE = "folders that cannot be read"

_not_walked: ContextVar[frozenset[str]] = ContextVar("_not_walked", default=frozenset())


@contextmanager
def leaving_out_folders(folders: Iterable[str | Path]) -> Iterator[None]:
    """Let ``walk_files`` leave out these folders while the block runs: what a job writes may lie below what it reads,
    and pictures of its results are no part of the source.
    """
    token = _not_walked.set(frozenset(map(os.path.realpath, folders)))
    try:
        yield
    finally:
        _not_walked.reset(token)


def resolve_path(setting: str, parent: Path | None = None) -> Path:
    """Resolve the path that a setting names, relative to ``parent``; ``~`` is the home folder."""
    return (parent or Path()) / os.path.expanduser(setting)


def open_regular_file(path: Path) -> BinaryIO:
    """Open a regular file for reading; a pipe, which may block forever, and a device, which has no end, are refused.

    Raises:
        OSError: it cannot be opened.
        SampleError: UNSAFE_MEMBER where it is no regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise SampleError(FaultReason.UNSAFE_MEMBER, f"{path} is a pipe, socket, device or folder, and no file")
    return os.fdopen(descriptor, "rb")


def walk_files(root: Path, skipped_counts: Counter[str]) -> Iterator[tuple[str, os.DirEntry[str], str]]:
    """Yield for each file under a folder its path in the folder, its directory entry and its real path.

    Links to folders are followed, and each folder is read once, so loops end. Folders that are reached by a link come
    last, so a file that also has a path without links is found by that. Folders below it that ``leaving_out_folders``
    names are not read, nor counted.

    Args:
        skipped_counts: counts hidden files and folders, and folders that are not read.

    Raises:
        DataError: ``root`` itself cannot be read.
    """
    folders_read: set[tuple[int, int]] = set()
    linked = deque([""])
    while linked:
        first = linked.popleft()
        folders = [(first, os.path.realpath(root / first))]
        while folders:
            folder, real_folder = folders.pop()
            if folder and real_folder in _not_walked.get():
                continue
            subfolders = []
            for entry in _list_folder(root, folder, folders_read, skipped_counts):
                name, real = f"{folder}/{entry.name}".removeprefix("/"), os.path.join(real_folder, entry.name)
                if is_hidden(entry.name):
                    skipped_counts[HIDDEN] += 1
                elif entry.is_dir(follow_symlinks=False):
                    subfolders.append((name, real))
                elif entry.is_symlink() and os.path.isdir(entry.path):
                    linked.append(name)
                else:
                    yield name, entry, os.path.realpath(real) if entry.is_symlink() else real
            folders += reversed(subfolders)


def _list_folder(
    root: Path, folder: str, folders_read: set[tuple[int, int]], skipped_counts: Counter[str]
) -> list[os.DirEntry[str]]:
    """List the entries of a folder, sorted by name; [] if the folder was listed before or cannot be read."""
    try:
        status = os.stat(root / folder)
        if (status.st_dev, status.st_ino) in folders_read:
            skipped_counts[LINKS_TO_READ] += 1
            return []
        folders_read.add((status.st_dev, status.st_ino))
        with os.scandir(root / folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        if not folder:
            raise DataError(f"folder {root} cannot be read ({error.strerror}); permit it or name another") from None
        skipped_counts[UNREADABLE] += 1
        return []


def source_folder(folder: str) -> Path:
    """Return ``folder`` as a path; raises DataError if there is no such folder."""
    path = resolve_path(folder)
    if not path.is_dir():
        raise DataError(f"source folder {folder!r} does not exist; set source.folder to the folder that holds the data")
    return path


def load_json(path: Path, object_hook: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """Load the JSON document in ``path``; raises DataError if it cannot be read, or is not UTF-8 or not JSON."""
    try:
        with open_regular_file(path) as file:
            return json.loads(file.read().decode("utf-8-sig"), object_hook=object_hook)
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror}); restore it or correct the source's setting"
        ) from None
    except SampleError as error:
        raise DataError(f"{error.detail}; correct the source's setting") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid UTF-8 JSON ({error}); download it again") from None


def find_file(folder: Path, names: Iterable[str], value: str, setting: str) -> Path | None:
    """Find a file under a folder: the one that a setting names, else one with a usual name at any depth.

    Args:
        names: glob patterns of the usual names, of which the first that matches is used. Hidden files do not match.
        value: of the setting; empty to search.
        setting: the setting's dotted name, for messages.

    Returns:
        None where none is named and none is found.

    Raises:
        DataError: the named file does not exist, or several files match.
    """
    if value:
        path = resolve_path(value, folder)
        if not path.is_file():
            problem = "is no file" if path.exists() else "does not exist"
            raise DataError(f"{setting} = {value!r}: {path} {problem}")
        return path
    usual = tuple(names)
    files: dict[str, Path] = {}
    for _, entry, real in walk_files(folder, Counter()):
        if any(fnmatch.fnmatchcase(entry.name, name) for name in usual) and os.path.isfile(entry.path):
            files.setdefault(real, Path(entry.path))
    for name in usual:
        matching = sorted(path for path in files.values() if fnmatch.fnmatchcase(path.name, name))
        if len(matching) > 1:
            listed = ", ".join(str(path.relative_to(folder)) for path in matching)
            raise DataError(f"{folder} holds several files for {setting} ({listed}); name one of them")
        if matching:
            return matching[0]
    return None


def fingerprint_files(root: Path, files: Iterable[Path | None]) -> str:
    """Hash the name, size and modification time of the given files."""
    paths = {path for path in files if path is not None}
    digest = hashlib.sha256()
    for name, path in sorted((os.path.relpath(path, root), path) for path in paths):
        try:
            status = path.stat()
            stamp = f"{status.st_size}\0{status.st_mtime_ns}"
        except OSError:
            stamp = "a link that leads nowhere"
        digest.update(f"{name}\0{stamp}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def class_of_path(name: str) -> str:
    """Return the name of the folder that contains a file, which is the file's class.

    Raises:
        SampleError: MISSING_TEXT where it lies in none.
    """
    if not (label := posixpath.basename(posixpath.dirname(name)).strip()):
        raise SampleError(FaultReason.MISSING_TEXT, f"{name!r} lies in no folder that could be its class")
    return label


def split_of_path(name: str, setting: str) -> str:
    """Find the split of a file: the one that the setting names for all files or, for "folder", the one that the first
    folder of its path is named after.

    Raises:
        SampleError: BAD_SCHEMA where the first step is no split.
    """
    if setting != "folder":
        return setting
    first = name.split("/")[0]
    if "/" not in name or (split := parse_split_name(first)) is None:
        raise SampleError(FaultReason.BAD_SCHEMA, f"{name!r} begins with no folder of a split: train, val or test")
    return split


def key_of_image(image: str) -> str:
    """Make a sample's key from the name of its image, without the extension."""
    return to_valid_key(posixpath.splitext(image)[0])


def to_valid_key(name: str) -> str:
    """Make a valid key from a name: forbidden characters are replaced, and then a hash is appended so that keys
    differ.
    """
    key = "/".join(re.sub(r"[.\\\x00-\x1f\x7f\ud800-\udfff]", "_", step) for step in name.split("/") if step)
    return key if key == name else f"{key}_{hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()[:8]}"
