"""The operation ``caption``, POST /v1/caption: describes a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, Field, model_validator
from pydantic.config import JsonDict
from pydantic_core import PydanticCustomError

from vlmodel.operations import base
from vlmodel.operations.base import ModelQuery
from vlmodel.operations.ranked import RankedAnswersOperation

if TYPE_CHECKING:
    from vlmodel.inference import Prediction


class CaptionRequest(base.InputsRequest):
    """A request with one picture to be described."""

    model_config = base.schema_with_examples(
        {"image": base.EXAMPLE_IMAGE, "top_k": 3},
        {"image": base.EXAMPLE_IMAGE, "attention": True},
        {"image": base.EXAMPLE_IMAGE, "stream": True},
    )

    image: base.ImageUnlessInputs = Field(default=None, validate_default=True, description=base.IMAGE_DESCRIPTION)
    top_k: int = Field(
        default=1,
        ge=1,
        le=10,
        description="How many captions: one is written greedily, more by a search of as many beams.",
    )
    attention: bool = Field(default=False, description="Also return where in the picture the model looked.")
    stream: bool = Field(
        default=False, description="Send the one caption as server-sent events, while it is being written."
    )

    @model_validator(mode="after")
    def _check_stream(self) -> CaptionRequest:
        if self.stream and self.top_k > 1:
            message = "one caption is streamed as it is written, and top_k={top_k}; set it to 1, or stream to false"
            raise PydanticCustomError("one_streamed", message, {"top_k": self.top_k})
        return self


class RankedCaption(BaseModel):
    """A caption and its probability."""

    caption: str
    probability: float = Field(ge=0, le=1, description="Product of the probabilities of its tokens, its end included.")


class CaptionResponse(base.TaskResponse):
    """The response with the captions of a picture."""

    model_config = base.schema_with_examples(
        {
            "captions": [
                {"caption": "a red circle on white", "probability": 0.41},
                {"caption": "a red disc", "probability": 0.17},
            ],
            "attention": None,
            "model": base.EXAMPLE_MODEL,
            "latency_ms": 48.2,
        }
    )

    captions: list[RankedCaption] = Field(
        description="Most probable first; fewer than asked for where beams end in the same text."
    )
    attention: base.AttentionMap | None = Field(default=None, description="Of the first caption.")
    attention_over_time: dict[str, list[float]] = Field(default={}, description=base.OVER_TIME_DESCRIPTION)


class CaptionOperation(RankedAnswersOperation):
    """Generates captions for a picture."""

    name: ClassVar[str] = "caption"
    summary: ClassVar[str] = "Describe a picture"
    description: ClassVar[str] = "Send a picture, as JSON with the image in base64 or as a multipart form."
    request: ClassVar[type[base.TaskRequest]] = CaptionRequest
    response: ClassVar[type[base.TaskResponse]] = CaptionResponse
    streaming: ClassVar[str] = (
        "`stream: true` answers with server-sent events instead: `piece` with what was written since the last one,\n"
        "then `done` with the whole answer; or `error`, in the shape of every error, where it cannot be finished."
    )

    def query_from_request(self, request: CaptionRequest) -> ModelQuery:
        # A caption is an answer to an empty question.
        return ModelQuery(
            request.inputs_with_image(request.image), ("",), request.top_k, request.attention, request.stream
        )

    def response_fields(
        self, query: ModelQuery, result: Sequence[Prediction], truncated: Sequence[bool]
    ) -> dict[str, Any]:
        [prediction] = result
        captions = [RankedCaption(caption=text, probability=base.clip_probability(p)) for text, p in prediction.answers]
        return {
            "captions": captions,
            "attention": base.to_attention_map(prediction),
            "attention_over_time": base.to_attention_over_time(prediction),
        }

    def example_response(self, answered: Sequence[tuple[str, str, float]]) -> JsonDict | None:
        _, caption, probability = answered[0]
        written: JsonDict = {"caption": caption, "probability": round(base.clip_probability(probability), 4)}
        return {"captions": [written], "attention": None}
