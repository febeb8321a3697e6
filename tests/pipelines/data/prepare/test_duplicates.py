"""Which of equal and of similar images stays: worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.data.prepare.duplicates import find_exact_duplicates, find_near_duplicates
from pipelines.data.prepare.layout import assign_shard_numbers


def splits(letters: str) -> np.ndarray:
    names = {"t": "train", "v": "val", "e": "test"}
    return np.array([names[letter] for letter in letters], "<U5")


@pytest.mark.parametrize(
    ("of", "images", "expected"),
    [
        ("tttt", [7, 8, 7, 7], [-1, -1, 0, 0]),
        ("tv", [7, 7], [1, -1]),
        ("tvet", [7, 7, 7, 8], [2, -1, -1, -1]),  # val and test stay whole
        ("eett", [7, 7, 7, 8], [-1, -1, 0, -1]),
        ("ttvt", [7, 8, 8, 7], [-1, 2, -1, 0]),
        ("", [], []),
    ],
)
def test_equal_images(of: str, images: list[int], expected: list[int]) -> None:
    assert find_exact_duplicates(splits(of), np.array(images, np.int64)).tolist() == expected


@pytest.mark.parametrize(
    ("of", "hashes", "distance", "expected"),
    [
        ("ttt", [0b0000, 0b0011, 0b1111], 2, [-1, 0, -1]),  # the third is like the second, which does not stay
        ("ttt", [0b0000, 0b0011, 0b1111], 1, [-1, -1, -1]),
        ("ttt", [0b0000, 0b0011, 0b1111], 4, [-1, 0, 0]),
        ("tve", [0b0000, 0b0001, 0b0001], 1, [2, -1, -1]),
        ("ttv", [0b0000, 0b0000, 0b0111], 3, [2, 2, -1]),
        ("", [], 3, []),
    ],
)
def test_similar_images(of: str, hashes: list[int], distance: int, expected: list[int]) -> None:
    everyone = np.ones(len(of), np.bool_)
    assert find_near_duplicates(splits(of), np.array(hashes, np.uint64), distance, everyone).tolist() == expected


def test_dropped_samples_keep_no_other_away() -> None:
    found = find_near_duplicates(splits("ttt"), np.zeros(3, np.uint64), 1, np.array([False, True, True]))
    assert found.tolist() == [-1, -1, 1]


@pytest.mark.parametrize(
    ("sizes", "samples", "size", "expected"),
    [
        ([], 10, 10, []),
        ([5] * 6, 10, 100, [0] * 6),
        ([5] * 6, 3, 100, [0, 0, 0, 1, 1, 1]),
        ([5] * 7, 3, 100, [0, 0, 1, 1, 1, 2, 2]),
        ([5] * 6, 10, 10, [0, 0, 1, 1, 2, 2]),
        ([30, 10, 10, 10], 10, 30, [0, 1, 1, 1]),
        ([1, 1, 500, 1], 10, 100, [0, 0, 1, 2]),  # numbers have no gaps
    ],
)
def test_shards_have_like_sizes(sizes: list[int], samples: int, size: int, expected: list[int]) -> None:
    assert assign_shard_numbers(np.array(sizes, np.int64), samples, size).tolist() == expected


def test_large_splits_are_laid_out_evenly() -> None:
    sizes = np.random.default_rng(0).integers(1_000, 200_000, 50_000)
    numbers = assign_shard_numbers(sizes, 1000, 64 << 20)
    shards = np.bincount(numbers, weights=sizes)
    assert (np.diff(numbers) >= 0).all()
    assert shards.max() - shards.min() < 400_000
    assert shards.max() <= (64 << 20) + 200_000
