"""Texts in groups of like length: where they are cut, and that nobody can tell from what comes out."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from tests.vlmodel.tiny import batch_for
from vlmodel import lengths
from vlmodel.array_names import stays_on_host
from vlmodel.inference import Predictor
from vlmodel.lengths import group_texts_by_length
from vlmodel.model import VLModel
from vlmodel.processor import Example, ProcessorConfig, VLProcessor

LABELS = ["yes", "no", "red", "blue"]
TEXTS = (
    "red", "what color is the shape?", "a circle", "is there a red circle?", "the shape is red", "", "circle",
    "what is the color of a red circle", "red", "blue", "is the shape a circle or is the circle a shape?",
)  # fmt: skip
"""From nothing but the two tokens around a text to as many tokens as are kept; one comes twice."""


@pytest.fixture
def worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Group however little it saves: tests have few texts."""
    monkeypatch.setattr(lengths, "MIN_SAVED_SHARE", 0.0)
    monkeypatch.setattr(lengths, "MIN_SAVED_TOKENS", 0)


def mask_of(lengths_U: Sequence[int], width: int, left: bool = False) -> np.ndarray:
    mask_UT = np.arange(width) < np.array(lengths_U)[:, None]
    return mask_UT[:, ::-1] if left else mask_UT


def tokens_of(groups_G3: np.ndarray) -> int:
    return int((groups_G3[:, 0] * (groups_G3[:, 2] - groups_G3[:, 1])).sum())


def grouping(tokenizer: PreTrainedTokenizerFast, groups: int = 3) -> VLProcessor:
    return VLProcessor(ProcessorConfig(image_size=32, max_tokens=12, length_groups=groups), tokenizer, LABELS)


@pytest.mark.parametrize("left", [False, True])
def test_groups_by_hand(left: bool, worth_it: None) -> None:
    order_U, groups_G3 = group_texts_by_length(mask_of([3, 9, 4, 3, 8], 9, left), 2)
    assert order_U.tolist() == [0, 3, 2, 4, 1]
    columns = [[5, 9], [0, 9]] if left else [[0, 4], [0, 9]]
    assert groups_G3.tolist() == [[3, *columns[0]], [2, *columns[1]]]
    assert groups_G3.dtype == order_U.dtype == np.int64


@pytest.mark.parametrize("most", [1, 2, 3, 4])
def test_no_other_cuts_leave_fewer_tokens(most: int, worth_it: None) -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        lengths_U = rng.integers(0, 10, rng.integers(1, 9))
        mask_UT = mask_of(lengths_U, max(1, int(lengths_U.max())))
        order_U, groups_G3 = group_texts_by_length(mask_UT, most)
        assert sorted(order_U.tolist()) == list(range(len(lengths_U)))
        assert groups_G3[:, 0].sum() == len(lengths_U)
        assert 1 <= len(groups_G3) <= most
        assert (groups_G3[:, 0] > 0).all()
        ordered = np.maximum(lengths_U[order_U], 1)
        count = len(ordered)
        possible = (
            sum((stop - start) * ordered[stop - 1] for start, stop in itertools.pairwise((0, *cuts, count)))
            for more in range(min(most, count))
            for cuts in itertools.combinations(range(1, count), more)
        )
        assert tokens_of(groups_G3) == min(possible)
        for start, stop, (_, first, end) in zip(
            np.cumsum(groups_G3[:, 0]) - groups_G3[:, 0], np.cumsum(groups_G3[:, 0]), groups_G3, strict=True
        ):
            assert mask_UT[order_U[start:stop], first:end].sum() == mask_UT[order_U[start:stop]].sum()


