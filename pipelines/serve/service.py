"""What HTTP knows of a model: a ``Service`` takes a ``ServiceRequest`` and gives a ``ServiceResult``."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Task = Literal["vqa", "caption", "match", "embed"]
"""What a model can be asked to do. Its decoder determines which of them it can."""


@dataclass(frozen=True)
class ModelInfo:
    """The model that the service answers with."""

    name: str
    version: str
    tasks: tuple[Task, ...]
    labels: int
    image_size: int
    resize: str


@dataclass(frozen=True)
class ServiceRequest:
    """One request for one task.

    Attributes:
        image: encoded; None where texts alone are embedded.
        texts: questions, or texts to match or embed; none for a caption.
        top_k: how many answers each question, or how many captions the image, gets.
        attention: whether the result includes attention maps.
    """

    task: Task
    image: bytes | None
    texts: tuple[str, ...] = ()
    top_k: int = 1
    attention: bool = False

    @cached_property
    def image_sha256(self) -> str:
        """Corrections name images by it too; "" without an image."""
        return "" if self.image is None else hashlib.sha256(self.image).hexdigest()


@dataclass(frozen=True)
class ServiceResult:
    """The result of one request.

    Attributes:
        result: by task: "vqa" a ``Prediction`` for each question, "caption" a list of one ``Prediction``, "match"
            ``Matches``, "embed" ``Embeddings``.
        model: the model that computed it. A later request may get another one.
        stages_s: seconds spent in each stage (decode, queue, model), for the Server-Timing header.
        side: which of the registry's aliases the model has.
        truncated: for each text, whether it has more tokens than ``processor.max_tokens`` and was cut.
    """

    result: Any
    model: ModelInfo
    stages_s: dict[str, float]
    alias: Literal["champion", "challenger"] = "champion"
    truncated: tuple[bool, ...] = ()


CaptionStream: TypeAlias = AsyncGenerator[str | ServiceResult, None]
"""The pieces of one caption as they are generated, then the result of the whole."""


@dataclass(frozen=True)
class Matches:
    """How well each of N texts fits an image.

    Attributes:
        probabilities: by "matching", that the text belongs to the image; by "similarity", the softmax over the N texts,
            None for a single text.
        similarities: cosines, by "similarity".
        temperature: of the softmax, by "similarity".
    """

    method: Literal["matching", "similarity"]
    probabilities: Sequence[float | None]
    similarities: Sequence[float] | None = None
    temperature: float | None = None


@dataclass(frozen=True)
class Embeddings:
    """Vectors of length one in the space of a contrastive model; ``image_D`` is None without an image."""

    image_D: NDArray[np.float32] | None
    text_ND: NDArray[np.float32]


class Service(Protocol):
    """Runs requests on a model. Every method raises ``ApiError`` where the image or a text cannot be used, no model is
    loaded, or the model lacks the task.
    """

    @property
    def model(self) -> ModelInfo | None:
        """The model that a request arriving now would get; None while none is loaded."""

    async def run(self, request: ServiceRequest) -> ServiceResult:
        """The result of one request."""

    async def stream_caption(self, request: ServiceRequest) -> CaptionStream:
        """Generate one caption. What keeps it from starting is raised here, not by the stream."""

    async def check_image(self, image: bytes) -> ServiceResult:
        """Decode an image only, to see that it is one."""


class Metrics:
    """Counts what the service does. This base counts nothing."""

    def request(self, route: str, status: int, code: str, version: str, seconds: float) -> None:
        """One answered request; ``code`` is "ok" or the name of the error."""

    def batch(self, task: Task, size: int, seconds: float, version: str) -> None:
        """One forward pass over ``size`` requests of a task."""


class ChallengerMetrics:
    """Counts what became of requests to the challenger. This base counts nothing."""

    def called(self, task: Task, outcome: str, version: str) -> None:
        """One request to the challenger; ``outcome`` is "ok" or why it has no result."""

    def compared(self, task: Task, agreement: float, version: str) -> None:
        """Two results of one request."""

    def fell_back(self, task: Task, reason: str) -> None:
        """The champion answered in the challenger's place."""

    def dropped(self, reason: str) -> None:
        """A request that was not compared ("busy", "paused"), or a comparison that was not written ("record")."""
