"""What a service found when it asked two models the same: JSON lines in a folder a day (UTC), local or remote.

A file holds what one replica gathered in a while, and is there whole or not at all; no two writers share one. There is
no image in it and no text, of callers or of models, but their hashes: enough to see whether two answers are equal, and
to find the requests whose answers were corrected (feedback.py).
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
from pipelines.storage.folder import Folder

Task = Literal["vqa", "caption", "match", "embed"]

_SUFFIX = ".jsonl"
_MOST_HELD = 10_000
"""Comparisons that a writer holds, while its disk or store is slower than they come."""
_COUNT_HOLDS_S = 60.0

_Hash = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
_Image = Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{64})?$")]


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Side(_Line):
    """One model's part in a request.

    Attributes:
        version: in the registry.
        error: "" where it answered, else why not.
        seconds: in its own process: to decode, wait for the model and run it.
        confidence: of its first answer; None for embeddings.
    """

    version: str
    error: str = ""
    seconds: float | None = Field(default=None, ge=0)
    confidence: float | None = None


class Text(_Line):
    """A question ("" for a caption) with both models' first answers, hashed by ``text_hash``."""

    asked: _Hash
    champion: _Hash
    challenger: _Hash


class Comparison(_Line):
    """One request that both models were asked.

    Attributes:
        mode: of the service.
        model: name in the registry.
        image: SHA-256 of the encoded image, "" without one; corrections name it too.
        fallback: whether the champion answered in the challenger's place.
        agreement: from 0 to 1 as the task has it (serve/agreement.py); None where one of them did not answer.
        difference: the largest of probabilities, where texts were matched.
        texts: where both answered in words.
    """

    time_ns: int
    task: Task
    mode: Literal["shadow", "canary"]
    model: str
    image: _Image
    champion: Side
    challenger: Side
    fallback: bool = False
    agreement: float | None = Field(default=None, ge=0, le=1)
    difference: float | None = None
    texts: tuple[Text, ...] = ()


@dataclass(frozen=True)
class InvalidLine:
    """A line that is no comparison."""

    file: str
    line: int
    reason: str


def text_hash(text: str) -> str:
    """Of a text as people mean it: in any case of letters, and with any blanks."""
    return hashlib.sha256(" ".join(text.casefold().split()).encode()).hexdigest()[:32]


class ComparisonWriter:
    """Gathers comparisons and writes them. Threads may share it.

    Args:
        folder: of all days; made when it is needed.
        max_bytes: most that it may hold, whoever wrote it, as last counted: each minute, and before it counts as full.

    Raises:
        DataError: the folder's file system is unknown.
    """

    def __init__(self, folder: str, max_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder, self._max_bytes = Folder(folder), max_bytes
        self._writer, self._files = secrets.token_hex(6), 0
        self._held: list[Comparison] = []
        self._holding, self._writing = threading.Lock(), threading.Lock()
        self._clock, self._bytes, self._counted = clock, 0, -math.inf

    def add(self, comparison: Comparison) -> bool:
        """Hold one for the next ``flush``; False where too many are held already."""
        with self._holding:
            if len(self._held) >= _MOST_HELD:
                return False
            self._held.append(comparison)
            return True

    def flush(self) -> None:
        """Write what is held. What cannot be written is given up: held any longer, it would fill the memory.

        Raises:
            SpoolFullError: there is no room for it.
            OSError: the disk or store refuses.
        """
        with self._holding:
            held, self._held = self._held, []
        by_day: defaultdict[str, list[str]] = defaultdict(list)
        for comparison in held:
            day = time.strftime("%Y-%m-%d", time.gmtime(comparison.time_ns / 1e9))
            by_day[day].append(comparison.model_dump_json(exclude_defaults=True))
        with self._writing:
            for day, lines in by_day.items():
                self._write(day, "\n".join(lines).encode() + b"\n")

    def _write(self, day: str, data: bytes) -> None:
        now = self._clock()
        if now - self._counted > _COUNT_HOLDS_S or self._bytes + len(data) > self._max_bytes:
            self._bytes = sum(file.size for name in self._folder.subfolders() for file in self._folder.files(name))
            self._counted = now
        if self._bytes + len(data) > self._max_bytes:
            raise SpoolFullError(f"{self._folder.uri} holds {self._bytes} of {self._max_bytes} bytes")
        self._folder.write(f"{day}/{self._writer}-{self._files:08d}{_SUFFIX}", data)
        self._files += 1
        self._bytes += len(data)


def read(uri: str) -> Iterator[Comparison | InvalidLine]:
    """All that was compared, by day; nothing where the folder does not exist.

    Raises:
        DataError: the folder's file system is unknown.
        OSError: a file could not be read after several attempts.
    """
    folder = Folder(uri)
    for day in folder.subfolders():
        for file in folder.files(day):
            if not file.name.endswith(_SUFFIX) or file.name.startswith("."):
                continue
            for number, line in enumerate(folder.read(f"{day}/{file.name}").splitlines(), start=1):
                try:
                    yield Comparison.model_validate_json(line)
                except ValidationError as error:
                    yield InvalidLine(f"{day}/{file.name}", number, str(error.errors()[0]["msg"]))
