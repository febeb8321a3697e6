"""A key may be that of a sample of each split: its picture is that of the split that was answered."""

from __future__ import annotations

import io
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from pipelines.data.index.build import build_index
from pipelines.data.index.config import IndexConfig
from pipelines.data.index.index import Index
from pipelines.data.tars.shards import ShardWriter
from pipelines.errors import DataError
from pipelines.evaluate.answered import number_samples_of_rows
from pipelines.evaluate.baselines import Baselines
from pipelines.evaluate.build_report import build_report, score_examples
from pipelines.evaluate.examples import choose_examples, inputs_of_sample, make_example_cards
from pipelines.report.input_pictures import draw_inputs
from tests.pipelines.evaluate.test_build_report import ASKED, COMPARED, table
from tests.vlmodel.media_files import saved_sound
from vlmodel.inference import Prediction
from vlmodel.processor import Example
from vlmodel.sample import Question, SampleTexts

COLOURS = {"train": (250, 0, 0), "val": (0, 0, 250), "test": (0, 250, 0)}


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory, ray_local: None) -> Index:
    """Samples 0 and 1 in each of the three splits, and a sample of the training split alone."""
    tars = tmp_path_factory.mktemp("tars")
    for split, colour in COLOURS.items():
        image = io.BytesIO()
        Image.new("RGB", (8, 8), colour).save(image, "PNG")
        with ShardWriter(tars, split, max_samples=5) as writer:
            for key in ("0", "1", *(["alone"] if split == "train" else [])):
                writer.add(
                    key, {"image": (image.getvalue(), "png")}, SampleTexts((), (Question("what colour?", split),))
                )
    return build_index(str(tars), IndexConfig(validation_fraction=0.0))


def colour(image: bytes) -> object:
    return Image.open(io.BytesIO(image)).convert("RGB").getpixel((0, 0))


def picture_of(index: Index, key: str, split: str = "") -> bytes:
    return inputs_of_sample(key, index, ("image", "audio"), split)["image"]


def test_the_picture_of_a_key_is_that_of_the_split(index: Index) -> None:
    for split, expected in COLOURS.items():
        assert colour(picture_of(index, "0", split)) == expected
    assert colour(picture_of(index, "0")) == COLOURS["val"]
    assert colour(picture_of(index, "alone")) == COLOURS["train"]
    with pytest.raises(DataError, match="no image or audio of sample 'alone' in split 'val'"):
        picture_of(index, "alone", "val")


class _Shows:
    """Stands for a model; its processor gives a picture's colour."""

    processor: _Shows
    input_names = ("image",)

    def __init__(self) -> None:
        self.processor = self

    def predict(self, examples: list[Example], *_: object, **__: object) -> list[list[Prediction]]:
        return [[Prediction([("x", 1.0)])] for _ in examples]

    def decode_image(self, image: bytes) -> object:
        return colour(image)


def test_the_page_shows_the_picture_that_was_asked_about(index: Index) -> None:
    rows = [
        {"key": key, "split": split, "text": "what colour?", "target": split, "predicted": "x", "probability": 0.5}
        for split in COLOURS for key in ("0", "1")
    ]  # fmt: skip
    cards = make_example_cards(choose_examples(table(*rows), ASKED, 12), index, _Shows())  # type: ignore[arg-type]
    assert len(cards) == 6
    assert all(card.image == COLOURS[card.answer] for card in cards)


class _Hears(_Shows):
    """Stands for a model of sounds, which attends to the end of them."""

    input_names = ("audio",)
    media: ClassVar[dict[str, str]] = {"audio": "audio"}

    def predict(self, examples: list[Example], *_: object, **__: object) -> list[list[Prediction]]:
        return [[Prediction([("x", 1.0)], attention_T={"audio": np.array([0.1, 0.9], np.float32)})] for _ in examples]


def test_the_page_shows_sounds_where_there_is_no_image(tmp_path: Path, ray_local: None) -> None:
    sound = saved_sound(np.sin(np.arange(4000.0)))
    with ShardWriter(tmp_path, "val", max_samples=5, inputs=("audio", "text")) as writer:
        writer.add("a", {"audio": (sound, "wav")}, SampleTexts(label="x"))
    index = build_index(str(tmp_path), IndexConfig(inputs=("audio", "text")))
    rows = choose_examples(
        table({"key": "a", "split": "val", "text": "", "target": "x", "predicted": "x", "probability": 0.5}), ASKED, 1
    )
    (card,) = make_example_cards(rows, index, _Hears())  # type: ignore[arg-type]
    expected = draw_inputs({"audio": sound}, {"audio": "audio"}, {"audio": np.array([0.1, 0.9], np.float32)})
    np.testing.assert_array_equal(card.image, expected)


def test_one_key_in_two_splits_is_two_images() -> None:
    rows = [{"key": "0", "split": split, "predicted": "x"} for split in ("train", "val", "val")]
    found = number_samples_of_rows(table(*rows))
    assert (found[0] != found[1], found[1] == found[2]) == (True, True)


def test_what_belongs_to_an_image_of_the_same_key_is_found_wrong() -> None:
    """Two images of one key, each with a caption; both captions are nearest to the first image."""
    basis = np.eye(2, dtype=np.float32)
    rows = [
        {"key": "0", "split": split, "text": f"of {split}", "references": [], "predicted": "similarity",
         "probability": 1.0, "image_embedding": basis[image], "text_embedding": basis[0] + 0.1 * basis[image]}
        for image, split in enumerate(("train", "val"))
    ]  # fmt: skip
    report = build_report(table(*rows), "all", COMPARED, Baselines())
    assert report.samples == 2
    assert report.metrics["text_to_image_recall_at_1"] == 0.5
    assert score_examples(table(*rows), COMPARED).metric_value == pytest.approx(report.value)
    assert {chosen.split: chosen.answer.right for chosen in choose_examples(table(*rows), COMPARED, 4)} == {
        "train": True,
        "val": True,
    }
