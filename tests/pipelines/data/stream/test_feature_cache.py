"""Kept features: those of the backbone, of each image once, never of another backbone, and never half of a file."""

from __future__ import annotations

import io
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from PIL import Image

from pipelines.data.index.build import build_index
from pipelines.data.index.config import IndexConfig
from pipelines.data.index.index import Index, IndexedShard
from pipelines.data.stream import feature_build
from pipelines.data.stream.augment import AugmentConfig
from pipelines.data.stream.config import StreamConfig
from pipelines.data.stream.dataset import Source
from pipelines.data.stream.feature_build import (
    SPLITS,
    EncoderResources,
    build_features,
    check_features_match_backbones,
    open_feature_cache,
    weights_digest,
)
from pipelines.data.stream.feature_cache import FACTS, FeatureCache, hash_token_ids, shorten_input_hash
from pipelines.data.stream.loader import EvaluationBatches, MicroBatches
from pipelines.data.stream.plan import StepSchedule
from pipelines.data.stream.stream import stream_batches
from pipelines.data.tars.reader import ShardReader
from pipelines.data.tars.shards import ShardWriter
from pipelines.data.texts.corpus import train_tokenizer
from pipelines.errors import DataError
from pipelines.train.prefetcher import arrays_to_tensors
from vlmodel.config import parse_config
from vlmodel.inference import Predictor
from vlmodel.model import VLModel
from vlmodel.model_config import ModelConfig
from vlmodel.parts import VisionEncoder
from vlmodel.processor import ProcessorConfig, VLProcessor
from vlmodel.sample import Question, SampleTexts
from vlmodel.vision.cnn import Config

SAMPLES, SHARD = 13, 5
MODEL = parse_config(
    ModelConfig,
    {
        "vision": {"stages": 1, "grid": 2, "projection": 4, "frozen": True},
        "language": {"width": 8, "depth": 1, "heads": 2, "pooling": "mean", "frozen": True},
        "fusion": {"width": 8, "heads": 2, "dropout": 0.0},
    },
)
POOLED = MODEL.model_copy(update={"fusion": parse_config(ModelConfig, {"fusion": {"kind": "concat"}}).fusion})
CONFIG = MODEL.vision
WIDTH, TEXT_WIDTH = 64 * 2 * 2, 8
ALONE = EncoderResources(threads=1, batch=3)

Build = Callable[..., FeatureCache]


def create_initial_model(processor: VLProcessor, seed: int = 0, config: ModelConfig = MODEL) -> VLModel:
    torch.manual_seed(seed)
    return VLModel.create_from_config(config, processor).eval()


def vision_of(model: VLModel) -> VisionEncoder:
    assert model.vision is not None
    return model.vision


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
                question = Question(("what?", "is it what?")[number % 3 > 0], ("yes", "no")[number % 2])
                texts = SampleTexts(("a picture",), (question,) if number % 4 else ())
                writer.add(f"{number:03d}", {"image": (image.getvalue(), "png")}, texts)
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
) -> FeatureCache:
    """Made by Ray Data's actors."""
    folder = str(tmp_path_factory.mktemp("kept") / "features")
    model = create_initial_model(processor)
    features = open_feature_cache("vision", model, MODEL, processor, folder, "float32")
    progress = lambda *counts: shown.append(counts)  # noqa: E731
    build_features(features, index, model, MODEL, processor, ALONE, report_progress=progress)
    return features


