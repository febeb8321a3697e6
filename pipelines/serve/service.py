"""The seam between transport and model: HTTP knows only this, and the model's side fills it in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from vlmodel.inference import Prediction


@dataclass(frozen=True)
class ModelInfo:
    """What the service tells about the model it answers with."""

    name: str
    version: str
    labels: int
    image_size: int
    resize: str


@dataclass(frozen=True)
class Answered:
    """Answers to one request.

    Attributes:
        predictions: one for each question, in order.
        model: the model that gave them, which a swap may have replaced meanwhile.
        stages_s: seconds spent in each stage (decode, queue, model), for the Server-Timing header.
    """

    predictions: Sequence[Prediction]
    model: ModelInfo
    stages_s: dict[str, float]


class Service(Protocol):
    """What answers questions about pictures."""

    @property
    def model(self) -> ModelInfo | None:
        """The model that a request arriving now would get; None while there is none."""

    async def answer(self, image: bytes, questions: Sequence[str], top_k: int, attention: bool) -> Answered:
        """Answer all questions about one encoded image.

        Raises:
            ApiError: the image cannot be used, or no model is loaded.
        """


class Metrics(Protocol):
    """Where the service counts what it does."""

    def request(self, route: str, status: int, code: str, version: str, seconds: float) -> None:
        """One answered request; ``code`` names the error, or is "ok"."""

    def batch(self, size: int, seconds: float, version: str) -> None:
        """One forward pass over ``size`` images."""


class NoMetrics:
    """Counts nothing, where there is no one to read it."""

    def request(self, route: str, status: int, code: str, version: str, seconds: float) -> None:
        pass

    def batch(self, size: int, seconds: float, version: str) -> None:
        pass
