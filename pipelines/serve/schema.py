"""What goes over the wire, as pydantic models: they validate requests, shape answers and write the OpenAPI page."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

# A red disc on white, 16 x 16, so that the examples of the OpenAPI page can be sent as they are.
_EXAMPLE_IMAGE = (
    "iVBORw0KGgoAAAANSUhEUgAAABAAAAAQAQMAAAAlPW0iAAAABlBMVEX////cKCi5uRl6AAAAJklEQVR4"
    "2mNggAHmA0wsCkwcAkwCHEwMDFD04QfTjw9Mfx7AVQEAdUIG1racT0IAAAAASUVORK5CYII="
)


def _from_base64(value: Any) -> Any:
    """Strict base64 to bytes; what is bytes already (an uploaded file) stays as it is."""
    if not isinstance(value, str):
        return value
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        hint = "send only what follows 'base64,'" if value.startswith("data:") else "encode the bytes of the image file"
        raise PydanticCustomError("bad_base64", "not valid base64; {hint}", {"hint": hint}) from None


def _not_empty(image: bytes) -> bytes:
    if not image:
        raise PydanticCustomError("empty_image", "the image has no bytes; send the content of an image file")
    return image


def _not_blank(question: str) -> str:
    if not question.strip():
        raise PydanticCustomError("empty_question", "the question is empty; ask something about the image")
    return question


ImageBytes = Annotated[
    bytes,
    BeforeValidator(_from_base64),
    AfterValidator(_not_empty),
    WithJsonSchema({"type": "string", "format": "byte"}),
]
QuestionText = Annotated[str, AfterValidator(_not_blank)]


class VQARequest(BaseModel):
    """One picture and one or more questions about it."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"image": _EXAMPLE_IMAGE, "question": "What colour is the circle?"},
                {
                    "image": _EXAMPLE_IMAGE,
                    "questions": ["How many squares are there?", "Is there a red circle?"],
                    "top_k": 3,
                    "attention": True,
                },
            ]
        },
    )

    image: ImageBytes = Field(description="A JPEG, PNG, WebP, BMP or GIF file, in base64.")
    question: QuestionText | None = Field(default=None, description="One question; give this or `questions`.")
    questions: list[QuestionText] | None = Field(default=None, description="Several questions about the picture.")
    top_k: int = Field(default=5, ge=1, le=20, description="How many ranked answers each question gets.")
    attention: bool = Field(default=False, description="Also return where in the picture the model looked.")

    @model_validator(mode="after")
    def _ask_one_way(self) -> VQARequest:
        if (self.question is None) == (self.questions is None):
            raise PydanticCustomError("no_question", "give either 'question' or 'questions', and not both")
        if self.questions is not None and not self.questions:
            raise PydanticCustomError("empty_question", "'questions' is empty; ask at least one")
        return self

    def asked(self) -> tuple[str, ...]:
        """The questions, whichever field they came in."""
        return tuple(self.questions) if self.questions is not None else (self.question or "",)


class RankedAnswer(BaseModel):
    """One answer that the model can give."""

    answer: str
    probability: float = Field(ge=0, le=1)


class AttentionMap(BaseModel):
    """Where the model looked: one weight for each cell of a grid over the resized picture; they sum to 1."""

    rows: int
    columns: int
    weights: list[list[float]] = Field(description="`rows` lists of `columns` weights, from the top left.")


class QuestionAnswers(BaseModel):
    """A question with its ranked answers."""

    question: str
    answers: list[RankedAnswer] = Field(description="Most probable first.")
    attention: AttentionMap | None = None


class ModelVersion(BaseModel):
    """A model in the registry."""

    name: str
    version: str


class VQAResponse(BaseModel):
    """The answers to one request."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "answers": [
                        {
                            "question": "What colour is the circle?",
                            "answers": [
                                {"answer": "red", "probability": 0.97},
                                {"answer": "blue", "probability": 0.02},
                            ],
                            "attention": None,
                        }
                    ],
                    "model": {"name": "vqa", "version": "3"},
                    "latency_ms": 21.4,
                }
            ]
        }
    )

    answers: list[QuestionAnswers] = Field(description="One for each question, in the order asked.")
    model: ModelVersion = Field(description="The model that gave these answers.")
    latency_ms: float = Field(description="Time inside the service, from the head of the request to its answer.")


class Limits(BaseModel):
    """What one request may hold at most."""

    body_bytes: int
    questions: int
    question_chars: int


class ModelDescription(BaseModel):
    """The model in use, and what it takes."""

    name: str
    version: str
    labels: int = Field(description="Number of answers that the model can give.")
    image_size: int = Field(description="Side of the square, in pixels, that a picture is resized to.")
    resize: str = Field(description="How a picture becomes square: `squash`, or `crop` to its middle.")
    limits: Limits


class Health(BaseModel):
    """All is well."""

    status: str = "ok"


class ErrorDetail(BaseModel):
    """One error."""

    code: str = Field(description="Stable name of the error.")
    message: str = Field(description="What is wrong, and what to do about it.")


class ErrorBody(BaseModel):
    """The body of every answer with a 4xx or 5xx status."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "error": {
                        "code": "undecodable_image",
                        "message": "the image cannot be decoded; send a JPEG, PNG, WebP, BMP or GIF file",
                    }
                }
            ]
        }
    )

    error: ErrorDetail