@pytest.fixture
def build(index: Index, processor: VLProcessor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Build:
    """The same pass in this process: actors take seconds to start."""

    def here(shards: list[IndexedShard], *shared: Any) -> Iterator[str]:
        *sent, features, pooled, resources = shared
        actor = feature_build._ShardFeatureBuilder(
            ray.cloudpickle.dumps(ray.put(tuple(sent))), features, pooled, resources
        )
        for shard in shards:
            actor.write(shard.name)
            yield shard.name

    def make(stream: str = "vision", **changes: Any) -> FeatureCache:
        given = {"config": MODEL, "processor": processor, "precision": "float32", "splits": SPLITS, **changes}
        config, by = given["config"], given["processor"]
        model = given.get("model") or create_initial_model(by, config=config)
        features = open_feature_cache(stream, model, config, by, str(tmp_path / "features"), given["precision"])
        build_features(features, index, model, config, by, ALONE, given["splits"])
        return features

    monkeypatch.setattr(feature_build, "_map_shards", here)
    return make


def files(features: FeatureCache) -> dict[str, int]:
    """Names and times of change; a file that is written again gets another one."""
    found = Path(features.folder).glob("[!.]*.features")
    return {file.name: file.stat().st_mtime_ns for file in found}


def read(features: FeatureCache, index: Index, shard: IndexedShard, rows: list[int]) -> np.ndarray:
    """The features of images."""
    hashes = [shorten_input_hash(sha256) for sha256 in ShardReader(index).input_sha256s(shard.name, rows, "image")]
    return np.concatenate(features.read([features.file_name_of_shard(index, shard)], hashes))


def direct(index: Index, processor: VLProcessor, shard: IndexedShard, rows: list[int]) -> np.ndarray:
    pixels = [processor.decode_image(record.inputs["image"]) for record in ShardReader(index).read(shard.name, rows)]
    found: np.ndarray = (
        create_initial_model(processor).vision.compute_features(torch.from_numpy(np.stack(pixels))).numpy()
    )
    return found


def test_they_are_what_the_backbone_gives_in_the_order_asked_for(
    kept: FeatureCache, shown: list[tuple[int, int]], index: Index, processor: VLProcessor
) -> None:
    assert (kept.width, kept.row_bytes) == (WIDTH, 4 * WIDTH)
    assert shown == [(done, 3) for done in range(4)]
    train = [shard for shard in index.shards if shard.split == "train"]
    # The test split is not trained on, and so it has none.
    assert set(files(kept)) == {kept.file_name_of_shard(index, shard) for shard in train}
    for shard, rows in ((train[0], [4, 0, 0, 2]), (train[2], [2, 1])):
        found = read(kept, index, shard, rows)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, direct(index, processor, shard, rows), rtol=1e-5, atol=1e-5)


def test_at_half_precision(build: Build, kept: FeatureCache, index: Index) -> None:
    half = build(precision="float16")
    assert half.row_bytes == 2 * WIDTH
    found = read(half, index, index.shards[-1], [1])
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, read(kept, index, index.shards[-1], [1]), rtol=2e-3, atol=1e-4)


def test_too_great_numbers_are_refused(build: Build, processor: VLProcessor) -> None:
    model = create_initial_model(processor)
    with torch.no_grad():
        model.vision.get_submodule("backbone.bn1").bias.fill_(1e6)  # type: ignore[operator, union-attr]
    with pytest.raises(DataError, match=r"not finite as float16; set train\.feature_cache=float32"):
        build(model=model, precision="float16")
    # What was begun is gone.
    (folder,) = (
        Path(f) for f in Path(build(model=model).folder).parent.glob("vision-*") if not list(f.glob("[!.]*.features"))
    )
    assert {file.name for file in folder.iterdir()} <= {FACTS, ".lock"}


def tokenized(processor: VLProcessor, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor, list[bytes]]:
    arrays = processor.tokenize(texts)
    ids_NT, mask_NT = arrays["input_ids_NT"], arrays["text_mask_NT"].astype(np.bool_)
    return torch.from_numpy(ids_NT), torch.from_numpy(mask_NT), hash_token_ids(ids_NT, mask_NT)


