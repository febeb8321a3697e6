"""The interface between HTTP and the model: a ``Service`` takes a ``ServiceRequest`` and returns a
``ServiceResult``.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Protocol, TypeAlias

from pipelines.registry.own_examples import ModelExample


@dataclass(frozen=True)
class ModelInfo:
    """Describes the model that the service answers with.

    Attributes:
        tasks: the names of the operations (``vlmodel.operations.base``) that it can be asked for.
        inputs: names of the inputs that it takes, beside texts.
        media: what each of these is: image, audio, video, series, row.
        digest: of its folder (``manifest.folder_digest``).
        needs_classes: it classifies by classes that are named with each request.
    """

    name: str
    version: str
    tasks: tuple[str, ...]
    labels: int
    image_size: tuple[int, int]
    resize: str
    crop: float = 1.0
    inputs: tuple[str, ...] = ("image",)
    media: Mapping[str, str] = field(default_factory=lambda: {"image": "image"})
    digest: str = ""
    needs_classes: bool = False


@dataclass(frozen=True)
class ServiceRequest:
    """One request for one task.

    Attributes:
        task: the name of the operation.
        inputs: encoded, by their names, such as "image"; none where texts alone are embedded.
        texts: as of ``vlmodel.operations.base.ModelQuery``.
        top_k: how many answers each text gets.
        attention: whether the result includes attention maps.
        least_version: of the facts; 0 for whichever is in use.
        settings: as of ``ModelQuery``.
    """

    task: str
    inputs: Mapping[str, bytes]
    texts: tuple[str, ...] = ()
    top_k: int = 1
    attention: bool = False
    least_version: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def image_sha256(self) -> str:
        """The hash by which corrections name an image; "" without an image."""
        return hashlib.sha256(self.inputs["image"]).hexdigest() if "image" in self.inputs else ""


@dataclass(frozen=True)
class ServiceResult:
    """The result of one request.

    Attributes:
        result: of ``Operation.run``.
        model: the model that computed it. A later request may get another one.
        stages_s: seconds spent in each stage (decode, queue, model), for the Server-Timing header.
        side: which of the registry's aliases the model has.
        truncated: for each text, whether it has more tokens than ``processor.max_tokens`` and was cut.
        unknown_words: of the texts (``VLProcessor.unknown_words``).
    """

    result: Any
    model: ModelInfo
    stages_s: dict[str, float]
    alias: Literal["champion", "challenger"] = "champion"
    truncated: tuple[bool, ...] = ()
    unknown_words: tuple[str, ...] = ()


AnswerStream: TypeAlias = AsyncGenerator[str | ServiceResult, None]
"""The pieces of one answer as they are generated, then the result of the whole."""


class Service(Protocol):
    """Runs requests on a model. Every method raises ``ApiError`` if the image or a text cannot be used, no model is
    loaded, or the model lacks the task.
    """

    @property
    def model(self) -> ModelInfo | None:
        """The model that a request arriving now would get; None while none is loaded."""

    @property
    def examples(self) -> Sequence[ModelExample]:
        """Examples of the data on which the loaded model was evaluated; ``task`` of each is the operation that answers
        it.
        """

    async def run(self, request: ServiceRequest) -> ServiceResult:
        """Return the result of one request."""

    async def stream(self, request: ServiceRequest) -> AnswerStream:
        """Generate one answer. Errors that prevent it from starting are raised here, and not by the stream."""

    async def check_image(self, image: bytes) -> ServiceResult:
        """Decode an image only to check that it is one."""


class ServiceMetrics:
    """Counts what the service does. This base class counts nothing."""

    def count_request(self, route: str, status: int, code: str, version: str, seconds: float) -> None:
        """Count one answered request; ``code`` is "ok" or the name of the error."""

    def count_batch(self, task: str, size: int, seconds: float, version: str) -> None:
        """Count one forward pass over ``size`` requests of a task."""


class ChallengerMetrics:
    """Counts what became of requests to the challenger. This base class counts nothing."""

    def count_challenger_call(self, task: str, outcome: str, version: str) -> None:
        """Count one request to the challenger; ``outcome`` is "ok" or why it has no result."""

    def count_comparison(self, task: str, agreement: float, version: str) -> None:
        """Count a comparison of two results for one request."""

    def count_fallback_to_champion(self, task: str, reason: str) -> None:
        """Count a request that the champion answered in the challenger's place."""

    def count_dropped_comparison(self, reason: str) -> None:
        """Count a request that was not compared ("busy", "paused"), or a comparison that was not written ("record")."""
