"""What the servers agree on: each takes {"image": base64, "question": text} and sends the five best answers."""

from __future__ import annotations

import base64
import os
from typing import Any

from vlmodel.inference import Prediction
from vlmodel.processor import Example

PATH = "/v1/vqa"
MAX_BATCH = 32


def example_of(image: str, question: str) -> Example:
    """What a request asks."""
    return Example(base64.b64decode(image), (question,))


def answers_of(predictions: list[Prediction]) -> dict[str, Any]:
    """What is sent back."""
    return {"answers": [{"answer": text, "probability": float(p)} for text, p in predictions[0].answers]}


def threads() -> int:
    """All cores for the model, as for ours."""
    return len(os.sched_getaffinity(0))
