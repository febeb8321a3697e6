"""Kept features: those of the backbone, of each image once, never of another backbone, and never half of a file."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from PIL import Image

from pipelines.data.corpus import train_tokenizer
from pipelines.data.errors import DataError
from pipelines.data.index.index import Index, IndexConfig, Shard, build_index
from pipelines.data.reader import ShardReader
from pipelines.data.sample import Question, Texts
from pipelines.data.shards import ShardWriter
from pipelines.data.stream import feature_build
from pipelines.data.stream.augment import AugmentConfig
from pipelines.data.stream.dataset import Source
from pipelines.data.stream.feature_build import Resources, build_features, check_backbone, digest
from pipelines.data.stream.features import FACTS, Features
from pipelines.data.stream.loader import EvaluationBatches, TrainingParts
from pipelines.data.stream.plan import Schedule
from pipelines.data.stream.stream import StreamConfig, stream
from vlmodel.config import parse
from vlmodel.parts import VisionEncoder
from vlmodel.processor import ProcessorConfig, VLProcessor
from vlmodel.vision.cnn import Config

SAMPLES, SHARD = 13, 5
CONFIG = parse(Config, {"stages": 1, "grid": 2, "projection": 4, "frozen": True})
WIDTH = 64 * 2 * 2
ALONE = Resources(threads=1, batch=3)

Build = Callable[..., Features]


def backbone(seed: int = 0, config: Config = CONFIG) -> VisionEncoder:
    torch.manual_seed(seed)
    return config.build()


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory, ray_local: None) -> Index:
    """Thirteen random images in three train shards, some of whose samples are for validation, and a test shard."""
    folder, rng = tmp_path_factory.mktemp("tars"), np.random.default_rng(0)
    for split, count in (("train", SAMPLES), ("test", 2)):
        with ShardWriter(folder, split, max_samples=SHARD) as writer:
            for number in range(count):
                image = io.BytesIO()
                Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)).save(image, "PNG")
                # Each fourth sample has no question, and so no row in training.
                texts = Texts(("a picture",), (Question("what?", ("yes", "no")[number % 2]),) if number % 4 else ())
                writer.add(f"{number:03d}", image.getvalue(), "png", texts)
    return build_index(str(folder), IndexConfig(validation_fraction=0.3))


@pytest.fixture(scope="module")
def processor() -> VLProcessor:
    return VLProcessor(ProcessorConfig(image_size=16), train_tokenizer(["what ? a picture"], 64), ["yes", "no"])


@pytest.fixture(scope="module")
def shown() -> list[tuple[int, int]]:
    """The progress of the pass that made ``kept``."""
    return []


@pytest.fixture(scope="module")
def kept(
    index: Index, processor: VLProcessor, shown: list[tuple[int, int]], tmp_path_factory: pytest.TempPathFactory
) -> Features:
    """Made by Ray Data's actors."""
    folder = str(tmp_path_factory.mktemp("kept") / "features")
    progress = lambda *counts: shown.append(counts)  # noqa: E731
    return build_features(index, CONFIG, backbone(), processor, folder, "float32", ALONE, progress)


@pytest.fixture
def build(index: Index, processor: VLProcessor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Build:
    """The same pass in this process: actors take seconds to start."""

    def here(shards: list[Shard], *shared: Any) -> Iterator[str]:
        *sent, features, resources = shared
        actor = feature_build._Backbone(ray.put(tuple(sent)), features, resources)
        for shard in shards:
            actor.write(shard.name)
            yield shard.name

    def make(**changes: Any) -> Features:
        given = {"config": CONFIG, "encoder": backbone(), "processor": processor, "precision": "float32", **changes}
        return build_features(index, storage=str(tmp_path / "features"), resources=ALONE, **given)

    monkeypatch.setattr(feature_build, "_map_shards", here)
    return make


def files(features: Features) -> dict[str, int]:
    """Names and times of change; a file that is written again gets another one."""
    return {file.name: file.stat().st_mtime_ns for file in Path(features.folder).iterdir() if file.name != FACTS}


def direct(index: Index, processor: VLProcessor, shard: str, rows: list[int]) -> np.ndarray:
    pixels = [processor.decode(record.image) for record in ShardReader(index).read(shard, rows)]
    found: np.ndarray = backbone().features(torch.from_numpy(np.stack(pixels))).numpy()
    return found


def test_they_are_what_the_backbone_gives_in_the_order_asked_for(
    kept: Features, shown: list[tuple[int, int]], index: Index, processor: VLProcessor
) -> None:
    assert (kept.width, kept.row_bytes) == (WIDTH, 4 * WIDTH)
    assert shown == [(done, 3) for done in range(4)]
    train = [shard for shard in index.shards if shard.split == "train"]
    # The test split is not trained on, and so it has none.
    assert set(files(kept)) == {f"{shard.name}.features" for shard in train}
    for shard, rows in ((train[0].name, [4, 0, 0, 2]), (train[2].name, [2, 1])):
        found = kept.read(shard, rows)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, direct(index, processor, shard, rows), rtol=1e-5, atol=1e-5)


def test_at_half_precision(build: Build, kept: Features, index: Index) -> None:
    half = build(precision="float16")
    assert half.row_bytes == 2 * WIDTH
    shard = index.shards[-1].name
    found = half.read(shard, [1])
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, kept.read(shard, [1]), rtol=2e-3, atol=1e-4)


def test_too_great_numbers_are_refused(build: Build) -> None:
    encoder = backbone()
    with torch.no_grad():
        encoder.get_submodule("backbone.bn1").bias.fill_(1e6)  # type: ignore[operator, union-attr]
    with pytest.raises(DataError, match=r"not finite as float16; set train\.feature_cache=float32"):
        build(encoder=encoder, precision="float16")
    build(encoder=encoder)


