"""Which head does which task, and that each answers as the predictor does, whatever else is in the batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.serve.inference.loading import warm_up
from pipelines.serve.inference.predecoded import DecodedExample, PredecodedProcessor
from tests.pipelines.serve.conftest import picture
from vlmodel.inference import Predictor
from vlmodel.operations.ask import VQAOperation
from vlmodel.operations.base import BatchedRequest, Operation, operations_of_tasks
from vlmodel.operations.classify import CLASSES
from vlmodel.operations.describe import CaptionOperation
from vlmodel.operations.embed import EmbedOperation
from vlmodel.processor import Example
from vlmodel.tasks.contrastive import ClassifyByPrompts, MatchBySimilarity
from vlmodel.tasks.matching import MatchByClass
from vlmodel.zero_shot import make_prompts

TEXTS = ("a circle", "what is the square ?", "there")


@dataclass
class Served:
    """An operation of a model, and the task that does it."""

    predictor: Predictor
    task: str
    operation: Operation

    def run(self, items: list[BatchedRequest]) -> Any:
        return self.operation.run(self.predictor, self.task, items)


@pytest.fixture
def served(folder_of: Callable[[str], Path]) -> Callable[[str], dict[str, Served]]:
    def load(name: str) -> dict[str, Served]:
        predictor = Predictor.from_pretrained(folder_of(name))
        p = predictor.processor
        processor = PredecodedProcessor(p.config, p.tokenizer, p.labels, p.tasks, p.normalizer)
        predictor = Predictor(predictor.model, processor)
        return {name: Served(predictor, *operation) for name, operation in operations_of_tasks(p.tasks).items()}

    return load


def decoded(served: Served, seed: int | None, texts: tuple[str, ...]) -> DecodedExample:
    inputs = {} if seed is None else {"image": picture(seed)}
    plain = Example(inputs, texts)
    return DecodedExample({}, texts, decoded=served.predictor.processor.decode_inputs(plain))


@pytest.mark.parametrize(
    ("decoder", "expected"),
    [
        ("vqa", {"vqa": (VQAOperation, "")}),
        ("answer", {"vqa": (VQAOperation, "")}),
        ("caption", {"caption": (CaptionOperation, "")}),
        ("matching", {"match": (MatchByClass, "")}),
        ("statements", {"match": (MatchByClass, "")}),
        (
            "contrastive",
            {"match": (MatchBySimilarity, ""), "embed": (EmbedOperation, ""), "classify": (ClassifyByPrompts, "")},
        ),
        (
            "all",
            {
                "vqa": (VQAOperation, "vqa"),
                "caption": (CaptionOperation, "caption"),
                "match": (MatchByClass, "matching"),
                "embed": (EmbedOperation, "contrastive"),
                "classify": (ClassifyByPrompts, "contrastive"),
            },
        ),
    ],
)
def test_each_task_has_the_head_that_does_it(served: Any, decoder: str, expected: dict[str, Any]) -> None:
    result = served(decoder)
    assert {name: (type(one.operation), one.task) for name, one in result.items()} == expected
    predictor = next(iter(result.values())).predictor
    warm_up(predictor, [(one.task, one.operation) for one in result.values()], 3)


@pytest.mark.parametrize(("decoder", "task"), [("vqa", "vqa"), ("answer", "vqa"), ("caption", "caption")])
def test_ranked_answers_do_not_depend_on_what_others_want(served: Any, decoder: str, task: str) -> None:
    adapter = served(decoder)[task]
    texts = TEXTS[:2] if task == "vqa" else ("",)
    requested = [(1, True), (3, False), (2, True), (1, False)]
    items = [BatchedRequest(decoded(adapter, seed, texts), *want) for seed, want in enumerate(requested)]
    for seed, ((top_k, attention), result) in enumerate(zip(requested, adapter.run(items), strict=True)):
        [alone] = adapter.predictor.predict([Example({"image": picture(seed)}, texts)], top_k, attention)
        for actual, expected_prediction in zip(result, alone, strict=True):
            assert [text for text, _ in actual.answers] == [text for text, _ in expected_prediction.answers]
            np.testing.assert_allclose(
                [p for _, p in actual.answers], [p for _, p in expected_prediction.answers], rtol=1e-4
            )
            assert (actual.attention_HW is not None) == attention
            if attention:
                np.testing.assert_allclose(actual.attention_HW, expected_prediction.attention_HW, atol=1e-5)


def test_a_matching_decoder_gives_the_probability_of_a_match(served: Any) -> None:
    adapter = served("matching")["match"]
    items = [BatchedRequest(decoded(adapter, seed, TEXTS[: seed + 1])) for seed in range(3)]
    for seed, result in enumerate(adapter.run(items)):
        [alone] = adapter.predictor.predict([Example({"image": picture(seed)}, TEXTS[: seed + 1])], 2)
        assert result.method == "matching"
        expected = [dict(prediction.answers)["match"] for prediction in alone]
        np.testing.assert_allclose(result.probabilities, expected, atol=1e-5)
        assert result.similarities is None


def test_contrastive_decoder_compares_only_the_texts_of_one_request(served: Any) -> None:
    loaded = served("contrastive")
    adapter = loaded["match"]
    items = [BatchedRequest(decoded(adapter, 0, TEXTS)), BatchedRequest(decoded(adapter, 1, TEXTS[:1]))]
    result, lone = adapter.run(items)
    embedded, of_lone = loaded["embed"].run(items)
    cosines = embedded.text_ND @ embedded.image_D
    np.testing.assert_allclose(result.similarities, cosines, atol=1e-5)
    assert result.temperature == pytest.approx(0.07)
    shares = np.exp(cosines / 0.07) / np.exp(cosines / 0.07).sum()
    np.testing.assert_allclose(result.probabilities, shares, atol=1e-4)
    assert lone.probabilities == [None]
    np.testing.assert_allclose(lone.similarities, of_lone.text_ND @ of_lone.image_D, atol=1e-5)


def test_embeddings_are_of_length_one_and_the_same_with_or_without_the_other_half(served: Any) -> None:
    adapter = served("contrastive")["embed"]
    both = BatchedRequest(decoded(adapter, 0, TEXTS))
    image, texts, other = (
        BatchedRequest(decoded(adapter, 0, ())),
        BatchedRequest(decoded(adapter, None, TEXTS[1:])),
        BatchedRequest(decoded(adapter, 1, TEXTS[:1])),
    )
    [whole] = adapter.run([both])
    assert whole.image_D.shape == (8,)
    assert whole.text_ND.shape == (3, 8)
    np.testing.assert_allclose(np.linalg.norm([whole.image_D, *whole.text_ND], axis=1), 1, atol=1e-5)
    for batch in ([image], [texts], [other, image, texts], [texts, image, both]):
        for item, result in zip(batch, adapter.run(batch), strict=True):
            if item is image:
                np.testing.assert_allclose(result.image_D, whole.image_D, atol=1e-5)
                assert result.text_ND.shape == (0, 8)
            elif item is texts:
                assert result.image_D is None
                np.testing.assert_allclose(result.text_ND, whole.text_ND[1:], atol=1e-5)
            elif item is other:
                assert abs(result.image_D - whole.image_D).max() > 1e-3
                np.testing.assert_allclose(result.text_ND, whole.text_ND[:1], atol=1e-5)


def test_classes_of_a_request_are_chosen_by_their_texts(served: Any) -> None:
    """Each class is the mean of its texts' vectors; what other requests ask changes nothing."""
    loaded = served("contrastive")
    adapter, classes, templates = loaded["classify"], ("circle", "square", "colour"), ("a {}", "there is a {} ?")
    prompts = make_prompts(classes, templates)
    asked = BatchedRequest(decoded(adapter, 0, prompts), top_k=2, settings={CLASSES: classes})
    other = BatchedRequest(decoded(adapter, 1, ("a circle",)), settings={CLASSES: ("circle",)})
    [prediction], [lone] = adapter.run([asked, other])
    [embedded] = loaded["embed"].run([asked])
    mean_CD = embedded.text_ND.reshape(3, 2, -1).mean(1)
    cosines_C = (mean_CD / np.linalg.norm(mean_CD, axis=1, keepdims=True)) @ embedded.image_D
    shares_C = np.exp(cosines_C / 0.07) / np.exp(cosines_C / 0.07).sum()
    order = np.argsort(-shares_C)[:2]
    assert [name for name, _ in prediction.answers] == [classes[n] for n in order]
    np.testing.assert_allclose([share for _, share in prediction.answers], shares_C[order], atol=1e-4)
    assert lone.answers == [("circle", 1.0)]
