"""Randomly changes training images, seeded by (seed, epoch, sample), so that changes do not depend on restarts or the
number of workers. Words that become false when an image is mirrored are exchanged in the texts of its sample.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from pydantic import Field, field_validator

from pipelines.data.stream.image_policies import (
    LEVELS,
    ColorJitterConfig,
    Policy,
    apply_operation,
    draw_erased_region,
    draw_operations,
    jitter_colors,
)
from vlmodel.config import ConfigSection
from vlmodel.conversation import ConversationTurn
from vlmodel.images.resize import PADDING
from vlmodel.sample import SampleTexts

_SIDES = re.compile(r"\b(?:left|right)(?:s|most|wards?)?\b", re.IGNORECASE)


class AugmentConfig(ConfigSection):
    """Settings of image augmentation; none by default, as mirroring can make "left of" false."""

    flip: float = Field(0.0, ge=0, le=1)
    """Probability of a horizontal mirror image."""
    swap: dict[str, str] = {}
    """Words that are exchanged in the texts and answers of a mirrored image, such as {left = "right"}: whole words, in
    both directions, with their capitals."""
    min_area: float = Field(1.0, gt=0, le=1)
    """Smallest share of the image's area that a random crop keeps; 1 crops nothing."""
    policy: Policy = "none"
    """"randaugment": some operations of one strength on each image, such as shear, rotation, contrast;
    "trivialaugment": one of them, of a random strength. Both change colours, and can make texts that name places
    false."""
    operations: int = Field(2, ge=1)
    """Of RandAugment: operations on an image, one after the other."""
    magnitude: int = Field(9, ge=0, lt=LEVELS)
    """Of RandAugment: strength of the operations, from 0 to 30."""
    color: ColorJitterConfig = ColorJitterConfig()
    erase: float = Field(0.0, ge=0, le=1)
    """Probability that a random rectangle of the image becomes grey (random erasing)."""
    erase_area: float = Field(0.33, gt=0, lt=1)
    """Largest share of the image's area that such a rectangle has."""

    @field_validator("swap")
    @classmethod
    def _check_swaps_are_pairs(cls, swap: dict[str, str]) -> dict[str, str]:
        pairs = {frozenset((a.lower(), b.lower())) for a, b in swap.items()}
        words = [word for pair in pairs for word in pair]
        if blank := [word for word in words if not re.fullmatch(r"\w(?:.*\w)?", word)]:
            raise ValueError(f"{blank[0]!r} is no word; name words that begin and end with a letter or digit")
        if any(len(pair) == 1 for pair in pairs) or len(set(words)) < len(words):
            raise ValueError(f"{swap!r}: each word is exchanged with one other word; name each of them once")
        return swap

    @property
    def changes_texts(self) -> bool:
        """Whether texts are changed when their image is mirrored."""
        return self.flip > 0 and bool(self.swap)

    @property
    def is_active(self) -> bool:
        """Whether images are augmented at all."""
        return self.flip > 0 or self.min_area < 1 or self.policy != "none" or self.color.active or self.erase > 0

    def describe(self) -> str:
        """The settings that are not the defaults, as "flip=0.5, policy='randaugment'"."""
        named = self.model_dump(exclude_defaults=True)
        named |= {f"color.{name}": value for name, value in named.pop("color", {}).items()}
        return ", ".join(f"{name}={value!r}" for name, value in named.items())


@dataclass(frozen=True)
class ImageChange:
    """A random change of an image: crop, mirroring, colours.

    Attributes:
        crop: (top, left, height, width) of what is kept; None for all.
        flipped: whether it is mirrored.
    """

    crop: tuple[int, int, int, int] | None
    flipped: bool


def draw_change(config: AugmentConfig, height: int, width: int, rng: np.random.Generator) -> ImageChange:
    """Draw a random change for an image of this size."""
    crop = None
    if config.min_area < 1:
        scale = float(np.sqrt(rng.uniform(config.min_area, 1.0)))
        h, w = max(1, round(height * scale)), max(1, round(width * scale))
        crop = (int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1)), h, w)
    return ImageChange(crop, bool(rng.random() < config.flip))


