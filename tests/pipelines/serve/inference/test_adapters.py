"""Which head does which task, and that each answers as the predictor does, whatever else is in the batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.serve.inference.adapters import (
    Answering,
    DecodedExample,
    Embedding,
    Item,
    Matching,
    PredecodedProcessor,
    Similarity,
    TaskAdapter,
    task_adapters,
)
from tests.pipelines.serve.conftest import picture
from vlmodel.inference import Predictor
from vlmodel.processor import Example

TEXTS = ("a circle", "what is the square ?", "there")


@pytest.fixture
def heads(folder_of: Callable[[str], Path]) -> Callable[[str], dict[str, TaskAdapter[Any]]]:
    def load(name: str) -> dict[str, TaskAdapter[Any]]:
        plain = Predictor.from_pretrained(folder_of(name))
        p = plain.processor
        return dict(
            task_adapters(Predictor(plain.model, PredecodedProcessor(p.config, p.tokenizer, p.labels, p.tasks)))
        )

    return load


def decoded(head: TaskAdapter[Any], seed: int | None, texts: tuple[str, ...]) -> DecodedExample:
    pixels = None if seed is None else head.predictor.processor.decode(picture(seed))
    return DecodedExample(b"", texts, pixels_HWC=pixels)


@pytest.mark.parametrize(
    ("decoder", "expected"),
    [
        ("vqa", {"vqa": (Answering, "")}),
        ("answer", {"vqa": (Answering, "")}),
        ("caption", {"caption": (Answering, "")}),
        ("matching", {"match": (Matching, "")}),
        ("statements", {"match": (Matching, "")}),
        ("contrastive", {"match": (Similarity, ""), "embed": (Embedding, "")}),
        (
            "all",
            {
                "vqa": (Answering, "vqa"),
                "caption": (Answering, "caption"),
                "match": (Matching, "matching"),
                "embed": (Embedding, "contrastive"),
            },
        ),
    ],
)
def test_each_task_has_the_head_that_does_it(heads: Any, decoder: str, expected: dict[str, Any]) -> None:
    found = heads(decoder)
    assert {task: (type(head), head.name) for task, head in found.items()} == expected
    for head in found.values():
        for item in head.warm_ups():
            assert len(head.run([item] * 3)) == 3


@pytest.mark.parametrize(("decoder", "task"), [("vqa", "vqa"), ("answer", "vqa"), ("caption", "caption")])
def test_ranked_answers_do_not_depend_on_what_others_want(heads: Any, decoder: str, task: str) -> None:
    head = heads(decoder)[task]
    texts = TEXTS[:2] if task == "vqa" else ("",)
    wants = [(1, True), (3, False), (2, True), (1, False)]
    items = [Item(decoded(head, seed, texts), *want) for seed, want in enumerate(wants)]
    for seed, ((top_k, attention), got) in enumerate(zip(wants, head.run(items), strict=True)):
        [alone] = head.predictor.predict([Example(picture(seed), texts)], top_k, attention)
        for mine, plain in zip(got, alone, strict=True):
            assert [text for text, _ in mine.answers] == [text for text, _ in plain.answers]
            np.testing.assert_allclose([p for _, p in mine.answers], [p for _, p in plain.answers], rtol=1e-4)
            assert (mine.attention_HW is not None) == attention
            if attention:
                np.testing.assert_allclose(mine.attention_HW, plain.attention_HW, atol=1e-5)


def test_a_matching_decoder_gives_the_probability_of_a_match(heads: Any) -> None:
    head = heads("matching")["match"]
    items = [Item(decoded(head, seed, TEXTS[: seed + 1])) for seed in range(3)]
    for seed, found in enumerate(head.run(items)):
        [alone] = head.predictor.predict([Example(picture(seed), TEXTS[: seed + 1])], 2)
        assert found.method == "matching"
        expected = [dict(prediction.answers)["match"] for prediction in alone]
        np.testing.assert_allclose(found.probabilities, expected, atol=1e-5)
        assert found.similarities is None


def test_a_contrastive_decoder_compares_the_texts_of_a_request_with_each_other_alone(heads: Any) -> None:
    loaded = heads("contrastive")
    head = loaded["match"]
    items = [Item(decoded(head, 0, TEXTS)), Item(decoded(head, 1, TEXTS[:1]))]
    found, lone = head.run(items)
    embedded, of_lone = loaded["embed"].run(items)
    cosines = embedded.text_ND @ embedded.image_D
    np.testing.assert_allclose(found.similarities, cosines, atol=1e-5)
    assert found.temperature == pytest.approx(0.07)
    shares = np.exp(cosines / 0.07) / np.exp(cosines / 0.07).sum()
    np.testing.assert_allclose(found.probabilities, shares, atol=1e-4)
    assert lone.probabilities == [None]
    np.testing.assert_allclose(lone.similarities, of_lone.text_ND @ of_lone.image_D, atol=1e-5)


def test_embeddings_are_of_length_one_and_the_same_with_or_without_the_other_half(heads: Any) -> None:
    head = heads("contrastive")["embed"]
    both = Item(decoded(head, 0, TEXTS))
    image, texts, other = (
        Item(decoded(head, 0, ())),
        Item(decoded(head, None, TEXTS[1:])),
        Item(decoded(head, 1, TEXTS[:1])),
    )
    [whole] = head.run([both])
    assert whole.image_D.shape == (8,)
    assert whole.text_ND.shape == (3, 8)
    np.testing.assert_allclose(np.linalg.norm([whole.image_D, *whole.text_ND], axis=1), 1, atol=1e-5)
    for batch in ([image], [texts], [other, image, texts], [texts, image, both]):
        for item, got in zip(batch, head.run(batch), strict=True):
            if item is image:
                np.testing.assert_allclose(got.image_D, whole.image_D, atol=1e-5)
                assert got.text_ND.shape == (0, 8)
            elif item is texts:
                assert got.image_D is None
                np.testing.assert_allclose(got.text_ND, whole.text_ND[1:], atol=1e-5)
            elif item is other:
                assert abs(got.image_D - whole.image_D).max() > 1e-3
                np.testing.assert_allclose(got.text_ND, whole.text_ND[:1], atol=1e-5)
