"""Offline prediction as it is put together; what it answers is tested with the jobs."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.data.index.build import build_index
from pipelines.data.index.config import IndexConfig
from pipelines.data.stream.config import StreamConfig
from pipelines.data.stream.dataset import Source
from pipelines.data.tars.shards import ShardWriter
from pipelines.data.texts.corpus import train_tokenizer
from pipelines.evaluate.config import PredictConfig
from pipelines.evaluate.predict import _PredictActor, is_in_hash_sample, predict_dataset, write_answer_tables
from tests.pipelines.evaluate.test_build_report import table
from vlmodel.processor import ProcessorConfig, VLProcessor
from vlmodel.sample import Question, SampleTexts


class _Colours:
    """Stands for a model: it answers with the red of the image that a row is about."""

    def __init__(self, processor: VLProcessor) -> None:
        self.processor = processor

    def predict_collated(self, batch: dict[str, Any], *_: object) -> list[list[tuple[str, float]]]:
        return [[(str(red), 1.0)] for red in batch["image.pixels_BHWC"][batch["sample_N"], 0, 0, 0].tolist()]


def test_drawn_images_are_exchanged_for_ones_that_are_half_a_batch_away() -> None:
    """Eight images with two questions each, of which a half is drawn, the same ones in every run."""
    processor = VLProcessor(ProcessorConfig(image_size=4), train_tokenizer(["what is it ?"], 64), ["red"])
    answerer = _PredictActor.__new__(_PredictActor)
    answerer._predictor, answerer._task = _Colours(processor), ""  # type: ignore[assignment]
    answerer._config, answerer._exchanged = PredictConfig(), 0.5
    keys = [str(n) for n in range(8)]
    pixels_BHWC = np.repeat(np.arange(8, dtype=np.uint8), 48).reshape(8, 4, 4, 3)
    arrays = {"image.pixels_BHWC": pixels_BHWC, "sample_N": np.repeat(np.arange(8), 2), "row_B": np.arange(8)}
    columns = {"split": ["val"] * 16, "key": [k for k in keys for _ in "ab"], "text": ["what is it?", "is it?"] * 8}
    found = answerer._answer_about_other_images(arrays, columns)
    drawn = [is_in_hash_sample("val", key, 0.5) for key in keys]
    expected = [str((n + 4) % 8) if drawn[n] else None for n in range(8) for _ in "ab"]
    assert 0 < sum(drawn) < 8
    assert found["shuffled"] == expected

    # Samples without an image are neither asked about another one nor the ones that others are asked about.
    answerer._exchanged = 1.0
    given = [0, 1, 3, 4, 6, 7]
    place_B = np.array([given.index(n) if n in given else len(given) for n in range(8)])
    some = {**arrays, "image.pixels_BHWC": pixels_BHWC[given], "image.place_B": place_B}
    others = dict(zip(given, [4, 6, 7, 0, 1, 3], strict=True))
    found = answerer._answer_about_other_images(some, columns)
    assert found["shuffled"] == [str(others[n]) if n in others else None for n in range(8) for _ in "ab"]
    none = {**arrays, "image.pixels_BHWC": pixels_BHWC[:0], "image.place_B": np.zeros(8, np.int64)}
    assert answerer._answer_about_other_images(none, columns) == {}


def test_a_share_is_drawn_by_hash() -> None:
    assert sum(is_in_hash_sample("val", str(n), 0.25) for n in range(4000)) == pytest.approx(1000, abs=100)
    assert all(is_in_hash_sample("val", str(n), 1.0) for n in range(100))
    assert not any(is_in_hash_sample("val", str(n), 0.0) for n in range(100))
    pairs = [(is_in_hash_sample("val", str(n), 0.5), is_in_hash_sample("test", str(n), 0.5)) for n in range(100)]
    assert any(one != other for one, other in pairs)


def test_a_share_of_a_gpu_can_be_asked_for(tmp_path: Path, ray_local: None) -> None:
    """Ray Data refuses such a stage without a batch size, when it is put together."""
    image = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(image, "PNG")
    with ShardWriter(tmp_path, "test", max_samples=5) as writer:
        writer.add("000", {"image": (image.getvalue(), "png")}, SampleTexts((), (Question("what is it?", "red"),)))
    index = build_index(str(tmp_path), IndexConfig(validation_fraction=0.0))
    model = tmp_path / "model"
    VLProcessor(ProcessorConfig(image_size=16), train_tokenizer(["what is it ?"], 64), ["red"]).save_pretrained(model)
    source = Source(str(tmp_path), index.hash, "test", str(model))
    made = predict_dataset(str(model), source, PredictConfig(gpus_per_worker=0.25), StreamConfig())
    assert "MapBatches(_PredictActor)" in str(made)


def test_answers_to_texts_that_were_cut_are_counted_when_they_are_written(tmp_path: Path) -> None:
    tables = [table({"key": "a", "truncated": True}, {"key": "b", "truncated": False}), table({"key": "c"})]
    assert write_answer_tables(iter(tables), tmp_path / "new" / "answers.parquet") == (3, 1)
