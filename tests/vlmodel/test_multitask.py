"""Several tasks on one batch: sums, gradients, missing rows, saving, answers, settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.vlmodel.tiny import for_tasks, tiny_tree
from vlmodel.array_names import select_task_arrays
from vlmodel.config import ConfigError, parse_config
from vlmodel.inference import Predictor
from vlmodel.model import VLModel
from vlmodel.processor import Example, VLProcessor
from vlmodel.tasks.multitask import Config

HEADS: dict[str, dict[str, Any]] = {
    "vqa": {"kind": "vqa", "hidden": 8},
    "match": {"kind": "matching"},
    "find": {"kind": "contrastive", "width": 8},
}
WEIGHTS = {"match": 0.5, "find": 2.0}
DECODER = {"kind": "multitask", "heads": HEADS, "weights": WEIGHTS}


@pytest.fixture
def several(processor: VLProcessor) -> VLProcessor:
    return for_tasks(processor, parse_config(Config, DECODER).tasks_by_name())


@pytest.fixture
def rows(examples: list[Example]) -> dict[str, list[Example]]:
    """What each task makes of the two images."""
    one, two = (example.inputs for example in examples)
    return {
        "vqa": examples,
        "match": [
            Example(one, ("red", "blue"), ("match", "no match")),
            Example(two, ("red",), ("no match",)),
        ],
        "find": [Example(one, ("red", "a circle")), Example(two, ("the shape",))],
    }


def collate(processor: VLProcessor, rows: dict[str, list[Example]]) -> dict[str, Tensor]:
    decoded = [processor.decode_inputs(example) for example in next(iter(rows.values()))]
    return {name: torch.from_numpy(array) for name, array in processor.collate_tasks(decoded, rows).items()}


def test_sums_are_those_of_the_tasks_by_their_weights(
    make_model: Callable[..., Any], several: VLProcessor, rows: dict[str, list[Example]]
) -> None:
    model, batch = make_model(task=DECODER), collate(several, rows)
    out = model(**batch)
    assert list(out.tasks) == ["find", "match", "vqa"]
    combined = sum(WEIGHTS.get(task, 1.0) * sums for task, sums in out.tasks.items())
    sums = torch.stack([out.loss_sum, out.count, out.correct, out.total])
    torch.testing.assert_close(sums.double(), combined)
    assert out.count.item() == 2.5 + 0.5 * 3 + 2.0 * 3
    torch.testing.assert_close(out.loss, out.loss_sum / out.count)
    assert out.logits_NK is None
    # Each task's are those of the head alone.
    encoded = model.encode_inputs(batch)
    for task, head in model.decoder.task_decoders().items():
        given = select_task_arrays(batch, task)
        targets = {name: given[name] for name in ("labels_N", "weights_N", "text_key_N") if name in given}
        alone = head(model.encode_task(task, encoded, given), **targets)
        torch.testing.assert_close(out.tasks[task][:2], torch.stack([alone.loss_sum, alone.count]).double())
        assert alone.loss_sum > 0


def test_the_image_is_encoded_once(
    make_model: Callable[..., Any], several: VLProcessor, rows: dict[str, list[Example]]
) -> None:
    model, calls = make_model(task=DECODER), []
    model.vision.register_forward_hook(
        lambda _, args, inputs, __: calls.append(len(inputs["pixels_BHWC"])), with_kwargs=True
    )
    model(**collate(several, rows))
    assert calls == [2]


@pytest.mark.parametrize("missing", [(), ("vqa",), ("find",), ("match", "find"), ("vqa", "match", "find", "tell")])
def test_every_parameter_gets_a_gradient_whatever_rows_there_are(
    missing: tuple[str, ...], make_model: Callable[..., Any], processor: VLProcessor, rows: dict[str, list[Example]]
) -> None:
    """A task without a row in a worker's batch adds nothing, but its parameters are waited for by all workers."""
    decoder = {**DECODER, "heads": HEADS | {"tell": {"kind": "caption", "head": {"width": 16, "depth": 1, "heads": 2}}}}
    model = make_model(task=decoder).train()
    rows = rows | {"tell": [Example(e.inputs, ("",), ("a red circle",)) for e in rows["vqa"]]}
    present = {
        task: [Example(e.inputs, ()) if task in missing else e for e in of_task] for task, of_task in rows.items()
    }
    out = model(**collate(for_tasks(processor, parse_config(Config, decoder).tasks_by_name()), present))
    for task, sums in out.tasks.items():
        assert sums.isfinite().all()
        assert bool(sums.any()) == (task not in missing)
    out.loss_sum.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert [name for name, g in gradients.items() if g is None or not g.isfinite().all()] == []
    for task in rows:
        of_head = [g for name, g in gradients.items() if name.startswith(f"decoder.by_name.{task}.")]
        assert of_head
        assert any(g.any() for g in of_head) == (task not in missing)


