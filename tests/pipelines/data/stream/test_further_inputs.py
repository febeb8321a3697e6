"""A further input beside the images, from tars to a batch: read, missing in some samples, kept as features.

Claims: a batch has the numbers that the tars hold, of those samples that have the input, in the order of the batch, and
says which these are; threads, processes and the cache of features make the same batches; a model learns of them; an
input that no index has, or that is of another medium, is refused with the remedy.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.data.index.build import build_index
from pipelines.data.index.config import IndexConfig
from pipelines.data.index.index import Index
from pipelines.data.stream.augment import AugmentConfig
from pipelines.data.stream.dataset import Source
from pipelines.data.stream.feature_build import EncoderResources, build_features, open_feature_cache
from pipelines.data.stream.loader import EvaluationBatches, MicroBatches, draw_dropped_inputs
from pipelines.data.stream.plan import StepSchedule
from pipelines.data.tars.shards import ShardWriter
from pipelines.data.texts.corpus import train_tokenizer
from pipelines.errors import DataError
from pipelines.train.prefetcher import arrays_to_tensors
from tests.vlmodel.tiny import IMU, tiny_tree
from vlmodel.modality.series import Augment
from vlmodel.model import VLModel
from vlmodel.processor import ProcessorConfig, VLProcessor
from vlmodel.sample import Question, SampleTexts

SAMPLES, SHARD, CHANNELS = 12, 5, 3
TREE = tiny_tree(inputs={"imu": {**IMU, "frozen": True}})


def series(number: int) -> np.ndarray:
    """(T, C): of each sample another length and other numbers."""
    return np.full((3 + number % 4, CHANNELS), number, np.float32)


def has_series(number: int) -> bool:
    return number % 3 > 0


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory, ray_local: None) -> Index:
    """Samples with a colour and a series of their number; each third lacks the series."""
    folder = tmp_path_factory.mktemp("tars")
    with ShardWriter(folder, "train", max_samples=SHARD, inputs=("image", "imu?", "text")) as writer:
        for number in range(SAMPLES):
            image, numbers = io.BytesIO(), io.BytesIO()
            Image.new("RGB", (16, 16), (number, 0, 0)).save(image, "PNG")
            np.save(numbers, series(number))
            inputs = {"image": (image.getvalue(), "png")}
            if has_series(number):
                inputs["imu"] = (numbers.getvalue(), "npy")
            writer.add(f"{number:03d}", inputs, SampleTexts((), (Question("what is it?", ("yes", "no")[number % 2]),)))
    return build_index(str(folder), IndexConfig(validation_fraction=0.0, inputs=("image", "imu?", "text")))


@pytest.fixture(scope="module")
def processor() -> VLProcessor:
    tokenizer = train_tokenizer(["what is it ?"], 64)
    return VLProcessor(ProcessorConfig(image_size=16, max_tokens=8), tokenizer, ["yes", "no"], inputs=TREE.inputs)


@pytest.fixture(scope="module")
def source(index: Index, processor: VLProcessor, tmp_path_factory: pytest.TempPathFactory) -> Source:
    folder = tmp_path_factory.mktemp("processor")
    processor.save_pretrained(folder)
    return Source(index.tars, index.hash, "train", str(folder))


def parts(source: Source, drop: dict[str, float] | None = None, accumulation: int = 1) -> MicroBatches:
    schedule = StepSchedule(source.plan_order(seed=1, shuffle=True), batch=4, epochs=2)
    return MicroBatches(source, schedule, 0, 1, accumulation, AugmentConfig(), drop or {})


def samples_of(arrays: dict[str, np.ndarray]) -> list[int]:
    return arrays["image.pixels_BHWC"][:, 0, 0, 0].tolist()


def check_series(arrays: dict[str, np.ndarray]) -> None:
    """The series of a batch are those of its samples."""
    samples = samples_of(arrays)
    given = [number for number in samples if has_series(number)]
    assert [row[mask].tolist() for row, mask in zip(arrays["imu.x_BTC"], arrays["imu.mask_BT"], strict=True)] == [
        series(number).tolist() for number in given
    ]
    if len(given) == len(samples):
        assert "imu.place_B" not in arrays
        return
    expected = [given.index(number) if has_series(number) else len(given) for number in samples]
    assert arrays["imu.place_B"].tolist() == expected


def test_batches_hold_what_the_tars_hold(source: Source) -> None:
    batches = list(parts(source))
    assert len(batches) == 2 * SAMPLES // 4
    for batch in batches:
        check_series(batch)
    evaluated = list(EvaluationBatches(source, batch=5))
    assert [number for batch in evaluated for number in samples_of(batch)] == list(range(SAMPLES))
    for batch in evaluated:
        check_series(batch)


def test_a_batch_is_made_in_two_halves(source: Source) -> None:
    """Inputs are made of the origin of a batch and the places, which its texts come with."""
    batches = parts(source)
    rows = batches.make_rows(1)
    assert {name for name in rows if name.startswith(("imu", "image"))} <= {"imu.place_B"}
    whole = batches[1]
    for name, array in batches.load_inputs_of_rows(rows).items():
        np.testing.assert_array_equal(array, whole[name])


def test_dropped_inputs_depend_on_seed_epoch_and_sample_alone(source: Source) -> None:
    def with_series(accumulation: int) -> list[tuple[int, int]]:
        """(epoch, sample) of all that come with their series, in any division into batches."""
        found = []
        for batch in parts(source, {"imu": 0.5}, accumulation):
            samples, given = samples_of(batch), len(batch["imu.x_BTC"])
            place_B = batch.get("imu.place_B", np.arange(len(samples)))
            assert len(batch["image.pixels_BHWC"]) == len(samples)
            for epoch, number, place in zip(batch["epoch_B"].tolist(), samples, place_B.tolist(), strict=True):
                if place < given:
                    assert batch["imu.x_BTC"][place][batch["imu.mask_BT"][place]].tolist() == series(number).tolist()
                    found.append((epoch, number))
        return sorted(found)

    kept = with_series(1)
    assert kept == with_series(2)
    all_of_them = {(epoch, number) for epoch in range(2) for number in range(SAMPLES) if has_series(number)}
    assert set(kept) < all_of_them
    assert {number for epoch, number in kept if epoch == 0} != {number for epoch, number in kept if epoch == 1}


def test_shares_of_dropped_inputs() -> None:
    rng = np.random.default_rng(0)
    shares, present = {"a": 0.3, "b": 0.6}, ["a", "b", "c"]
    drawn = [draw_dropped_inputs(shares, present, rng, keep_one=True) for _ in range(4000)]
    for name, share in (("a", 0.3), ("b", 0.6), ("c", 0.0)):
        assert np.mean([name in dropped for dropped in drawn]) == pytest.approx(share, abs=0.03)
    assert np.mean([dropped >= {"a", "b"} for dropped in drawn]) == pytest.approx(0.18, abs=0.03)
    alone = [draw_dropped_inputs(shares, ["a"], rng, keep_one) for keep_one in (True, False) for _ in range(500)]
    assert not any(alone[:500])
    assert np.mean([bool(dropped) for dropped in alone[500:]]) == pytest.approx(0.3, abs=0.08)


def test_a_saved_processor_decodes_the_same(source: Source, processor: VLProcessor) -> None:
    again = VLProcessor.from_pretrained(source.processor)
    assert again.inputs == processor.inputs
    assert again.input_names == ("image", "imu")


def test_kept_features_are_what_the_encoder_gives(
    index: Index, source: Source, processor: VLProcessor, tmp_path: Path
) -> None:
    """Of a frozen encoder, with the loss and gradients of all else equal."""
    torch.manual_seed(0)
    model = VLModel.create_from_config(TREE, processor).eval()
    assert TREE.frozen_streams() == ("imu",)
    cache = open_feature_cache("imu", model, TREE, processor, str(tmp_path), "float32")
    build_features(cache, index, model, TREE, processor, EncoderResources(threads=1, batch=2))
    kept = Source(source.tars, source.index_hash, source.split, source.processor, (cache,))
    for plain, cached in zip(parts(source), parts(kept), strict=True):
        assert {name for name in cached if name.startswith("imu.")} <= {
            "imu.features_BTF", "imu.features_mask_BT", "imu.place_B",
        }  # fmt: skip
        results = []
        for arrays in (plain, cached):
            model.zero_grad()
            loss = model(**arrays_to_tensors(arrays, torch.device("cpu"))).loss
            loss.backward()
            results.append((loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}))
        torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)


def test_a_damaged_series_names_its_sample(index: Index, source: Source, tmp_path: Path) -> None:
    """A series of other channels than the model takes."""
    other = tiny_tree(inputs={"imu": {**IMU, "channels": 2}})
    processor = VLProcessor.from_pretrained(source.processor)
    VLProcessor(processor.config, processor.tokenizer, ["a", "b"], inputs=other.inputs).save_pretrained(tmp_path)
    strict = Source(source.tars, source.index_hash, "train", str(tmp_path))
    with pytest.raises(DataError, match=r"imu of sample '\d+' in shard .* 3 channels; the model takes channels=2"):
        list(parts(strict))


def augmented(source: Source, tmp_path: Path) -> Source:
    """The same tars, for a model that is trained with noise on its series."""
    processor = VLProcessor.from_pretrained(source.processor)
    parts = {name: part.model_copy(update={"augment": Augment(jitter=1.0)}) for name, part in processor.inputs.items()}
    changed = VLProcessor(processor.config, processor.tokenizer, processor.labels, inputs=parts)
    changed.save_pretrained(tmp_path)
    return Source(source.tars, source.index_hash, "train", str(tmp_path))


def by_sample(batches: Sequence[Mapping[str, np.ndarray]]) -> list[dict[int, list[float]]]:
    """Of each epoch the numbers of each sample's series, without padding."""
    epochs: list[dict[int, list[float]]] = [{}, {}]
    for batch in batches:
        rows, masks = batch["imu.x_BTC"], batch["imu.mask_BT"]
        place_B = batch.get("imu.place_B", np.arange(len(rows)))
        number_B = SHARD * batch["shard_B"] + batch["row_B"]
        for epoch, number, place in zip(batch["epoch_B"], number_B.tolist(), place_B, strict=True):
            if place < len(rows):
                epochs[epoch][number] = rows[place][masks[place]].ravel().tolist()
    return epochs


def test_augmentation_is_drawn_from_seed_epoch_and_sample_alone(source: Source, tmp_path: Path) -> None:
    """Whatever the worker, the batch and what else is drawn: and the evaluated series are as they are."""
    shaken = augmented(source, tmp_path)
    schedule = StepSchedule(shaken.plan_order(seed=1, shuffle=True), batch=4, epochs=2)
    alone = by_sample(list(MicroBatches(shaken, schedule, 0, 1, 1, AugmentConfig())))
    halves = [list(MicroBatches(shaken, schedule, rank, 2, 1, AugmentConfig(), {"image": 0.5})) for rank in (0, 1)]
    assert by_sample([batch for half in halves for batch in half if len(batch["epoch_B"])]) == alone
    first, second = alone
    assert first.keys() == second.keys() == {number for number in range(SAMPLES) if has_series(number)}
    assert all(first[number] != second[number] for number in first)
    assert all(len(first[number]) == series(number).size for number in first)
    other = StepSchedule(shaken.plan_order(seed=2, shuffle=True), batch=4, epochs=2)
    assert by_sample(list(MicroBatches(shaken, other, 0, 1, 1, AugmentConfig())))[0] != first
    for batch in EvaluationBatches(shaken, batch=5):
        check_series(batch)
