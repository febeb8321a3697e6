"""Hashes stay near where a picture stays the same to the eye, and the search misses none."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from pipelines.data.prepare.hashing import NearHashIndex, perceptual_hash
from tests.pipelines.data.prepare.conftest import decoded, encoded, picture


def differing(one: int, other: int) -> int:
    return (one ^ other).bit_count()


def test_bits_are_the_frequencies_above_their_median() -> None:
    # A wave along x alone: of the frequencies (y, x) with y > 0 none is there, whatever x is.
    x = np.arange(32)
    wave = np.rint(128 + 100 * np.cos(np.pi * 3 * (2 * x + 1) / 64)).astype(np.uint8)
    grey = Image.fromarray(np.tile(wave, (32, 1))).convert("RGB")
    assert perceptual_hash(grey) == 0
    # The product of waves of frequency 1 along y and 3 along x is above the median in that place alone.
    y = np.cos(np.pi * (2 * x + 1) / 64)[:, None]
    both = np.rint(128 + 100 * y * np.cos(np.pi * 3 * (2 * x + 1) / 64)).astype(np.uint8)
    bits = f"{perceptual_hash(Image.fromarray(both).convert('RGB')):064b}"
    assert bits[2] == "1"
    assert bits.count("1") <= 32


def test_a_plain_picture_has_a_plain_hash() -> None:
    assert {perceptual_hash(Image.new("RGB", (40, 30), colour)) for colour in ("red", "white", (9, 9, 9))} == {0}


@pytest.mark.parametrize("seed", range(8))
def test_the_same_picture_is_near(seed: int) -> None:
    image = picture(seed, (320, 240))
    own = perceptual_hash(image)
    others = {
        "quality 40": decoded(encoded(image, quality=40)),
        "webp": decoded(encoded(image, "WEBP", quality=60)),
        "half size": image.resize((160, 120), Image.Resampling.LANCZOS),
        "another shape": image.resize((200, 240)),
        "darker": ImageEnhance.Brightness(image).enhance(0.9),
        "grey": image.convert("L").convert("RGB"),
    }
    assert {name: differing(own, perceptual_hash(other)) <= 4 for name, other in others.items()} == dict.fromkeys(
        others, True
    )


def test_different_pictures_are_far() -> None:
    hashes = [perceptual_hash(picture(seed)) for seed in range(60)]
    distances = [differing(one, other) for one, other in combinations(hashes, 2)]
    assert min(distances) > 10
    assert 28 < np.mean(distances) < 36


@pytest.mark.parametrize("distance", [1, 4, 7, 10])
def test_the_search_finds_what_comparing_with_all_finds(distance: int) -> None:
    rng = np.random.default_rng(distance)
    centres = rng.integers(0, 2**64, 30, np.uint64).tolist()
    near = NearHashIndex(distance)
    unchanged: list[int] = []
    found = 0
    for _ in range(600):
        flips = rng.choice(64, rng.integers(0, 12), replace=False).tolist()
        value = centres[rng.integers(30)] ^ sum(1 << bit for bit in flips)
        expected = next((n for n, other in enumerate(unchanged) if differing(value, other) <= distance), None)
        assert near.find_near(value) == expected
        found += expected is not None
        if expected is None or rng.random() < 0.3:
            near.add(value)
            unchanged.append(value)
    assert len(near) == len(unchanged)
    assert 20 < found < 590


def test_photographs(shared_data: Callable[[str], Path]) -> None:
    """Other qualities and sizes of a photograph are near, and no two photographs are."""
    folder = shared_data("flickr8k-subset")
    hashes = []
    with tarfile.open(folder / "flickr8k_images.tar") as tar:
        for member in [m for m in tar if m.isfile()][:80]:
            file = tar.extractfile(member)
            assert file is not None
            image = Image.open(io.BytesIO(file.read())).convert("RGB")
            hashes.append(perceptual_hash(image))
            small = decoded(encoded(image.resize((128, 128), Image.Resampling.LANCZOS), quality=70))
            assert differing(hashes[-1], perceptual_hash(small)) <= 4, member.name
    assert min(differing(one, other) for one, other in combinations(hashes, 2)) > 6
