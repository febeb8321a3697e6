"""Texts of classes, and what their vectors say, worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from vlmodel.zero_shot import TemplateError, class_probabilities, class_vectors, make_prompts


def test_prompts_are_those_of_one_class_after_the_other() -> None:
    assert make_prompts(("dog", "cat"), ("a {}.", "the {}")) == ("a dog.", "the dog", "a cat.", "the cat")
    assert make_prompts(("dog",)) == ("a photo of a dog.",)
    assert make_prompts(("{}",), ("a {}",)) == ("a {}",), "names are taken as they are"


@pytest.mark.parametrize("template", ["a photo", "a {} and a {}", ""])
def test_a_template_has_one_place(template: str) -> None:
    with pytest.raises(TemplateError, match=f"{template.count('{}')} places"):
        make_prompts(("dog",), ("a {}", template))


def test_a_class_is_the_mean_of_its_texts() -> None:
    text_ND = np.array([[1, 0], [0, 1], [0.6, 0.8], [0.6, 0.8], [1, 0], [-1, 0]], np.float32)
    vectors_CD = class_vectors(text_ND, 3)
    assert np.allclose(vectors_CD, [[0.5**0.5, 0.5**0.5], [0.6, 0.8], [0, 0]])
    [shares_C] = class_probabilities(np.array([[0.6, 0.8]], np.float32), vectors_CD, 0.1)
    scores_C = np.array([1.4 * 0.5**0.5, 1, 0]) / 0.1
    assert np.allclose(shares_C, np.exp(scores_C) / np.exp(scores_C).sum(), atol=1e-6)
