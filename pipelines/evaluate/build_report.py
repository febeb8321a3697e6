"""Builds the report on a task from the table of its answers: one function for each kind of task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from pipelines.errors import DataError
from pipelines.evaluate.baselines import AnswerPrior, Baselines
from pipelines.evaluate.example_scores import (
    ExampleScores,
    answers_match,
    image_ids,
    random_order_scores,
    score_examples,
)
from pipelines.evaluate.intervals import confidence_interval
from pipelines.evaluate.metrics.answers import vqa_accuracy
from pipelines.evaluate.metrics.calibration import calibration_error
from pipelines.evaluate.metrics.captions import caption_scores, with_words
from pipelines.evaluate.metrics.matching import matching_scores
from pipelines.evaluate.metrics.retrieval import retrieval_scores
from pipelines.evaluate.report import Report
from pipelines.evaluate.verdict import BaselineComparison, compare
from vlmodel.answers import Normalizer, normal_form
from vlmodel.task_spec import MATCH, NO_MATCH, TaskSpec, is_match

_VQA, _CAPTION = TaskSpec(reads="questions"), TaskSpec(reads="captions", text=False, target="tokens")
_MATCH, _RETRIEVAL = TaskSpec(reads="captions", target="match"), TaskSpec(reads="captions", target="none")

_MIN_CLASSES_PER_TOP_K = 10
"""Top-k accuracy is reported only with more classes than this many times k: with fewer, nearly all answers count."""

Metrics = dict[str, float]


def build_report(
    answers: pa.Table,
    split: str,
    spec: TaskSpec,
    baselines: Baselines,
    labels: Sequence[str] = (),
    normalizer: Normalizer = "none",
) -> Report:
    """Report on a table of ``predict.SCHEMA``.

    Args:
        labels: the answers that a classifier chooses among.
        normalizer: rules by which answers in words are compared.

    Raises:
        DataError: no row has a right answer.
    """
    if spec.target == "none":
        report = _report_on_retrieval(answers, split)
    elif spec.target == "match":
        report = _report_on_matching(answers, split)
    elif spec.target == "tokens" and not spec.text:
        assert baselines.caption is not None
        report = _report_on_captions(answers, split, baselines.caption)
    else:
        assert baselines.answers is not None
        report = report_on_answers(answers, split, baselines.answers, labels, normalizer)
    if cut := pc.sum(answers["truncated"]).as_py():
        note = f"{cut} of {answers.num_rows} texts were cut, as they have more tokens than the model takes"
        return replace(report, notes=(*report.notes, note))
    return report


@dataclass
class _Comparisons:
    """Metrics of the baselines, and their comparisons with the model, collected one by one.

    Attributes:
        answers: the rows that count.
        metrics_of: metrics of a table of answers.
    """

    answers: pa.Table
    spec: TaskSpec
    metrics_of: Callable[[pa.Table], Metrics]
    normalizer: Normalizer = "none"
    baselines: dict[str, Metrics] = field(default_factory=dict)
    subset_metrics: dict[str, Metrics] = field(default_factory=dict)
    comparisons: list[BaselineComparison] = field(default_factory=list)

    @cached_property
    def scores(self) -> ExampleScores:
        return self._score_examples(self.answers)

    def add(self, name: str, description: str, predicted: Sequence[str], metrics: Metrics | None = None) -> None:
        """Compare with a baseline's answers to all rows."""
        table = _with_columns(self.answers, predicted=predicted)
        self.baselines[name] = self.metrics_of(table) if metrics is None else metrics
        self.comparisons.append(compare(name, description, self.scores, self._score_examples(table)))

    def add_shuffled_images(self) -> None:
        """Compare with the model's own answers about other images, on the rows that have them."""
        same = self.answers.filter(pc.is_valid(self.answers["shuffled"]))
        if not same.num_rows:
            return
        shuffled = _with_columns(same, predicted=same["shuffled"], probability=same["shuffled_probability"])
        name, description = "image_shuffled", "its own answers about other images"
        self.baselines[name] = self.metrics_of(shuffled)
        if same.num_rows < self.answers.num_rows:
            self.subset_metrics[name] = self.metrics_of(same)
        self.comparisons.append(compare(name, description, self._score_examples(same), self._score_examples(shuffled)))

    def _score_examples(self, table: pa.Table) -> ExampleScores:
        return score_examples(table, self.spec, self.normalizer)


