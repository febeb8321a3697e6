"""Stores corrections that people send to a service, as files in a folder, which `jobs.import_data source.kind=feedback`
imports.

It has a folder a day (UTC), so that a past day is imported once, as a whole. In it ``images/SHA256.EXT`` is each
picture, once, and ``corrections/ID.json`` each correction. A file appears as a whole or not at all. All replicas of all
nodes may write to one spool: they use a lock, and share a count of its bytes.
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

from pipelines.storage.folder import StorageFolder
from pipelines.storage.lock import hold_lock
from vlmodel.images.pillow import image_extension

CORRECTIONS, IMAGES = "corrections", "images"

_LOCK, _COUNT = ".lock", ".count"
_COUNT_BYTES = 42
"""Size of the file with the count: two numbers of 20 digits."""
# The count is renewed: people remove days, and a killed writer has not counted its last file.
_COUNT_VALID_NS, _FULL_VALID_NS = 60 * 10**9, 10**9
_LOCK_WAIT_S = 5.0

_Text = Annotated[str, StringConstraints(pattern=r"\S")]


class SpoolFullError(Exception):
    """The folder of corrections has reached its size limit."""


class Correction(BaseModel):
    """The right answer to a question about one picture, or the right caption of it, by one sender.

    Attributes:
        image: name of the picture's file.
        sender: the service's name for the sender.
        model, version: of the corrected answer; "" if the sender did not give them.
        time_ns: of arrival, nanoseconds since 1970.
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
    def _check_one_of_answer_and_caption(self) -> Correction:
        if (self.question is None) != (self.answer is None) or (self.answer is None) == (self.caption is None):
            raise ValueError("give a question and its answer, or a caption")
        return self


class CorrectionSpool:
    """Writes corrections to a folder. Threads may share it, and processes the folder.

    Args:
        folder: of all days; created when needed, readable by its owner alone.
        max_bytes: limit of the folder's size; removing imported days frees space.
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
        """Store a correction; returns its ID.

        Raises:
            SpoolFullError: the spool has reached its limit.
            ValueError: the image is of no known format, or the texts are not one correction.
            OSError: the disk fails, or others hold the lock for long; nothing of the correction is stored then.
        """
        now = self._clock()
        name = f"{hashlib.sha256(image).hexdigest()}.{image_extension(image)}"
        correction = Correction(
            image=name, question=question, answer=answer, caption=caption, sender=sender, model=model, version=version,
            time_ns=now,
        )  # fmt: skip
        day = time.strftime("%Y-%m-%d", time.gmtime(now / 1e9))
        text = correction.model_dump_json(exclude_none=True).encode()
        identifier = f"{now:020d}-{secrets.token_hex(4)}"
        with self._lock_spool():
            is_new = not (self.folder / day / IMAGES / name).exists()
            size = len(text) + (len(image) if is_new else 0)
            self._require_space(size, now)
            files = {f"{IMAGES}/{name}": image} if is_new else {}
            self._write_correction(
                StorageFolder(str(self.folder / day)), files | {f"{CORRECTIONS}/{identifier}.json": text}
            )
            self._bytes += size
            self._write_spool_size()
        return identifier

    @contextmanager
    def _lock_spool(self) -> Iterator[None]:
        """Lock the folder against other threads and processes."""
        with self._lock:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            refusal = TimeoutError(f"others have been writing to {self.folder} for {_LOCK_WAIT_S:g} s; try again")
            with hold_lock(self.folder / _LOCK, refusal, _LOCK_WAIT_S):
                yield

    def _require_space(self, size: int, now: int) -> None:
        counted = self._read_spool_size()
        if counted is None or abs(now - counted) > _COUNT_VALID_NS:
            self._recount_bytes(now)
        elif self._bytes + size > self.max_bytes and abs(now - counted) > _FULL_VALID_NS:
            self._recount_bytes(now)  # days may have been removed
        if self._bytes + size > self.max_bytes:
            raise SpoolFullError(f"{self.folder} holds {self._bytes} of {self.max_bytes} bytes")

    def _read_spool_size(self) -> int | None:
        """Read the shared count of stored corrections; returns when it was made, None if there is none."""
        try:
            size, counted = (self.folder / _COUNT).read_text().split()
            self._bytes, self._counted = int(size), int(counted)
        except (OSError, ValueError):
            return None
        return self._counted

    def _recount_bytes(self, now: int) -> None:
        """Count the bytes anew, and remove partial files of killed writers; the caller holds the lock, so no writer is
        active.
        """
        self._bytes, self._counted = _COUNT_BYTES, now
        for file in self.folder.rglob("*"):
            if file.name in (_COUNT, _LOCK) or not file.is_file():
                continue
            if file.name.startswith(".") and file.name.endswith(".partial"):
                file.unlink(missing_ok=True)
                continue
            with suppress(FileNotFoundError):  # its day is being removed
                self._bytes += file.stat().st_size
        self._write_spool_size()

    def _write_spool_size(self) -> None:
        """Write the number and size of the stored corrections to the file that other writers read. If the disk is full,
        the file is removed, and they count for themselves.
        """
        count = self.folder / _COUNT
        try:
            count.write_text(f"{self._bytes:020d} {self._counted:020d}\n")
        except OSError:
            with suppress(OSError):
                count.unlink(missing_ok=True)

    def _write_correction(self, day: StorageFolder, files: Mapping[str, bytes]) -> None:
        written: list[str] = []
        try:
            for name, data in files.items():
                day.write(name, data)
                written.append(name)
        except BaseException:
            # A picture without its correction would be useless.
            for name in written:
                with suppress(OSError):
                    day.remove(name)
            raise


def read_corrections(folder: str | Path) -> Iterator[Correction]:
    """Read all corrections in a folder, by day; none if it does not exist. Invalid files are skipped: the import
    (importers/feedback.py) reports them.

    Raises:
        OSError: a file could not be read after several attempts.
    """
    spool = StorageFolder(folder)
    for day in spool.subfolders():
        for file in spool.files(f"{day}/{CORRECTIONS}"):
            if file.name.endswith(".json") and not file.name.startswith("."):
                with suppress(ValidationError):
                    yield Correction.model_validate_json(spool.read(f"{day}/{CORRECTIONS}/{file.name}"))
