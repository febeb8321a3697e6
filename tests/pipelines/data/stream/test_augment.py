"""Words that change places with a mirrored image, and only with one."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.data.stream.augment import (
    AugmentConfig,
    augment_image,
    draw_change,
    mentions_left_or_right,
    swap_left_and_right,
    texts_changed_by_mirroring,
)
from vlmodel.config import ConfigError, parse_config
from vlmodel.sample import Question, SampleTexts

SWAP = {"left": "right"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the ball is left of the box", "the ball is right of the box"),
        ("right, not left", "left, not right"),
        ("Left LEFT left", "Right RIGHT right"),
        ("leftover bright lefty", "leftover bright lefty"),
        ("a left-handed man", "a right-handed man"),
        ("", ""),
    ],
)
def test_whole_words_change_places_in_both_directions(text: str, expected: str) -> None:
    assert swap_left_and_right(SampleTexts((text,)), SWAP).captions == (expected,)
    assert swap_left_and_right(SampleTexts((expected,)), SWAP).captions == (text,)


def test_questions_and_all_answers_change_and_what_is_unknown_stays() -> None:
    texts = SampleTexts((), (Question("is it left?", "left", ("left", "Right", "no"), "7"), Question("what is right?")))
    changed = swap_left_and_right(texts, SWAP).questions
    assert changed == (Question("is it right?", "right", ("right", "Left", "no"), "7"), Question("what is left?"))
    assert list(texts_changed_by_mirroring(texts)) == ["is it left?", "left", "left", "Right", "no", "what is right?"]


def test_the_longer_of_two_words_that_begin_alike() -> None:
    swap = {"left": "right", "left side": "right side", "links": "rechts"}
    said = swap_left_and_right(SampleTexts(("on the left side, links, left",)), swap).captions
    assert said == ("on the right side, rechts, right",)


@pytest.mark.parametrize(
    ("swap", "says"),
    [
        ({"left": "right", "up": "left"}, "name each of them once"),
        ({"left": "Left"}, "is exchanged with one other word"),
        ({"left": " "}, "is no word"),
    ],
)
def test_words_without_one_partner_are_refused(swap: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parse_config(AugmentConfig, {"flip": 0.5, "swap": swap})
    assert AugmentConfig(flip=0.5, swap={"left": "right", "right": "left"}).changes_texts
    assert not AugmentConfig(swap=SWAP).changes_texts


@pytest.mark.parametrize("min_area", [1.0, 0.4])
def test_what_is_drawn_is_what_is_done(min_area: float) -> None:
    image = np.tile(np.arange(16, dtype=np.uint8)[None, :, None], (16, 1, 3))
    config = AugmentConfig(flip=0.5, min_area=min_area)
    turned = 0
    for seed in range(40):
        change = draw_change(config, 16, 16, np.random.default_rng(seed))
        row = augment_image(image, config, np.random.default_rng(seed))[0, :, 0].astype(int)
        assert change.flipped == (row[0] > row[-1])
        turned += change.flipped
    assert 8 < turned < 32


@pytest.mark.parametrize(
    ("text", "is_told"),
    [("the LEFT one", True), ("rightmost", True), ("two lefts", True), ("bright cleft", False), ("leftover", False)],
)
def test_texts_that_a_mirror_makes_false_are_known(text: str, is_told: bool) -> None:
    assert mentions_left_or_right(text) is is_told
