"""The manifest of a folder lists the size and sha256 of each of its files, so that a reader knows that all are there
and unchanged.

It covers every file, whatever its name: Python runs bytecode in place of the source beside it, so a file that a
manifest skips could replace all that it covers.

This file is stored with each registered model, which verifies itself with it. So it imports only the standard library
and ``vlmodel``, which is stored too.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from vlmodel.errors import ExpectedError

MANIFEST = "manifest.json"
# MLflow writes this into a model that it loads as models:/NAME/VERSION. A file of just these two lines is skipped.
_ORIGIN = "registered_model_meta"
_ORIGIN_LINES = re.compile(r"model_name: [^\n]*\nmodel_version: [^\n]*\n")
_SHA256 = re.compile("[0-9a-f]{64}")


class ManifestError(ExpectedError, RuntimeError):
    """A folder does not match its manifest, or has none that can be read. The message names the file."""


@dataclass(frozen=True)
class FileSizeAndHash:
    """Identifies the contents of a file by size and hash.

    Attributes:
        bytes: its size.
        sha256: in hexadecimal digits.
    """

    bytes: int
    sha256: str


Manifest = Mapping[str, FileSizeAndHash]
"""The facts of each file of a folder by its path within it, without the manifest itself."""


def size_and_hash_of_file(file: Path) -> FileSizeAndHash:
    """Compute the size and the hash of a local file, which is read once, piece by piece."""
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
        return FileSizeAndHash(opened.tell(), digest)


def list_files_of_folder(folder: Path) -> list[str]:
    """List the paths of all files in a local folder and its subfolders, without its manifest, sorted.

    Raises:
        ManifestError: a link, which could point anywhere, or what is neither a file nor a folder.
    """
    names = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            raise ManifestError(f"{str(path)!r} is a link; put the file itself there")
        if path.is_dir() or name == MANIFEST or (name == _ORIGIN and _is_origin(path)):
            continue
        if not path.is_file():
            raise ManifestError(f"{str(path)!r} is neither a file nor a folder; delete it")
        names.append(name)
    return names


def manifest_of_folder(folder: Path) -> dict[str, FileSizeAndHash]:
    """Compute the manifest of a local folder as it is now.

    Raises:
        ManifestError: as ``list_files_of_folder``.
    """
    return {name: size_and_hash_of_file(folder / name) for name in list_files_of_folder(folder)}


def manifest_to_bytes(manifest: Manifest) -> bytes:
    """Write a manifest as the bytes of its file, which depend only on the folder's files."""
    return json.dumps({name: asdict(manifest[name]) for name in sorted(manifest)}, indent=1).encode()


def manifest_from_bytes(text: bytes, where: str) -> dict[str, FileSizeAndHash]:
    """Parse the bytes that ``manifest_to_bytes`` wrote.

    Args:
        where: the manifest's file, for messages.

    Raises:
        ManifestError: it is damaged, or names a file outside of its folder.
    """
    try:
        listed = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{where} is damaged ({error})") from None
    if not isinstance(listed, dict):
        raise ManifestError(f"{where} is damaged (it is no table of files)")
    for name, facts in listed.items():
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise ManifestError(f"{where} names {name!r}, outside of it")
        if not _is_size_and_hash(facts):
            raise ManifestError(f"{where} is damaged, or of another version of this program ({name!r}: {facts!r})")
    return {name: FileSizeAndHash(**facts) for name, facts in listed.items()}


def write_manifest(folder: Path) -> str:
    """Write the manifest of a local folder into it and return the manifest's sha256."""
    text = manifest_to_bytes(manifest_of_folder(folder))
    (folder / MANIFEST).write_bytes(text)
    return hashlib.sha256(text).hexdigest()


def folder_digest(folder: Path) -> str:
    """Compute one hash of the names and contents of all files in a local folder: the sha256 of its manifest."""
    return hashlib.sha256(manifest_to_bytes(manifest_of_folder(folder))).hexdigest()


def verify_folder(folder: Path, expected: str | None = None) -> None:
    """Check that each file of a local folder is as its manifest says, and that none is missing or was added.

    Args:
        expected: sha256 of the manifest, stored where those who can write to ``folder`` cannot write. Without it,
            damage is detected, but not a manifest that was rewritten together with the files.

    Raises:
        ManifestError: something differs; the message names up to five files.
    """
    file = folder / MANIFEST
    try:
        text = file.read_bytes()
    except FileNotFoundError:
        raise ManifestError(f"folder {str(folder)!r} has no {MANIFEST}") from None
    listed, actual = manifest_from_bytes(text, str(file)), manifest_of_folder(folder)
    different = sorted(name for name in listed.keys() | actual.keys() if listed.get(name) != actual.get(name))
    if expected is not None and hashlib.sha256(text).hexdigest() != expected:
        different.insert(0, MANIFEST)
    if different:
        more = f" and {len(different) - 5} more" if len(different) > 5 else ""
        raise ManifestError(
            f"folder {str(folder)!r} is not what was stored: changed, missing or added: "
            f"{', '.join(different[:5])}{more}"
        )


def _is_size_and_hash(facts: object) -> bool:
    return (
        isinstance(facts, dict)
        and facts.keys() == {"bytes", "sha256"}
        and type(facts["bytes"]) is int
        and isinstance(facts["sha256"], str)
        and _SHA256.fullmatch(facts["sha256"]) is not None
    )


def _is_origin(file: Path) -> bool:
    return file.is_file() and _ORIGIN_LINES.fullmatch(file.read_bytes().decode(errors="replace")) is not None
