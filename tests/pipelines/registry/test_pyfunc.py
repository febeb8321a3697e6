from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd  # type: ignore[import-untyped, unused-ignore]
import pytest
from fastapi.testclient import TestClient
from mlflow.models import Model
from mlflow.pyfunc import scoring_server
from mlflow.pyfunc.model import PythonModelContext

from pipelines.registry import package
from pipelines.registry.pyfunc import TableModel
from pipelines.storage import manifest
from pipelines.storage.manifest import ManifestError
from vlmodel.inference import Predictor
from vlmodel.processor import Example

QUESTIONS = ("what colour is the shape?", "is the shape red?")


@pytest.fixture
def context(checkpoint: Path, tmp_path: Path) -> PythonModelContext:
    folder = tmp_path / "package" / "artifacts" / "model"
    shutil.copytree(checkpoint, folder)
    manifest.write_manifest(tmp_path / "package")
    return PythonModelContext(artifacts={"model": str(folder)}, model_config=None)


def test_rows_are_answered_in_order_and_each_image_is_decoded_once(
    context: PythonModelContext, checkpoint: Path, pictures: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = TableModel()
    model.load_context(context)
    rows = [(image, question) for question in QUESTIONS for image in pictures]
    predictor = Predictor.from_pretrained(checkpoint)
    expected = [predictor.predict([Example({"image": image}, (question,))])[0][0].answers for image, question in rows]

    decoded: list[bytes] = []
    decode = model.predictor.processor.decode_image

    def counted(data: bytes) -> object:
        decoded.append(data)
        return decode(data)

    monkeypatch.setattr(model.predictor.processor, "decode_image", counted)
    table = model.predict(context, pd.DataFrame(rows, columns=["image", "question"]), {"top_k": 3})
    assert decoded == pictures
    assert list(table["answer"]) == [answers[0][0] for answers in expected]
    assert list(table["probability"]) == pytest.approx([answers[0][1] for answers in expected], abs=1e-6)
    assert [[answer for answer, _ in json.loads(answers)] for answers in table["answers"]] == [
        [answer for answer, _ in answers[:3]] for answers in expected
    ]
    assert table["error"].isna().all()


def test_a_bad_image_costs_only_its_own_rows_their_answers(context: PythonModelContext, pictures: list[bytes]) -> None:
    model = TableModel()
    model.load_context(context)
    rows = [(pictures[0], QUESTIONS[0]), (pictures[1][:60], QUESTIONS[0]), (pictures[2], QUESTIONS[0])]
    table = model.predict(context, pd.DataFrame(rows, columns=["image", "question"]))
    assert list(table["answer"].isna()) == [False, True, False]
    assert list(table["error"].isna()) == [True, False, True]
    assert "image (60 bytes" in table["error"][1]
    assert len(model.predict(context, pd.DataFrame([], columns=["image", "question"]))) == 0


@pytest.fixture
def model(context: PythonModelContext) -> TableModel:
    model = TableModel()
    model.load_context(context)
    return model


def table_of(rows: list[tuple[Any, Any]], index: list[Any] | None = None) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["image", "question"], index=index, dtype=object)


MISSING = [None, float("nan"), np.nan, pd.NA, pd.NaT]


@pytest.mark.parametrize("missing", MISSING, ids=repr)
@pytest.mark.parametrize("column", ["image", "question"])
def test_a_cell_that_is_missing_costs_only_its_own_row_its_answer(
    model: TableModel, context: PythonModelContext, pictures: list[bytes], missing: Any, column: str
) -> None:
    rows: list[tuple[Any, Any]] = [(picture, QUESTIONS[0]) for picture in pictures]
    whole = model.predict(context, table_of(rows))
    rows[1] = (missing, QUESTIONS[0]) if column == "image" else (pictures[1], missing)
    table = model.predict(context, table_of(rows))
    assert list(table["answer"]) == [whole["answer"][0], None, whole["answer"][2]]
    assert list(table["probability"].isna()) == list(table["answers"].isna()) == [False, True, False]
    assert list(table["error"]) == [None, f"the {column} is missing", None]


