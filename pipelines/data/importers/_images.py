"""Finds and reads the images of a source, and counts the other files beside them.

Links are followed, also out of the folder, and each folder is read once, so loops end. A file whose first bytes are no
image's is refused: no link brings another kind of file into a tar.
"""

from __future__ import annotations

import os
import posixpath
import re
import tarfile
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from pipelines.data.importers._files import HIDDEN, open_regular_file, walk_files
from pipelines.data.importing.importer import RejectedSample, SourceSample
from pipelines.data.tars.errors import FaultReason, SampleError, medium_reason, missing_input_reason
from pipelines.data.tars.inputs import input_requirements
from pipelines.data.tars.member_names import is_hidden
from pipelines.errors import DataError
from vlmodel.images.pillow import image_extension
from vlmodel.media.image import MEDIUM
from vlmodel.sample import SampleTexts

DEAD_LINKS = "links that lead nowhere"
REPEATED = "images of a name that came before"
UNNAMED = "images that nothing names"

MISSING_IMAGE = missing_input_reason("image")
UNDECODABLE_IMAGE = medium_reason("undecodable", "image")
IMAGE_TOO_LARGE = medium_reason("too_large", "image")

_HEAD = 32
"""First bytes by which image formats are recognised."""
_MAX_BYTES = 1 << 30
"""Of an image file, which is held in memory; a sparse file can claim any size."""
_MAX_LINKS = 40


class _ImageLocation(NamedTuple):
    file: Path
    identity: str
    """The same for all names of one image."""
    offset: int | None = None
    size: int = 0
    problem: str = ""
    """Why it cannot be read, where that is already known."""


