"""Samples without an image among others: they change nothing for these, and nothing of the vision encoder."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.vlmodel.tiny import batch_for, tiny_tree
from vlmodel.config import list_part_kinds
from vlmodel.model import VLModel
from vlmodel.processor import Example, VLProcessor
from vlmodel.tokens import Tokens

MEETINGS = list(itertools.product(list_part_kinds("vlmodel.topology"), list_part_kinds("vlmodel.fusion")))


@pytest.fixture
def asked(examples: list[Example]) -> Example:
    """Questions of which the image will be left out."""
    return replace(examples[0], texts=("is the shape red?", "what is there?"), targets=("yes", "blue"), weights=None)


def batch_of(
    processor: VLProcessor, decoder: dict[str, Any], examples: list[Example], has_image: list[bool]
) -> dict[str, Tensor]:
    """The examples as a batch, of which some are without their images."""
    batch = batch_for(processor, tiny_tree(task=decoder).task.tasks_by_name(), examples)
    present_B = torch.tensor(has_image)
    place_B = torch.where(present_B, present_B.cumsum(0) - 1, present_B.sum())
    return batch | {"image.pixels_BHWC": batch["image.pixels_BHWC"][present_B], "image.place_B": place_B}


def learned(model: VLModel, batch: dict[str, Tensor]) -> tuple[Tensor, float, dict[str, Tensor], dict[str, Tensor]]:
    """Loss, count, gradients and batch statistics of one pass from the same beginning."""
    begun = {name: value.clone() for name, value in model.state_dict().items()}
    output = model.train()(**batch)
    output.loss_sum.backward()
    missing = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    statistics = {name: value.clone() for name, value in model.named_buffers() if "running" in name}
    model.load_state_dict(begun)
    model.zero_grad()
    return output.loss_sum.detach(), output.count.item(), gradients, statistics


def test_missing_rows_of_a_stream() -> None:
    tokens = Tokens(torch.arange(1.0, 5).view(2, 2, 1), torch.ones(2, 2, dtype=torch.bool), torch.tensor([[1.0], [3]]))
    spread = tokens.select_rows_or_missing(torch.tensor([2, 1, 0, 2]))
    assert spread.x_BTD.squeeze(-1).tolist() == [[0, 0], [3, 4], [1, 2], [0, 0]]
    assert spread.mask_BT.tolist() == [[False] * 2, [True] * 2, [True] * 2, [False] * 2]
    assert spread.pooled_BD.tolist() == [[0], [3], [1], [0]]


@pytest.mark.parametrize(("topology", "fusion"), MEETINGS)
@pytest.mark.parametrize("decoder", ["vqa", "answer"])
def test_a_mixed_batch_is_the_sum_of_its_halves(
    topology: str,
    fusion: str,
    decoder: str,
    make_model: Callable[..., Any],
    processor: VLProcessor,
    examples: list[Example],
    asked: Example,
) -> None:
    """Loss and gradients add up, each parameter has one even without any image, and absent images are no statistics."""
    chosen = {"kind": decoder}
    model = make_model(topology={"kind": topology}, fusion={"kind": fusion}, task=chosen)
    pairs = batch_of(processor, chosen, examples, [True, True])
    del pairs["image.place_B"]
    before = {name: value.clone() for name, value in model.named_buffers() if "running" in name}
    of_pairs = learned(model, pairs)
    of_texts = learned(model, batch_of(processor, chosen, [asked], [False]))
    mixed = learned(model, batch_of(processor, chosen, [examples[0], asked, examples[1]], [True, False, True]))

    assert before
    for name, value in before.items():
        assert torch.equal(of_texts[3][name], value)
        assert torch.equal(mixed[3][name], of_pairs[3][name])
        assert not torch.equal(mixed[3][name], value)
    torch.testing.assert_close(mixed[0], of_pairs[0] + of_texts[0], rtol=1e-4, atol=1e-5)
    assert mixed[1] == pytest.approx(of_pairs[1] + of_texts[1])
    for name, value in mixed[2].items():
        torch.testing.assert_close(value, of_pairs[2][name] + of_texts[2][name], rtol=1e-3, atol=1e-5)
    assert not any(value.any() for name, value in of_texts[2].items() if name.startswith("vision."))
    assert any(value.any() for name, value in of_texts[2].items() if name.startswith("language."))


@pytest.mark.parametrize(
    "vision", [{"kind": "vit"}, {"kind": "cnn", "name": "swin_t"}, {"kind": "cnn", "frozen": True}], ids=str
)
def test_every_encoder_takes_a_batch_without_images(
    vision: dict[str, Any], make_model: Callable[..., Any], processor: VLProcessor, asked: Example
) -> None:
    model = make_model(vision=vision)
    loss, _, gradients, _ = learned(model, batch_of(processor, {"kind": "vqa"}, [asked], [False]))
    assert loss.isfinite()
    assert not any(value.any() for name, value in gradients.items() if name.startswith("vision."))


@pytest.mark.parametrize("topology", list_part_kinds("vlmodel.topology"))
def test_where_all_have_an_image_nothing_changes(
    topology: str, make_model: Callable[..., Any], processor: VLProcessor, examples: list[Example]
) -> None:
    model = make_model(topology={"kind": topology})
    batch = batch_of(processor, {"kind": "vqa"}, examples, [True, True])
    told = learned(model, batch)
    untold = learned(model, {name: value for name, value in batch.items() if name != "image.place_B"})
    assert torch.equal(told[0], untold[0])
    for name, value in told[2].items():
        assert torch.equal(value, untold[2][name]), name


def test_cached_features_of_some_samples(
    make_model: Callable[..., Any], processor: VLProcessor, examples: list[Example], asked: Example
) -> None:
    model = make_model(vision={"kind": "cnn", "frozen": True})
    batch = batch_of(processor, {"kind": "vqa"}, [asked, *examples], [False, True, True])
    seen = model(**batch)
    kept = {"image.features_BF": model.vision.compute_features(batch.pop("image.pixels_BHWC"))}
    torch.testing.assert_close(model(**batch, **kept).logits_NK, seen.logits_NK)
