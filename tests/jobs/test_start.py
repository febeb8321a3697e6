"""What a job has imported by a moment of its start, in a fresh process: its user waits for heavy libraries that it does
not need until then. Seconds depend on the machine; names of modules do not.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.jobs.conftest import ROOT, coloured_pictures

MODELS = frozenset({"torch", "torchvision", "transformers", "timm", "peft", "sklearn", "scipy", "torchmetrics", "nltk"})
TRACKING = frozenset({"mlflow", "pandas", "matplotlib"})
HTTP = frozenset({"fastapi", "starlette", "httpx"})
HEAVY = MODELS | TRACKING | HTTP | {"ray"}

_RUN_ALL = """
import importlib, sys
statuses = []
for line in json.loads(sys.argv[1]):
    statuses.append(importlib.import_module(f"jobs.{line[0]}").main(line[1:]))
"""
_IMPORT_ALL = """
import importlib, sys
statuses = [importlib.import_module(name) and 0 for name in json.loads(sys.argv[1])]
"""


def _in_fresh_process(program: str, given: object) -> tuple[list[int], frozenset[str]]:
    """What the program has left in ``statuses``, and the heavy libraries that are imported at its end."""
    report = "\nprint('\\n' + json.dumps([statuses, sorted({name.partition('.')[0] for name in sys.modules})]))"
    command = [sys.executable, "-c", f"import json\n{program}{report}", json.dumps(given)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    statuses, modules = json.loads(done.stdout.splitlines()[-1])
    return statuses, HEAVY & set(modules)


def run_jobs(*lines: list[str]) -> tuple[list[int], frozenset[str]]:
    """Exit statuses of jobs that run one after another, and the heavy libraries that they have imported."""
    return _in_fresh_process(_RUN_ALL, lines)


def test_settings_that_are_refused_import_nothing_heavy() -> None:
    refused = [
        "nope=1",
        "train.workers=0",
        "model.vision.stages=9",
        "model.vision.stem=small model.vision.weights=imagenet",
        "model.task.kind=capton",
        "source.kind=tabel",
        "processor.image_size=8",
        "model.language.heads=3",
        "evaluate.zero_shot.templates=[\"a photo\"]",
    ]  # fmt: skip
    statuses, imported = run_jobs(*(["train", "--config", "demo", *settings.split(" ", 1)] for settings in refused[:3]))
    assert statuses == [2, 2, 2]
    assert imported == set()
    statuses, imported = run_jobs(*(["train", *settings.split(maxsplit=1)] for settings in refused[3:]))
    assert statuses == [2] * len(refused[3:])
    assert imported == set()


def test_the_settings_of_most_kinds_import_nothing_heavy() -> None:
    """Others ask a library about the model that they name: vision vit, timm, hf, language tower, the head llm."""
    kinds = {
        "model.task.kind": ("caption", "classify", "contrastive", "matching", "vqa"),
        "model.topology.kind": ("interactive",),
        "model.fusion.kind": ("concat", "gated", "interactive"),
        "model.knowledge.kind": ("injection", "memory"),
        "model.vision.name": ("resnet50", "cifar_resnet20"),
        "model.language.architecture": ("roberta", "xlnet"),
        "source.kind": ("scenes", "folder source.folder=a"),
    }
    chosen = [f"{key}={value}" for key, values in kinds.items() for value in values]
    statuses, imported = run_jobs(*(["train", *settings.split(), "--print"] for settings in chosen))
    assert imported == set()
    assert statuses == [0] * len(chosen)


def test_import_data_imports_nothing_heavy(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    source = coloured_pictures(tmp_path / "pictures", train=4, val=2, test=2)
    assert run_jobs(["import_data", *source, f"data.tars={tmp_path / 'data'}"]) == ([0], frozenset())


def test_missing_data_are_told_before_anything_heavy_is_imported(tmp_path: Path) -> None:
    where = [f"data.tars={tmp_path}", f"storage={tmp_path / 'runs'}"]
    assert run_jobs(["index", *where], ["train", *where]) == ([1, 1], frozenset())


@pytest.mark.parametrize(
    ("modules", "may_import"),
    [
        (["pipelines.workflows.pipeline", "pipelines.workflows.serve", "pipelines.workflows.models"], set()),
        # The job plans a training, builds its tokenizer and starts its workers; what the controller gets of it.
        (["pipelines.workflows.fit"], {"ray", "pandas"}),
        (["pipelines.train.entry", "pipelines.train.torch_backend"], {"ray", "pandas"}),
        # Tasks of the cluster that read tars.
        (["pipelines.data.index.shard_pass", "pipelines.data.texts.corpus"], {"ray"}),
        (["pipelines.data.stream.loader", "pipelines.data.stream.image_pool"], set()),
    ],
    ids=lambda value: value[0].rpartition(".")[2] if isinstance(value, list) else "",
)
def test_modules_import_no_more_than_they_need(modules: list[str], may_import: set[str]) -> None:
    assert _in_fresh_process(_IMPORT_ALL, modules)[1] <= may_import