class SourceImages:
    """The images of a source: those under a folder (files at any depth, and plain tars directly in it) or in one plain
    tar.

    An image is a file with an image's extension, or one without any extension whose first bytes are an image's. It is
    looked up by its path inside, or by the end of that path where only one image has it: as spelled, else with accents
    in their other Unicode form, else in another case. Hidden files and system files are found by their whole path only.

    Raises:
        DataError: ``root`` does not exist or cannot be read, or a tar is compressed or broken.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._locations: dict[str, _ImageLocation] = {}
        self._other: Counter[str] = Counter()
        self._identities_read: set[str] = set()
        if root.is_dir():
            tars = self._scan_folder()
        elif root.is_file():
            tars = [root]
        else:
            raise DataError(f"image folder or tar {str(root)!r} does not exist; correct the source's setting")
        for tar in tars:
            self._scan_tar(tar)

    def __len__(self) -> int:
        return len(self._locations)

    def names(self) -> list[str]:
        """List the paths of all images: files first, then those in tars."""
        return list(self._locations)

    def files(self) -> set[Path]:
        """List the image files, and the tars that hold images."""
        return {location.file for location in self._locations.values()}

    def image_identity(self, name: str) -> str:
        """Return a string that is the same for every spelling of the image's name and every link to it.

        Raises:
            SampleError: as ``read`` where no image is found.
        """
        return self._locate_image(name).identity

    def read(self, name: str) -> tuple[bytes, str]:
        """Read the bytes of the image ``name`` and its extension (lower case, no dot).

        Raises:
            SampleError: MISSING_IMAGE (none, or several of that name), UNSAFE_MEMBER for a name that leads out of
                the root and for a pipe, socket, device or folder, UNDECODABLE_IMAGE for an extension that is no
                image's and for bytes that are none's, IMAGE_TOO_LARGE, BROKEN_TAR.
        """
        require_image_extension(name)
        location = self._locate_image(name)
        self._identities_read.add(location.identity)
        if location.problem:
            raise SampleError(FaultReason.UNSAFE_MEMBER, f"image {name!r}: {location.problem}")
        try:
            with open_regular_file(location.file) as file:
                file.seek(location.offset or 0)
                size = os.fstat(file.fileno()).st_size if location.offset is None else location.size
                data = file.read(min(_HEAD, size))
                extension = guess_image_extension(data)
                if data and extension is None:
                    # No bytes are shown: a link may lead to a confidential file.
                    raise SampleError(UNDECODABLE_IMAGE, f"image {name!r} is none by its first bytes")
                if size > _MAX_BYTES:
                    detail = f"image {name!r} has {size:,} bytes; at most {_MAX_BYTES:,} are imported"
                    raise SampleError(IMAGE_TOO_LARGE, detail)
                data += file.read(size - len(data))
        except OSError as error:
            raise SampleError(MISSING_IMAGE, f"{location.file} cannot be read: {error.strerror}") from None
        if location.offset is not None and len(data) < size:
            raise SampleError(FaultReason.BROKEN_TAR, f"{location.file} ends inside {name!r}")
        return data, (suffix_of(name) if is_image(name) else extension) or ""

    def count_skipped_files(self, used: Iterable[Path | None] = ()) -> Counter[str]:
        """Count the files that were not imported, by kind: unread images, and other files by their extension.

        Args:
            used: files that were read as something else.
        """
        others = self._other.copy()
        root = os.path.realpath(self.root)
        images = {location.identity for location in self._locations.values()}
        used_files = {os.path.realpath(path) for path in used if path is not None}
        for path in used_files - images:
            if path.startswith(root + os.sep):
                others[_file_kind_for_counts(path)] -= 1
        others[UNNAMED] += len(images - self._identities_read - used_files)
        return +others

    def _locate_image(self, name: str) -> _ImageLocation:
        path = posixpath.normpath(name)
        if (location := self._locations.get(path)) is not None:
            return location
        path = posixpath.normpath(path.replace("\\", "/"))  # as Windows writes it
        if posixpath.isabs(path):
            real = os.path.realpath(path)
            path = os.path.relpath(path, self.root.absolute())
            if _path_leaves_root(path):  # unless the root itself was reached by a link
                path = os.path.relpath(real, os.path.realpath(self.root))
        if _path_leaves_root(path):
            raise SampleError(FaultReason.UNSAFE_MEMBER, f"image {name!r} leads out of {self.root}")
        steps = _fold_case(path).split("/")
        # By two steps, as the folders of a set may all have the same file names.
        candidates = self._names_by_last_path_parts[len(steps) > 1].get("/".join(steps[-2:]), [])
        for spelling in (str, _compose_unicode, _fold_case):
            wanted = spelling(path)
            matches = [other for other in candidates if spelling(other) == wanted] or [
                other for other in candidates if spelling(other).endswith(f"/{wanted}")
            ]
            if len({self._locations[other].identity for other in matches}) > 1:
                listed = ", ".join(sorted(matches)[:5])
                raise SampleError(MISSING_IMAGE, f"image {name!r} could be any of {listed}")
            if matches:
                return self._locations[matches[0]]
        # The scan skips hidden files and second paths to a folder, which may be named all the same.
        file = self.root / path
        if self.root.is_dir() and os.path.lexists(file) and not file.is_dir():
            return _ImageLocation(file, os.path.realpath(file))
        raise SampleError(MISSING_IMAGE, f"image {name!r} is not in {self.root}")

    @cached_property
    def _names_by_last_path_parts(self) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
        """Index the images' names by the last part of their path, and by the last two parts."""
        by_one, by_two = defaultdict(list), defaultdict(list)
        for name in self._locations:
            steps = _fold_case(name).rsplit("/", 2)
            by_one[steps[-1]].append(name)
            by_two["/".join(steps[-2:])].append(name)
        return by_one, by_two

    def _scan_folder(self) -> list[Path]:
        """Collect the image files; returns the tars that lie directly in the root."""
        tars = []
        for name, entry, real in walk_files(self.root, self._other):
            path = Path(entry.path)
            if is_image(name) or (not suffix_of(name) and guess_image_extension(_read_first_bytes(path)) is not None):
                self._locations[name] = _ImageLocation(path, real)
            elif name.endswith(".tar") and "/" not in name and path.is_file():
                tars.append(path)
            else:
                dead = entry.is_symlink() and not path.exists()
                self._other[DEAD_LINKS if dead else _file_kind_for_counts(name)] += 1
        return tars

    def _scan_tar(self, tar: Path) -> None:
        """Collect the images of a tar; of two members with one name the later counts, as when it is unpacked."""
        members: dict[str, tarfile.TarInfo] = {}
        heads: dict[str, bytes] = {}
        try:
            with tarfile.open(tar, "r:") as archive:
                for member in archive:
                    name = posixpath.normpath(member.name)
                    if member.isdir():
                        continue
                    if any(map(is_hidden, name.split("/"))):
                        self._other[HIDDEN] += 1
                        continue
                    if is_image(name) and name in members:
                        self._other[REPEATED] += 1
                    members[name] = member
                    if member.isreg() and not suffix_of(name) and archive.fileobj is not None:
                        archive.fileobj.seek(member.offset_data)
                        heads[name] = archive.fileobj.read(min(_HEAD, member.size))
        except (tarfile.TarError, EOFError) as error:
            raise DataError(f"{tar} cannot be read as a plain tar ({error}); unpack it into a folder") from None
        real_tar = os.path.realpath(tar)
        for name in members:
            if not (is_image(name) or guess_image_extension(heads.get(name, b"")) is not None):
                self._other[_file_kind_for_counts(name)] += 1
            elif name in self._locations:
                self._other[REPEATED] += 1
            else:
                self._locations[name] = _locate_member(tar, real_tar, name, members)


