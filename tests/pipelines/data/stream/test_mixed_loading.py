"""Batches of several sources: which samples they hold, whatever cuts them, and from any number on."""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.data.index.build import build_index
from pipelines.data.index.config import IndexConfig
from pipelines.data.index.index import Index
from pipelines.data.stream.augment import AugmentConfig
from pipelines.data.stream.config import PixelCacheConfig, StreamConfig
from pipelines.data.stream.dataset import Source, SourceMixture, enable_pixel_cache
from pipelines.data.stream.feature_cache import FeatureCache, FeatureTable, shorten_input_hash
from pipelines.data.stream.loader import MicroBatches, without_provenance
from pipelines.data.stream.mixture import MixturePlan
from pipelines.data.stream.plan import StepSchedule
from pipelines.data.stream.stream import stream_batches
from pipelines.data.tars.reader import ShardReader
from pipelines.data.tars.sample import dump_texts
from pipelines.data.tars.shards import ShardWriter
from pipelines.data.texts.corpus import train_tokenizer
from pipelines.errors import DataError
from tests.pipelines.data.tar_maker import photo, write_tar
from vlmodel.processor import ProcessorConfig, VLProcessor
from vlmodel.sample import Question, SampleTexts
from vlmodel.tasks import caption, contrastive, vqa

ASKED, NAMED = 11, 23
"""Samples of the two sources: of one with a question each, and of one with a caption each."""
NAMES = ("asked", "named")


def write(folder: Path, base: int, count: int, texts: SampleTexts) -> Index:
    """Images whose colour is ``base`` and their number; keys are the same in both sources."""
    with ShardWriter(folder, "train", max_samples=4) as writer:
        for number in range(count):
            image = io.BytesIO()
            Image.new("RGB", (16, 16), (base, number, 0)).save(image, "PNG")
            writer.add(f"{number:03d}", {"image": (image.getvalue(), "png")}, texts)
    return build_index(str(folder), IndexConfig(validation_fraction=0.0))


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory, ray_local: None) -> SourceMixture:
    folder = tmp_path_factory.mktemp("mixed")
    for name in NAMES:
        (folder / name).mkdir()
    asked = write(folder / "asked", 10, ASKED, SampleTexts((), (Question("what is it?", "a colour"),)))
    named = write(folder / "named", 20, NAMED, SampleTexts(("a colour",), ()))
    tasks = {"ask": vqa.Config(), "name": caption.Config()}
    tokenizer = train_tokenizer(["what is it? a colour"], 64)
    made = VLProcessor(ProcessorConfig(image_size=16), tokenizer, ["a colour", "no"], tasks)
    made.save_pretrained(folder / "processor")
    return SourceMixture(
        tuple(Source(index.tars, index.hash, "train", str(folder / "processor")) for index in (asked, named))
    )


def order(mixture: SourceMixture, seed: int = 3) -> MixturePlan:
    plans = tuple(source.plan_order(seed=seed, shuffle=True, window=8) for source in mixture.members)
    return MixturePlan(NAMES, plans, (2.0, 1.0), block=8)


def parts(mixture: SourceMixture, rank: int = 0, world: int = 1, accumulation: int = 1, **more: float) -> MicroBatches:
    schedule = StepSchedule(order(mixture), batch=8, epochs=2)
    return MicroBatches(mixture, schedule, rank, world, accumulation, AugmentConfig(**more))


def colours(arrays: dict[str, np.ndarray]) -> list[tuple[int, int]]:
    """(base, number) of each image that counts."""
    return [tuple(pixel) for pixel in arrays["image.pixels_BHWC"][arrays["counts_B"], 0, 0, :2].tolist()]


def rows(arrays: dict[str, np.ndarray]) -> list[tuple[int, int, int, int]]:
    names = ("source_B", "epoch_B", "shard_B", "row_B")
    return list(zip(*(arrays[name][arrays["counts_B"]].tolist() for name in names), strict=True))


