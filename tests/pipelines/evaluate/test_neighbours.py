"""Captions of the nearest training images: by kept features, never of the image itself, none where none are kept."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.data.index.build import build_index
from pipelines.data.index.config import IndexConfig
from pipelines.data.index.index import Index
from pipelines.data.stream.feature_cache import FeatureCache, FeatureTable, shorten_input_hash
from pipelines.data.tars.shards import ShardWriter
from pipelines.evaluate.neighbours import captions_of_neighbours
from pipelines.storage.folder import StorageFolder
from vlmodel.sample import SampleTexts

LAYOUT = [(1, 1, 3), (1, 2, 3)]
"""A pooled vector of three numbers and two cells: nine numbers a row."""
TRAIN = {"red": (1, 0, 0), "rose": (0.9, 0.3, 0), "green": (0, 1, 0), "blue": (0, 0, 1)}
VAL = {"dark-red": (0.5, 0.05, 0), "dark-green": (0, 0.4, 0.1)}


def picture(colour: tuple[float, float, float]) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), tuple(round(255 * value) for value in colour)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    folder = tmp_path_factory.mktemp("tars")
    for split, colours in (("train", TRAIN), ("val", {**VAL, "red-again": TRAIN["red"]})):
        with ShardWriter(str(folder), split, 64) as shards:
            for key, colour in colours.items():
                shards.add(key, {"image": (picture(colour), "png")}, SampleTexts((f"a {key} one", f"{key} it is")))
    return build_index(str(folder), IndexConfig(validation_fraction=0.0))


def keep(index: Index, folder: Path, splits: tuple[str, ...] = ("train", "val")) -> FeatureCache:
    """Features that are the colours, once as the pooled vector and twice as a cell."""
    cache = FeatureCache("vision", str(folder), 9, "float32", "digest")
    by_key = {**TRAIN, **VAL, "red-again": TRAIN["red"]}
    for shard in index.shards:
        if not set(shard.sample_counts) & set(splits):
            continue
        rows = index.rows(shard.name)
        found = dict(zip(rows["image.sha256"].to_pylist(), rows["key"].to_pylist(), strict=True))
        table = FeatureTable.from_row_counts([shorten_input_hash(sha) for sha in found], [1] * len(found))
        values = np.array([[*by_key[key]] * 3 for key in found.values()], np.float32)
        StorageFolder(cache.folder).write(
            cache.file_name_of_shard(index, shard), table.to_bytes(cache.row_bytes) + values.tobytes()
        )
    return cache


def test_the_nearest_first_and_not_the_same_file(index: Index, tmp_path: Path) -> None:
    found = captions_of_neighbours(index, keep(index, tmp_path), LAYOUT, "val", count=2)
    assert found == {
        ("val", "dark-red"): ["a red one", "red it is", "a rose one", "rose it is"],
        ("val", "dark-green"): ["a green one", "green it is", "a rose one", "rose it is"],
        ("val", "red-again"): ["a rose one", "rose it is", *found[("val", "red-again")][2:]],  # type: ignore[index]
    }
    everything: Any = captions_of_neighbours(index, keep(index, tmp_path), LAYOUT, "", count=1)
    assert everything["train", "red"] == ["a rose one", "rose it is"]
    assert len(everything) == 7


def test_without_features_of_both_splits_there_are_none(index: Index, tmp_path: Path) -> None:
    assert captions_of_neighbours(index, keep(index, tmp_path, ("val",)), LAYOUT, "val") is None
