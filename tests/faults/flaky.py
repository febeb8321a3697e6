"""A file system whose reads fail now and then, as those of a store over a bad line do."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import fsspec
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

PROTOCOL = "flaky"


def register() -> None:
    """Make ``flaky:///folder`` known in this process."""
    fsspec.register_implementation(PROTOCOL, FlakyFileSystem, clobber=True)


class FlakyFileSystem(AbstractFileSystem):
    """The local disk, but of three reads in a process one is refused, and one of five comes short.

    Each fault leaves an empty file in ``_faults`` beside the folder that is read, so that they can be counted.
    """

    protocol = PROTOCOL
    reads = 0

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.disk = LocalFileSystem(auto_mkdir=True)

    def ls(self, path: str, detail: bool = True, **_: Any) -> Any:
        return self.disk.ls(self._strip_protocol(path), detail=detail)

    def info(self, path: str, **_: Any) -> Any:
        return self.disk.info(self._strip_protocol(path))

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        path = self._strip_protocol(path)
        return self.delivered(path, self.disk.cat_file(path, start, end))

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        self.disk.pipe_file(self._strip_protocol(path), value)

    def rm_file(self, path: str) -> None:
        self.disk.rm_file(self._strip_protocol(path))

    def _open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        return _FlakyFile(self, path)

    def delivered(self, path: str, data: bytes) -> bytes:
        """What arrives of ``data``. A whole small file comes whole or not at all, a piece of a tar may come short."""
        number = type(self).reads = type(self).reads + 1
        if number % 3 == 0:
            self._note(path, number)
            raise ConnectionResetError("reset by peer")
        if number % 5 == 0 and path.endswith(".tar"):
            self._note(path, number)
            return data[: len(data) // 2]
        return data

    def _note(self, path: str, number: int) -> None:
        folder = Path(path).parents[1 if path.endswith(".tar") else 2] / "_faults"
        folder.mkdir(exist_ok=True)
        (folder / f"{Path(path).name}-{os.getpid()}-{number}").touch()


class _FlakyFile(io.FileIO):
    def __init__(self, system: FlakyFileSystem, path: str) -> None:
        super().__init__(path)
        self._system, self._path = system, path

    def read(self, size: int | None = -1) -> bytes:
        at = self.tell()
        data = self._system.delivered(self._path, super().read(size) or b"")
        self.seek(at + len(data))
        return data