def test_images_are_those_that_the_provenance_names(mixture: SourceMixture) -> None:
    mine = parts(mixture)
    seen: Counter[int] = Counter()
    for number in range(len(mine)):
        batch = mine[number]
        expected = [((10, 20)[source], 4 * shard + row) for source, _, shard, row in rows(batch)]
        assert colours(batch) == expected
        seen.update(source for source, *_ in rows(batch))
    # Two of three are from the first source, though it is the smaller.
    assert seen[0] == pytest.approx(2 * 2 * (ASKED + NAMED) / 3, abs=1)


def test_each_sample_has_the_rows_of_its_own_texts(mixture: SourceMixture) -> None:
    batch = parts(mixture)[0]
    of_source = [np.flatnonzero(batch["source_B"] == number).tolist() for number in (0, 1)]
    assert all(of_source)
    assert [batch[f"{task}.sample_N"].tolist() for task in ("ask", "name")] == of_source
    assert not [name for name in without_provenance(batch) if name.startswith("source")]


@pytest.mark.parametrize(("world", "accumulation"), [(2, 1), (1, 2), (4, 2)])
def test_workers_share_each_step(mixture: SourceMixture, world: int, accumulation: int) -> None:
    whole = parts(mixture)
    shares = [parts(mixture, rank, world, accumulation) for rank in range(world)]
    for step in range(len(whole)):
        cut = [rows(share[step * accumulation + micro]) for share in shares for micro in range(accumulation)]
        assert [sample for part in cut for sample in part] == rows(whole[step])


def test_ray_delivers_the_same_batches_from_any_start(mixture: SourceMixture) -> None:
    mine = parts(mixture, accumulation=2, flip=0.5, min_area=0.5)
    for start in (0, 5):
        delivered = list(stream_batches(mine, StreamConfig(tasks=2, memory_mb=16), start=start))
        assert len(delivered) == len(mine) - start
        for number, arrays in enumerate(delivered, start):
            for name, expected in mine[number].items():
                np.testing.assert_array_equal(arrays[name], expected, err_msg=f"batch {number}, {name}")


def test_one_source_gives_the_batches_that_it_gives_alone(mixture: SourceMixture) -> None:
    source = mixture.members[0]
    alone = StepSchedule(source.plan_order(seed=3, shuffle=True, window=8), 8, 2)
    mixed = StepSchedule(MixturePlan(("only",), (source.plan_order(seed=3, shuffle=True, window=8),), (1.0,)), 8, 2)
    for number in range(alone.step_count):
        one = MicroBatches(source, alone, 0, 1, 1, AugmentConfig(flip=0.5))[number]
        other = MicroBatches(SourceMixture((source,)), mixed, 0, 1, 1, AugmentConfig(flip=0.5))[number]
        assert one.keys() == other.keys()
        for name, expected in one.items():
            np.testing.assert_array_equal(other[name], expected, err_msg=name)


def test_kept_features_come_from_the_source_of_each_sample(mixture: SourceMixture, tmp_path: Path) -> None:
    kept = FeatureCache("vision", str(tmp_path), 3, "float32", "backbone")
    for number, source in enumerate(mixture.members):
        index = Index.open(source.tars)
        for shard, facts in enumerate(index.shards):
            rows = range(sum(facts.sample_counts.values()))
            hashes = [
                shorten_input_hash(sha256) for sha256 in ShardReader(index).input_sha256s(facts.name, rows, "image")
            ]
            values = np.array([[number, shard, row] for row in rows], np.float32).tobytes()
            table = FeatureTable.from_row_counts(hashes, [1] * len(rows)).to_bytes(kept.row_bytes)
            (tmp_path / kept.file_name_of_shard(index, facts)).write_bytes(table + values)
    mine = parts(SourceMixture(tuple(replace(source, features=(kept,)) for source in mixture.members)))
    for number in range(len(mine)):
        batch = mine[number]
        expected = np.stack([batch["source_B"], batch["shard_B"], batch["row_B"]], axis=1)
        np.testing.assert_array_equal(batch["image.features_BF"], expected)


