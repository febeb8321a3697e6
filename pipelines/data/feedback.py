"""Corrections that people send to a service: a spool on disk, of which `jobs.import_data source.kind=feedback` makes
tars.

A folder a day (UTC), so that a day that is over is imported once and whole. In it ``images/SHA256.EXT`` is each
picture, once, and ``corrections/ID.json`` each correction. A file is there whole or not at all, and no two writers
share one, so all replicas of all nodes may write to one spool.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError, model_validator

from pipelines.data.storage import Folder
from vlmodel.images import extension_of

CORRECTIONS, IMAGES = "corrections", "images"

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
    """Writes corrections. Threads may share it.

    Args:
        folder: of all days; made when it is needed.
        max_bytes: most that it may hold, as this process sees it: what was there at the start and what it has added.
        clock: nanoseconds since 1970.
    """

    def __init__(self, folder: str | Path, max_bytes: int, clock: Callable[[], int] = time.time_ns) -> None:
        self.folder, self.max_bytes, self._clock = Path(folder).expanduser().absolute(), max_bytes, clock
        self._lock = threading.Lock()
        self._bytes: int | None = None

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
            OSError: the disk refuses.
        """
        now = self._clock()
        name = f"{hashlib.sha256(image).hexdigest()}.{extension_of(image)}"
        correction = Correction(
            image=name, question=question, answer=answer, caption=caption, sender=sender, model=model, version=version,
            time_ns=now,
        )  # fmt: skip
        day = self.folder / time.strftime("%Y-%m-%d", time.gmtime(now / 1e9))
        picture, text = day / IMAGES / name, correction.model_dump_json(exclude_none=True).encode()
        identifier = f"{now:020d}-{secrets.token_hex(4)}"
        with self._lock:
            self._take_room(len(text) + (0 if picture.exists() else len(image)))
        if not picture.exists():
            Folder(str(day)).write(f"{IMAGES}/{name}", image)
        Folder(str(day)).write(f"{CORRECTIONS}/{identifier}.json", text)
        return identifier

    def _take_room(self, size: int) -> None:
        if self._bytes is None:
            self._bytes = sum(file.stat().st_size for file in self.folder.rglob("*") if file.is_file())
        if self._bytes + size > self.max_bytes:
            raise SpoolFullError(f"{self.folder} holds {self._bytes} of {self.max_bytes} bytes")
        self._bytes += size


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
