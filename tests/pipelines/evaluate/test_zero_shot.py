"""Zero-shot classification of stored vectors: as the model chooses image by image, and its accuracy."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.data.index.build import build_index
from pipelines.data.index.config import IndexConfig
from pipelines.data.tars.reader import ShardReader
from pipelines.data.tars.shards import ShardWriter
from pipelines.embeddings.embed import EmbeddingJob, embed_dataset
from pipelines.errors import DataError
from pipelines.evaluate.config import ZeroShotConfig
from pipelines.evaluate.zero_shot import classify_dataset, find_class_names, report_zero_shot
from tests.pipelines.data.tar_maker import photo
from tests.pipelines.embeddings.conftest import COPIES
from vlmodel.config import ConfigError, parse_config
from vlmodel.inference import Predictor
from vlmodel.processor import Example
from vlmodel.sample import SampleTexts
from vlmodel.zero_shot import class_probabilities, class_vectors, make_prompts

CLASSES = ("a_circle", "square", "there")
TEMPLATES = ["what is {}", "the {} ?"]


@pytest.fixture
def classed(job: EmbeddingJob, tmp_path: Path) -> EmbeddingJob:
    """Images of three classes, one of them without any."""
    tars = tmp_path / "classed"
    tars.mkdir()
    with ShardWriter(tars, "test", max_samples=4, inputs=("image", "text?")) as writer:
        for n in range(11):
            label = None if n == 5 else CLASSES[n % 3]
            writer.add(f"{n:02d}", {"image": (photo(n), "jpg")}, SampleTexts(label=label))
    made = build_index(str(tars), IndexConfig(inputs=("image", "text?")))
    return replace(
        job, tars=str(tars), index_hash=made.hash, split="test", inputs=("image",), out=str(tmp_path / "of-classes")
    )


def test_each_image_gets_the_class_that_the_model_chooses(classed: EmbeddingJob) -> None:
    embedded = embed_dataset(classed, COPIES)
    config = ZeroShotConfig(templates=TEMPLATES, top_k=2)
    answers, classes = classify_dataset(classed.model, classed.out, embedded, config)
    assert classes == sorted(CLASSES)
    predictor = Predictor.from_pretrained(classed.model)
    prompts = make_prompts(["a circle", "square", "there"], TEMPLATES)
    [(_, text_ND)] = predictor.embed([Example({}, prompts)])
    vectors_CD, right = class_vectors(text_ND, 3), []
    for row in answers.to_pylist():
        number = int(row["key"])
        [(image_D, _)] = predictor.embed([Example({"image": photo(number)}, ())])
        [share_C] = class_probabilities(image_D[None], vectors_CD, 0.07)
        order = np.argsort(-share_C)[:2]
        assert row["answers"] == [classes[n] for n in order]
        assert np.allclose(row["probabilities"], share_C[order], atol=1e-4)
        assert row["target"] == CLASSES[number % 3]
        right.append(row["predicted"] == row["target"])
    assert answers["key"].to_pylist() == [f"{n:02d}" for n in range(11) if n != 5]
    report = report_zero_shot(answers, classes, "test")
    assert report.metrics["accuracy"] == pytest.approx(np.mean(right))
    assert (report.rows, report.unit) == (10, "samples")
    assert report.baselines["majority"]["accuracy"] == pytest.approx(0.4)
    assert "image_shuffled" in report.baselines


def test_names_say_what_classes_mean(tmp_path: Path) -> None:
    file = tmp_path / "names.json"
    config = ZeroShotConfig(templates=["a {}"], names=str(file))
    file.write_text(json.dumps({"n01": "tench", "n02": "goldfish", "n03": "shark"}))
    assert list(find_class_names(config, ["n02", "n01"]).items())[2] == ("n03", "shark"), "chosen among all of them"
    with pytest.raises(DataError, match="lacks 1 classes of the samples: n09"):
        find_class_names(config, ["n09", "n01"])
    for wrong, says in (("[1]", "must hold one object"), ("{", "cannot be read")):
        file.write_text(wrong)
        with pytest.raises(DataError, match=says):
            find_class_names(config, ["n01"])
    assert find_class_names(ZeroShotConfig(templates=["a {}"]), ["b_c", "a", "a"]) == {"a": "a", "b_c": "b c"}


def test_a_template_without_a_place_is_refused_with_the_settings() -> None:
    with pytest.raises(ConfigError, match="0 places"):
        parse_config(ZeroShotConfig, {"templates": ["a photo"]})


def test_data_without_classes_are_told(job: EmbeddingJob) -> None:
    embedded = embed_dataset(replace(job, inputs=("image",)), COPIES)
    with pytest.raises(DataError, match=r"has a class to be judged by; .*source\.classes=folder"):
        classify_dataset(job.model, job.out, embedded, ZeroShotConfig(templates=TEMPLATES))


def test_the_reader_is_asked_once_a_file(classed: EmbeddingJob, monkeypatch: pytest.MonkeyPatch) -> None:
    embedded = embed_dataset(classed, COPIES)
    asked: list[str] = []
    read = ShardReader.read_texts

    def note(reader: ShardReader, shard: str, rows: Any) -> Any:
        asked.append(shard)
        return read(reader, shard, rows)

    monkeypatch.setattr(ShardReader, "read_texts", note)
    classify_dataset(classed.model, classed.out, embedded, ZeroShotConfig(templates=TEMPLATES))
    assert len(asked) == len(embedded.parts)
