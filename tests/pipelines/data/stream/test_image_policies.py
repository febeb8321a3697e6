"""The policies are torchvision's, and what they draw follows from the given generator alone."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from pipelines.data.stream.augment import AugmentConfig, augment_image
from pipelines.data.stream.image_policies import (
    LEVELS,
    OPERATIONS,
    ColorJitterConfig,
    Operation,
    Policy,
    apply_operation,
    draw_erased_region,
    draw_operations,
    jitter_colors,
    strength_of,
)
from vlmodel.config import ConfigError, parse_config
from vlmodel.images.resize import PADDING

HEIGHT, WIDTH = 40, 64
THEIRS: dict[Policy, Any] = {"randaugment": v2.RandAugment, "trivialaugment": v2.TrivialAugmentWide}


def picture() -> np.ndarray:
    coarse = np.random.default_rng(0).integers(0, 256, (5, 8, 3), np.uint8)
    return coarse.repeat(8, 0).repeat(8, 1)


@pytest.mark.parametrize("policy", THEIRS)
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_torchvisions(policy: Policy, name: str) -> None:
    image = torch.from_numpy(picture()).permute(2, 0, 1)
    theirs = THEIRS[policy](fill=PADDING)
    strengths, signed = theirs._AUGMENTATION_SPACE[name]
    known = strengths(LEVELS, HEIGHT, WIDTH)
    for level in (0, 7, 30):
        strength = strength_of(policy, name, level, HEIGHT, WIDTH)
        assert strength == pytest.approx(0.0 if known is None else float(known[level]), rel=1e-5)
        for sign in (1, -1) if signed else (1,):
            expected = theirs._apply_image_or_video_transform(
                image, name, sign * strength, theirs.interpolation, theirs._fill
            )
            assert torch.equal(apply_operation(image, Operation(name, sign * strength)), expected)


def test_the_policies_know_the_same_operations() -> None:
    assert all(set(theirs()._AUGMENTATION_SPACE) == set(OPERATIONS) for theirs in THEIRS.values())


def test_operations_are_drawn_evenly_and_in_both_directions() -> None:
    rng = np.random.default_rng(0)
    drawn = [one for _ in range(700) for one in draw_operations("randaugment", 2, 9, HEIGHT, WIDTH, rng)]
    counts = Counter(name for name, _ in drawn)
    assert len(drawn) == 1400
    assert counts.keys() == set(OPERATIONS)
    assert min(counts.values()) > 60
    turned = Counter(strength for name, strength in drawn if name == "Rotate")
    assert sorted(turned) == [-9.0, 9.0]
    assert min(turned.values()) > 20
    strengths = {
        strength
        for _ in range(500)
        for name, strength in draw_operations("trivialaugment", 5, 9, HEIGHT, WIDTH, rng)
        if name == "Rotate"
    }
    assert len(strengths) > 15
    assert max(strengths) > 100
    assert draw_operations("none", 2, 9, HEIGHT, WIDTH, rng) == []


def test_colours_change_by_at_most_what_is_set() -> None:
    image = torch.full((3, 4, 4), 100, dtype=torch.uint8)
    rng = np.random.default_rng(0)
    seen = {int(jitter_colors(image, ColorJitterConfig(brightness=0.2), rng)[0, 0, 0]) for _ in range(200)}
    assert min(seen) >= 79
    assert max(seen) <= 121
    assert len(seen) > 30
    red = torch.tensor([255, 0, 0], dtype=torch.uint8)[:, None, None].expand(3, 4, 4)
    turned = jitter_colors(red, ColorJitterConfig(hue=0.5), rng)[:, 0, 0].tolist()
    assert turned != [255, 0, 0]
    assert max(turned) == 255
    orange = torch.tensor([200, 100, 50], dtype=torch.uint8)[:, None, None].expand(3, 4, 4)
    spread = {
        int(jitter_colors(orange, ColorJitterConfig(saturation=1.0), rng)[:, 0, 0].float().std()) for _ in range(50)
    }
    assert min(spread) < 40 < 100 < max(spread)


def test_a_rectangle_of_the_drawn_share_becomes_grey() -> None:
    white = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    config = AugmentConfig(erase=1.0, erase_area=0.2)
    shares, places = [], set()
    for seed in range(60):
        grey = (augment_image(white, config, np.random.default_rng(seed)) == PADDING).all(2)
        rows, columns = np.flatnonzero(grey.any(1)), np.flatnonzero(grey.any(0))
        assert grey.sum() == len(rows) * len(columns)
        shares.append(grey.mean())
        places.add((rows[0], columns[0]))
    assert 0.01 < min(shares) < max(shares) < 0.22
    assert len(places) > 30
    assert draw_erased_region(1, 1, 0.3, np.random.default_rng(0)) is None


@pytest.mark.parametrize(
    "settings",
    [
        {"policy": "randaugment", "magnitude": 15},
        {"policy": "trivialaugment"},
        {"color": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}},
        {"erase": 1.0},
        {"flip": 0.5, "min_area": 0.5, "policy": "randaugment", "color": {"hue": 0.2}, "erase": 0.5},
    ],
    ids=str,
)
def test_changes_follow_from_the_generator_alone(settings: dict[str, Any]) -> None:
    config = parse_config(AugmentConfig, settings)
    assert config.is_active
    state = torch.get_rng_state()
    first = [augment_image(picture(), config, np.random.default_rng(seed)) for seed in range(12)]
    torch.manual_seed(1)
    again = [augment_image(picture(), config, np.random.default_rng(seed)) for seed in range(12)]
    torch.set_rng_state(state)
    assert all(np.array_equal(*pair) for pair in zip(first, again, strict=True))
    assert len({image.tobytes() for image in first}) > 6
    assert {image.shape for image in first} == {(HEIGHT, WIDTH, 3)}


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"policy": "autoaugment"}, "randaugment"),
        ({"magnitude": 31}, "less than 31"),
        ({"color": {"hue": 0.6}}, r"less than or equal to 0\.5"),
        ({"erase_area": 0.0}, "greater than 0"),
        ({"color": {"hues": 0.1}}, "hue"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parse_config(AugmentConfig, settings)


def test_what_is_set_is_told() -> None:
    config = parse_config(AugmentConfig, {"flip": 0.5, "color": {"hue": 0.1}, "policy": "randaugment"})
    assert config.describe() == "flip=0.5, policy='randaugment', color.hue=0.1"
    assert not AugmentConfig().is_active
