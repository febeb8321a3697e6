"""Assesses a model on one split: its answers, a report that compares them with baselines, examples and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import pyarrow as pa

from pipelines.data.index.index import Index
from pipelines.data.stream.config import StreamConfig
from pipelines.data.stream.dataset import Source, connect_fact_lookup
from pipelines.evaluate.baselines import Baselines, check_baselines_are_learnable
from pipelines.evaluate.build_report import build_report, score_examples
from pipelines.evaluate.config import PredictConfig
from pipelines.evaluate.examples import choose_examples, inputs_of_sample, make_example_cards
from pipelines.evaluate.neighbours import Neighbours, captions_of_neighbours
from pipelines.evaluate.predict import iterate_answer_tables, predict_dataset
from pipelines.evaluate.report import TaskReport
from pipelines.evaluate.requirements import check_data_is_evaluable
from pipelines.report.example_card import ExampleCard
from pipelines.tracking.tracker import NullTracker
from vlmodel.answers import Normalizer, normalize_for_comparison
from vlmodel.encoder_parts import IMAGE, stream_of_input
from vlmodel.processor import Example

if TYPE_CHECKING:
    from vlmodel.inference import Predictor


EXAMPLES = 12
"""Cards on the page of right and wrong examples."""


@dataclass(frozen=True)
class TaskAssessment:
    """The assessment of a model at one task: its answers, and the report on them.

    Attributes:
        task: its name; "" if the model has only one.
        answers: a row for each row of the task (schema.SCHEMA).
        cards: for ``training_pictures.render_examples_page``.
        example: a sample's inputs with the text of one request, "" if the task is given none, and the text's facts.
        normalizer: rules by which answers in words are compared.
    """

    task: str
    report: TaskReport
    answers: pa.Table = field(repr=False)
    cards: list[ExampleCard] = field(repr=False)
    example: Example = field(repr=False)
    normalizer: Normalizer = "none"


def assess_model(
    model: str,
    source: Source,
    index: Index,
    config: PredictConfig,
    stream: StreamConfig,
    *,
    examples: int = EXAMPLES,
    training: bool = False,
    label: str = "evaluate",
) -> list[TaskAssessment]:
    """Answer all rows of each task over ``source`` with the model in folder ``model``, and report on the answers.

    The baselines are stored with the model; for a model of an earlier version they are learned from the training split
    of ``index``.

    Args:
        examples: number of example cards.
        training: also answer as many samples of the training split, drawn by hash, if the model is known to have been
            trained on ``index``.
        label: what the lines of progress begin with.

    Raises:
        DataError: the split has no right answers, or a training split is needed and missing.
    """
    from vlmodel.inference import Predictor

    predictor = Predictor.from_pretrained(model)
    processor = predictor.processor
    connect_fact_lookup(processor, source.facts, model)
    check_data_is_evaluable(index, processor.tasks, source.split)
    baselines = Baselines.load(model)
    if baselines is None:
        check_baselines_are_learnable(index, processor.tasks)
        baselines = Baselines.learn_from_training_split(index, [], processor.tasks, processor.normalizer)
    trained_on = training and source.split != "train" and index.hash in baselines.trained_on
    assessments = []
    for name, task in processor.tasks.items():
        split = source.split or "all"
        shown = f"{label} {split}{f', {name}' if name else ''}"
        count = index.count(task.can_answer, source.split)
        answers = pa.concat_tables(
            list(iterate_answer_tables(predict_dataset(model, source, config, stream, name), shown, count))
        )
        near = _neighbours(predictor, source, index) if task.copies_neighbours else None
        report = build_report(answers, split, task, baselines, processor.labels, processor.normalizer, name, near)
        if trained_on and index.count(task.can_learn, "train"):
            sample = predict_dataset(
                model, replace(source, split="train"), config, stream, name, sample=report.samples, shuffled=0
            )  # fmt: skip
            count = min(report.samples, index.count(task.can_answer, "train"))
            shown = f"{label} train{f', {name}' if name else ''}"
            tables = list(iterate_answer_tables(sample, shown, count))
            scores = score_examples(pa.concat_tables(tables), task, processor.normalizer)
            if len(scores):
                report = replace(report, training=(scores.metric_value, len(scores)))
        rows = choose_examples(answers, task, examples, normalizer=processor.normalizer)
        cards = make_example_cards(rows, index, predictor, name)
        first = answers.slice(0, 1).to_pylist()[0]
        inputs = inputs_of_sample(first["key"], index, processor.input_names, first["split"])
        # With the facts of its text, which it keeps however the store is edited.
        (example,) = processor.link_facts([Example(inputs, (first["text"],))])
        assessments.append(TaskAssessment(name, report, answers, cards, example, processor.normalizer))
    return assessments


def _neighbours(predictor: Predictor, source: Source, index: Index) -> Neighbours | None:
    """Return the captions of the nearest training images, if features of a frozen encoder are cached."""
    if (cache := next((cache for cache in source.features if cache.stream == stream_of_input(IMAGE)), None)) is None:
        return None
    encoder = predictor.model.vision
    assert encoder is not None
    return captions_of_neighbours(index, cache, encoder.grid_shapes() or [(1, 1, cache.width)], source.split)


def log_assessment(
    assessment: TaskAssessment, tracker: NullTracker, history: Sequence[Mapping[str, float]] = ()
) -> None:
    """Store the report, pictures and tables in the tracked run.

    Args:
        history: of the training, for its curves.
    """
    from pipelines.report import training_pictures

    report, task = assessment.report, assessment.task
    name = f"{report.split}-{task}" if task else report.split
    if history:
        by_name = {} if task else report.baselines
        accuracies = {n.replace("_", " "): m["accuracy"] for n, m in by_name.items() if "accuracy" in m}
        tracker.log_figure(training_pictures.draw_training_curves(history, accuracies), "pictures/curves.png")
    if report.by_answer:
        targets, predicted = (assessment.answers[c].to_pylist() for c in ("target", "predicted"))
        pairs = [
            (
                normalize_for_comparison(target, assessment.normalizer),
                normalize_for_comparison(answer, assessment.normalizer),
            )
            for target, answer in zip(targets, predicted, strict=True)
            if target
        ]
        confusion = training_pictures.draw_confusion_matrix([t for t, _ in pairs], [p for _, p in pairs])
        tracker.log_figure(confusion, f"pictures/{name}-confusion.png")
        rows = [{"answer": a, "questions": n, "accuracy": round(hit, 6)} for a, n, hit in report.by_answer]
        tracker.log_table(rows, f"tables/{name}-answers.csv")
    if assessment.cards:
        tracker.log_figure(training_pictures.render_examples_page(assessment.cards), f"pictures/{name}-examples.png")
    tracker.log_text(f"{report}\n", f"tables/{name}-report.txt")