def augment_image(pixels_HWC: np.ndarray, config: AugmentConfig, rng: np.random.Generator) -> np.ndarray:
    """Return a copy of the uint8 image, of the same size, changed at random: by ``draw_change`` first."""
    # Importing torch takes seconds, which tasks that augment nothing save.
    import torch
    from torchvision.transforms.v2 import functional as tv

    height, width, _ = pixels_HWC.shape
    change = draw_change(config, height, width, rng)
    image = torch.from_numpy(pixels_HWC.copy()).permute(2, 0, 1)
    if change.crop is not None:
        image = tv.resized_crop(image, *change.crop, list(image.shape[-2:]), antialias=True)
    if change.flipped:
        image = tv.horizontal_flip(image)
    if config.color.active:
        image = jitter_colors(image, config.color, rng)
    for operation in draw_operations(config.policy, config.operations, config.magnitude, height, width, rng):
        image = apply_operation(image, operation)
    if config.erase and rng.random() < config.erase:
        region = draw_erased_region(height, width, config.erase_area, rng)
        image = image if region is None else tv.erase(image, *region, torch.full((3, 1, 1), PADDING, dtype=torch.uint8))
    augmented: np.ndarray = image.permute(1, 2, 0).numpy()
    return augmented


def swap_left_and_right(texts: SampleTexts, swap: Mapping[str, str]) -> SampleTexts:
    """Swap words such as left and right in all texts of a mirrored image: captions, questions, answers, conversations
    and the class.
    """
    pairs = frozenset((a.lower(), b.lower()) for a, b in swap.items())
    return SampleTexts(
        tuple(_swap_words(caption, pairs) for caption in texts.captions),
        tuple(
            replace(
                q,
                question=_swap_words(q.question, pairs),
                answer=None if q.answer is None else _swap_words(q.answer, pairs),
                answers=tuple(_swap_words(answer, pairs) for answer in q.answers),
            )
            for q in texts.questions
        ),
        None if texts.label is None else _swap_words(texts.label, pairs),
        tuple(tuple(_swap_in_turn(turn, pairs) for turn in turns) for turns in texts.conversations),
    )


def texts_changed_by_mirroring(texts: SampleTexts) -> Iterator[str]:
    """List all texts that ``swap_left_and_right`` may change."""
    yield from texts.captions
    if texts.label is not None:
        yield texts.label
    for question in texts.questions:
        yield from (question.question, *(() if question.answer is None else (question.answer,)), *question.answers)
    yield from (turn.text for turns in texts.conversations for turn in turns)


def mentions_left_or_right(text: str) -> bool:
    """Whether a text says left or right, which mirroring the image makes false."""
    return _SIDES.search(text) is not None


def _swap_in_turn(turn: ConversationTurn, pairs: frozenset[tuple[str, str]]) -> ConversationTurn:
    return ConversationTurn(turn.role, tuple(part and _swap_words(part, pairs) for part in turn.parts))


def _swap_words(text: str, pairs: frozenset[tuple[str, str]]) -> str:
    pattern, partner = _swap_pattern(pairs)
    return pattern.sub(lambda match: _match_case(match[0], partner[match[0].lower()]), text)


@lru_cache(maxsize=16)
def _swap_pattern(pairs: frozenset[tuple[str, str]]) -> tuple[re.Pattern[str], dict[str, str]]:
    partner = dict(pairs) | {b: a for a, b in pairs}
    # The longest first, as the pattern takes the first alternative that matches.
    words = "|".join(map(re.escape, sorted(partner, key=len, reverse=True)))
    return re.compile(rf"\b(?:{words})\b", re.IGNORECASE), partner


def _match_case(word: str, other: str) -> str:
    if len(word) > 1 and word.isupper():
        return other.upper()
    return other[:1].upper() + other[1:] if word[:1].isupper() else other
