"""What the service tells about itself."""

from __future__ import annotations

from pydantic import BaseModel, Field

from pipelines.serve.service import Task


class Limits(BaseModel):
    """What one request may hold at most."""

    body_bytes: int
    questions: int
    texts: int
    question_chars: int = Field(description="Of a question or text.")


class ModelDescription(BaseModel):
    """The model in use, what it can do, and what it takes."""

    name: str
    version: str
    tasks: list[Task] = Field(description="What it can do: each is a route, POST /v1/TASK.")
    labels: int = Field(description="Number of answers that it chooses among; 0 where it writes them, or gives none.")
    image_size: int = Field(description="Side of the square, in pixels, that a picture is resized to.")
    resize: str = Field(description="How a picture becomes square: `squash`, or `crop` to its middle.")
    feedback: bool = Field(description="Whether corrections are taken, at POST /v1/feedback.")
    limits: Limits


class Health(BaseModel):
    """All is well."""

    status: str = "ok"
