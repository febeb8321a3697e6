"""A whole assessment of a model on one split: its answers, their report beside the floors, examples and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import pyarrow as pa

from pipelines.data.index.index import Index
from pipelines.data.stream.dataset import Source
from pipelines.data.stream.stream import StreamConfig
from pipelines.errors import DataError
from pipelines.evaluate.baselines import Baselines, check_learnable
from pipelines.evaluate.build_report import build_report
from pipelines.evaluate.example_scores import score_examples
from pipelines.evaluate.examples import choose_examples, image_bytes, make_cards
from pipelines.evaluate.predict import PredictConfig, collect, predict
from pipelines.evaluate.report import Report
from pipelines.report import training_pictures
from pipelines.tracking.tracker import NullTracker
from vlmodel.answers import Normalizer, normal_form
from vlmodel.inference import Predictor
from vlmodel.task_spec import TaskSpec


@dataclass(frozen=True)
class Assessment:
    """What an assessment of one task found.

    Attributes:
        task: its name; "" where the model has only one.
        report: the figures.
        answers: a row for each row of the task (predict.SCHEMA).
        page: cards for ``training_pictures.examples_page``.
        example: an encoded image and the text that was asked of it, "" where the task is given none.
        normalizer: by which answers in words are compared.
    """

    task: str
    report: Report
    answers: pa.Table = field(repr=False)
    page: list[training_pictures.Card] = field(repr=False)
    example: tuple[bytes, str] = field(repr=False)
    normalizer: Normalizer = "none"


def check_evaluable(index: Index, tasks: Mapping[str, TaskSpec], split: str) -> None:
    """Refuse data that models cannot be judged by: the floors, the page and the served example are of images, and each
    task is of texts.

    Args:
        split: that is answered; "" for all samples.

    Raises:
        DataError: its samples have no images, or none of the split has the texts of a task.
    """
    if index.modality != "pairs":
        raise DataError(
            f"models are judged on images with texts, and {index.tars} holds {index.modality} alone; name such pairs "
            "in data.tars, and this in data.mix to train on it too"
        )
    for task, fields in tasks.items():
        if not index.count_with(fields.reads, split):
            raise DataError(
                f"no {split or 'indexed'} sample of {index.tars} has {fields.reads}, by which "
                f"{f'task {task!r}' if task else 'the model'} is judged; choose data or a split that has some"
                f"{', or leave the task out' if task else ''}"
            )


def assess(
    model: str,
    source: Source,
    index: Index,
    config: PredictConfig,
    stream: StreamConfig,
    examples: int,
    *,
    training: bool = False,
) -> list[Assessment]:
    """Let the model in folder ``model`` answer all rows of each of its tasks over ``source``, and judge the answers.

    What they are compared with is kept with the model; for one of an earlier version it is learned from the training
    split of ``index``.

    Args:
        training: also let it answer as many samples of the training split, drawn by hash, where ``index`` is known to
            have been trained on.

    Raises:
        DataError: the split has nothing to judge by, or there is no training split that is needed.
    """
    predictor = Predictor.from_pretrained(model)
    processor = predictor.processor
    check_evaluable(index, processor.tasks, source.split)
    baselines = Baselines.load(model)
    if baselines is None:
        check_learnable(index, processor.tasks)
        baselines = Baselines.of_training(index, [], processor.tasks, processor.normalizer)
    seen = training and source.split != "train" and index.hash in baselines.trained_on
    found = []
    for task, fields in processor.tasks.items():
        answers = pa.concat_tables(list(collect(predict(model, source, config, stream, task))))
        split = source.split or "all"
        report = judge(answers, split, fields, baselines, processor.labels, processor.normalizer)
        if seen and index.count_with(fields.reads, "train"):
            sample = predict(
                model, replace(source, split="train"), config.model_copy(update={"shuffled": 0}), stream, task,
                sample=report.samples,
            )  # fmt: skip
            credits = score_examples(pa.concat_tables(list(collect(sample))), fields, processor.normalizer)
            if len(credits):
                report = replace(report, training=(credits.value, len(credits)))
        page = make_cards(
            choose_examples(answers, fields, examples, normalizer=processor.normalizer), index, predictor, task
        )
        first = answers.slice(0, 1).to_pylist()[0]
        example = (image_bytes(first["key"], index, first["split"]), first["text"])
        found.append(Assessment(task, report, answers, page, example, processor.normalizer))
    return found


def log_assessment(found: Assessment, tracker: NullTracker, history: Sequence[Mapping[str, float]] = ()) -> None:
    """Record the pictures and tables with the run."""
    report = found.report
    name = f"{report.split}-{found.task}" if found.task else report.split
    if history and not found.task:
        accuracies = {n.replace("_", " "): f["accuracy"] for n, f in report.baselines.items() if "accuracy" in f}
        tracker.log_figure(training_pictures.curves(history, accuracies), "pictures/curves.png")
    elif history:
        tracker.log_figure(training_pictures.curves(history), "pictures/curves.png")
    if report.by_answer:
        columns = (found.answers[c].to_pylist() for c in ("target", "predicted"))
        pairs = [
            tuple(normal_form(a, found.normalizer) for a in pair) for pair in zip(*columns, strict=True) if pair[0]
        ]
        confusion = training_pictures.confusion([t for t, _ in pairs], [p for _, p in pairs])
        tracker.log_figure(confusion, f"pictures/{name}-confusion.png")
        rows = [{"answer": a, "questions": n, "accuracy": round(hit, 6)} for a, n, hit in report.by_answer]
        tracker.log_table(rows, f"tables/{name}-answers.csv")
    if found.page:
        tracker.log_figure(training_pictures.examples_page(found.page), f"pictures/{name}-examples.png")
    tracker.log_text(f"{report}\n", f"tables/{name}-report.txt")
