"""The operation of classification, POST /v1/classify."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, Field
from pydantic.config import JsonDict

from vlmodel.operations import base
from vlmodel.operations.base import ModelQuery
from vlmodel.operations.ranked import RankedAnswersOperation

if TYPE_CHECKING:
    from vlmodel.inference import Prediction


class ClassifyRequest(base.InputsRequest):
    """One sample: a picture, a recording, a clip, or what else the model takes."""

    model_config = base.schema_with_examples(
        {"image": base.EXAMPLE_IMAGE, "top_k": 3}, {"image": base.EXAMPLE_IMAGE, "attention": True}
    )

    image: base.ImageUnlessInputs = Field(default=None, validate_default=True, description=base.IMAGE_DESCRIPTION)
    top_k: int = Field(default=5, ge=1, le=100, description="How many classes.")
    attention: bool = Field(default=False, description="Also return where in its inputs the model looked.")


class RankedClass(BaseModel):
    """One class."""

    label: str
    probability: float = Field(ge=0, le=1)


class ClassifyResponse(base.TaskResponse):
    """The classes of one sample."""

    model_config = base.schema_with_examples(
        {
            "classes": [{"label": "circle", "probability": 0.96}, {"label": "square", "probability": 0.03}],
            "attention": None,
            "model": base.EXAMPLE_MODEL,
            "latency_ms": 12.5,
        }
    )

    classes: list[RankedClass] = Field(description="Most probable first.")
    attention: base.AttentionMap | None = Field(default=None, description="For the first class.")
    attention_over_time: dict[str, list[float]] = Field(default={}, description=base.OVER_TIME_DESCRIPTION)


class ClassifyOperation(RankedAnswersOperation):
    """The class of a sample."""

    name: ClassVar[str] = "classify"
    summary: ClassVar[str] = "Classify a picture or another input"
    description: ClassVar[str] = (
        "Send a picture or the inputs that the model takes, as JSON in base64 or as a multipart form."
    )
    request: ClassVar[type[base.TaskRequest]] = ClassifyRequest
    response: ClassVar[type[base.TaskResponse]] = ClassifyResponse
    least_agreement: ClassVar[float | None] = 0.7

    def query_from_request(self, request: ClassifyRequest) -> ModelQuery:
        # A class is the answer to an empty question.
        return ModelQuery(request.inputs_with_image(request.image), ("",), request.top_k, request.attention)

    def response_fields(
        self, query: ModelQuery, result: Sequence[Prediction], truncated: Sequence[bool]
    ) -> dict[str, Any]:
        [prediction] = result
        classes = [RankedClass(label=label, probability=base.clip_probability(p)) for label, p in prediction.answers]
        return {
            "classes": classes,
            "attention": base.to_attention_map(prediction),
            "attention_over_time": base.to_attention_over_time(prediction),
        }

    def example_response(self, answered: Sequence[tuple[str, str, float]]) -> JsonDict | None:
        _, label, probability = answered[0]
        ranked: JsonDict = {"label": label, "probability": round(base.clip_probability(probability), 4)}
        return {"classes": [ranked], "attention": None}

    def best_answers(self, query_texts: Sequence[str], result: Sequence[Prediction]) -> list[tuple[str, str]]:
        # People correct answers and captions; no record of theirs holds a class.
        return []
