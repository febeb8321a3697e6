"""The workflow of the job ``evaluate``."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq

from pipelines.embeddings.embed import choose_task, embed_dataset
from pipelines.evaluate.assess import assess_model, log_assessment
from pipelines.evaluate.report import TaskReport
from pipelines.evaluate.zero_shot import classify_dataset, report_zero_shot
from pipelines.report.progress import Progress
from pipelines.workflows import feature_cache, models
from pipelines.workflows.cluster import connected_to_cluster
from pipelines.workflows.embed import embedding_job, model_actor_resources
from pipelines.workflows.models import ChosenModel
from pipelines.workflows.workspace import Workspace
from vlmodel.processor import VLProcessor


def run(work: Workspace) -> list[TaskReport]:
    """Evaluate a model: answer, judge and record a report for each task. Writes the answers as Parquet and the metrics
    as JSON.
    """
    chosen = models.choose_model(work)
    if work.config.evaluate.zero_shot.templates:
        return [_judge_zero_shot(work, chosen)]
    index = work.newest_index()
    split = work.config.evaluate.split
    with connected_to_cluster(work.config.cluster):
        answered = (split, "train") if work.config.evaluate.training and split else (split,)
        features = feature_cache.cache_features_of_saved_model(work, index, answered, chosen.folder, "evaluate")
        source = work.source(index, split, chosen.folder, features)
        assessments = assess_model(
            str(chosen.folder), source, index, work.config.predict, work.config.stream,
            training=work.config.evaluate.training,
        )  # fmt: skip
    out = Path(work.config.evaluate.out or work.local_folder / f"answers-{split or 'all'}.parquet")
    out.parent.mkdir(parents=True, exist_ok=True)
    metrics: dict[str, float] = {}
    for assessment in assessments:
        file = out.with_stem(f"{out.stem}-{assessment.task}") if assessment.task else out
        pq.write_table(assessment.answers, file)
        metrics |= assessment.report.tracked_metrics(assessment.task)
        name = f"{chosen.name} version {chosen.version}{f', {assessment.task}' if assessment.task else ''}"
        print(f"{name}, {assessment.report}\nanswers: {file}", flush=True)
    _write_json(out.with_suffix(".json"), metrics | {"model": f"{chosen.name}/{chosen.version}"})
    if chosen.run_id:
        with work.open_tracked_run(chosen.run_id) as tracker:
            tracker.log_metrics(metrics, 0)
            for assessment in assessments:
                log_assessment(assessment, tracker)
    return [assessment.report for assessment in assessments]


def _judge_zero_shot(work: Workspace, chosen: ChosenModel) -> TaskReport:
    """Classify the samples of the split by a contrastive model that has not learned their classes, and judge the
    result.
    """
    config = work.config.evaluate
    tasks = VLProcessor.from_pretrained(chosen.folder).tasks
    task = choose_task(tasks, work.config.embed.task)
    split = config.split or "all"
    folder = f"{work.run_folder}/zero-shot-{split}"
    with connected_to_cluster(work.config.cluster):
        job = embedding_job(work, chosen, task, (tasks[task].embedded_input,), config.split, folder)
        with Progress("evaluate", "sample") as progress:
            embedded = embed_dataset(job, model_actor_resources(work), progress)
    answers, classes = classify_dataset(str(chosen.folder), folder, embedded, config.zero_shot)
    report = report_zero_shot(answers, classes, split)
    out = Path(config.out or work.local_folder / f"answers-{split}-zero-shot.parquet")
    out.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(answers, out)
    metrics = report.tracked_metrics("zero_shot")
    templates = ", ".join(map(repr, config.zero_shot.templates))
    print(
        f"{chosen.name} version {chosen.version}, zero-shot among {len(classes)} classes by {templates}, {report}\n"
        f"answers: {out}",
        flush=True,
    )
    _write_json(out.with_suffix(".json"), metrics | {"model": f"{chosen.name}/{chosen.version}"})
    if chosen.run_id:
        with work.open_tracked_run(chosen.run_id) as tracker:
            tracker.log_metrics(metrics, 0)
    return report


def _write_json(path: Path, tree: object) -> None:
    path.write_text(json.dumps(tree, indent=1, sort_keys=True), encoding="utf-8")
