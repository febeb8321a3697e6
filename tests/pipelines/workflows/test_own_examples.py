"""The examples of its own data that are stored with a model."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import pytest
from PIL import Image

from pipelines.data.index.build import build_index
from pipelines.data.index.config import IndexConfig
from pipelines.data.index.index import Index
from pipelines.data.tars.shards import ShardWriter
from pipelines.evaluate.assess import TaskAssessment
from pipelines.registry import own_examples
from pipelines.registry.errors import ArtifactError
from pipelines.registry.own_examples import ModelExample
from pipelines.serve.inference.loading import read_examples
from pipelines.workflows.own_examples import SAMPLES, TEXTS, choose_own_examples
from tests.pipelines.evaluate.test_build_report import LEARNED, answers, report_on_answers
from tests.pipelines.registry.conftest import save_model
from vlmodel.inference import Predictor
from vlmodel.operations.base import operations_of_tasks
from vlmodel.processor import Example
from vlmodel.sample import Question, SampleTexts

QUESTIONS = [f"what {word}?" for word in ("is the shape", "colour is the shape", "is", "shape is", "colour")]
GPS = 0x8825


def photo(number: int) -> bytes:
    """A photograph larger than examples are, with the place where it was taken."""
    exif = Image.Exif()
    exif[GPS] = {1: "N"}
    file = io.BytesIO()
    Image.radial_gradient("L").resize((900, 600)).point([(v * (number + 2)) % 256 for v in range(256)]).convert(
        "RGB"
    ).save(file, "JPEG", exif=exif)
    return file.getvalue()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("checkpoint") / "model", seed=0)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory, ray_local: None) -> Index:
    folder = tmp_path_factory.mktemp("shown")
    with ShardWriter(folder, "val") as writer:
        for number in range(6):
            texts = SampleTexts((), tuple(Question(text, "yes") for text in QUESTIONS))
            writer.add(f"k{number}", {"image": (photo(number), "jpg")}, texts)
    return build_index(str(folder), IndexConfig())


def assessed(checkpoint: Path, right: range) -> TaskAssessment:
    """What the model answers about all samples; those that are numbered in ``right`` it answers as it should."""
    predictor = Predictor.from_pretrained(checkpoint)
    rows = []
    for number in range(6):
        (predicted,) = predictor.predict([Example({"image": photo(number)}, tuple(QUESTIONS))], 1)
        for text, prediction in zip(QUESTIONS, predicted, strict=True):
            best = prediction.answers[0][0]
            rows.append((f"k{number}", text, best if number in right else f"not {best}", best))
    table = answers(*rows, split="val")
    return TaskAssessment("", report_on_answers(table, "val", LEARNED), table, [], Example({}, ("",)))


def pictures(examples: list[ModelExample]) -> list[Image.Image]:
    return [Image.open(io.BytesIO(base64.b64decode(example.inputs["image"].data))) for example in examples]


def test_what_was_answered_right_is_shown_small_and_without_metadata(checkpoint: Path, index: Index) -> None:
    found = choose_own_examples(checkpoint, [assessed(checkpoint, range(2))], index)
    assert 1 <= len(found) <= 2
    assert found == choose_own_examples(checkpoint, [assessed(checkpoint, range(2))], index)
    for picture in pictures(found):
        assert max(picture.size) == 512
        assert not picture.getexif()
    predictor = Predictor.from_pretrained(checkpoint)
    for example in found:
        assert 1 <= len(example.texts) <= TEXTS
        asked = Example(
            {"image": base64.b64decode(example.inputs["image"].data)}, tuple(one.text for one in example.texts)
        )
        (again,) = predictor.predict([asked], 1)
        assert [prediction.answers[0][0] for prediction in again] == [one.answer for one in example.texts]


def test_a_model_that_is_never_right_has_examples_too(checkpoint: Path, index: Index) -> None:
    assert 1 <= len(choose_own_examples(checkpoint, [assessed(checkpoint, range(0))], index)) <= SAMPLES


def test_what_is_left_out_is_told_with_its_reason(
    checkpoint: Path, index: Index, capsys: pytest.CaptureFixture[str]
) -> None:
    choose_own_examples(checkpoint, [assessed(checkpoint, range(6))], index)
    assert capsys.readouterr().out == ""
    rows = [(key, QUESTIONS[0], "yes", "never said") for key in ("k0", "k1", "gone")]
    table = answers(*rows, split="val")
    judged = TaskAssessment("", report_on_answers(table, "val", LEARNED), table, [], Example({}, ("",)))
    assert choose_own_examples(checkpoint, [judged], index) == []
    shown = capsys.readouterr().out
    assert shown.startswith("examples for the page: 0; samples left out: ")
    assert "2 (answered otherwise about the inputs as the page shows them)" in shown
    assert "1 (without an input that the model reads)" in shown


def test_they_are_stored_and_named_by_what_answers_them(checkpoint: Path, index: Index, tmp_path: Path) -> None:
    found = choose_own_examples(checkpoint, [assessed(checkpoint, range(6))], index)
    own_examples.write_own_examples(found, tmp_path)
    operations = operations_of_tasks(Predictor.from_pretrained(checkpoint).processor.tasks)
    offered = read_examples(str(tmp_path / "golden.json"), operations)
    assert [one.task for one in offered] == ["vqa"] * len(found)
    assert [one.inputs for one in offered] == [one.inputs for one in found]
    assert read_examples("", operations) == []
    assert read_examples(str(tmp_path / "elsewhere" / "golden.json"), operations) == []
    (tmp_path / own_examples.FILE).write_text("[{")
    with pytest.raises(ArtifactError, match=r"examples\.json' cannot be read .*; deploy again"):
        read_examples(str(tmp_path / "golden.json"), operations)
