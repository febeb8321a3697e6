"""Zero-shot classification: a contrastive model compares an input with prompts made of the names of classes.

Each class is put into every template ("a photo of a {}."), and the mean of the texts' vectors stands for the class
(Radford et al. 2021, arXiv:2103.00020, section 3.1.4). torch is not imported here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vlmodel.errors import ExpectedError

TEMPLATES = ("a photo of a {}.",)
"""The template that CLIP's authors begin with."""
PLACE = "{}"
"""Where a template takes the name of a class."""


class TemplateError(ExpectedError, ValueError):
    """A prompt template must have exactly one place ``{}`` for the name of a class."""


def make_prompts(classes: Sequence[str], templates: Sequence[str] = TEMPLATES) -> tuple[str, ...]:
    """Put each of C class names into each of T templates: C * T prompts, first those of the first class.

    Raises:
        TemplateError: a template does not have exactly one ``{}``.
    """
    for template in templates:
        if template.count(PLACE) != 1:
            raise TemplateError(
                f"template {template!r} has {template.count(PLACE)} places {PLACE} for the name of a class; write it "
                "with one, as in 'a photo of a {}.'"
            )
    return tuple(template.replace(PLACE, name) for name in classes for template in templates)


def class_vectors(text_ND: NDArray[np.float32], classes: int) -> NDArray[np.float32]:
    """Average the vectors of each class's prompts (``make_prompts``) to one vector of length 1 for each class,
    (C, D).
    """
    mean_CD = text_ND.reshape(classes, -1, text_ND.shape[1]).mean(1)
    vectors_CD: NDArray[np.float32] = mean_CD / np.linalg.norm(mean_CD, axis=1, keepdims=True).clip(1e-12)
    return vectors_CD


def class_probabilities(
    input_BD: NDArray[np.float32], vectors_CD: NDArray[np.float32], temperature: float
) -> NDArray[np.float32]:
    """Compute the softmax over the classes of the cosines between inputs and class vectors, (B, C)."""
    scores_BC = input_BD @ vectors_CD.T / np.float32(temperature)
    shares_BC = np.exp(scores_BC - scores_BC.max(1, keepdims=True))
    probabilities_BC: NDArray[np.float32] = shares_BC / shares_BC.sum(1, keepdims=True)
    return probabilities_BC