def test_a_group_that_saves_little_is_not_made() -> None:
    few = mask_of([5] * 10 + [10] * 10, 10)
    assert len(group_texts_by_length(few, 4)[1]) == 1  # 50 of 200 tokens
    many = mask_of([5] * 20 + [10] * 20, 10)
    assert group_texts_by_length(many, 4)[1].tolist() == [[20, 0, 5], [20, 0, 10]]  # 100 of 400
    alike = mask_of([29] * 100 + [30] * 1000, 30)
    assert len(group_texts_by_length(alike, 4)[1]) == 1  # 100 of 33 000


@pytest.mark.parametrize(("lengths_U", "groups"), [([], []), ([4], [[1, 0, 4]]), ([0, 0], [[2, 0, 1]])])
def test_little_to_group(lengths_U: list[int], groups: list[list[int]], worth_it: None) -> None:
    order_U, groups_G3 = group_texts_by_length(mask_of(lengths_U, 4), 3)
    assert (order_U.tolist(), groups_G3.tolist()) == (list(range(len(lengths_U))), groups)
    assert groups_G3.shape == (len(groups), 3)


@pytest.mark.parametrize("side", ["left", "right"])
def test_tokenized_in_groups(tokenizer: PreTrainedTokenizerFast, side: str, worth_it: None) -> None:
    sided = padded_on(side, tokenizer)
    plain = grouping(sided, 1).tokenize(TEXTS)
    tokens = grouping(sided).tokenize(TEXTS)
    assert set(tokens) == {*plain, "distinct_groups_G3"}
    assert np.array_equal(tokens["input_ids_NT"], plain["input_ids_NT"])
    mask_NT, distinct_U = tokens["text_mask_NT"], tokens["distinct_U"]
    for found in (plain, tokens):  # each text finds itself
        own_NT = found["input_ids_NT"][found["distinct_U"]][found["text_distinct_N"]]
        assert np.array_equal(own_NT, plain["input_ids_NT"])
    assert (np.diff(mask_NT[distinct_U].sum(1)) >= 0).all()
    assert len(tokens["distinct_groups_G3"]) == 3
    assert tokens_of(tokens["distinct_groups_G3"]) < mask_NT[distinct_U].size
    nothing = grouping(sided).tokenize([])
    assert nothing["distinct_groups_G3"].shape == (0, 3)


def outcome(model: VLModel, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    result = model(**batch)
    result.loss_sum.backward()
    return result.loss_sum.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("texts", "groups"),
    [(TEXTS, 3), (("red",), 1), (("red", "blue", "a"), 1), (("", "what color is the shape?"), 2)],
    ids=["many", "one", "of one length", "one without a word"],
)
@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"language": {"architecture": "roberta", "pooling": "mean"}},
        {"language": {"architecture": "xlnet", "pooling": "attention"}},
        {"language": {"architecture": "mpnet"}, "fusion": {"pooling": "mean"}},
        {"language": {"architecture": "deberta-v2", "output": "pooled"}},
        {"topology": {"kind": "single"}},
        {"task": {"kind": "contrastive"}},
    ],
    ids=["bert", "roberta", "xlnet", "mpnet", "deberta-v2", "single", "contrastive"],
)
def test_groups_change_nothing(
    parts: dict[str, dict[str, Any]],
    texts: tuple[str, ...],
    groups: int,
    make_model: Callable[..., VLModel],
    tokenizer: PreTrainedTokenizerFast,
    examples: list[Example],
    worth_it: None,
) -> None:
    """Loss and gradients, of encoders that count positions and of such that see distances, padded on either side."""
    model = make_model(**parts)
    found = []
    for side, most in (("right", 1), ("right", 3), ("left", 3)):
        batch = batch_of(model, grouping(padded_on(side, tokenizer), most), examples, texts)
        assert len(batch.get("distinct_groups_G3", [0])) == (groups if most > 1 else 1)
        found.append(loss_and_gradients(model, batch))
    for loss, gradients in found[1:]:
        torch.testing.assert_close(loss, found[0][0], rtol=1e-5, atol=1e-5)
        assert list(gradients) == list(found[0][1])
        for name, value in found[0][1].items():
            torch.testing.assert_close(gradients[name], value, rtol=1e-3, atol=1e-5, msg=f"gradient of {name}")


