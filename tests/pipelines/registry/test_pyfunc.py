from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd  # type: ignore[import-untyped, unused-ignore]
import pytest
from mlflow.pyfunc.model import PythonModelContext

from pipelines.registry import manifest
from pipelines.registry.errors import ArtifactError
from pipelines.registry.pyfunc import VisualQuestionAnswering
from vlmodel.inference import Predictor
from vlmodel.processor import Example

QUESTIONS = ("what colour is the shape?", "is the shape red?")


@pytest.fixture
def context(checkpoint: Path, tmp_path: Path) -> PythonModelContext:
    folder = tmp_path / "package" / "artifacts" / "model"
    shutil.copytree(checkpoint, folder)
    manifest.write(tmp_path / "package")
    return PythonModelContext(artifacts={"model": str(folder)}, model_config=None)


def test_rows_are_answered_in_order_and_each_image_is_decoded_once(
    context: PythonModelContext, checkpoint: Path, pictures: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = VisualQuestionAnswering()
    model.load_context(context)
    rows = [(image, question) for question in QUESTIONS for image in pictures]
    predictor = Predictor.from_pretrained(checkpoint)
    expected = [predictor.predict([Example(image, (question,))])[0][0].answers for image, question in rows]

    decoded: list[bytes] = []
    decode = model.predictor.processor.decode

    def counted(data: bytes) -> object:
        decoded.append(data)
        return decode(data)

    monkeypatch.setattr(model.predictor.processor, "decode", counted)
    table = model.predict(context, pd.DataFrame(rows, columns=["image", "question"]), {"top_k": 3})
    assert decoded == pictures
    assert list(table["answer"]) == [answers[0][0] for answers in expected]
    assert list(table["probability"]) == pytest.approx([answers[0][1] for answers in expected], abs=1e-6)
    assert [[answer for answer, _ in json.loads(answers)] for answers in table["answers"]] == [
        [answer for answer, _ in answers[:3]] for answers in expected
    ]
    assert table["error"].isna().all()


def test_a_bad_image_costs_only_its_own_rows_their_answers(context: PythonModelContext, pictures: list[bytes]) -> None:
    model = VisualQuestionAnswering()
    model.load_context(context)
    rows = [(pictures[0], QUESTIONS[0]), (pictures[1][:60], QUESTIONS[0]), (pictures[2], QUESTIONS[0])]
    table = model.predict(context, pd.DataFrame(rows, columns=["image", "question"]))
    assert list(table["answer"].isna()) == [False, True, False]
    assert list(table["error"].isna()) == [True, False, True]
    assert "image (60 bytes" in table["error"][1]
    assert len(model.predict(context, pd.DataFrame([], columns=["image", "question"]))) == 0


def test_a_model_whose_files_changed_does_not_load(context: PythonModelContext) -> None:
    weights = Path(context.artifacts["model"]) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\xff")
    with pytest.raises(ArtifactError, match=r"artifacts/model/model\.safetensors"):
        VisualQuestionAnswering().load_context(context)
