"""Batches are a function of their number: through Ray or not, at any number of workers, with augmentation."""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.data.index.build import build_index
from pipelines.data.index.config import IndexConfig
from pipelines.data.index.index import Index
from pipelines.data.stream import stream as stream_module
from pipelines.data.stream.augment import AugmentConfig, augment_image
from pipelines.data.stream.config import StreamConfig
from pipelines.data.stream.dataset import OpenedSamples, Source, enable_gpu_decoding
from pipelines.data.stream.loader import EvaluationBatches, MicroBatches
from pipelines.data.stream.plan import SampleIndices, StepSchedule
from pipelines.data.stream.stream import stream_batches
from pipelines.data.tars.shards import ShardWriter
from pipelines.data.texts.corpus import train_tokenizer
from pipelines.errors import DataError
from vlmodel.images.decoders import gpu
from vlmodel.processor import ProcessorConfig, VLProcessor
from vlmodel.sample import Question, SampleTexts

SAMPLES = 23


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, ray_local: None) -> Source:
    """23 images whose colour tells their number, with 0 to 3 questions each; those with 0 have a caption."""
    folder = tmp_path_factory.mktemp("tars")
    with ShardWriter(folder, "train", max_samples=5) as writer:
        for number in range(SAMPLES):
            image = io.BytesIO()
            Image.new("RGB", (16, 16), (number, 2 * number, 255 - number)).save(image, "PNG")
            questions = tuple(Question(f"what is {n}?", ("yes", "no")[n % 2]) for n in range(number % 4))
            captions = () if questions else ("a colour",)
            writer.add(f"{number:03d}", {"image": (image.getvalue(), "png")}, SampleTexts(captions, questions))
    build_index(str(folder), IndexConfig(validation_fraction=0.0))
    tokenizer = train_tokenizer(["what is 0 1 2 3 ? a colour"], 64)
    VLProcessor(ProcessorConfig(image_size=16), tokenizer, ["yes", "no"]).save_pretrained(folder / "processor")
    return Source(str(folder), Index.open(str(folder)).hash, "train", str(folder / "processor"))


def parts(source: Source, rank: int = 0, world: int = 1, accumulation: int = 1, **more: Any) -> MicroBatches:
    schedule = StepSchedule(source.plan_order(seed=3, shuffle=True, window=8), batch=8, epochs=2)
    return MicroBatches(source, schedule, rank, world, accumulation, AugmentConfig(**more))


def colours(arrays: dict[str, np.ndarray]) -> list[int]:
    return arrays["image.pixels_BHWC"][arrays["counts_B"], 0, 0, 0].tolist()


def test_samples_without_questions_are_left_out_and_all_others_seen_each_epoch(source: Source) -> None:
    eligible = [n for n in range(SAMPLES) if n % 4]
    mine = parts(source)
    seen = Counter(colour for number in range(len(mine)) for colour in colours(mine[number]))
    assert seen == Counter(dict.fromkeys(eligible, 2))


@pytest.mark.parametrize("world", [1, 3])
def test_a_sample_of_a_split_is_drawn_by_hash(source: Source, world: int) -> None:
    def seen(sample: int) -> list[int]:
        batches = [EvaluationBatches(source, 4, rank, world, sample=sample) for rank in range(world)]
        assert {one.sample_count for one in batches} == {min(sample, 17)}
        return sorted(colour for one in batches for arrays in one for colour in colours(arrays))

    some = seen(9)
    assert len(some) == len(set(some)) == 9
    assert set(some) <= {n for n in range(SAMPLES) if n % 4}
    assert some != seen(17)[:9]  # not the first ones
    assert len(seen(100)) == 17


def test_texts_point_at_their_images(source: Source) -> None:
    arrays = parts(source)[0]
    expected = Counter({row: n % 4 for row, n in enumerate(colours(arrays))})
    assert Counter(arrays["sample_N"].tolist()) == expected
    assert arrays["labels_N"].tolist() == [n for row in range(8) for n in np.arange(expected[row]) % 2]


@pytest.mark.parametrize(("world", "accumulation"), [(2, 1), (1, 2), (4, 2)])
def test_workers_share_each_step(source: Source, world: int, accumulation: int) -> None:
    whole = parts(source)
    shares = [parts(source, rank, world, accumulation) for rank in range(world)]
    for step in range(len(whole)):
        cut = [colours(share[step * accumulation + micro]) for share in shares for micro in range(accumulation)]
        assert [colour for part in cut for colour in part] == colours(whole[step])


def test_a_worker_without_a_sample_still_has_a_batch_of_weight_zero(source: Source) -> None:
    shares = [parts(source, rank, 8) for rank in range(8)]
    last = len(shares[0]) - 1
    batches = [share[last] for share in shares]
    assert [len(colours(batch)) for batch in batches].count(0) > 0
    for batch in batches:
        assert len(batch["image.pixels_BHWC"]) == 1
        assert bool(batch["weights_N"].all()) == bool(batch["counts_B"].all())


