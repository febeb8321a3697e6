"""Writes the model card: what a registered model is, how good it is compared with baselines, on which data, and how to
use it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from pipelines.data.index.index import Index
from pipelines.evaluate.report import TaskReport
from pipelines.knowledge.trained_facts import TrainedFacts
from vlmodel.processor import VLProcessor

_HUB_TASKS = {"vqa": "visual-question-answering", "answer": "visual-question-answering", "caption": "image-to-text"}
_SHOWN_LABELS = 20


def model_card(
    name: str,
    reports: Mapping[str, TaskReport],
    processor: VLProcessor,
    index: Index,
    step: int,
    facts: TrainedFacts | None = None,
) -> str:
    """Write a model card in Markdown, with the metadata header that the Hugging Face hub reads.

    Args:
        name: of the model.
        reports: of each task.
        index: of the data that it was evaluated on.
        step: of the checkpoint.
        facts: with which it was trained; None for a model that reads none.
    """
    kinds = [task.kind for task in processor.tasks.values()]
    hub_tasks = [_HUB_TASKS[kind] for kind in kinds if kind in _HUB_TASKS]
    head = ["library_name: transformers", *(f"pipeline_tag: {task}" for task in hub_tasks[:1]), "tags: [raylm]"]
    parts = [
        "\n".join(["---", *head, "---"]),
        f"# {json.dumps(name)[1:-1]}",
        f"A vision-language model for {' and '.join(dict.fromkeys(kinds))}, trained with raylm; the checkpoint of "
        f"step {step}.",
        *(_metrics_section(task, report) for task, report in reports.items()),
        "Figures of the split by which the checkpoint was chosen are a little too good; those of a test split are in "
        "the model's run, after the job `evaluate`.",
        _data_section(index, facts),
        _usage_section(processor),
    ]
    return "\n\n".join(parts) + "\n"


def _metrics_section(task: str, report: TaskReport) -> str:
    columns = {"model": report.metrics, **report.baselines}
    lines = [f"## {f'Task {task}' if task else 'Figures'}, split {report.split}", ""]
    lines.append(f"| metric | {' | '.join(name.replace('_', ' ') for name in columns)} |")
    lines.append("|---|" + "---|" * len(columns))
    for metric in report.metrics:
        cells = (f"{figures[metric]:.4f}" if metric in figures else "" for figures in columns.values())
        lines.append(f"| {metric} | {' | '.join(cells)} |")
    interval = ", {:.4f} to {:.4f} with 95 % confidence".format(*report.interval) if report.interval else ""
    lines += [
        "",
        f"{report.metric} {report.value:.4f}{interval}, on {report.rows} {report.unit}; {report.samples} samples.",
    ]
    if report.comparisons:
        lines.append(f"It is {report.baseline_verdict}.")
    return "\n".join(lines)


def _data_section(index: Index, facts: TrainedFacts | None) -> str:
    counts = ", ".join(f"{count} {split}" for split, count in index.counts().items() if count)
    read = f" Facts: version {facts.version} of a store, hash `{facts.hash[:12]}`." if facts else ""
    return f"## Data\n\nSamples: {counts}. Index `{index.hash[:12]}`.{read}"


def _usage_section(processor: VLProcessor) -> str:
    lines = [
        "## Use", "", "With the distribution raylm, in the folder of this file:", "", "```python",
        "from pathlib import Path", "from vlmodel.inference import Predictor", "from vlmodel.processor import Example",
        "", 'predictor = Predictor.from_pretrained(".")',
        'example = Example({"image": Path("picture.jpg").read_bytes()}, ("what is it?",))',
        "print(predictor.predict([example])[0][0].answers)", "```", "",
        "Or `AutoModel.from_pretrained(\".\", trust_remote_code=True)`, and `AutoProcessor` likewise.",
    ]  # fmt: skip
    if labels := processor.labels:
        shown = ", ".join(json.dumps(label, ensure_ascii=False) for label in labels[:_SHOWN_LABELS])
        more = f" and {len(labels) - _SHOWN_LABELS} more" if len(labels) > _SHOWN_LABELS else ""
        lines += ["", "## Limits", "", f"It chooses among {len(labels)} answers: {shown}{more}. It knows no others."]
    return "\n".join(lines)
