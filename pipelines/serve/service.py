"""The seam between transport and model: HTTP knows only this, and the model's side fills it in."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Literal, Protocol, TypeVar

import numpy as np

from vlmodel.inference import Prediction

if TYPE_CHECKING:
    from numpy.typing import NDArray

Result = TypeVar("Result", covariant=True)

Task = Literal["vqa", "caption", "match", "embed"]
"""What a model can be asked; which of them it can do, its decoder says."""


@dataclass(frozen=True)
class ModelInfo:
    """What the service tells about the model it answers with."""

    name: str
    version: str
    tasks: tuple[Task, ...]
    labels: int
    image_size: int
    resize: str


@dataclass(frozen=True)
class ServiceResult(Generic[Result]):
    """The answer to one request.

    Attributes:
        result: what was asked for.
        model: the model that gave it, which a swap may have replaced meanwhile.
        stages_s: seconds spent in each stage (decode, queue, model), for the Server-Timing header.
        side: which of the registry's aliases the model has.
        truncated: for each text of the request whether the model was given its beginning alone, as it has more tokens
            than the model's processor takes (``processor.max_tokens``).
    """

    result: Result
    model: ModelInfo
    stages_s: dict[str, float]
    side: Literal["champion", "challenger"] = "champion"
    truncated: tuple[bool, ...] = ()


@dataclass(frozen=True)
class Matches:
    """How well each of N texts fits an image.

    Attributes:
        probabilities: by "matching", that the text belongs to the image; by "similarity", that it is the one of the N
            that does, which None says of a lone text.
        similarities: cosines, by "similarity".
        temperature: of the softmax over them, by "similarity".
    """

    method: Literal["matching", "similarity"]
    probabilities: Sequence[float | None]
    similarities: Sequence[float] | None = None
    temperature: float | None = None


@dataclass(frozen=True)
class Embeddings:
    """Vectors of length one in the space of a contrastive model.

    Attributes:
        image_D: the image; None where none was given.
        text_ND: the texts.
    """

    image_D: NDArray[np.float32] | None
    text_ND: NDArray[np.float32]


class Service(Protocol):
    """What answers questions about pictures, describes and compares them.

    Every method raises ``ApiError`` where the image cannot be used, no model is loaded, or it lacks the task.
    """

    @property
    def model(self) -> ModelInfo | None:
        """The model that a request arriving now would get; None while there is none."""

    async def answer(
        self, image: bytes, questions: Sequence[str], top_k: int, attention: bool
    ) -> ServiceResult[Sequence[Prediction]]:
        """Answer all questions about one encoded image, in their order."""

    async def caption(self, image: bytes, top_k: int, attention: bool) -> ServiceResult[Prediction]:
        """At most ``top_k`` captions of one encoded image."""

    async def stream_caption(
        self, image: bytes, attention: bool
    ) -> AsyncGenerator[str | ServiceResult[Prediction], None]:
        """One caption piece by piece, while it is written, and the whole of it at the end."""

    async def match(self, image: bytes, texts: Sequence[str]) -> ServiceResult[Matches]:
        """How well each text fits one encoded image."""

    async def embed(self, image: bytes | None, texts: Sequence[str]) -> ServiceResult[Embeddings]:
        """An encoded image, texts or both as vectors."""

    async def check(self, image: bytes) -> ServiceResult[None]:
        """Decode an image, to see that it is one."""


class Metrics(Protocol):
    """Where the service counts what it does."""

    def request(self, route: str, status: int, code: str, version: str, seconds: float) -> None:
        """One answered request; ``code`` names the error, or is "ok"."""

    def batch(self, task: Task, size: int, seconds: float, version: str) -> None:
        """One forward pass over ``size`` requests of a task."""


class NoMetrics:
    """Counts nothing, where there is no one to read it."""

    def request(self, route: str, status: int, code: str, version: str, seconds: float) -> None:
        pass

    def batch(self, task: Task, size: int, seconds: float, version: str) -> None:
        pass
