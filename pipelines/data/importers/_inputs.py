"""Reads the files of additional inputs beside images: those that a table names, and ``STEM.NAME.EXT`` beside
``STEM.jpg``.
"""

from __future__ import annotations

import os
import posixpath
from collections import Counter, defaultdict
from pathlib import Path
from typing import BinaryIO

from pipelines.data.importers._files import open_regular_file, walk_files
from pipelines.data.tars.errors import FaultReason, SampleError, medium_reason, missing_input_reason
from pipelines.data.tars.inputs import describe_known_extensions, input_of_extension, member_extension
from pipelines.data.tars.member_names import path_leaves_folder

_MAX_BYTES = 1 << 30
"""Of a file, which is held in memory; a sparse file can claim any size."""


def read_input(root: Path, name: str, path: str) -> tuple[bytes, str]:
    """Read the bytes of an input's file and its extension (lower case, no dot).

    Args:
        path: relative to ``root``.

    Raises:
        SampleError: ``missing_input_reason`` where there is no file; UNSAFE_MEMBER for a path that leads out of the
            root and for a pipe, socket, device or folder; UNKNOWN_MEMBER for an extension of no medium; or too large.
    """
    inside = posixpath.normpath(path.replace("\\", "/"))
    if path_leaves_folder(inside):
        raise SampleError(
            FaultReason.UNSAFE_MEMBER, f"{name} {path!r} leads out of {root}; name it relative to that folder"
        )
    extension = posixpath.splitext(inside)[1].removeprefix(".").lower()
    require_input_extension(name, path, extension)
    try:
        with open_regular_file(root / inside) as file:
            return _read_input_file(file, name, path, extension), extension
    except OSError as error:
        raise SampleError(
            missing_input_reason(name), f"{name} {path!r} cannot be read in {root}: {error.strerror}"
        ) from None


def require_input_extension(name: str, path: str, extension: str) -> None:
    """Raise SampleError UNKNOWN_MEMBER if files with this extension cannot be the input ``name``."""
    found = input_of_extension(member_extension(name, extension))
    if found is None or found.name != name:
        detail = f"{name} {path!r} has extension {extension!r}, none of {describe_known_extensions(name)}"
        raise SampleError(FaultReason.UNKNOWN_MEMBER, detail)


class InputFilesBesideImages:
    """Finds and reads files that lie beside an image and hold additional inputs of its sample, such as ``STEM.imu.npy``
    beside ``STEM.jpg``.

    Args:
        names: of the inputs, without "image" and "text".
    """

    def __init__(self, root: Path, names: frozenset[str]) -> None:
        self._root, self._names = root, names
        self.files_read: set[Path] = set()
        self._by_stem: defaultdict[str, dict[str, list[str]]] = defaultdict(dict)
        if names and root.is_dir():
            for path, _, _ in walk_files(root, Counter()):
                if (found := _split_stem_and_input(path, names)) is not None:
                    stem, name = found
                    self._by_stem[stem].setdefault(name, []).append(path)

    def files(self) -> set[Path]:
        return {self._root / path for of_stem in self._by_stem.values() for paths in of_stem.values() for path in paths}

    def is_input_beside_image(self, image: str) -> bool:
        """Whether an image is itself an additional input of another image's sample, such as ``STEM.left.jpg`` beside
        ``STEM.jpg``.
        """
        found = _split_stem_and_input(image, self._names)
        return found is not None and found[0] in self._by_stem

    def read(self, image: str) -> dict[str, tuple[bytes, str]]:
        """Read the bytes and the extension of each input that lies beside an image.

        Raises:
            SampleError: as ``read_input``; DUPLICATE_KEY where two files are one input.
        """
        inputs = {}
        for name, paths in self._by_stem.get(posixpath.splitext(image)[0], {}).items():
            if len(paths) > 1:
                detail = f"two files for the input {name!r} of {image!r}: {', '.join(sorted(paths))}"
                raise SampleError(FaultReason.DUPLICATE_KEY, detail)
            inputs[name] = read_input(self._root, name, paths[0])
            self.files_read.add(self._root / paths[0])
        return inputs


def _split_stem_and_input(path: str, names: frozenset[str]) -> tuple[str, str] | None:
    """Split a file's path ``STEM.NAME.EXT`` into the stem and the input's name; None if it is no file of one of these
    inputs.
    """
    for dots in (2, 1):
        stem, *ending = path.rsplit(".", dots)
        found = (
            input_of_extension(".".join(ending).lower()) if len(ending) == dots and "/" not in "".join(ending) else None
        )
        if found is not None and found.name in names:
            return stem, found.name
    return None


def _read_input_file(file: BinaryIO, name: str, path: str, extension: str) -> bytes:
    size = os.fstat(file.fileno()).st_size
    found = input_of_extension(member_extension(name, extension))
    if size > _MAX_BYTES and found is not None:
        detail = f"{name} {path!r} has {size:,} bytes; at most {_MAX_BYTES:,} are imported"
        raise SampleError(medium_reason("too_large", found.medium), detail)
    return file.read(size)
