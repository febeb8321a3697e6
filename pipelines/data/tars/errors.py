"""The reasons why a sample or a shard can be invalid, and the error that carries a reason."""

from __future__ import annotations

from enum import StrEnum

from pipelines.errors import DataError
from vlmodel.media.base import Defect


class FaultReason(StrEnum):
    """Why a sample or a whole shard was left out, whatever its inputs; quarantine and reject files hold the value.

    Reasons that depend on an input are built by ``missing_input_reason`` and ``medium_reason``.
    """

    MISSING_TEXT = "missing_text"
    """The key has no caption, no question and no class, and must have one."""
    NO_INPUT = "no_input"
    """The key has none of the inputs that are read, each of which may be missing."""
    UNKNOWN_MEMBER = "unknown_member"
    """No member of the key is an input by its extension, for example where a name has a dot too many."""
    WRONG_MEDIUM = "wrong_medium"
    """An input is of another medium than in the samples before it."""
    EMPTY_MEMBER = "empty_member"
    """A member has no bytes."""
    BAD_UTF8 = "bad_utf8"
    """Text that is not UTF-8, or has a zero byte, a sign of lost data."""
    BAD_JSON = "bad_json"
    """A JSON member that does not parse, or has numbers that JSON excludes: NaN, infinities."""
    BAD_SCHEMA = "bad_schema"
    """JSON that parses but is not of the sample's schema, or a source record with an invalid field."""
    UNKNOWN_ROLE = "unknown_role"
    """A turn of a conversation that is neither of the system nor of the user nor of the assistant."""
    TURN_OUT_OF_ORDER = "turn_out_of_order"
    """A turn of one who does not speak there: user and assistant take turns, and the user begins."""
    EMPTY_TURN = "empty_turn"
    """A turn of a conversation in which nothing is said."""
    MISPLACED_INPUT = "misplaced_input"
    """A picture, or another input, in a turn that is not the user's."""
    UNANSWERED_TURN = "unanswered_turn"
    """A turn of the user that nobody answers, or a conversation in which the assistant says nothing."""
    UNMATCHED_INPUT = "unmatched_input"
    """A conversation with more or fewer places for pictures than it has pictures."""
    TEXT_TOO_LONG = "text_too_long"
    """A text has more letters than the limit allows."""
    TOO_MANY_TEXTS = "too_many_texts"
    """The sample has more texts than the limit allows."""
    DUPLICATE_KEY = "duplicate_key"
    """Another sample already has this key, or two members of the sample are the same input."""
    SPLIT_KEY = "split_key"
    """The members of one key are not adjacent in the tar."""
    UNSAFE_MEMBER = "unsafe_member"
    """A link, a device, an absolute path or one with ``..``."""
    BROKEN_TAR = "broken_tar"
    """The tar ends too early or a header is damaged."""
    UNREADABLE_SHARD = "unreadable_shard"
    """The shard cannot be opened or read at all."""


def missing_input_reason(name: str) -> str:
    """Return the reason for a sample that lacks a required input: "missing_image"."""
    return f"missing_{name}"


def medium_reason(defect: Defect, medium: str) -> str:
    """Return the reason for an input whose bytes are not valid: "truncated_image", "not_finite_series"."""
    return f"{defect}_{medium}"


class SampleError(DataError):
    """A sample cannot be used. Picklable.

    Attributes:
        reason: a ``FaultReason``, or what ``missing_input_reason`` or ``medium_reason`` gives.
        detail: for people: the member, the field, the value.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"