def test_saved_and_loaded_is_the_same(
    make_model: Callable[..., Any], several: VLProcessor, rows: dict[str, list[Example]], tmp_path: Path
) -> None:
    model, batch = make_model(task=DECODER), collate(several, rows)
    model.save_pretrained(tmp_path)
    several.save_pretrained(tmp_path)
    loaded = Predictor.from_pretrained(tmp_path)
    assert list(loaded.model.state_dict()) == list(model.state_dict())
    assert (
        list(loaded.processor.tasks)
        == list(loaded.model.decoder.task_decoders())
        == list(model.decoder.task_decoders())
    )
    before, after = model(**batch), loaded.model(**batch)
    assert torch.equal(before.loss_sum, after.loss_sum)
    for task, sums in before.tasks.items():
        assert torch.equal(after.tasks[task], sums)


def test_each_task_is_answered(
    make_model: Callable[..., Any], several: VLProcessor, rows: dict[str, list[Example]]
) -> None:
    predictor = Predictor(make_model(task=DECODER), several)
    named = {
        task: {
            name for example in predictor.predict(rows[task], task=task) for row in example for name, _ in row.answers
        }
        for task in HEADS
    }
    assert named == {"vqa": set(several.labels), "match": {"match", "no match"}, "find": {"similarity"}}
    # What is answered of a batch of all tasks is the same.
    whole = {name: array.numpy() for name, array in collate(several, rows).items()}
    for task in HEADS:
        flat = [row.answers for example in predictor.predict(rows[task], task=task) for row in example]
        assert [name for row in predictor.predict_collated(whole, task=task) for name, _ in row] == [
            name for row in flat for name, _ in row
        ]
    assert predictor.embed_collated(whole, task="find") is not None
    assert predictor.embed_collated(whole, task="vqa") is None
    with pytest.raises(ValueError, match="no task 'other'; it has 'find', 'match', 'vqa'"):
        predictor.predict(rows["vqa"], task="other")


def test_tasks_without_text_or_fusion_build_neither(processor: VLProcessor) -> None:
    heads = {"a": {"kind": "contrastive"}, "b": {"kind": "contrastive", "width": 8}}
    tree = tiny_tree(task={"kind": "multitask", "heads": heads})
    model = VLModel.create_from_config(tree, for_tasks(processor, tree.task.tasks_by_name()))
    assert model.topology is None
    assert model.language is not None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": {"a": {}}}, r"heads = .*at least 2"),
        ({"heads": {"a": {}, "b c": {}}}, r"heads has 'b c'; a task's name has letters"),
        ({"heads": {"a": {}, "values": {}}}, r"heads.values: .* give it another name"),
        ({"heads": {"a": {}, "b": {"kind": "multitask", "heads": HEADS}}}, "heads.b is itself of several tasks"),
        ({"heads": {"a": {}, "b": {"kind": "vqqa"}}}, r"heads.b: kind 'vqqa' is not a part of vlmodel.tasks; .*choose"),
        ({"weights": {"vqaa": 1.0}}, "weights has 'vqaa', which is no task; the tasks are"),
        ({"weights": {"vqa": 0.0}}, "weights.vqa=0.0 must be a number above 0; remove the head"),
        ({"weights": {"vqa": float("nan")}}, "weights.vqa=nan must be a number above 0"),
    ],
)
def test_settings_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config(Config, {**DECODER, **changes})


def test_selection_metric_of_several_tasks() -> None:
    assert parse_config(Config, DECODER).checkpoint_metric() == "accuracy"
    assert (
        parse_config(Config, {**DECODER, "heads": HEADS | {"tell": {"kind": "caption"}}}).checkpoint_metric() == "loss"
    )