class NoImages:
    """Replaces ``SourceImages`` if no images are imported."""

    def files(self) -> set[Path]:
        return set()

    def image_identity(self, name: str) -> None:
        return None

    def read(self, name: str) -> tuple[None, None]:
        return None, None

    def count_skipped_files(self, used: Iterable[Path | None] = ()) -> Counter[str]:
        return Counter()


def open_source_images(inputs: Iterable[str], root: Path) -> SourceImages | NoImages:
    """List the images under a folder, or return ``NoImages`` if no images are imported; raises the errors of
    ``SourceImages``.
    """
    return SourceImages(root) if "image" in input_requirements(inputs) else NoImages()


def read_image_sample(
    images: SourceImages | NoImages,
    name: str,
    split: str,
    key: str,
    texts: SampleTexts,
    extra: Mapping[str, Any] | None = None,
) -> SourceSample | RejectedSample:
    """Read the sample of an image, or return a reject that says why the image cannot be read."""
    try:
        image, extension = images.read(name)
        file = images.image_identity(name)
    except SampleError as error:
        return RejectedSample(key, error.reason, error.detail)
    inputs = {} if image is None else {"image": (image, extension or "")}
    return SourceSample(split, key, inputs, texts, extra, file)


def require_image_extension(name: str) -> None:
    """Raise SampleError UNDECODABLE_IMAGE if the extension of a name is not an image's."""
    if suffix_of(name) and not is_image(name):
        known = ", ".join(MEDIUM.extensions)
        raise SampleError(UNDECODABLE_IMAGE, f"image {name!r} is none of {known}")


def suffix_of(name: str) -> str:
    """Return the extension of a path, in lower case and without the dot; "" if there is none."""
    return posixpath.splitext(name.replace("\\", "/"))[1].removeprefix(".").lower()


def guess_image_extension(data: bytes) -> str | None:
    """Guess the usual extension of an image file from its first bytes, whether or not it can be decoded here."""
    return image_extension(data[:_HEAD])


def extension_of_image_bytes(data: bytes) -> str:
    """Return the usual extension of an image file, by its first bytes.

    Raises:
        SampleError: UNDECODABLE_IMAGE where they are no image's.
    """
    if (extension := guess_image_extension(data)) is not None:
        return extension
    raise SampleError(UNDECODABLE_IMAGE, f"bytes that start with {data[:8]!r} are no image of a known kind")


def is_image(name: str) -> bool:
    """Whether a file's name has an extension of images."""
    return suffix_of(name) in MEDIUM.extensions


def _file_kind_for_counts(name: str) -> str:
    """Return the kind under which a file is counted: its extension, unless that is long or has unusual characters."""
    suffix = suffix_of(name)
    if re.fullmatch(r"[a-z0-9_~-]{1,12}", suffix):
        return f".{suffix} files"
    return "files of odd extensions" if suffix else "files without extension"


def _path_leaves_root(path: str) -> bool:
    return path == ".." or path.startswith("../")


def _compose_unicode(path: str) -> str:
    return unicodedata.normalize("NFC", path)


def _fold_case(path: str) -> str:
    return _compose_unicode(path).casefold()


def _read_first_bytes(path: Path) -> bytes:
    try:
        with open_regular_file(path) as file:
            return file.read(_HEAD)
    except (OSError, SampleError):
        return b""


def _locate_member(tar: Path, real_tar: str, name: str, members: dict[str, tarfile.TarInfo]) -> _ImageLocation:
    """Locate the bytes of a tar's member, following links to other members."""
    at, member = name, members[name]
    for _ in range(_MAX_LINKS):
        if not (member.issym() or member.islnk()):
            break
        folder = posixpath.dirname(at) if member.issym() else ""
        at = posixpath.normpath(posixpath.join(folder, member.linkname))
        if at not in members:
            return _ImageLocation(
                tar, f"{real_tar}/{name}", problem=f"it is a link to {member.linkname!r}, not in the tar"
            )
        member = members[at]
    problem = ""
    if not member.isreg():
        problem = "it is a link to itself" if member.issym() or member.islnk() else "it is a pipe or a device"
    elif member.issparse():
        problem = "it is stored as a sparse file; unpack the tar into a folder"
    return _ImageLocation(tar, f"{real_tar}/{at}", member.offset_data, member.size, problem)