def test_groups_of_several_tasks(
    make_model: Callable[..., VLModel], tokenizer: PreTrainedTokenizerFast, examples: list[Example], worth_it: None
) -> None:
    small = {"width": 16, "depth": 1, "heads": 2, "dropout": 0.0}
    heads = {
        "ask": {"kind": "vqa"},
        "near": {"kind": "contrastive", "width": 16},
        "tell": {"kind": "caption", "head": small},
    }
    model = make_model(task={"kind": "multitask", "heads": heads})
    plain, grouped = (batch_of(model, grouping(tokenizer, most), examples, TEXTS) for most in (1, 3))
    assert {name for name in grouped if stays_on_host(name)} == {"ask.distinct_groups_G3", "near.distinct_groups_G3"}
    torch.testing.assert_close(model(**grouped).loss, model(**plain).loss, rtol=1e-5, atol=1e-5)
    assert grouped.keys() - plain.keys() == {"ask.distinct_groups_G3", "near.distinct_groups_G3"}


def test_each_group_is_as_wide_as_its_longest_text(
    make_model: Callable[..., VLModel], tokenizer: PreTrainedTokenizerFast, examples: list[Example], worth_it: None
) -> None:
    model = make_model()
    seen: list[tuple[int, ...]] = []
    model.language.register_forward_hook(lambda _, inputs, __: seen.append(tuple(inputs[0].shape)))
    batch = batch_of(model, grouping(tokenizer), examples, TEXTS)
    model(**batch)
    assert seen == [(count, end - start) for count, start, end in batch["distinct_groups_G3"]]
    assert sum(count for count, _ in seen) == len(set(TEXTS))
    assert len({width for _, width in seen}) == 3


def test_answers_and_attention_are_the_same(
    make_model: Callable[..., VLModel], tokenizer: PreTrainedTokenizerFast, examples: list[Example], worth_it: None
) -> None:
    model = make_model()
    asked = [Example(examples[0].inputs, TEXTS), Example(examples[1].inputs, TEXTS[:2])]
    plain, grouped = (
        Predictor(model, grouping(tokenizer, most)).predict(asked, attention=True) for most in (1, 3)
    )  # fmt: skip
    for one, other in zip(itertools.chain(*plain), itertools.chain(*grouped), strict=True):
        assert [answer for answer, _ in one.answers] == [answer for answer, _ in other.answers]
        np.testing.assert_allclose([p for _, p in one.answers], [p for _, p in other.answers], rtol=1e-4)
        np.testing.assert_allclose(one.attention_HW, other.attention_HW, rtol=1e-3, atol=1e-6)


@pytest.mark.slow
def test_compiled_in_groups(
    make_model: Callable[..., VLModel], tokenizer: PreTrainedTokenizerFast, examples: list[Example], worth_it: None
) -> None:
    """One graph, for batches of other sizes too."""
    model = make_model()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for texts in (TEXTS, TEXTS[1:], TEXTS[2:]):
        batch = batch_of(model, grouping(tokenizer), examples, texts)
        torch.testing.assert_close(compiled(**batch).loss, model(**batch).loss)


def padded_on(side: str, tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]", padding_side=side,
    )  # fmt: skip


def batch_of(model: VLModel, processor: VLProcessor, examples: list[Example], texts: Sequence[str]) -> dict[str, Any]:
    """The texts about two images, as the model's feed gives them."""
    half = len(texts) // 2
    shared = (texts[:half], texts[half:])
    asked = [Example(e.inputs, tuple(t), ("red",) * len(t)) for e, t in zip(examples, shared, strict=True)]
    batch = batch_for(processor, model.tasks, asked)
    return {name: array.tolist() if stays_on_host(name) else array for name, array in batch.items()}


def loss_and_gradients(model: VLModel, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    loss = model(**batch).loss_sum
    assert loss is not None
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
