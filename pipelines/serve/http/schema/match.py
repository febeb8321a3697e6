"""Image-text matching over the wire."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipelines.serve.http.schema.common import (
    EXAMPLE_IMAGE,
    EXAMPLE_MODEL,
    IMAGE,
    TRUNCATED,
    ImageBytes,
    OneText,
    SeveralTexts,
    TaskRequest,
    TaskResponse,
    one_or_several,
)


class MatchRequest(TaskRequest):
    """One picture and one or more texts that may belong to it."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"image": EXAMPLE_IMAGE, "text": "a red circle"},
                {"image": EXAMPLE_IMAGE, "texts": ["a red circle", "a blue square"]},
            ]
        },
    )
    repeated = {"text": "texts"}

    image: ImageBytes = Field(description=IMAGE)
    text: OneText = None
    texts: SeveralTexts = None

    @model_validator(mode="after")
    def _give_one_way(self) -> MatchRequest:
        self.given()
        return self

    def given(self) -> tuple[str, ...]:
        """The texts, whichever field they came in."""
        return one_or_several("text", self.text, self.texts)


class TextMatch(BaseModel):
    """Whether a text belongs to the picture."""

    text: str
    probability: float | None = Field(
        ge=0,
        le=1,
        description="See `method`; null for a lone text by `similarity`, as there is nothing to choose among.",
    )
    similarity: float | None = Field(
        default=None, ge=-1, le=1, description="By `similarity`: cosine of the angle between text and picture."
    )
    truncated: bool = Field(default=False, description=TRUNCATED)


class MatchResponse(TaskResponse):
    """How well each text fits the picture."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "method": "matching",
                    "temperature": None,
                    "matches": [
                        {"text": "a red circle", "probability": 0.98, "similarity": None, "truncated": False},
                        {"text": "a blue square", "probability": 0.03, "similarity": None, "truncated": False},
                    ],
                    "model": EXAMPLE_MODEL,
                    "latency_ms": 23.9,
                },
                {
                    "method": "similarity",
                    "temperature": 0.05,
                    "matches": [
                        {"text": "a red circle", "probability": 0.9526, "similarity": 0.36, "truncated": False},
                        {"text": "a blue square", "probability": 0.0474, "similarity": 0.21, "truncated": False},
                    ],
                    "model": EXAMPLE_MODEL,
                    "latency_ms": 19.3,
                },
            ]
        }
    )

    method: Literal["matching", "similarity"] = Field(
        description="`matching`: a matching decoder judges each text by itself. `similarity`: a contrastive decoder "
        "compares; probabilities are the softmax of similarity / temperature over the texts of the request."
    )
    temperature: float | None = Field(default=None, description="By `similarity`: the temperature that was learned.")
    matches: list[TextMatch] = Field(description="One for each text, in the order given.")
