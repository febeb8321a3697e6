"""Copies folders to and from storage: the manifest is written last, so an incomplete copy has none, and what is read is
compared with it.

So a copy that was cut off does not count, and a file that was altered is not used.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

from pipelines.storage import manifest
from pipelines.storage.folder import CHUNK, StorageFolder
from pipelines.storage.manifest import MANIFEST, FileSizeAndHash, Manifest, ManifestError


def store_folder(local: Path, folder: StorageFolder, without: str = "") -> Manifest:
    """Copy all files of a local folder to storage, then write their manifest there. Files that an earlier copy left
    there are removed first.

    Args:
        without: a subfolder that is left out.

    Raises:
        ManifestError: a link, or what is neither a file nor a folder.
        OSError: after several attempts.
    """
    names = [name for name in manifest.list_files_of_folder(local) if not without or not name.startswith(f"{without}/")]
    folder.remove(MANIFEST)
    for name in set(folder.walk()).difference(names):
        folder.remove(name)
    written = {}
    for name in names:
        written[name] = manifest.size_and_hash_of_file(local / name)
        folder.put(local / name, name)
    folder.write(MANIFEST, manifest.manifest_to_bytes(written))
    return written


def read_manifest(folder: StorageFolder) -> Manifest:
    """Read the manifest of a folder in storage.

    Raises:
        ManifestError: there is none, or it is damaged.
    """
    where = f"{folder.uri}/{MANIFEST}"
    try:
        text = folder.read(MANIFEST)
    except (FileNotFoundError, NotADirectoryError):
        raise ManifestError(f"{folder.uri} has no {MANIFEST}: it was never completed") from None
    return manifest.manifest_from_bytes(text, where)


def read_verified_file(folder: StorageFolder, listed: Manifest, name: str) -> bytes:
    """Read a small file and compare it with its hash in the manifest.

    Raises:
        ManifestError: it is missing or altered, or is not in the manifest.
    """
    if name not in listed:
        raise ManifestError(f"{folder.uri}/{MANIFEST} is damaged (no {name} in it)")
    try:
        data = folder.read(name)
    except FileNotFoundError:
        raise _file_missing_error(folder, name) from None
    _require_equal_size_and_hash(
        folder, name, FileSizeAndHash(len(data), hashlib.sha256(data).hexdigest()), listed[name]
    )
    return data


@contextmanager
def local_copy_of(folder: StorageFolder, listed: Manifest, part: str = "") -> Iterator[Path]:
    """Yield a local folder with the files of a folder in storage: the folder itself if storage is local, else a
    temporary copy. Each file is compared with the manifest, and there must be no others.

    Args:
        part: a subfolder or a file; only what belongs to it is read and compared.

    Raises:
        ManifestError: a file is missing, altered or was added.
        OSError: after several attempts.
    """
    wanted = [name for name in listed if not part or name == part or name.startswith(f"{part}/")]
    if added := sorted(set(_list_file_names(folder)) - listed.keys()):
        raise ManifestError(f"{folder.uri}/{added[0]} is not in {MANIFEST}; delete it")
    if folder.is_local:
        local = Path(folder.path(""))
        for name in wanted:
            try:
                _require_equal_size_and_hash(folder, name, manifest.size_and_hash_of_file(local / name), listed[name])
            except FileNotFoundError:
                raise _file_missing_error(folder, name) from None
        yield local
        return
    with TemporaryDirectory(prefix="stored-") as scratch:
        local = Path(scratch)
        for name in wanted:
            download_file(folder, name, listed[name], local / name)
        yield local


def download_file(folder: StorageFolder, name: str, facts: FileSizeAndHash, target: Path) -> None:
    """Copy a file from storage to a local file, and verify its hash meanwhile.

    Raises:
        ManifestError: it is missing, or not what ``facts`` describe; the local file is then not to be used.
        OSError: after several attempts.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with target.open("wb") as copy:
            _require_equal_size_and_hash(folder, name, _copy_and_hash(folder, name, facts.bytes, copy), facts)
    except FileNotFoundError:
        raise _file_missing_error(folder, name) from None


def _copy_and_hash(folder: StorageFolder, name: str, size: int, copy: IO[bytes]) -> FileSizeAndHash:
    hashed, count = hashlib.sha256(), 0
    with folder.stream(name, folder.stamp(name).size or size) as stream:
        while chunk := stream.read(CHUNK):
            hashed.update(chunk)
            count += len(chunk)
            copy.write(chunk)
    return FileSizeAndHash(count, hashed.hexdigest())


def _list_file_names(folder: StorageFolder) -> list[str]:
    if folder.is_local:
        return manifest.list_files_of_folder(Path(folder.path("")))
    return [name for name in folder.walk() if name != MANIFEST]


def _require_equal_size_and_hash(
    folder: StorageFolder, name: str, found: FileSizeAndHash, expected: FileSizeAndHash
) -> None:
    if found != expected:
        raise ManifestError(f"{folder.uri}/{name} was altered after it was written")


def _file_missing_error(folder: StorageFolder, name: str) -> ManifestError:
    return ManifestError(f"{folder.uri}/{name} is missing")
