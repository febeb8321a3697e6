"""The examples of docs/EXTENDING.md work as they are printed there."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.data.importing.run import import_data
from pipelines.data.tars.errors import FaultReason
from tests.vlmodel.conftest import examples, processor, tokenizer  # noqa: F401 - fixtures
from tests.vlmodel.tiny import batch_for, for_tasks, tiny_tree
from vlmodel.config import find_part_config_class, list_part_kinds, parse_config
from vlmodel.model import VLModel
from vlmodel.processor import Example, VLProcessor

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "EXTENDING.md").read_text(encoding="utf-8")
EXAMPLES = dict(re.findall(r"^`([\w/]+)\.py`:\n\n```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL))


@pytest.fixture(autouse=True)
def installed(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The examples as files of their packages."""
    folder = tmp_path_factory.mktemp("examples")
    for path, source in EXAMPLES.items():
        package, _, name = path.replace("/", ".").rpartition(".")
        place = folder / package
        place.mkdir(exist_ok=True)
        (place / f"{name}.py").write_text(source, encoding="utf-8")
        monkeypatch.setattr(importlib.import_module(package), "__path__", [*sys.modules[package].__path__, str(place)])
    yield
    for path in EXAMPLES:
        sys.modules.pop(path.replace("/", "."), None)


def test_every_example_is_a_kind_of_its_package() -> None:
    assert {path.rpartition("/")[0] for path in EXAMPLES} == {
        "vlmodel/fusion", "vlmodel/vision", "vlmodel/modality", "vlmodel/tasks", "pipelines/data/importers",
    }  # fmt: skip
    for path in EXAMPLES:
        package, _, name = path.replace("/", ".").rpartition(".")
        assert (name in list_part_kinds(package)) is not name.startswith("_")


@pytest.mark.parametrize(
    "parts",
    [
        {"fusion": {"kind": "bilinear"}},
        {"vision": {"kind": "convmixer", "depth": 1}},
        {"task": {"kind": "counting"}},
        {"inputs": {"imu": {"kind": "recurrent", "channels": 3, "width": 16}}},
        {"inputs": {"imu": {"kind": "recurrent", "channels": 3}}, "vision": {"kind": "none"}},
    ],
)
def test_the_parts_train_and_a_saved_model_answers_the_same(
    parts: dict[str, Any],
    processor: VLProcessor,  # noqa: F811
    examples: list[Example],  # noqa: F811
    tmp_path: Path,
) -> None:
    tree = tiny_tree(**parts)
    torch.manual_seed(0)
    model = VLModel.create_from_config(tree, for_tasks(processor, tree.task.tasks_by_name(), tree))
    counted = [replace(example, targets=("3", "1")[: len(example.texts)]) for example in examples]
    batch = batch_for(processor, tree.task.tasks_by_name(), counted, tree)
    model(**batch).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    model.eval().save_pretrained(tmp_path)
    again = VLModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(model(**batch).loss, again(**batch).loss)


def test_the_importer_takes_the_captions_beside_the_images(tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name, captions in {"dog": "a dog\nan animal\n", "cat": "a cat\n", "alone": None}.items():
        Image.fromarray(np.full((8, 8, 3), len(name), np.uint8)).save(pictures / f"{name}.png")
        if captions:
            (pictures / f"{name}.txt").write_text(captions, encoding="utf-8")
    source = parse_config(find_part_config_class("pipelines.data.importers", "captions"), {"folder": str(pictures)})
    summary = import_data(source, str(tmp_path / "tars"))
    assert (summary.splits["train"].samples, summary.splits["train"].captions) == (2, 3)
    assert summary.rejected == {FaultReason.MISSING_TEXT: 1}
