"""What can be wrong with a sample or a shard: the reasons, and the error that carries one."""

from __future__ import annotations

from enum import StrEnum

from pipelines.errors import DataError


class Reason(StrEnum):
    """Why a sample or a whole shard was left out; quarantine and reject files hold the value."""

    MISSING_IMAGE = "missing_image"
    """The key has no image member, or its source names an image that is not there."""
    MISSING_TEXT = "missing_text"
    """The key has an image but no caption and no question."""
    UNKNOWN_MEMBER = "unknown_member"
    """No member of the key is an image or a text by its extension, for example where a name has a dot too many."""
    EMPTY_MEMBER = "empty_member"
    """A member has no bytes."""
    TRUNCATED_IMAGE = "truncated_image"
    """The image ends too early."""
    UNDECODABLE_IMAGE = "undecodable_image"
    """The bytes are no image of a known format."""
    IMAGE_TOO_LARGE = "image_too_large"
    """The image has more pixels than the limit allows."""
    BAD_UTF8 = "bad_utf8"
    """Text that is not UTF-8, or has a zero byte, a sign of lost data."""
    BAD_JSON = "bad_json"
    """A JSON member that does not parse, or has numbers that JSON excludes: NaN, infinities."""
    BAD_SCHEMA = "bad_schema"
    """JSON that parses but is not of the sample's schema, or a source record with an invalid field."""
    TEXT_TOO_LONG = "text_too_long"
    """A text has more letters than the limit allows."""
    TOO_MANY_TEXTS = "too_many_texts"
    """The sample has more texts than the limit allows."""
    DUPLICATE_KEY = "duplicate_key"
    """Another sample already has this key."""
    SPLIT_KEY = "split_key"
    """The members of one key are not adjacent in the tar."""
    UNSAFE_MEMBER = "unsafe_member"
    """A link, a device, an absolute path or one with ``..``."""
    BROKEN_TAR = "broken_tar"
    """The tar ends too early or a header is damaged."""
    UNREADABLE_SHARD = "unreadable_shard"
    """The shard cannot be opened or read at all."""


class SampleError(DataError):
    """One sample that cannot be used. Picklable.

    Attributes:
        detail: for people: the member, the field, the value.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"