def report_on_answers(
    answers: pa.Table, split: str, prior: AnswerPrior, labels: Sequence[str] = (), normalizer: Normalizer = "none"
) -> Report:
    """Answers to questions: accuracy, agreement with several annotators, calibration."""
    answered = _with_target(answers, split, "question")
    targets, predicted = answered["target"].to_pylist(), answered["predicted"].to_pylist()
    annotated = any(len(references) > 1 for references in answered["references"].to_pylist())

    def metrics_of(table: pa.Table) -> Metrics:
        metrics = {"accuracy": score_examples(table, _VQA, normalizer).value}
        if annotated:
            metrics |= vqa_accuracy(table["predicted"].to_pylist(), table["references"].to_pylist())
        return metrics

    right = answers_match(targets, predicted, normalizer)
    metrics = metrics_of(answered)
    ranked = answered["answers"].to_pylist()
    k = max(len(best) for best in ranked)
    if k > 1 and len(labels) > _MIN_CLASSES_PER_TOP_K * k:
        hits = (any(answers_match([t] * len(best), best, normalizer)) for t, best in zip(targets, ranked, strict=True))
        metrics[f"top{k}_accuracy"] = sum(hits) / len(targets)
    metrics |= calibration_error(np.clip(answered["probability"].to_numpy(), 0, 1).tolist(), right)

    compared = _Comparisons(answered, _VQA, metrics_of, normalizer)
    compared.add("majority", f'always "{prior.majority}"', [prior.majority] * len(targets))
    compared.add("question_only", "the question alone", prior.predict(answered["text"]))
    compared.add_shuffled_images()

    forms = [normal_form(target, normalizer) for target in targets]
    totals, hit = Counter(forms), Counter(form for form, ok in zip(forms, right, strict=True) if ok)
    known = {normal_form(label, normalizer) for label in labels}
    unknown = sum(n for form, n in totals.items() if labels and form not in known)
    notes = [f"{sum(right)} of {len(right)} questions answered right"]
    if unknown:
        notes.append(f"{unknown} right answers are outside the model's vocabulary and count as wrong")
    by_answer = [(a, n, hit[a] / n) for a, n in sorted(totals.items(), key=lambda item: (-item[1], item[0]))]
    return _make_report(
        split, answers, compared, unit="questions", metric="accuracy", metrics=metrics, notes=notes, by_answer=by_answer
    )


def _report_on_captions(answers: pa.Table, split: str, constant: str) -> Report:
    answers = _with_columns(answers, references=with_words(answers["references"].to_pylist()))
    captioned = answers.filter(pc.greater(pc.list_value_length(answers["references"]), 0))
    if not captioned.num_rows:
        raise DataError(f"no image of split {split!r} has a caption with a word to compare with; choose another split")

    def metrics_of(table: pa.Table) -> Metrics:
        return caption_scores(table["predicted"].to_pylist(), table["references"].to_pylist())

    compared = _Comparisons(captioned, _CAPTION, metrics_of)
    compared.add("constant_caption", "one caption for all images", [constant] * captioned.num_rows)
    compared.add_shuffled_images()
    notes = [
        f'constant caption: "{constant}"',
        f"{pc.count_distinct(captioned['predicted']).as_py()} different captions",
    ]
    return _make_report(
        split, answers, compared, unit="images", metric="cider", metrics=metrics_of(captioned), notes=notes
    )


def _report_on_matching(answers: pa.Table, split: str) -> Report:
    pairs = _with_target(answers, split, "pair")

    def scores_of(table: pa.Table) -> _Split:
        matches = [is_match(target) for target in table["target"].to_pylist()]
        return _split_scores(matching_scores(_match_probabilities(table["predicted"], table["probability"]), matches))

    metrics, constant = scores_of(pairs)
    both = "balanced_accuracy" in metrics
    only_matches = not both and is_match(pairs["target"][0].as_py())
    compared = _Comparisons(pairs, _MATCH, lambda table: scores_of(table).metrics)
    answer = MATCH if both or only_matches else NO_MATCH
    compared.add("constant", "one answer for all pairs", [answer] * pairs.num_rows, constant)
    shuffled = pairs.filter(pc.is_valid(pairs["shuffled"]))["target"].to_pylist()
    if len(set(map(is_match, shuffled))) == 2:
        compared.add_shuffled_images()
    one_class = (
        f"every pair is {'a match' if only_matches else 'no match'}, so only accuracy can be said; captions meet "
        "another image of their batch: raise predict.batch above 1, or choose a split with more images"
    )
    metric = "balanced_accuracy" if both else "accuracy"
    notes = [] if both else [one_class]
    return _make_report(split, answers, compared, unit="pairs", metric=metric, metrics=metrics, notes=notes)


