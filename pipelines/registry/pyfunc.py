"""An MLflow model that answers tables, stored as this source file ("models from code").

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
from collections.abc import Iterator, Mapping, Sequence
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
from vlmodel.images.base64 import decode_base64
from vlmodel.inference import Prediction, Predictor
from vlmodel.media.base import MediumError
from vlmodel.processor import Example, VLProcessor

QUESTION = "question"
"""The column of texts, of models that read them."""
SAMPLES_AT_ONCE = 32
_Row = tuple[str | None, float | None, str | None, str | None]
_Inputs = tuple[tuple[str, bytes], ...]


class TableModel(PythonModel):
    """Answers the rows of a table (inputs and a question) by the model's first task."""

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
            model_input: a column for each input that the model reads, by its name (``image``, ``audio``: an encoded
                file, as bytes or in base64; of several inputs a row may lack some), and ``question`` (string) if its
                first task reads texts.
            params: ``top_k``, the number of ranked answers.

        Returns:
            Columns ``answer`` (the most probable), ``probability``, ``answers`` (JSON: [[answer, probability], ...])
            and ``error`` (why there is no answer: a missing cell, or an input that cannot be read; the other three are
            then empty), with the index of ``model_input``.
        """
        top_k = int((params or {}).get("top_k", 5))
        results: list[_Row] = [(None, None, None, None)] * len(model_input)
        texts: list[str] = [""] * len(model_input)
        # Inputs are decoded and encoded once, however many rows ask about them.
        rows_of: dict[_Inputs, list[int]] = {}
        for row, cells in enumerate(model_input.to_dict("records")):
            try:
                inputs, texts[row] = _read_cells(cells, self.predictor.processor)
            except ValueError as error:
                results[row] = (None, None, None, str(error))
            else:
                rows_of.setdefault(inputs, []).append(row)
        samples = list(rows_of)
        for start in range(0, len(samples), SAMPLES_AT_ONCE):
            some = samples[start : start + SAMPLES_AT_ONCE]
            examples = [Example(dict(inputs), tuple(texts[row] for row in rows_of[inputs])) for inputs in some]
            for inputs, answered in zip(some, self._answer_batches(examples, top_k), strict=True):
                for row, result in zip(rows_of[inputs], answered, strict=True):
                    results[row] = result
        # As objects, so that missing values are null in JSON and not NaN, which is invalid JSON.
        columns = ["answer", "probability", "answers", "error"]
        table = pd.DataFrame(results, index=model_input.index, columns=columns, dtype=object)
        return table if table["probability"].isna().any() else table.astype({"probability": float})

    def _answer_batches(self, examples: Sequence[Example], top_k: int) -> Iterator[list[_Row]]:
        try:
            predicted = self.predictor.predict(examples, top_k=top_k)
        except MediumError as error:
            if len(examples) == 1:
                yield [(None, None, None, str(error)) for _ in examples[0].texts]
                return
            # The other samples of the batch must get their answers.
            for example in examples:
                yield from self._answer_batches([example], top_k)
            return
        for predictions in predicted:
            yield [_prediction_row(prediction) for prediction in predictions]


def _remove_own_bytecode() -> None:
    """Remove the bytecode of this file, which Python writes before it runs the file."""
    if own := globals().get("__cached__"):
        with contextlib.suppress(OSError):
            os.remove(own)
            os.rmdir(os.path.dirname(own))


def _read_cells(cells: Mapping[str, Any], processor: VLProcessor) -> tuple[_Inputs, str]:
    """Read the inputs and the text from a row of the table.

    Raises:
        ValueError: one is none, or all inputs are missing.
    """
    names = processor.input_names
    given = tuple((name, _input_bytes(name, cells[name])) for name in names if not _is_missing_cell(cells.get(name)))
    if not given and names:
        raise ValueError(f"the {names[0]} is missing" if len(names) == 1 else f"{', '.join(names)} are all missing")
    return given, _parse_question_cell(cells.get(QUESTION)) if processor.default_task.reads_text() else ""


def _input_bytes(name: str, cell: Any) -> bytes:
    if isinstance(cell, bytes | bytearray | memoryview):
        return bytes(cell)
    if isinstance(cell, str):
        try:
            return decode_base64(cell)
        except ValueError as error:
            raise ValueError(f"the {name} is not valid base64; {error}") from None
    raise ValueError(f"the {name} is of type {type(cell).__name__}; give a file's bytes, or these in base64")


def _parse_question_cell(cell: Any) -> str:
    if _is_missing_cell(cell) or not str(cell).strip():
        raise ValueError("the question is missing")
    question = str(cell)
    try:
        question.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"the question has half a surrogate pair (at character {error.start})") from None
    return question


def _is_missing_cell(cell: Any) -> bool:
    return bool(pd.api.types.is_scalar(cell) and pd.isna(cell))


def _prediction_row(prediction: Prediction) -> _Row:
    answer, probability = prediction.answers[0]
    return answer, probability, json.dumps(prediction.answers), None


set_model(TableModel())
