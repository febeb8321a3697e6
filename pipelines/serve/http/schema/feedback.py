"""Corrections over the wire."""

from __future__ import annotations

from pydantic import ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from pipelines.serve.http.schema.common import (
    EXAMPLE_IMAGE,
    EXAMPLE_MODEL,
    IMAGE,
    ImageBytes,
    Question,
    TaskRequest,
    TaskResponse,
    Text,
)


class FeedbackRequest(TaskRequest):
    """What is right of a picture: the answer to a question, or a caption."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "image": EXAMPLE_IMAGE,
                    "question": "What colour is the circle?",
                    "answer": "red",
                    "version": "3",
                },
                {"image": EXAMPLE_IMAGE, "caption": "a red circle on white"},
            ]
        }
    )

    image: ImageBytes = Field(description=IMAGE)
    question: Question | None = Field(default=None, description="The question that was answered wrongly.")
    answer: Text | None = Field(default=None, description="Its right answer.")
    caption: Text | None = Field(default=None, description="A right caption; in place of question and answer.")
    version: str = Field(default="", max_length=64, description="Model version of the answer that is corrected.")

    @model_validator(mode="after")
    def _one_thing(self) -> FeedbackRequest:
        if (self.question is None) != (self.answer is None) or (self.answer is None) == (self.caption is None):
            raise PydanticCustomError("no_correction", "give 'question' and 'answer', or 'caption' alone")
        return self


class FeedbackResponse(TaskResponse):
    """The correction was kept."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"id": "01769817600000000000-5f0c1a2b", "model": EXAMPLE_MODEL, "latency_ms": 3.1}]
        }
    )

    id: str = Field(description="Name of the correction, for who wants it taken back.")
