"""Chooses samples of the evaluated data that are stored with a model, for the web page of a service
(``registry.own_examples``).

They are chosen among what the model answered right, where there is such: they show how to ask, and not how good it is.
"""

from __future__ import annotations

import base64
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from pipelines.data.index.index import Index
from pipelines.errors import DataError
from pipelines.evaluate.answered import parse_answered_rows
from pipelines.evaluate.assess import TaskAssessment
from pipelines.evaluate.examples import inputs_of_sample
from pipelines.registry.own_examples import AnsweredText, ExampleInput, ModelExample
from vlmodel.media.base import DisplayCopy
from vlmodel.media.registry import all_media
from vlmodel.processor import Example
from vlmodel.task import Task

if TYPE_CHECKING:
    from vlmodel.inference import Predictor


SAMPLES, TEXTS = 4, 4
"""Most samples of a task, and most texts of a sample."""
_TRIED = 3 * SAMPLES


class _NoExampleError(Exception):
    """A sample cannot be an example of the page; the message says why."""


def choose_own_examples(model: Path, assessments: Sequence[TaskAssessment], index: Index) -> list[ModelExample]:
    """Choose up to ``SAMPLES`` examples of each task, the same for the same answers; prints which samples were left
    out, and why.

    Args:
        model: folder of the model that gave the answers. It is asked again about the inputs as they are stored, and
            texts that it then answers otherwise are left out.
        index: of the data that were answered.
    """
    from vlmodel.inference import Predictor

    predictor = Predictor.from_pretrained(model)
    examples: list[ModelExample] = []
    for assessment in assessments:
        found, left_out = _examples_of_task(predictor, assessment, index)
        examples += found
        if left_out:
            task = f" ({assessment.task})" if assessment.task else ""
            reasons = ", ".join(f"{count} ({reason})" for reason, count in left_out.items())
            print(f"examples for the page{task}: {len(found)}; samples left out: {reasons}", flush=True)
    return examples


def _examples_of_task(
    predictor: Predictor, assessment: TaskAssessment, index: Index
) -> tuple[list[ModelExample], Counter[str]]:
    """Return the examples of a task, and how many samples were left out for each reason."""
    task = predictor.processor.tasks[assessment.task]
    found, left_out = list[ModelExample](), Counter[str]()
    for (split, key), rows in _iterate_samples_to_show(assessment.answers, task, assessment)[:_TRIED]:
        try:
            inputs = inputs_of_sample(key, index, predictor.processor.input_names, split)
            found.append(_make_example(predictor, assessment, inputs, rows))
        except _NoExampleError as reason:
            left_out[str(reason)] += 1
        except DataError:
            left_out["without an input that the model reads"] += 1
        if len(found) == SAMPLES:
            break
    return found, left_out


def _iterate_samples_to_show(
    answers: pa.Table, task: Task, assessment: TaskAssessment
) -> list[tuple[tuple[str, str], list[int]]]:
    """Yield the (split, key) of each sample with some of its rows that were answered right (or all rows if none was),
    in random order, those with the most texts first.
    """
    judged = task.rows_for_examples_page(parse_answered_rows(answers), assessment.normalizer)
    chosen = [row for row in judged if row.right is not False] or judged
    splits, keys, texts = (answers[name].to_pylist() for name in ("split", "key", "text"))
    by_sample: defaultdict[tuple[str, str], dict[str, int]] = defaultdict(dict)
    for answer in chosen:
        by_sample[splits[answer.row], keys[answer.row]].setdefault(texts[answer.row], answer.row)
    rng = random.Random(0)
    samples = [(sample, rng.sample(list(rows.values()), min(len(rows), TEXTS))) for sample, rows in by_sample.items()]
    rng.shuffle(samples)
    return sorted(samples, key=lambda sample: -len(sample[1]))


def _make_example(
    predictor: Predictor, assessment: TaskAssessment, inputs: Mapping[str, bytes], rows: Sequence[int]
) -> ModelExample:
    """Build the example that the page shows of a sample.

    Raises:
        _NoExampleError: one of its inputs cannot be shown, the model cannot be asked about them as they are shown, or
            none of its answers is the same again.
    """
    texts = [assessment.answers["text"][row].as_py() for row in rows]
    try:
        shown = {name: _display_copy(predictor, name, data) for name, data in inputs.items()}
        asked = Example({name: copy.data for name, copy in shown.items()}, tuple(texts))
        (predicted,) = predictor.predict([asked], 1, task=assessment.task)
    except (RuntimeError, ValueError) as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise _NoExampleError(f"the model cannot answer about the inputs alone: {first}") from error
    best = [prediction.answers[0] for prediction in predicted]
    same = tuple(_keep_reproduced_answers(assessment.answers, rows, texts, best))
    if not same:
        raise _NoExampleError("answered otherwise about the inputs as the page shows them")
    encoded = {
        name: ExampleInput(media_type=copy.media_type, data=base64.b64encode(copy.data).decode())
        for name, copy in shown.items()
    }
    return ModelExample(task=assessment.task, inputs=encoded, texts=same)


def _display_copy(predictor: Predictor, name: str, data: bytes) -> DisplayCopy:
    copy = all_media()[predictor.processor.media[name]].display_copy(data)
    if copy is None:
        raise _NoExampleError(f"input {name!r} is too large to be shown, or has no copy that can be")
    return copy


def _keep_reproduced_answers(
    answers: pa.Table, rows: Sequence[int], texts: Sequence[str], best: Sequence[tuple[str, float]]
) -> Iterator[AnsweredText]:
    for row, text, (answer, probability) in zip(rows, texts, best, strict=True):
        if answer == answers["predicted"][row].as_py():
            yield AnsweredText(text=text, answer=answer, probability=float(probability))
