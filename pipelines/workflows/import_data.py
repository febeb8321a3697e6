"""The workflow of the job ``import_data``."""

from __future__ import annotations

import json
from pathlib import Path

from pipelines.data.importing.run import ImportSummary, describe_counts, import_data
from pipelines.data.index.files import TEXT_COUNTS
from pipelines.data.tars.inputs import PAIRS
from pipelines.workflows import training_data
from pipelines.workflows.workspace import Workspace
from vlmodel.config import PartConfig


def run(work: Workspace) -> ImportSummary:
    """Import a source as tars; does nothing if they are already complete."""
    # Pictures of runs and of corrections lie there, and a source's folder may be the one in which all of this lies.
    written = [work.config.storage, work.config.serve.feedback.folder]
    left_out = [Path(folder).expanduser() for folder in written if folder and "://" not in folder]
    summary = import_data(work.config.source, work.config.data.tars, left_out=left_out)
    for split, counts in summary.splits.items():
        numbers = [f"{counts.samples} samples", f"{counts.questions} questions", f"{counts.captions} captions"]
        numbers += [f"{counts.conversations} conversations"] if counts.conversations else []
        numbers += [f"{counts.classes} with a class"] if counts.classes else []
        numbers += [f"{count} with {name}" for name, count in sorted(counts.inputs.items())]
        print(f"import {split}: {', '.join(numbers)}")
        if counts.unanswered:
            remedy = _missing_answers_remedy(work.config.source)
            print(f"import {split}: {counts.unanswered} of these questions have no answer{remedy}")
    texts = {name: sum(getattr(counts, name) for counts in summary.splits.values()) for name in TEXT_COUNTS}
    if hint := training_data.suggest_task_setting(work, texts):
        print(f"import: {hint}")
    if summary.test_fraction:
        print(
            f"import test: the source has none, so {summary.test_fraction:.0%} of its train samples, chosen by hash, "
            "became one (source.test_fraction)"
        )
    questions, unanswered = (sum(getattr(of, n) for of in summary.splits.values()) for n in ("questions", "unanswered"))
    if questions and questions == unanswered:
        print("import: no question has an answer: such data can be answered (predict), and nothing learns from them")
    if summary.rejected:
        print(f"import left out: {', '.join(f'{n} {reason}' for reason, n in summary.rejected.items())}")
    if summary.passed_over:
        print(f"import passed over: {describe_counts(summary.passed_over)}")
    print(f"import {'was complete already' if summary.unchanged else 'done'}: {work.config.data.tars}", flush=True)
    if (inputs := work.config.source.inputs) != PAIRS:
        print(f"other jobs are told what these are by data.mix.NAME.inputs={json.dumps(inputs)}", flush=True)
    return summary


def _missing_answers_remedy(source: PartConfig) -> str:
    return "; source.answer names their column" if "answer" in type(source).model_fields else ""
