"""The reasons for dropping a sample, and the filters that look at one sample alone."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from pipelines.data.prepare.config import PrepareConfig
from pipelines.data.prepare.language import language_probability
from vlmodel.sample import SampleTexts

_LEAST_PROBABILITY = 0.1
"""Of the allowed languages, together. For its own language, a short sentence has some tenths; for another, a
hundredth."""


class DropReason(StrEnum):
    """Why a sample is dropped, in the order in which reasons are checked; files hold the value."""

    SMALL = "small"
    """The image has too few pixels on its shorter side."""
    ELONGATED = "elongated"
    """The image is too long for its width, or too wide for its height."""
    TEXT_LENGTH = "text_length"
    """No text has a valid length."""
    LANGUAGE = "language"
    """The texts are in another language."""
    UNDECODABLE = "undecodable"
    """The image must be decoded, and cannot be."""
    UNWRITABLE = "unwritable"
    """The key or the metadata cannot be stored."""
    DUPLICATE = "duplicate"
    """An earlier sample, or one of val or test, has the same image."""
    NEAR_DUPLICATE = "near_duplicate"
    """An earlier sample, or one of val or test, has an image that looks the same."""


class DropCause(NamedTuple):
    """Why a sample is dropped; ``detail`` tells people which value decided."""

    reason: DropReason
    detail: str


def find_size_fault(width: int, height: int, config: PrepareConfig) -> DropCause | None:
    """Decide whether a sample is dropped for the size of its upright image in pixels; returns the cause, or None."""
    short, long = sorted((width, height))
    if short < config.min_side:
        return DropCause(DropReason.SMALL, f"{width} x {height} pixels; prepare.min_side = {config.min_side}")
    if config.max_aspect and long > config.max_aspect * short:
        aspect = f"{width} x {height} pixels, {long / short:.2f} to 1"
        return DropCause(DropReason.ELONGATED, f"{aspect}; prepare.max_aspect = {config.max_aspect:g}")
    return None


def texts_of_valid_length(texts: SampleTexts, config: PrepareConfig) -> SampleTexts:
    """Keep the captions and questions of valid length, all conversations and the class."""

    def has_valid_length(text: str) -> bool:
        return len(text) >= config.min_chars and (not config.max_chars or len(text) <= config.max_chars)

    return SampleTexts(
        tuple(caption for caption in texts.captions if has_valid_length(caption)),
        tuple(question for question in texts.questions if has_valid_length(question.question)),
        texts.label,
        texts.conversations,
    )


def find_text_fault(valid: SampleTexts, texts: SampleTexts, config: PrepareConfig) -> DropCause | None:
    """Decide whether a sample is dropped for its texts; returns the cause, or None.

    Args:
        valid: ``texts_of_valid_length(texts)``.
    """
    left = _texts_for_language_detection(valid)
    if not left and texts.label is not None:
        return None
    if not left:
        lengths = sorted(map(len, _texts_for_language_detection(texts)))
        listed = f"{len(lengths)} texts of {lengths[0]} to {lengths[-1]} characters"
        return DropCause(
            DropReason.TEXT_LENGTH,
            f"{listed}; prepare.min_chars = {config.min_chars}, prepare.max_chars = {config.max_chars}",
        )
    if config.languages:
        allowed, most_likely = language_probability("\n".join(left), config.languages)
        if allowed < _LEAST_PROBABILITY:
            return DropCause(
                DropReason.LANGUAGE,
                f"rather {most_likely}; {', '.join(config.languages)} with probability {allowed:.2f}, "
                f"less than {_LEAST_PROBABILITY}",
            )
    return None


def merge_texts(first: SampleTexts, *others: SampleTexts) -> SampleTexts:
    """Return the texts of a sample, and those texts of the others that it does not have."""
    captions, questions, label = list(first.captions), list(first.questions), first.label
    conversations = list(first.conversations)
    for texts in others:
        captions += [caption for caption in texts.captions if caption not in captions]
        questions += [question for question in texts.questions if question not in questions]
        conversations += [turns for turns in texts.conversations if turns not in conversations]
        label = label or texts.label
    return SampleTexts(tuple(captions), tuple(questions), label, tuple(conversations))


def count_texts(texts: SampleTexts) -> int:
    """Count a sample's captions, questions and conversations."""
    return len(texts.captions) + len(texts.questions) + len(texts.conversations)


def _texts_for_language_detection(texts: SampleTexts) -> list[str]:
    said = (turn.text for turns in texts.conversations for turn in turns)
    return [*texts.captions, *(question.question for question in texts.questions), *said]
