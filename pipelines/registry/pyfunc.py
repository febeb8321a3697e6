"""A visual question answering model as an MLflow model, stored as this source file ("models from code").

Nothing is pickled: MLflow runs this file, and ``load_context`` reads safetensors and JSON. It is stored with
``vlmodel`` and the module of the manifest, and imports nothing else of this repository. MLflow loads it by importing
it, which calls ``set_model``; no other module imports it.

Only the stored sources are run, which the manifest covers, and no bytecode beside them. None is written either: MLflow
loads a model of a local store in place.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd  # type: ignore[import-untyped, unused-ignore]
import torchvision  # noqa: F401 - libraries first, with their bytecode
import transformers  # noqa: F401
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext

if Path(__file__).with_name("manifest.json").is_file():  # in a stored model
    sys.dont_write_bytecode, sys.pycache_prefix = True, os.devnull

from pipelines.storage.manifest import verify_folder
from vlmodel.images.base64 import from_base64
from vlmodel.images.errors import ImageError
from vlmodel.inference import Prediction, Predictor
from vlmodel.processor import Example

IMAGES_AT_ONCE = 32
_Row = tuple[str | None, float | None, str | None, str | None]


class VisualQuestionAnswering(PythonModel):
    """Answers a question about an image in each row of a table."""

    def load_context(self, context: PythonModelContext) -> None:
        """Check the files against their manifest and load the model with its frozen base weights (``vlmodel.bases``).

        Raises:
            BaseWeightsError: they are missing or others.
            ManifestError: a file is not what was stored.
        """
        folder = Path(context.artifacts["model"])
        _remove_own_bytecode()
        verify_folder(folder.parents[1])
        self.predictor = Predictor.from_pretrained(folder)

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Answer each row.

        Args:
            model_input: columns ``image`` (encoded image, as bytes or in base64) and ``question`` (string).
            params: ``top_k``, the number of ranked answers.

        Returns:
            Columns ``answer`` (the most probable), ``probability``, ``answers`` (JSON: [[answer, probability], ...])
            and ``error`` (why there is no answer: a missing cell, or an image that cannot be read; the other three are
            then empty), with the index of ``model_input``.
        """
        top_k = int((params or {}).get("top_k", 5))
        results: list[_Row] = [(None, None, None, None)] * len(model_input)
        questions: list[str] = [""] * len(model_input)
        # An image is decoded and encoded once, however many rows ask about it.
        rows_of: dict[bytes, list[int]] = {}
        for row, (cell, question) in enumerate(zip(model_input["image"], model_input["question"], strict=True)):
            try:
                image, questions[row] = _parse_image_cell(cell), _parse_question_cell(question)
            except ValueError as error:
                results[row] = (None, None, None, str(error))
            else:
                rows_of.setdefault(image, []).append(row)
        images = list(rows_of)
        for start in range(0, len(images), IMAGES_AT_ONCE):
            some = images[start : start + IMAGES_AT_ONCE]
            examples = [Example({"image": image}, tuple(questions[row] for row in rows_of[image])) for image in some]
            for image, answered in zip(some, self._answer_batches(examples, top_k), strict=True):
                for row, result in zip(rows_of[image], answered, strict=True):
                    results[row] = result
        # As objects, so that missing values are null in JSON and not NaN, which is invalid JSON.
        columns = ["answer", "probability", "answers", "error"]
        table = pd.DataFrame(results, index=model_input.index, columns=columns, dtype=object)
        return table if table["probability"].isna().any() else table.astype({"probability": float})

    def _answer_batches(self, examples: Sequence[Example], top_k: int) -> Iterator[list[_Row]]:
        try:
            predicted = self.predictor.predict(examples, top_k=top_k)
        except ImageError as error:
            if len(examples) == 1:
                yield [(None, None, None, str(error)) for _ in examples[0].texts]
                return
            # The other images of the batch must get their answers.
            for example in examples:
                yield from self._answer_batches([example], top_k)
            return
        for predictions in predicted:
            yield [_prediction_row(prediction) for prediction in predictions]


def _remove_own_bytecode() -> None:
    """Remove the bytecode of this file, which Python writes before it runs it."""
    if own := globals().get("__cached__"):
        with contextlib.suppress(OSError):
            os.remove(own)
            os.rmdir(os.path.dirname(own))


def _parse_image_cell(cell: Any) -> bytes:
    if _is_missing(cell):
        raise ValueError("the image is missing")
    if isinstance(cell, bytes | bytearray | memoryview):
        return bytes(cell)
    if isinstance(cell, str):
        try:
            return from_base64(cell)
        except ValueError as error:
            raise ValueError(f"the image is not valid base64; {error}") from None
    raise ValueError(f"the image is of type {type(cell).__name__}; give an image file's bytes, or these in base64")


def _parse_question_cell(cell: Any) -> str:
    if _is_missing(cell) or not str(cell).strip():
        raise ValueError("the question is missing")
    question = str(cell)
    try:
        question.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"the question has half a surrogate pair (at character {error.start})") from None
    return question


def _is_missing(cell: Any) -> bool:
    return bool(pd.api.types.is_scalar(cell) and pd.isna(cell))


def _prediction_row(prediction: Prediction) -> _Row:
    answer, probability = prediction.answers[0]
    return answer, probability, json.dumps(prediction.answers), None


set_model(VisualQuestionAnswering())