@pytest.mark.parametrize(
    ("image", "question", "reason"),
    [
        (b"", QUESTIONS[0], "image (0 bytes"),
        ("", QUESTIONS[0], "image (0 bytes"),
        ("not base64!", QUESTIONS[0], "the image is not valid base64; encode"),
        (7, QUESTIONS[0], "the image is of type int"),
        ([1, 2], QUESTIONS[0], "the image is of type list"),
        (None, "  ", "the image is missing"),
        (pd.NA, pd.NA, "the image is missing"),
    ],
)
def test_a_cell_that_is_no_image_has_an_error_that_names_it(
    model: TableModel, context: PythonModelContext, pictures: list[bytes], image: Any, question: Any,
    reason: str,
) -> None:  # fmt: skip
    table = model.predict(context, table_of([(image, question), (pictures[0], QUESTIONS[0])]))
    assert list(table["answer"].isna()) == [True, False]
    assert reason in table["error"][0]


@pytest.mark.parametrize("question", ["", " \n", "what \ud800?"])
def test_a_question_that_is_no_text_has_an_error(
    model: TableModel, context: PythonModelContext, pictures: list[bytes], question: str
) -> None:
    table = model.predict(context, table_of([(pictures[0], question), (pictures[0], QUESTIONS[0])]))
    assert list(table["answer"].isna()) == [True, False]
    assert "the question" in table["error"][0]


@pytest.mark.parametrize("index", [["b", "a", "b"], [7, 3, 5], list(pd.date_range("2026-01-01", periods=3))])
def test_answers_keep_the_index_of_the_table(
    model: TableModel, context: PythonModelContext, pictures: list[bytes], index: list[Any]
) -> None:
    rows = [(pictures[0], QUESTIONS[0]), (None, QUESTIONS[0]), (pictures[2], QUESTIONS[0])]
    table = table_of(rows, index)
    answers = model.predict(context, table)
    pd.testing.assert_index_equal(answers.index, table.index)
    assert list(answers["answer"].isna()) == [False, True, False]
    assert model.predict(context, table.iloc[:0]).empty


@pytest.mark.parametrize("write", [base64.b64encode, base64.encodebytes, base64.urlsafe_b64encode])
def test_images_may_be_in_base64(
    model: TableModel, context: PythonModelContext, pictures: list[bytes],
    write: Callable[[bytes], bytes],
) -> None:  # fmt: skip
    plain = model.predict(context, table_of([(picture, QUESTIONS[0]) for picture in pictures]))
    text = model.predict(context, table_of([(write(picture).decode(), QUESTIONS[0]) for picture in pictures]))
    pd.testing.assert_frame_equal(text, plain)


def test_mlflows_own_server_answers_tables_with_missing_cells(
    checkpoint: Path, pictures: list[bytes], tmp_path: Path
) -> None:
    package.build_package(checkpoint, tmp_path / "package", Example({"image": pictures[0]}, (QUESTIONS[0],)), Model())
    assert "simplejpeg==" in (tmp_path / "package" / "requirements.txt").read_text(), "images are decoded with it"
    loaded = mlflow.pyfunc.load_model(str(tmp_path / "package"))
    client = TestClient(scoring_server.init(loaded))
    image = base64.encodebytes(pictures[0]).decode()
    split = {"columns": ["image", "question"], "index": [5, 3], "data": [[image, QUESTIONS[0]], [image, None]]}
    response = client.post("/invocations", json={"dataframe_split": split})
    assert response.status_code == 200, response.text
    answered, missing = response.json()["predictions"]
    assert answered["answer"]
    assert answered["error"] is None
    assert missing == {"answer": None, "probability": None, "answers": None, "error": "the question is missing"}
    whole = loaded.predict(table_of([(pictures[0], QUESTIONS[0])], [9]))
    assert list(whole["answer"]) == [answered["answer"]]
    assert list(whole.index) == [9]


def test_a_model_whose_files_changed_does_not_load(context: PythonModelContext) -> None:
    weights = Path(context.artifacts["model"]) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\xff")
    with pytest.raises(ManifestError, match=r"artifacts/model/model\.safetensors"):
        TableModel().load_context(context)