def test_a_source_without_what_the_tasks_read_is_refused(mixture: SourceMixture, tmp_path: Path) -> None:
    asked, named = mixture.members
    processor = VLProcessor.from_pretrained(asked.processor)
    captioner = VLProcessor(processor.config, processor.tokenizer, [], {"": processor.tasks["name"]})
    captioner.save_pretrained(tmp_path)
    assert replace(named, processor=str(tmp_path)).plan_order(shuffle=True).size == NAMED
    with pytest.raises(
        DataError, match=r"asked has no train sample with captions with an input \(it has {'train': 11}\)"
    ):
        replace(asked, processor=str(tmp_path)).plan_order(shuffle=True)


@pytest.fixture(scope="module")
def with_texts(mixture: SourceMixture, tmp_path_factory: pytest.TempPathFactory, ray_local: None) -> SourceMixture:
    """The two sources of images, and one of questions without images."""
    folder = tmp_path_factory.mktemp("texts")
    for shard in range(2):
        said = [SampleTexts((), (Question(f"what is it? {n}", "no"),)) for n in range(7)]
        write_tar(folder, f"train-{shard:06d}.tar", [(f"{shard}{n}.json", dump_texts(t)) for n, t in enumerate(said)])
    index = build_index(str(folder), IndexConfig(validation_fraction=0.0, inputs=("text",)))
    return SourceMixture((*mixture.members, Source(index.tars, index.hash, "train", mixture.processor)))


def parts_with_texts(mixture: SourceMixture, rank: int = 0, world: int = 1, **more: float) -> MicroBatches:
    plans = tuple(source.plan_order(seed=3, shuffle=True, window=8) for source in mixture.members)
    schedule = StepSchedule(MixturePlan((*NAMES, "said"), plans, (1.0, 1.0, 1.0), block=8), batch=8, epochs=2)
    return MicroBatches(mixture, schedule, rank, world, 1, AugmentConfig(**more))


def test_texts_without_images_have_rows_and_no_pixels(with_texts: SourceMixture) -> None:
    mine, seen = parts_with_texts(with_texts, flip=0.5), Counter[int]()
    for number in range(len(mine)):
        batch = mine[number]
        has_image_B = batch["source_B"] < 2
        seen.update(batch["source_B"].tolist())
        assert len(batch["image.pixels_BHWC"]) == has_image_B.sum()
        # Each sample's own image, which tells by its colour what it is of.
        expected = [((10, 20)[source], 4 * shard + row) for source, _, shard, row in rows(batch) if source < 2]
        place_B = batch["image.place_B"]
        found = [tuple(batch["image.pixels_BHWC"][place, 0, 0, :2].tolist()) for place in place_B[has_image_B]]
        assert found == expected
        assert (place_B[~has_image_B] == has_image_B.sum()).all()
        asked = batch["source_B"][batch["ask.sample_N"]]
        assert set(asked.tolist()) <= {0, 2}
        assert len(asked) == (batch["source_B"] != 1).sum()
        assert set(batch["source_B"][batch["name.sample_N"]].tolist()) <= {1}
        assert "image.place_B" in without_provenance(batch)
    assert seen[2] == pytest.approx(seen.total() / 3, abs=1)


def test_ray_delivers_texts_without_images_as_they_are_made_at_once(with_texts: SourceMixture) -> None:
    parts = [parts_with_texts(with_texts, rank=rank, world=4, flip=0.5) for rank in range(4)]
    # Some rank has a batch of texts alone.
    mine = next(
        part
        for part in parts
        if not all(len(batch["image.pixels_BHWC"]) for batch in map(part.__getitem__, range(len(part))))
    )
    for number, arrays in enumerate(stream_batches(mine, StreamConfig(memory_mb=16))):
        expected = mine[number]
        assert arrays.keys() == expected.keys()
        for name, array in expected.items():
            np.testing.assert_array_equal(arrays[name], array, err_msg=f"batch {number}, {name}")


