"""The base class of media: which files hold a medium, and when such a file is valid.

torch is not imported here: processes that only read and collate stay small.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Literal, NamedTuple

from pydantic import Field

from vlmodel.config import ConfigSection
from vlmodel.errors import ExpectedError

Defect = Literal[
    "truncated", "undecodable", "too_large", "not_finite", "wrong_shape", "wrong_column", "no_track", "empty"
]
"""What can be wrong with the bytes of an input."""

Verify = Literal["decode", "header"]

Fact = int | float | str


class MediumError(ExpectedError, ValueError):
    """The bytes are not a valid input of their medium. Picklable.

    Attributes:
        reason: what is wrong, for programs.
        detail: the same for people, with the value and the limit.
    """

    def __init__(self, reason: Defect, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return self.detail


class CheckLimits(ConfigSection):
    """The limits that a valid input must keep, and how thoroughly it is checked."""

    max_bytes: int = Field(256 << 20, ge=1)
    """Bytes of a file."""
    max_pixels: int = Field(100_000_000, ge=1)
    """Pixels of an image, or of a frame of a video."""
    max_values: int = Field(100_000_000, ge=1)
    """Numbers of a series or a sound: its length times its channels."""
    max_seconds: float = Field(3600.0, gt=0)
    """Seconds of a sound or a video."""
    max_channels: int = Field(64, ge=1)
    """Channels of a sound."""
    max_frames: int = Field(250_000, ge=1)
    """Frames of a video."""
    verify: Verify = "decode"
    """"decode" decodes everything; "header" reads what the header says, and checks that the file's end is there."""


class DisplayCopy(NamedTuple):
    """A small file for people in a format that browsers show, with its media type, such as "image/png"."""

    data: bytes
    media_type: str


class Medium(ABC):
    """A kind of data that the bytes of an input can be: an image, a sound, a row of a table.

    Attributes:
        name: of its file, and so of the inputs without a name of their own (``KEY.jpg`` is the input "image").
        extensions: of its files, in lower case without the dot; the first one is written.
        columns: what the index stores of each input: names of facts with names of Arrow types.
    """

    name: ClassVar[str]
    extensions: ClassVar[tuple[str, ...]]
    columns: ClassVar[Mapping[str, str]]

    @abstractmethod
    def check_file(self, data: bytes, limits: CheckLimits) -> dict[str, Fact]:
        """Check a file, and return the values that the index stores about it, one for each of ``columns``.

        Raises:
            MediumError: it is not valid, or beyond a limit.
        """

    def display_copy(self, data: bytes) -> DisplayCopy | None:
        """Make a small copy of a valid file without its metadata, such as place, device and names; None if there is
        none, or it would be large. The copy may differ in ways that people do not notice.

        Raises:
            MediumError: it is not valid.
        """
        return None


def check_file_size(data: bytes, limits: CheckLimits, medium: str) -> None:
    """Raise MediumError for an empty file or one that is too large.

    Raises:
        MediumError: empty or too_large.
    """
    if not data:
        raise MediumError("empty", f"the {medium} has no bytes")
    if len(data) > limits.max_bytes:
        raise MediumError("too_large", f"a {medium} of {len(data)} bytes; max_bytes allows {limits.max_bytes}")
