"""Every subset of a model's streams missing, in one batch: answers, loss and gradients stay finite, and each sample's
answer is that which it has alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.vlmodel.tiny import DEFAULT_KINDS, IMU, for_tasks, tiny_input, tiny_tree
from vlmodel.config import list_part_kinds
from vlmodel.processor import Example, VLProcessor
from vlmodel.sample import TEXTS, Question, Sample, SampleTexts
from vlmodel.task import learnable_rows

INPUTS: dict[str, Any] = {"imu": IMU} | {
    name: settings for kind in ("audio", "video", "row") for name, settings in tiny_input(kind).items()
}
NAMES = ("image", *sorted(INPUTS))


# A contrastive task reads one stream beside the texts, triples are texts alone, and several tasks are made of these.
@pytest.mark.parametrize(
    "task", sorted(set(list_part_kinds("vlmodel.tasks")) - {"contrastive", "multitask", "triples"})
)
@pytest.mark.parametrize("fusion", list_part_kinds("vlmodel.fusion"))
@pytest.mark.parametrize("topology", list_part_kinds("vlmodel.topology"))
def test_every_subset_of_streams(
    topology: str,
    fusion: str,
    task: str,
    make_model: Callable[..., Any],
    processor: VLProcessor,
    examples: list[Example],
) -> None:
    if task != "vqa" and topology != DEFAULT_KINDS["topology"] and fusion != DEFAULT_KINDS["fusion"]:
        pytest.skip("other tasks meet each topology and each fusion once")
    parts = {"topology": {"kind": topology}, "fusion": {"kind": fusion}, "task": {"kind": task}, "inputs": INPUTS}
    tree, model = tiny_tree(**parts), make_model(**parts)
    made = for_tasks(processor, tree.task.tasks_by_name(), tree)
    given = [subset for size in range(len(NAMES) + 1) for subset in itertools.combinations(NAMES, size)]
    full = examples[0].inputs
    fields = made.default_task
    asked = SampleTexts(examples[0].texts[:1], (Question(examples[0].texts[0], "red"),), "red")
    samples = [Sample("", {name: full[name] for name in subset}, asked, frozenset(subset) | TEXTS) for subset in given]
    made_of = zip(samples, learnable_rows(fields, samples), strict=True)
    rows = [Example(s.inputs, tuple(r.text for r in of), tuple(r.target for r in of)) for s, of in made_of if of]
    assert len(rows) >= len(given) // 2, "a task learns from most subsets, if not from all"

    def run(some: list[Example]) -> Any:
        arrays = made.collate_tasks([made.decode_inputs(example) for example in some], {"": some})
        return model(**{name: torch.from_numpy(array) for name, array in arrays.items()})

    together = run(rows)
    assert together.loss.isfinite()
    if fields.chooses_label:
        assert together.logits_NK.isfinite().all()
        with torch.no_grad():
            for n in range(0, len(rows), 7):
                torch.testing.assert_close(run([rows[n]]).logits_NK[0], together.logits_NK[n], rtol=1e-4, atol=1e-4)
    together.loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert [name for name, gradient in gradients.items() if gradient is None] == []
    assert all(gradient.isfinite().all() for gradient in gradients.values())