def _report_on_retrieval(answers: pa.Table, split: str) -> Report:
    has_image = pc.is_valid(answers["image_embedding"])
    first = answers.filter(has_image)
    if not first.num_rows:
        raise DataError(f"no image of split {split!r} has a caption to be found by; choose another split")
    image_N = image_ids(answers)
    row_of = {image: row for row, image in enumerate(image_N[has_image.to_numpy()])}
    metrics, expected = _split_scores(
        retrieval_scores(
            _vectors_of_column(first["image_embedding"]),
            _vectors_of_column(answers["text_embedding"]),
            torch.tensor([row_of[image] for image in image_N]),
        )
    )
    # One metric to compare models by: the mean of all recalls; the field's "rsum" is their sum.
    for recalls in (metrics, expected):
        values = [value for name, value in recalls.items() if "recall_at" in name]
        recalls["mean_recall"] = sum(values) / len(values)
    scores = score_examples(answers, _RETRIEVAL)
    return Report(
        split=split,
        samples=first.num_rows,
        rows=answers.num_rows,
        unit="captions",
        metric="mean_recall",
        metrics=metrics,
        baselines={"chance": expected},
        interval=confidence_interval(scores),
        comparisons=(compare("chance", "chance", scores, random_order_scores(answers, scores)),),
    )


def _make_report(
    split: str,
    answers: pa.Table,
    compared: _Comparisons,
    *,
    unit: str,
    metric: str,
    metrics: Metrics,
    notes: Sequence[str],
    by_answer: Sequence[tuple[str, int, float]] = (),
) -> Report:
    return Report(
        split=split,
        samples=len(np.unique(image_ids(answers))),
        rows=compared.answers.num_rows,
        unit=unit,
        metric=metric,
        metrics=metrics,
        baselines=compared.baselines,
        notes=tuple(notes),
        by_answer=list(by_answer),
        interval=confidence_interval(compared.scores),
        comparisons=tuple(compared.comparisons),
        subset_metrics=compared.subset_metrics,
    )


def _with_columns(answers: pa.Table, **columns: object) -> pa.Table:
    """The table with other values in some columns."""
    for name, values in columns.items():
        place = answers.schema.get_field_index(name)
        column = values if isinstance(values, pa.ChunkedArray) else pa.array(values, answers.schema.field(place).type)
        answers = answers.set_column(place, answers.schema.field(place), column)
    return answers


def _with_target(answers: pa.Table, split: str, unit: str) -> pa.Table:
    answered = answers.filter(pc.is_valid(answers["target"]))
    if not answered.num_rows:
        raise DataError(f"no {unit} of split {split!r} has a right answer to score against; choose another split")
    return answered


def _match_probabilities(answer: pa.ChunkedArray, probability: pa.ChunkedArray) -> list[float]:
    """Probability of a match from that of the better of the two answers."""
    pairs = zip(answer.to_pylist(), np.clip(probability.to_numpy(), 0, 1).tolist(), strict=True)
    return [p if given == MATCH else 1 - p for given, p in pairs]


class _Split(NamedTuple):
    metrics: Metrics
    baseline: Metrics


def _split_scores(scores: Mapping[str, float]) -> _Split:
    """The model's metrics, and those of the baseline, whose names begin with ``floor_``."""
    baseline = {name.removeprefix("floor_"): v for name, v in scores.items() if name.startswith("floor_")}
    return _Split({name: v for name, v in scores.items() if not name.startswith("floor_")}, baseline)


def _vectors_of_column(column: pa.ChunkedArray) -> torch.Tensor:
    flat = column.combine_chunks()
    return torch.from_numpy(np.array(flat.flatten())).view(len(flat), -1)