@pytest.mark.parametrize(("decoding", "workers"), [("threads", 1), ("threads", 3), ("processes", 2)])
def test_the_stream_delivers_the_same_batches_in_order_from_any_start(
    source: Source, monkeypatch: pytest.MonkeyPatch, decoding: Any, workers: int
) -> None:
    monkeypatch.setattr(stream_module, "TEXT_BATCHES_PER_TASK", 2)
    mine = parts(source, accumulation=2, flip=0.5, min_area=0.5)
    config = StreamConfig(decoding=decoding, workers=workers, tasks=2, memory_mb=16)
    for start in (0, 3):
        delivered = list(stream_batches(mine, config, start=start))
        assert len(delivered) == len(mine) - start
        for number, arrays in enumerate(delivered, start):
            for name, expected in mine[number].items():
                np.testing.assert_array_equal(arrays[name], expected, err_msg=f"batch {number}, {name}")


def test_augmentation_depends_on_seed_epoch_and_sample_alone(source: Source) -> None:
    image = np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)
    config = AugmentConfig(flip=0.5, min_area=0.3)
    same = [augment_image(image, config, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(same[0], same[1])
    assert not np.array_equal(same[0], same[2])
    np.testing.assert_array_equal(
        augment_image(image, AugmentConfig(flip=1.0), np.random.default_rng(0)), image[:, ::-1]
    )


def test_texts_change_with_their_mirrored_image(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each image is of one colour but for its left half, which is made black, so that it tells if it is mirrored."""
    load_inputs = OpenedSamples.load_inputs

    def halved(
        samples: OpenedSamples, indices: SampleIndices, places: dict[str, np.ndarray], *more: Any
    ) -> dict[str, np.ndarray]:
        seen = load_inputs(samples, indices, places, *more)
        seen["image.pixels_BHWC"][:, :, :8] = 0
        return seen

    monkeypatch.setattr(OpenedSamples, "load_inputs", halved)
    mine = parts(source, flip=0.5, min_area=0.5, swap={"what": "colour", "yes": "no"})
    plain = parts(source, flip=0.5, min_area=0.5)
    tokenizer = VLProcessor.from_pretrained(source.processor).tokenizer
    mirrored = 0
    for number in range(len(mine)):
        batch, other = mine[number], plain[number]
        np.testing.assert_array_equal(batch["image.pixels_BHWC"], other["image.pixels_BHWC"])
        flipped_B = batch["image.pixels_BHWC"][:, 0, 0].sum(-1) > batch["image.pixels_BHWC"][:, 0, -1].sum(-1)
        flipped_N = flipped_B[batch["sample_N"]]
        texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in batch["input_ids_NT"]]
        assert [text.startswith("colour") for text in texts] == flipped_N.tolist()
        assert (batch["labels_N"] != other["labels_N"]).tolist() == flipped_N.tolist()
        mirrored += int(flipped_B.sum())
    assert 0 < mirrored < 2 * SAMPLES


@pytest.mark.parametrize("even", [False, True])
@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_evaluation_counts_each_sample_once(source: Source, world: int, even: bool) -> None:
    asked = replace(source, answering="")
    shares = [EvaluationBatches(asked, 4, rank, world, even=even) for rank in range(world)]
    assert len({len(share) for share in shares}) == 1 or not even
    assert all(len(list(share)) == len(share) for share in shares)
    seen = [colour for share in shares for number in range(len(share)) for colour in colours(share[number])]
    assert sorted(seen) == [n for n in range(SAMPLES) if n % 4]


def test_a_missing_version_and_a_missing_split_are_refused(source: Source) -> None:
    with pytest.raises(DataError, match="has no version 000000000000 of its index"):
        replace(source, index_hash="0" * 64).plan_order(shuffle=False)
    with pytest.raises(DataError, match=r"no val sample with questions \(it has {'train': 23}\)"):
        replace(source, split="val").plan_order(shuffle=False)


def test_everything_is_small_to_send(source: Source) -> None:
    import pickle

    assert len(pickle.dumps(parts(source))) < 4000
    assert Path(source.tars).is_dir()


def test_a_gpu_decodes_a_batch_at_once_and_leaves_the_rest(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its code, over libjpeg: the test of the GPU itself is tests/vlmodel/images/test_gpu.py."""
    calls = []
    decode_jpegs = gpu.decode_jpegs_on_gpu

    def counting(files: list[bytes], *args: Any) -> np.ndarray:
        calls.append(len(files))
        return decode_jpegs(files, *args)

    monkeypatch.setattr(gpu, "decode_jpegs_on_gpu", counting)
    with ShardWriter(tmp_path, "train", max_samples=3) as writer:
        for number in range(12):
            image = io.BytesIO()
            kind = "PNG" if number % 4 == 0 else "JPEG"
            Image.new("RGB", (20, 30), (20 * number, 90, 200)).save(image, kind)
            writer.add(
                f"{number:03d}",
                {"image": (image.getvalue(), kind.lower())},
                SampleTexts((), (Question("what is 0?", "yes"),)),
            )
    build_index(str(tmp_path), IndexConfig(validation_fraction=0.0))
    mine = replace(source, tars=str(tmp_path), index_hash=Index.open(str(tmp_path)).hash)
    for expected, got in zip(parts(mine), parts(enable_gpu_decoding(mine, "cpu")), strict=True):
        difference = np.abs(got["image.pixels_BHWC"].astype(int) - expected["image.pixels_BHWC"])
        assert difference.max() <= 1
    assert calls == [8] * 3