def test_what_they_depend_on_has_features_of_its_own(
    build: Build, index: Index, processor: VLProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_build, "_map_shards", lambda *_: iter(()))
    first, again = build(), build()
    assert first == again
    larger = VLProcessor(ProcessorConfig(image_size=24), processor.tokenizer, processor.labels)
    cropped = VLProcessor(ProcessorConfig(image_size=16, resize="crop"), processor.tokenizer, processor.labels)
    others = [build(encoder=backbone(1)), build(processor=larger), build(processor=cropped)]
    others.append(build(precision="float16"))
    normal = parse(Config, {**CONFIG.model_dump(), "mean": (0.5, 0.5, 0.5)})
    others.append(build(config=normal, encoder=backbone(config=normal)))
    monkeypatch.setattr(index, "hash", "0" * 64)
    others.append(build())
    assert len({first.folder, *(other.folder for other in others)}) == 7


def test_a_projection_that_has_learned_changes_nothing_and_a_statistic_does() -> None:
    encoder = backbone()
    before = digest(encoder)
    with torch.no_grad():
        encoder.get_parameter("projection.weight").add_(1)
    assert digest(encoder) == digest(encoder.to(memory_format=torch.contiguous_format)) == before
    encoder.get_buffer("backbone.bn1.running_var").add_(1e-3)
    assert digest(encoder) != before


def test_what_is_there_is_not_computed_again_and_what_is_torn_is(build: Build, index: Index) -> None:
    features = build()
    first = files(features)
    one, two, three = sorted(first)
    shard = one.removesuffix(".features")
    right = features.read(shard, [0, 1])
    assert files(build()) == first
    folder = Path(features.folder)
    (folder / one).write_bytes((folder / one).read_bytes()[:-1])
    (folder / two).rename(folder / f".{two}.1.partial")
    build()
    second = files(features)
    assert second[three] == first[three]
    assert min(second[one], second[two]) > max(first.values())
    np.testing.assert_array_equal(features.read(shard, [0, 1]), right)


def test_features_of_another_backbone_are_refused(kept: Features) -> None:
    check_backbone(backbone(), kept)
    with pytest.raises(DataError, match=r"are of another backbone .* train\.feature_cache=off, or start a run under"):
        check_backbone(backbone(1), kept)


def test_missing_features_are_refused(kept: Features, index: Index, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be read \(FileNotFoundError.*start the train job again"):
        replace(kept, folder=str(tmp_path)).read(index.shards[-1].name, [0])


@pytest.fixture
def source(index: Index, processor: VLProcessor, tmp_path: Path) -> Source:
    (tmp_path / "processor").mkdir()
    processor.save_pretrained(tmp_path / "processor")
    return Source(index.tars, index.hash, "train", str(tmp_path / "processor"))


def parts(source: Source, **augmentation: float) -> TrainingParts:
    schedule = Schedule(source.plan(seed=3, shuffle=True, window=8), batch=4, epochs=2)
    return TrainingParts(source, schedule, 0, 1, 1, AugmentConfig(**augmentation))


def pairs(source: Source, kept: Source) -> Iterator[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]:
    """Each batch of training and of validation, of images and of features."""
    for images, remembered in (
        (parts(source), parts(kept)),
        (EvaluationBatches(replace(source, split="val"), 2), EvaluationBatches(replace(kept, split="val"), 2)),
    ):
        assert len(images) == len(remembered) > 0
        yield from ((images[n], remembered[n]) for n in range(len(images)))


def test_batches_have_them_in_place_of_images(source: Source, kept: Features) -> None:
    for images, remembered in pairs(source, replace(source, features=kept)):
        expected = backbone().features(torch.from_numpy(images.pop("pixels_BHWC"))).numpy()
        np.testing.assert_allclose(remembered.pop("features_BF"), expected, rtol=1e-5, atol=1e-5)
        assert images.keys() == remembered.keys()
        for name, array in images.items():
            np.testing.assert_array_equal(remembered[name], array, err_msg=name)


def test_no_image_is_read(source: Source, kept: Features, index: Index, tmp_path: Path) -> None:
    """A source whose images are all overwritten gives the same batches."""
    remembering = replace(source, features=kept)
    before = parts(remembering)[0]
    blind = tmp_path / "blind"
    blind.mkdir()
    for file in (f for f in Path(index.tars).rglob("*") if f.is_file()):
        target = blind / file.relative_to(index.tars)
        target.parent.mkdir(parents=True, exist_ok=True)
        data = bytearray(file.read_bytes())
        if file.suffix == ".tar":
            for row in index.rows(file.name).to_pylist():
                data[row["image_offset"] : row["image_offset"] + row["image_size"]] = bytes(row["image_size"])
        target.write_bytes(data)
    after = parts(replace(remembering, tars=str(blind)))[0]
    for name, array in before.items():
        np.testing.assert_array_equal(after[name], array, err_msg=name)
    with pytest.raises(DataError, match="is not what was indexed"):
        parts(replace(source, tars=str(blind)))[0]


def test_ray_delivers_them(source: Source, kept: Features) -> None:
    mine = parts(replace(source, features=kept))
    for number, arrays in enumerate(stream(mine, StreamConfig(batches_per_task=2, memory_mb=16))):
        np.testing.assert_array_equal(arrays["features_BF"], mine[number]["features_BF"])


def test_features_of_changed_images_are_refused(source: Source, kept: Features) -> None:
    with pytest.raises(ValueError, match="augment nothing, or train on the images"):
        parts(replace(source, features=kept), flip=0.5)
