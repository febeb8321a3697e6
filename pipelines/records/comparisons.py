"""Records comparisons of champion and challenger on the same requests, as JSON lines in one folder for each day (UTC),
local or remote.

A file has one writer, a replica, and appears as a whole or not at all. Images and texts are stored as hashes only:
enough to see whether two answers are equal, and to find the requests whose answers were corrected (corrections.py).
"""

from __future__ import annotations

import hashlib
import math
import secrets
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from pipelines.records.corrections import SpoolFullError
from pipelines.storage.folder import StorageFolder

_SUFFIX = ".jsonl"
_MAX_BUFFERED = 10_000
"""Comparisons that a writer buffers at most."""
_COUNT_VALID_S = 60.0

_Hash = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
_Image = Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{64})?$")]


class _ComparisonLine(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class ModelResult(_ComparisonLine):
    """The result of one model for a compared request.

    Attributes:
        version: in the registry.
        error: "" where it answered, else the reason.
        seconds: in its own process: to decode, wait for the model and run it.
        confidence: of its first answer; None for embeddings.
    """

    version: str
    error: str = ""
    seconds: float | None = Field(default=None, ge=0)
    confidence: float | None = None


class TextPair(_ComparisonLine):
    """The hashes (``text_hash``) of a question ("" for a caption) and of each model's best answer to it."""

    asked: _Hash
    champion: _Hash
    challenger: _Hash


class Comparison(_ComparisonLine):
    """The comparison of two models on one request.

    Attributes:
        task: the name of the operation.
        mode: of the service.
        model: name in the registry.
        image: SHA-256 of the encoded image, "" without one; corrections have it too.
        fallback: whether the champion answered for the challenger.
        agreement: from 0 to 1, as the operation defines it; None where one model did not answer.
        difference: the largest difference of probabilities, for matching.
        texts: where both answered in words.
    """

    time_ns: int
    task: str = Field(min_length=1)
    mode: Literal["shadow", "canary"]
    model: str
    image: _Image
    champion: ModelResult
    challenger: ModelResult
    fallback: bool = False
    agreement: float | None = Field(default=None, ge=0, le=1)
    difference: float | None = None
    texts: tuple[TextPair, ...] = ()


@dataclass(frozen=True)
class InvalidLine:
    """A line that is no valid comparison."""

    file: str
    line: int
    reason: str


def text_hash(text: str) -> str:
    """Hash a text, ignoring case and the amount of white space."""
    return hashlib.sha256(" ".join(text.casefold().split()).encode()).hexdigest()[:32]


class ComparisonWriter:
    """Buffers comparisons and writes them. Threads may share it.

    Args:
        folder: of all days; created when needed.
        max_bytes: limit of the folder's size, with files of other writers; counted each minute, and when exceeded.

    Raises:
        DataError: the folder's file system is unknown.
    """

    def __init__(self, folder: str, max_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder, self._max_bytes = StorageFolder(folder), max_bytes
        self._writer, self._files = secrets.token_hex(6), 0
        self._buffer: list[Comparison] = []
        self._buffer_lock, self._write_lock = threading.Lock(), threading.Lock()
        self._clock, self._bytes, self._counted = clock, 0, -math.inf

    def add(self, comparison: Comparison) -> bool:
        """Buffer a comparison for the next ``flush``; returns False if the buffer is full."""
        with self._buffer_lock:
            if len(self._buffer) >= _MAX_BUFFERED:
                return False
            self._buffer.append(comparison)
            return True

    def flush(self) -> None:
        """Write the buffer. What cannot be written is lost, so that the buffer does not fill up.

        Raises:
            SpoolFullError: the folder has reached its limit.
            OSError: the file system fails.
        """
        with self._buffer_lock:
            comparisons, self._buffer = self._buffer, []
        by_day: defaultdict[str, list[str]] = defaultdict(list)
        for comparison in comparisons:
            day = time.strftime("%Y-%m-%d", time.gmtime(comparison.time_ns / 1e9))
            by_day[day].append(comparison.model_dump_json(exclude_defaults=True))
        with self._write_lock:
            for day, lines in by_day.items():
                self._append_lines(day, "\n".join(lines).encode() + b"\n")

    def _append_lines(self, day: str, data: bytes) -> None:
        now = self._clock()
        if now - self._counted > _COUNT_VALID_S or self._bytes + len(data) > self._max_bytes:
            self._bytes = sum(file.size for name in self._folder.subfolders() for file in self._folder.files(name))
            self._counted = now
        if self._bytes + len(data) > self._max_bytes:
            raise SpoolFullError(f"{self._folder.uri} holds {self._bytes} of {self._max_bytes} bytes")
        self._folder.write(f"{day}/{self._writer}-{self._files:08d}{_SUFFIX}", data)
        self._files += 1
        self._bytes += len(data)


def read_comparisons(uri: str) -> Iterator[Comparison | InvalidLine]:
    """Read all comparisons, by day; none if the folder does not exist.

    Raises:
        DataError: the folder's file system is unknown.
        OSError: a file could not be read after several attempts.
    """
    folder = StorageFolder(uri)
    for day in folder.subfolders():
        for file in folder.files(day):
            if not file.name.endswith(_SUFFIX) or file.name.startswith("."):
                continue
            for number, line in enumerate(folder.read(f"{day}/{file.name}").splitlines(), start=1):
                try:
                    yield Comparison.model_validate_json(line)
                except ValidationError as error:
                    yield InvalidLine(f"{day}/{file.name}", number, str(error.errors()[0]["msg"]))
