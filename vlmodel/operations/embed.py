"""The operation ``embed``, POST /v1/embed: embeds a picture and texts as vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from vlmodel.operations import base
from vlmodel.operations.base import BatchedRequest, ModelQuery, Operation

if TYPE_CHECKING:
    from vlmodel.inference import Predictor


class EmbedRequest(base.InputsRequest):
    """A request with a picture, texts, or both, to be embedded."""

    model_config = base.schema_with_examples(
        {"image": base.EXAMPLE_IMAGE, "text": "a red circle"},
        {"image": base.EXAMPLE_IMAGE},
        {"texts": ["a red circle", "a blue square"]},
    )
    repeatable = {"text": "texts"}

    image: base.ImageBytes | None = Field(default=None, description=base.IMAGE_DESCRIPTION)
    text: base.OneText = None
    texts: base.SeveralTexts = None

    @model_validator(mode="after")
    def _check_not_empty(self) -> EmbedRequest:
        if not self.all_texts() and self.image is None and not self.inputs:
            raise PydanticCustomError("nothing_to_embed", "there is nothing to embed; give 'image', 'texts' or both")
        return self

    def all_texts(self) -> tuple[str, ...]:
        """The texts to embed; there may be none."""
        if self.text is None and self.texts is None:
            return ()
        return base.merge_singular_and_plural("text", self.text, self.texts)


class EmbedResponse(base.TaskResponse):
    """The response with vectors of length one in one space; their dot product is the cosine similarity."""

    model_config = base.schema_with_examples(
        {
            "width": 3,
            "image": [0.6, 0.0, 0.8],
            "texts": [[0.0, 0.6, 0.8]],
            "truncated": [False],
            "model": base.EXAMPLE_MODEL,
            "latency_ms": 17.2,
        }
    )

    width: int = Field(description="Width of the space.")
    image: list[float] | None = Field(default=None, description="The picture's vector.")
    texts: list[list[float]] = Field(description="One vector for each text, in the order given.")
    truncated: list[bool] = Field(default=[], description=f"For each text. {base.TRUNCATED_DESCRIPTION}")


@dataclass(frozen=True)
class Embeddings:
    """The vectors of an image and texts, of length one, in the space of a contrastive model.

    Attributes:
        image_D: None without an image.
        tokens: of all texts, as far as they were read.
    """

    image_D: NDArray[np.float32] | None
    text_ND: NDArray[np.float32]
    tokens: int = 0

    @property
    def all_vectors(self) -> NDArray[np.float32]:
        """The vectors of the image and of all texts, in one list."""
        return self.text_ND if self.image_D is None else np.concatenate([self.image_D[None], self.text_ND])


class EmbedOperation(Operation):
    """Embeds a picture and texts; the result is ``Embeddings``."""

    name: ClassVar[str] = "embed"
    summary: ClassVar[str] = "Turn pictures and texts into vectors"
    description: ClassVar[str] = (
        "Send a picture, texts or both, as JSON with the image in base64 or as a multipart form."
    )
    request: ClassVar[type[base.TaskRequest]] = EmbedRequest
    response: ClassVar[type[base.TaskResponse]] = EmbedResponse
    # Vectors of two models cannot be mixed in one index.
    may_mix_models: ClassVar[bool] = False

    def query_from_request(self, request: EmbedRequest) -> ModelQuery:
        return ModelQuery(request.inputs_with_image(request.image), request.all_texts())

    def response_fields(self, query: ModelQuery, result: Embeddings, truncated: Sequence[bool]) -> dict[str, Any]:
        return {
            "width": result.text_ND.shape[1],
            "image": None if result.image_D is None else result.image_D.tolist(),
            "texts": result.text_ND.tolist(),
            "truncated": list(truncated),
        }

    def run(self, predictor: Predictor, task: str, items: Sequence[BatchedRequest]) -> list[Embeddings]:
        examples = [item.example for item in items]
        tokens = [sum(predictor.processor.token_counts(example.texts)) for example in examples]
        found = zip(predictor.embed(examples, task), tokens, strict=True)
        return [Embeddings(image_D, text_ND, count) for (image_D, text_ND), count in found]

    def result_agreement(self, champion: Embeddings, challenger: Embeddings) -> float:
        """The smallest cosine between the two models' vectors, at least 0. Independently trained models have unrelated
        spaces, so they are near 0 however good they are.
        """
        vectors_ND, others_ND = champion.all_vectors, challenger.all_vectors
        if vectors_ND.shape != others_ND.shape:
            return 0.0
        return float(np.clip((vectors_ND * others_ND).sum(1).min(), 0.0, 1.0))
