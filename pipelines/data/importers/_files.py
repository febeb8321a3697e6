"""Finding, reading and fingerprinting the files of a source."""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import re
import tarfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pipelines.data.errors import DataError, Reason, SampleError
from pipelines.data.sample import IMAGE_EXTENSIONS, Members


def source_folder(folder: str) -> Path:
    """``folder`` as a path.

    Raises:
        DataError: there is no such folder.
    """
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise DataError(f"source folder {folder!r} does not exist; set source.folder to the folder that holds the data")
    return path


def load_json(path: Path, object_hook: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """The document in ``path``.

    Raises:
        DataError: it cannot be read, or is not UTF-8 or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"), object_hook=object_hook)
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror}); restore it or correct the source's setting"
        ) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid UTF-8 JSON ({error}); fetch it anew") from None


def find_one(folder: Path, names: Iterable[str], named: str, setting: str) -> Path | None:
    """A file of ``folder``: the one that the setting names, else the one of a usual name, at any depth.

    Args:
        names: glob patterns of the usual names; the first that matches anything counts.
        named: value of the setting; empty to search.
        setting: the setting's dotted name, for messages.

    Returns:
        None where nothing is named and nothing is found.

    Raises:
        DataError: the named file does not exist, or several files match.
    """
    if named:
        path = folder / Path(named).expanduser()
        if not path.exists():
            raise DataError(f"{setting} = {named!r}: {path} does not exist")
        return path
    for name in names:
        found = sorted(path for path in folder.rglob(name) if path.is_file())
        if len(found) > 1:
            listed = ", ".join(str(path.relative_to(folder)) for path in found)
            raise DataError(f"{folder} holds several files for {setting} ({listed}); name one of them")
        if found:
            return found[0]
    return None


def fingerprint(root: Path, files: Iterable[Path | None], images: Iterable[Images | NoImages] = ()) -> str:
    """Hash over name, size and time of change of ``files`` and of all that ``images`` hold."""
    paths = {path for path in files if path is not None}
    for catalogue in images:
        paths.update(catalogue.files())
    digest = hashlib.sha256()
    for name, path in sorted((os.path.relpath(path, root), path) for path in paths):
        try:
            status = path.stat()
            seen = f"{status.st_size}\0{status.st_mtime_ns}"
        except FileNotFoundError:
            seen = "a link that leads nowhere"
        digest.update(f"{name}\0{seen}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def key_of(image: str) -> str:
    """A sample's key from its image's name: the name without its extension, made fit by ``fit_key``."""
    return fit_key(image.rpartition(".")[0] or image)


def fit_key(name: str) -> str:
    """``name`` without what a key may not hold; where something had to go, a hash of the name keeps keys apart."""
    key = "/".join(re.sub(r"[.\\\x00-\x1f\x7f]", "_", step) for step in name.split("/") if step)
    return key if key == name else f"{key}_{hashlib.sha256(name.encode(errors='replace')).hexdigest()[:8]}"


class _Place(NamedTuple):
    file: Path
    offset: int | None
    size: int


class Images:
    """The images under a folder (files at any depth, and plain tars that lie directly in it) or in one plain tar.

    An image is found by its path inside, or by the end of that path where only one image has it.

    Raises:
        DataError: ``root`` does not exist, or a tar is compressed or broken.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        if root.is_dir():
            tars = sorted(root.glob("*.tar"))
            self._places = dict(_scan_folder(root))
        elif root.is_file():
            tars, self._places = [root], {}
        else:
            raise DataError(f"image folder or tar {str(root)!r} does not exist; correct the source's setting")
        for tar in tars:
            for name, place in _scan_tar(tar):
                self._places.setdefault(name, place)
        self._by_base_name: defaultdict[str, list[str]] = defaultdict(list)
        for name in self._places:
            self._by_base_name[posixpath.basename(name)].append(name)

    def __len__(self) -> int:
        return len(self._places)

    def names(self) -> list[str]:
        """Paths of all images inside: those of files first, then those in tars."""
        return list(self._places)

    def files(self) -> set[Path]:
        """Image files and tars."""
        return {place.file for place in self._places.values()}

    def read(self, name: str) -> tuple[bytes, str]:
        """Bytes and extension (lower case, no dot) of the image ``name``.

        Raises:
            SampleError: MISSING_IMAGE (none, or several of that name), UNSAFE_MEMBER for a name that leads out of
                the root, UNDECODABLE_IMAGE for an extension that is no image's, BROKEN_TAR.
        """
        extension = extension_of(name)
        place = self._places[self._find(name)]
        try:
            with place.file.open("rb") as file:
                file.seek(place.offset or 0)
                data = file.read(place.size if place.offset is not None else -1)
        except OSError as error:
            raise SampleError(Reason.MISSING_IMAGE, f"{place.file} cannot be read: {error.strerror}") from None
        if place.offset is not None and len(data) < place.size:
            raise SampleError(Reason.BROKEN_TAR, f"{place.file} ends inside {name!r}")
        return data, extension

    def _find(self, name: str) -> str:
        path = posixpath.normpath(name)
        if posixpath.isabs(path):
            path = os.path.relpath(path, self.root.absolute())
        if path.startswith(".."):
            raise SampleError(Reason.UNSAFE_MEMBER, f"image {name!r} leads out of {self.root}")
        if path in self._places:
            return path
        found = [other for other in self._by_base_name[posixpath.basename(path)] if other.endswith(f"/{path}")]
        if not found:
            raise SampleError(Reason.MISSING_IMAGE, f"image {name!r} is not in {self.root}")
        if len(found) > 1:
            raise SampleError(Reason.MISSING_IMAGE, f"image {name!r} could be any of {', '.join(sorted(found)[:5])}")
        return found[0]


class NoImages:
    """Stands for the images of a set of texts, of which none is looked for."""

    def files(self) -> set[Path]:
        return set()

    def read(self, name: str) -> tuple[None, None]:
        return None, None


def images_for(members: Members, root: Path) -> Images | NoImages:
    """The images under ``root`` where samples have some; raises what ``Images`` raises."""
    return NoImages() if members == "texts" else Images(root)


def extension_of(name: str) -> str:
    """Extension of an image's name, lower case, without the dot.

    Raises:
        SampleError: UNDECODABLE_IMAGE where it is not one of ``IMAGE_EXTENSIONS``.
    """
    extension = name.rpartition(".")[2].lower()
    if extension not in IMAGE_EXTENSIONS:
        known = ", ".join(IMAGE_EXTENSIONS)
        raise SampleError(Reason.UNDECODABLE_IMAGE, f"image {name!r} is none of {known}")
    return extension


def _is_image(name: str) -> bool:
    return name.rpartition(".")[2].lower() in IMAGE_EXTENSIONS


def _scan_folder(root: Path) -> Iterator[tuple[str, _Place]]:
    for folder, folders, files in os.walk(root):
        folders.sort()
        for file in sorted(filter(_is_image, files)):
            path = Path(folder, file)
            yield path.relative_to(root).as_posix(), _Place(path, None, 0)


def _scan_tar(tar: Path) -> Iterator[tuple[str, _Place]]:
    try:
        with tarfile.open(tar, "r:") as archive:
            for member in archive:
                if member.isreg() and _is_image(member.name):
                    yield posixpath.normpath(member.name), _Place(tar, member.offset_data, member.size)
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"{tar} cannot be read as a plain tar ({error}); unpack it into a folder") from None