@pytest.mark.parametrize(("config", "tokens"), [(MODEL, True), (POOLED, False)])
def test_texts_have_a_row_for_each_token_or_one(
    config: ModelConfig, tokens: bool, build: Build, index: Index, processor: VLProcessor
) -> None:
    texts = ["is it what?", "what?"]
    features = build("language", config=config)
    assert features.width == TEXT_WIDTH
    ids_NT, mask_NT, hashes = tokenized(processor, texts)
    train = [features.file_name_of_shard(index, shard) for shard in index.shards if shard.split == "train"]
    found = features.read(train, hashes)
    assert [len(of_text) for of_text in found] == (mask_NT.sum(1).tolist() if tokens else [1, 1])
    model = create_initial_model(processor, config=config)
    assert model.language is not None
    for row, of_text in enumerate(found):
        kept = torch.from_numpy(of_text.copy())[None]
        whole = model.language(ids_NT[row : row + 1], mask_NT[row : row + 1])
        again = model.language.tokens_from_features(kept, torch.ones(1, len(of_text), dtype=torch.bool))
        torch.testing.assert_close(again.pooled_BD, whole.pooled_BD, rtol=1e-4, atol=1e-5)
        if tokens:
            real_T = whole.mask_BT[0]
            torch.testing.assert_close(again.x_BTD[0], whole.x_BTD[0, real_T], rtol=1e-4, atol=1e-5)
    # No task reads captions, and so they have none.
    with pytest.raises(DataError, match="1 of 1 inputs are in none of 3 files"):
        features.read(train, tokenized(processor, ["a picture"])[2])


def test_the_hash_of_a_text_is_of_its_tokens_alone() -> None:
    left, right = np.array([[0, 0, 5, 6]]), np.array([[5, 6, 0]])
    assert hash_token_ids(left, left > 0) == hash_token_ids(right, right > 0)
    assert hash_token_ids(right, np.ones_like(right, np.bool_)) != hash_token_ids(right, right > 0)


def test_what_they_depend_on_has_features_of_its_own(
    build: Build, index: Index, processor: VLProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_build, "_map_shards", lambda *_: iter(()))
    first, again = build(), build()
    assert first == again
    larger = VLProcessor(ProcessorConfig(image_size=24), processor.tokenizer, processor.labels)
    cropped = VLProcessor(ProcessorConfig(image_size=16, resize="crop"), processor.tokenizer, processor.labels)
    others = [build(model=create_initial_model(processor, 1)), build(processor=larger), build(processor=cropped)]
    for changed in (ProcessorConfig(image_size=16, crop=0.9), ProcessorConfig(image_size=16, interpolation="bicubic")):
        others.append(build(processor=VLProcessor(changed, processor.tokenizer, processor.labels)))
    others.append(build(precision="float16"))
    vision = parse_config(Config, {**CONFIG.model_dump(), "mean": (0.5, 0.5, 0.5)})
    others.append(build(config=MODEL.model_copy(update={"vision": vision})))
    others += [build("language"), build("language", config=POOLED)]
    # What follows the backbone, and where its weights come from, changes nothing.
    wider = parse_config(Config, {**CONFIG.model_dump(), "projection": 6, "weights": "elsewhere", "strict": False})
    encoder = MODEL.model_copy(update={"vision": wider})
    assert build(config=encoder, model=create_initial_model(processor)) == first
    assert len({first.folder, *(other.folder for other in others)}) == 10
    # What is another file in the same folder: the tar's samples, and what of their texts is read.
    language, shorter = (
        build("language"),
        VLProcessor(ProcessorConfig(image_size=16, max_tokens=4), processor.tokenizer, processor.labels),
    )
    shard = index.shards[0]
    names = {features.file_name_of_shard(index, shard) for features in (language, build("language", processor=shorter))}
    names |= {
        language.file_name_of_shard(index, replace(shard, sha256="0" * 64)),
        language.file_name_of_shard(index, replace(shard, repeated=(1,))),
    }
    assert len(names) == 4
    # The last call of a tokenizer is no part of it.
    processor.tokenize(["what?"] * 3)
    assert build("language") == language


