"""Embeddings over the wire."""

from __future__ import annotations

from pydantic import ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

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


class EmbedRequest(TaskRequest):
    """A picture, texts, or both."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"image": EXAMPLE_IMAGE, "text": "a red circle"},
                {"image": EXAMPLE_IMAGE},
                {"texts": ["a red circle", "a blue square"]},
            ]
        },
    )
    repeated = {"text": "texts"}

    image: ImageBytes | None = Field(default=None, description=IMAGE)
    text: OneText = None
    texts: SeveralTexts = None

    @model_validator(mode="after")
    def _give_something(self) -> EmbedRequest:
        if not self.given() and self.image is None:
            raise PydanticCustomError("nothing_to_embed", "there is nothing to embed; give 'image', 'texts' or both")
        return self

    def given(self) -> tuple[str, ...]:
        """The texts, whichever field they came in; there may be none."""
        none = self.text is None and self.texts is None
        return () if none else one_or_several("text", self.text, self.texts)


class EmbedResponse(TaskResponse):
    """Vectors of length one, in one space: their dot product is the cosine similarity."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "width": 3,
                    "image": [0.6, 0.0, 0.8],
                    "texts": [[0.0, 0.6, 0.8]],
                    "truncated": [False],
                    "model": EXAMPLE_MODEL,
                    "latency_ms": 17.2,
                }
            ]
        }
    )

    width: int = Field(description="Width of the space.")
    image: list[float] | None = Field(default=None, description="The picture's vector.")
    texts: list[list[float]] = Field(description="One vector for each text, in the order given.")
    truncated: list[bool] = Field(default=[], description=f"For each text. {TRUNCATED}")
