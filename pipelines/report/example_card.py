"""DOC."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class ExampleCard:
    """One example on a page.

    Attributes:
        image: (height, width, 3) uint8.
        title: the question; "" for none.
        answer: the right answer.
        predicted, probability: the model's answer and its probability, 0 to 1.
        right: whether it is right; None for captions.
        attention_HW: attention weights over the image, at any resolution.
    """

    image: NDArray[np.uint8]
    title: str
    answer: str
    predicted: str
    probability: float
    right: bool | None
    attention_HW: NDArray[np.floating[Any]] | None = None