def test_a_projection_that_has_learned_changes_nothing_and_a_statistic_does(processor: VLProcessor) -> None:
    encoder = vision_of(create_initial_model(processor))
    before = weights_digest(encoder)
    with torch.no_grad():
        encoder.get_parameter("projection.weight").add_(1)
    assert weights_digest(encoder) == weights_digest(encoder.to(memory_format=torch.contiguous_format)) == before
    encoder.get_buffer("backbone.bn1.running_var").add_(1e-3)
    assert weights_digest(encoder) != before


@pytest.mark.parametrize("stream", ["vision", "language"])
def test_what_is_there_is_not_computed_again_and_what_is_torn_is(stream: str, build: Build) -> None:
    features = build(stream)
    first = files(features)
    one, two, three = sorted(first)
    folder = Path(features.folder)
    right = (folder / one).read_bytes()
    assert files(build(stream)) == first
    (folder / one).write_bytes(right[:-1])
    (folder / two).rename(folder / f".{two}.1.partial")
    build(stream)
    second = files(features)
    assert second[three] == first[three]
    assert min(second[one], second[two]) > max(first.values())
    assert (folder / one).read_bytes() == right


def test_jobs_that_begin_together_compute_once(
    build: Build, processor: VLProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = create_initial_model(processor)
    computing = Counter[str]()
    here = feature_build._map_shards

    def slowly(shards: list[IndexedShard], *shared: Any) -> Iterator[str]:
        time.sleep(0.2)
        for name in here(shards, *shared):
            computing[name] += 1
            yield name

    monkeypatch.setattr(feature_build, "_map_shards", slowly)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: build("language", model=model), range(2))
    assert first == second
    assert len(files(first)) == 3
    assert set(computing.values()) == {1}


def test_features_of_another_backbone_are_refused(kept: FeatureCache, processor: VLProcessor) -> None:
    check_features_match_backbones(create_initial_model(processor), [kept])
    with pytest.raises(
        DataError, match=r"are of another backbone .* model\.vision names have changed .* start a run under"
    ):
        check_features_match_backbones(create_initial_model(processor, 1), [kept])


def test_missing_features_are_refused(kept: FeatureCache, index: Index, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"vision encoder .* cannot be read \(FileNotFoundError.*start the job again"):
        read(replace(kept, folder=str(tmp_path)), index, index.shards[-1], [0])


@pytest.fixture
def source(index: Index, processor: VLProcessor, tmp_path: Path) -> Source:
    (tmp_path / "processor").mkdir()
    processor.save_pretrained(tmp_path / "processor")
    return Source(index.tars, index.hash, "train", str(tmp_path / "processor"))


def parts(source: Source, **augmentation: float) -> MicroBatches:
    schedule = StepSchedule(source.plan_order(seed=3, shuffle=True, window=8), batch=4, epochs=2)
    return MicroBatches(source, schedule, 0, 1, 1, AugmentConfig(**augmentation))


def pairs(source: Source, kept: Source) -> Iterator[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]:
    """Each batch of training and of validation, of images and of features."""
    for images, remembered in (
        (parts(source), parts(kept)),
        (EvaluationBatches(replace(source, split="val"), 2), EvaluationBatches(replace(kept, split="val"), 2)),
    ):
        assert len(images) == len(remembered) > 0
        yield from ((images[n], remembered[n]) for n in range(len(images)))


def test_batches_have_them_in_place_of_images(source: Source, kept: FeatureCache) -> None:
    processor = VLProcessor.from_pretrained(source.processor)
    for images, remembered in pairs(source, replace(source, features=(kept,))):
        expected = (
            create_initial_model(processor)
            .vision.compute_features(torch.from_numpy(images.pop("image.pixels_BHWC")))
            .numpy()
        )
        np.testing.assert_allclose(remembered.pop("image.features_BF"), expected, rtol=1e-5, atol=1e-5)
        assert images.keys() == remembered.keys()
        for name, array in images.items():
            np.testing.assert_array_equal(remembered[name], array, err_msg=name)