def test_pixels_are_kept_of_the_sources_that_have_some(with_texts: SourceMixture, tmp_path: Path) -> None:
    config = PixelCacheConfig(keep="always", folder=str(tmp_path))
    kept = enable_pixel_cache(with_texts, config, 2)
    assert isinstance(kept, SourceMixture)
    assert [source.pixels is not None for source in kept.members] == [True, True, False]
    plain, cached = parts_with_texts(with_texts), parts_with_texts(kept)
    for _ in range(2):
        for number in range(len(plain)):
            np.testing.assert_array_equal(cached[number]["image.pixels_BHWC"], plain[number]["image.pixels_BHWC"])


def test_texts_of_which_no_task_makes_anything_are_refused(with_texts: SourceMixture, tmp_path: Path) -> None:
    said = with_texts.members[2]
    processor = VLProcessor.from_pretrained(said.processor)
    captioner = VLProcessor(processor.config, processor.tokenizer, [], {"": processor.tasks["name"]})
    captioner.save_pretrained(tmp_path)
    with pytest.raises(DataError, match=r"has no train sample with captions with an input .*; leave this source out"):
        replace(said, processor=str(tmp_path)).plan_order(shuffle=True)


def test_images_without_texts_are_seen_and_told(mixture: SourceMixture, tmp_path: Path) -> None:
    """Beside captioned images, texts alone, and with a task that compares."""
    processor = VLProcessor.from_pretrained(mixture.processor)
    tasks = {"ask": vqa.Config(), "find": contrastive.Config()}
    VLProcessor(processor.config, processor.tokenizer, ["a colour", "no"], tasks).save_pretrained(tmp_path / "finder")
    (tmp_path / "lone").mkdir()
    write_tar(tmp_path / "lone", "train-000000.tar", [(f"{n}.png", photo(n, (16, 16), "PNG")) for n in range(9)])
    index = build_index(str(tmp_path / "lone"), IndexConfig(validation_fraction=0.0, inputs=("image",)))
    assert index.counts()["train"] == 9
    members = [replace(source, processor=str(tmp_path / "finder")) for source in mixture.members]
    mixed = SourceMixture((*members, Source(index.tars, index.hash, "train", str(tmp_path / "finder"))))
    mine = parts_with_texts(mixed, rank=1, world=4)
    told = 0
    for number in range(len(mine)):
        batch = mine[number]
        assert "image.place_B" not in batch
        assert "unpaired_image_mask_B" not in batch
        unpaired_image_mask_B = (batch["source_B"] == 2) & batch["counts_B"]
        np.testing.assert_array_equal(batch["find.unpaired_image_mask_B"], unpaired_image_mask_B)
        assert not unpaired_image_mask_B[batch["find.sample_N"]].any()
        assert not unpaired_image_mask_B[batch["ask.sample_N"]].any()
        expected = processor.decode_image(photo(int(batch["row_B"][0]), (16, 16), "PNG"))
        assert not unpaired_image_mask_B[0] or (batch["image.pixels_BHWC"][0] == expected).all()
        told += unpaired_image_mask_B.sum()
    assert told
    answering = VLProcessor(processor.config, processor.tokenizer, ["a colour", "no"], {"": tasks["ask"]})
    answering.save_pretrained(tmp_path / "answering")
    unanswered = replace(mixed.members[2], processor=str(tmp_path / "answering"))
    with pytest.raises(DataError, match=r"has no train sample with questions .*; leave this source out"):
        unanswered.plan_order(shuffle=True)


def test_everything_is_small_to_send(mixture: SourceMixture) -> None:
    import pickle

    assert len(pickle.dumps(parts(mixture))) < 4000
