"""Corrections that people send to a service: a spool on disk, of which `jobs.import_data source.kind=feedback` makes
tars.

A folder a day (UTC), so that a day that is over is imported once and whole. In it ``images/SHA256.EXT`` is each
picture, once, and ``corrections/ID.json`` each correction. A file is there whole or not at all, and all replicas of all
nodes may write to one spool: they take turns (lock.py), and share a count of the bytes that lie there.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError, model_validator

from pipelines.storage.folder import Folder
from pipelines.storage.lock import locked
from vlmodel.images.pillow import extension_of

CORRECTIONS, IMAGES = "corrections", "images"

_LOCK, _COUNT = ".lock", ".count"
_COUNT_BYTES = 42
"""Size of the file with the count: two numbers of 20 digits."""
# Others change the folder too, if rarely: people take days away, and a killed writer has not counted its last file.
_COUNT_HOLDS_NS, _FULL_HOLDS_NS = 60 * 10**9, 10**9
_WAIT_S = 5.0

_Text = Annotated[str, StringConstraints(pattern=r"\S")]


class SpoolFullError(Exception):
    """The spool has as many bytes as it may have."""


class Correction(BaseModel):
    """What one sender says is right of one picture: the answer to a question, or a caption.

    Attributes:
        image: name of the picture's file.
        sender: who says so, as the service knows them.
        model, version: what gave the answer that is corrected; "" if the sender did not say.
        time_ns: when it came, nanoseconds since 1970.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    image: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}\.(jpg|png|gif|bmp|webp)$")]
    question: _Text | None = None
    answer: _Text | None = None
    caption: _Text | None = None
    sender: str
    model: str = ""
    version: str = ""
    time_ns: int

    @model_validator(mode="after")
    def _one_thing(self) -> Correction:
        if (self.question is None) != (self.answer is None) or (self.answer is None) == (self.caption is None):
            raise ValueError("give a question and its answer, or a caption")
        return self


class Spool:
    """Writes corrections. Threads may share it, and processes the folder.

    Args:
        folder: of all days; made when it is needed, for its owner alone.
        max_bytes: most that may lie in it, whoever wrote it. Days that are imported and taken away make room.
        clock: nanoseconds since 1970.
    """

    def __init__(self, folder: str | Path, max_bytes: int, clock: Callable[[], int] = time.time_ns) -> None:
        self.folder, self.max_bytes, self._clock = Path(folder).expanduser().absolute(), max_bytes, clock
        self._lock = threading.Lock()
        self._bytes, self._counted = 0, 0

    def add(
        self,
        image: bytes,
        *,
        sender: str,
        question: str | None = None,
        answer: str | None = None,
        caption: str | None = None,
        model: str = "",
        version: str = "",
    ) -> str:
        """Keep a correction; its ID.

        Raises:
            SpoolFullError: there is no room for it.
            ValueError: the image is of no known format, or the texts are not one correction.
            OSError: the disk refuses, or others keep the spool for long; nothing is left of the correction then.
        """
        now = self._clock()
        name = f"{hashlib.sha256(image).hexdigest()}.{extension_of(image)}"
        correction = Correction(
            image=name, question=question, answer=answer, caption=caption, sender=sender, model=model, version=version,
            time_ns=now,
        )  # fmt: skip
        day = time.strftime("%Y-%m-%d", time.gmtime(now / 1e9))
        text = correction.model_dump_json(exclude_none=True).encode()
        identifier = f"{now:020d}-{secrets.token_hex(4)}"
        with self._turn():
            is_new = not (self.folder / day / IMAGES / name).exists()
            size = len(text) + (len(image) if is_new else 0)
            self._take_room(size, now)
            files = {f"{IMAGES}/{name}": image} if is_new else {}
            self._write(Folder(str(self.folder / day)), files | {f"{CORRECTIONS}/{identifier}.json": text})
            self._bytes += size
            self._keep_count()
        return identifier

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Keep others out, threads and processes."""
        with self._lock:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            refusal = TimeoutError(f"others have been writing to {self.folder} for {_WAIT_S:g} s; try again")
            with locked(self.folder / _LOCK, refusal, _WAIT_S):
                yield

    def _take_room(self, size: int, now: int) -> None:
        counted = self._read_count()
        if counted is None or abs(now - counted) > _COUNT_HOLDS_NS:
            self._recount(now)
        elif self._bytes + size > self.max_bytes and abs(now - counted) > _FULL_HOLDS_NS:
            self._recount(now)  # days may have been taken away
        if self._bytes + size > self.max_bytes:
            raise SpoolFullError(f"{self.folder} holds {self._bytes} of {self.max_bytes} bytes")

    def _read_count(self) -> int | None:
        """When the bytes were counted; None where nobody did."""
        try:
            held, counted = (self.folder / _COUNT).read_text().split()
            self._bytes, self._counted = int(held), int(counted)
        except (OSError, ValueError):
            return None
        return self._counted

    def _recount(self, now: int) -> None:
        """Count what lies there, and remove what writers left that were killed: none is at work now."""
        self._bytes, self._counted = _COUNT_BYTES, now
        for file in self.folder.rglob("*"):
            if file.name in (_COUNT, _LOCK) or not file.is_file():
                continue
            if file.name.startswith(".") and file.name.endswith(".partial"):
                file.unlink(missing_ok=True)
                continue
            with suppress(FileNotFoundError):  # its day is being taken away
                self._bytes += file.stat().st_size
        self._keep_count()

    def _keep_count(self) -> None:
        """Tell the others. A full disk may refuse; then they count for themselves."""
        count = self.folder / _COUNT
        try:
            count.write_text(f"{self._bytes:020d} {self._counted:020d}\n")
        except OSError:
            with suppress(OSError):
                count.unlink(missing_ok=True)

    def _write(self, day: Folder, files: Mapping[str, bytes]) -> None:
        written: list[str] = []
        try:
            for name, data in files.items():
                day.write(name, data)
                written.append(name)
        except BaseException:
            # A picture without its correction would be of no use to anyone.
            for name in written:
                with suppress(OSError):
                    day.remove(name)
            raise


def read_corrections(folder: str | Path) -> Iterator[Correction]:
    """All corrections of a spool, by day; nothing where it does not exist. A damaged file is left out: the import
    (importers/feedback.py) tells of it.

    Raises:
        OSError: a file could not be read after several attempts.
    """
    spool = Folder(folder)
    for day in spool.subfolders():
        for file in spool.files(f"{day}/{CORRECTIONS}"):
            if file.name.endswith(".json") and not file.name.startswith("."):
                with suppress(ValidationError):
                    yield Correction.model_validate_json(spool.read(f"{day}/{CORRECTIONS}/{file.name}"))