def test_no_image_is_read(source: Source, kept: FeatureCache, index: Index, tmp_path: Path) -> None:
    """A source whose images are all overwritten gives the same batches."""
    remembering = replace(source, features=(kept,))
    before = parts(remembering)[0]
    blind = tmp_path / "blind"
    blind.mkdir()
    for file in (f for f in Path(index.tars).rglob("*") if f.is_file()):
        target = blind / file.relative_to(index.tars)
        target.parent.mkdir(parents=True, exist_ok=True)
        data = bytearray(file.read_bytes())
        if file.suffix == ".tar":
            for row in index.rows(file.name).to_pylist():
                data[row["image.offset"] : row["image.offset"] + row["image.size"]] = bytes(row["image.size"])
        target.write_bytes(data)
    after = parts(replace(remembering, tars=str(blind)))[0]
    for name, array in before.items():
        np.testing.assert_array_equal(after[name], array, err_msg=name)
    with pytest.raises(DataError, match="is not what was indexed"):
        parts(replace(source, tars=str(blind)))[0]


@pytest.fixture
def both(kept: FeatureCache, build: Build) -> tuple[FeatureCache, ...]:
    return kept, build("language")


@pytest.mark.parametrize("decoding", ["threads", "processes"])
def test_ray_delivers_them(source: Source, both: tuple[FeatureCache, ...], decoding: Any) -> None:
    mine = parts(replace(source, features=both))
    config = StreamConfig(decoding=decoding, memory_mb=16)
    for start in (0, 3):
        for number, arrays in enumerate(stream_batches(mine, config, start=start), start):
            for name in ("image.features_BF", "text_features_UTF", "text_features_mask_UT"):
                np.testing.assert_array_equal(arrays[name], mine[number][name], err_msg=f"batch {number}, {name}")


@pytest.mark.parametrize("config", [MODEL, POOLED])
def test_the_model_gives_the_same_with_and_without_them(
    config: ModelConfig, source: Source, kept: FeatureCache, build: Build
) -> None:
    """In training and validation, and in answers, with the images exchanged too."""
    processor = VLProcessor.from_pretrained(source.processor)
    remembering = replace(source, features=(kept, build("language", config=config)))
    model = create_initial_model(processor, config=config)
    for direct, remembered in pairs(source, remembering):
        assert {"image.features_BF", "text_features_UTF", "text_features_mask_UT"} < remembered.keys()
        losses = [model(**arrays_to_tensors(arrays, torch.device("cpu"))).loss for arrays in (direct, remembered)]
        torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-5)
    predictor = Predictor(model, processor)
    for number in range(2):
        asked = [EvaluationBatches(replace(s, answering=""), 4)[number] for s in (source, remembering)]
        exchanged = [
            arrays | {name: np.roll(arrays[name], 1, axis=0)}
            for arrays, name in zip(asked, ("image.pixels_BHWC", "image.features_BF"), strict=True)
        ]
        for one, other in (asked, exchanged):
            for a, b in zip(*(predictor.predict_collated(arrays) for arrays in (one, other)), strict=True):
                assert dict(a) == pytest.approx(dict(b), abs=1e-5)


def test_features_of_changed_inputs_are_refused(source: Source, both: tuple[FeatureCache, ...]) -> None:
    with pytest.raises(ValueError, match=r"cached vision features .* do not augment, or train without them"):
        parts(replace(source, features=both), flip=0.5)
    texts = replace(source, features=both[1:])
    assert len(parts(texts, flip=0.5)) == len(parts(texts))
    with pytest.raises(ValueError, match="cached language features"):
        MicroBatches(texts, parts(source).schedule, 0, 1, 1, AugmentConfig(flip=0.5, swap={"left": "right"}))
