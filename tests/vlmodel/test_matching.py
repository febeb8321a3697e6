"""Image-text matching: labels, loss, answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.vlmodel.tiny import collate, for_tasks, tiny_tree
from vlmodel.config import parse_config
from vlmodel.inference import Predictor
from vlmodel.model import VLModel
from vlmodel.processor import Example, VLProcessor
from vlmodel.sample import Question, SampleTexts
from vlmodel.tasks.matching import Config

MATCHING = {"kind": "matching", "hidden": 8}


@pytest.fixture
def matching(processor: VLProcessor) -> VLProcessor:
    return for_tasks(processor, parse_config(Config, {}).tasks_by_name())


def labelled(examples: list[Example], first: str | None, second: str, third: str) -> list[Example]:
    one, two = examples
    return [Example(one.inputs, one.texts, (first, second), (1.0, 0.5)), Example(two.inputs, two.texts, (third,))]


def tensors(processor: VLProcessor, examples: list[Example]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in collate(processor, examples).items()}


def test_what_it_reads() -> None:
    texts = SampleTexts(("a caption",), (Question("a statement?", "yes"),))
    for pairs, read in (("captions", "a caption"), ("questions", "a statement?")):
        config = parse_config(Config, {"pairs": pairs})
        assert list(config.texts_to_read(texts)) == [read]
        assert config.reads_text()
        assert [pairs in present for present in ({"image", pairs}, {pairs}) if config.can_learn(frozenset(present))]
        assert not config.can_learn(frozenset({pairs}))


def test_loss_and_counts(make_model: Callable[..., Any], matching: VLProcessor, examples: list[Example]) -> None:
    """No answers are needed, and "yes" and "match" say the same."""
    model = make_model(task={**MATCHING, "label_smoothing": 0.2})
    batch = tensors(matching, labelled(examples, "Yes ", "no match", "match"))
    assert batch["labels_N"].tolist() == [1, 0, 1]
    out = model(**batch)
    log_p = out.logits_NK.double().log_softmax(-1)
    each = [-(0.9 * log_p[n, label] + 0.1 * log_p[n, 1 - label]) for n, label in enumerate((1, 0, 1))]
    torch.testing.assert_close(out.loss_sum.double(), each[0] + 0.5 * each[1] + each[2])
    assert (out.count.item(), out.total.item()) == (2.5, 2.5)
    right = (out.logits_NK.argmax(-1) == batch["labels_N"]).float() * batch["weights_N"]
    assert out.correct.item() == right.sum().item()


def test_an_unknown_pair_is_not_counted(
    make_model: Callable[..., Any], matching: VLProcessor, examples: list[Example]
) -> None:
    model = make_model(task=MATCHING)
    batch = tensors(matching, labelled(examples, None, "no", "entailment"))
    assert batch["labels_N"].tolist() == [-1, 0, 1]
    out = model(**batch)
    assert (out.count.item(), out.total.item()) == (1.5, 1.5)
    out.loss.backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


def test_answers(make_model: Callable[..., Any], matching: VLProcessor, examples: list[Example]) -> None:
    model = make_model(task=MATCHING)
    batch = tensors(matching, labelled(examples, "yes", "no", "yes"))
    with torch.no_grad():
        model.decoder.head[-1].weight.mul_(5)
        logits_N2 = model(**batch).logits_NK
        found_N = logits_N2[:, 1] - logits_N2[:, 0]
        model.decoder.head[-1].bias[1] -= (found_N.min() + found_N.max()) / 2  # so that some match
        match_N = model(**batch).logits_NK.softmax(-1)[:, 1].tolist()
    assert min(match_N) < 0.4999 < 0.5001 < max(match_N)
    predictions = [p for rows in Predictor(model, matching).predict(examples) for p in rows]
    for prediction, p in zip(predictions, match_N, strict=True):
        expected = sorted([("match", p), ("no match", 1 - p)], key=lambda answer: -answer[1])
        assert [name for name, _ in prediction.answers] == [name for name, _ in expected]
        assert [value for _, value in prediction.answers] == pytest.approx([value for _, value in expected], abs=1e-5)
    best = Predictor(model, matching).predict(examples, top_k=1)
    assert all(len(prediction.answers) == 1 for rows in best for prediction in rows)


def test_it_learns_which_texts_belong(
    make_model: Callable[..., Any], matching: VLProcessor, examples: list[Example]
) -> None:
    one, two = examples
    texts = ("red", "the shape")
    crossed = [Example(one.inputs, texts, ("match", "no match")), Example(two.inputs, texts, ("no match", "match"))]
    model, batch = make_model(task=MATCHING).train(), tensors(matching, crossed)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        out = model(**batch)
        out.loss.backward()
        optimizer.step()
    assert out.correct.item() == 4  # neither the texts nor the images alone tell


def test_saved_and_loaded_without_answers(matching: VLProcessor, examples: list[Example], tmp_path: Path) -> None:
    """A model that chooses among no answers of the data."""
    nameless = VLProcessor(matching.config, matching.tokenizer, [], matching.tasks)
    model = VLModel.create_from_config(tiny_tree(task=MATCHING), nameless).eval()
    model.save_pretrained(tmp_path)
    nameless.save_pretrained(tmp_path)
    batch = tensors(nameless, labelled(examples, "yes", "no", "yes"))
    loaded = Predictor.from_pretrained(tmp_path)
    assert torch.equal(loaded.model(**batch).logits_NK, model(**batch).logits_NK)
    assert loaded.processor.tasks == matching.tasks
    assert loaded.predict(examples) == Predictor(model, nameless).predict(examples)
