"""Captioning over the wire."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from pipelines.serve.http.schema.common import (
    EXAMPLE_IMAGE,
    EXAMPLE_MODEL,
    IMAGE,
    AttentionMap,
    ImageBytes,
    TaskRequest,
    TaskResponse,
)


class CaptionRequest(TaskRequest):
    """One picture to be described."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"image": EXAMPLE_IMAGE, "top_k": 3},
                {"image": EXAMPLE_IMAGE, "attention": True},
                {"image": EXAMPLE_IMAGE, "stream": True},
            ]
        },
    )

    image: ImageBytes = Field(description=IMAGE)
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
    def _stream_one(self) -> CaptionRequest:
        if self.stream and self.top_k > 1:
            message = "one caption is streamed as it is written, and top_k={top_k}; set it to 1, or stream to false"
            raise PydanticCustomError("one_streamed", message, {"top_k": self.top_k})
        return self


class RankedCaption(BaseModel):
    """One caption."""

    caption: str
    probability: float = Field(ge=0, le=1, description="Product of the probabilities of its tokens, its end included.")


class CaptionResponse(TaskResponse):
    """The captions of one picture."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "captions": [
                        {"caption": "a red circle on white", "probability": 0.41},
                        {"caption": "a red disc", "probability": 0.17},
                    ],
                    "attention": None,
                    "model": EXAMPLE_MODEL,
                    "latency_ms": 48.2,
                }
            ]
        }
    )

    captions: list[RankedCaption] = Field(
        description="Most probable first; fewer than asked for where beams end in the same text."
    )
    attention: AttentionMap | None = Field(default=None, description="Of the first caption.")


class CaptionPiece(BaseModel):
    """The data of an event `piece`: what was written since the last one."""

    text: str
