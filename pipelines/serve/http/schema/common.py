"""What the requests and answers of all tasks have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)
from pydantic.config import JsonDict
from pydantic_core import PydanticCustomError

from vlmodel.images.base64 import from_base64

# A red disc on white, 16 x 16, so that the examples of the OpenAPI page can be sent as they are.
EXAMPLE_IMAGE = (
    "iVBORw0KGgoAAAANSUhEUgAAABAAAAAQAQMAAAAlPW0iAAAABlBMVEX////cKCi5uRl6AAAAJklEQVR4"
    "2mNggAHmA0wsCkwcAkwCHEwMDFD04QfTjw9Mfx7AVQEAdUIG1racT0IAAAAASUVORK5CYII="
)

ERROR_CODES = frozenset(
    {
        "bad_base64",
        "empty_image",
        "empty_question",
        "empty_text",
        "no_correction",
        "no_question",
        "no_text",
        "nothing_to_embed",
        "one_streamed",
        "too_many_fields",
        "too_many_questions",
        "too_many_texts",
    }
)
"""The errors of these models that have a name of their own; any other is an "invalid_request"."""


def _from_base64(value: Any) -> Any:
    """Base64 to bytes; what is bytes already (an uploaded file) stays as it is."""
    if not isinstance(value, str):
        return value
    try:
        return from_base64(value)
    except ValueError as error:
        raise PydanticCustomError("bad_base64", "not valid base64; {hint}", {"hint": str(error)}) from None


def _not_empty(image: bytes) -> bytes:
    if not image:
        raise PydanticCustomError("empty_image", "the image has no bytes; send the content of an image file")
    return image


def _not_blank(name: str) -> Callable[[str], str]:
    def check(text: str) -> str:
        if not text.strip():
            raise PydanticCustomError(f"empty_{name}", "the {name} is empty; write something", {"name": name})
        return text

    return check


ImageBytes = Annotated[
    bytes,
    BeforeValidator(_from_base64),
    AfterValidator(_not_empty),
    WithJsonSchema({"type": "string", "format": "byte"}),
]
Question = Annotated[str, AfterValidator(_not_blank("question"))]
Text = Annotated[str, AfterValidator(_not_blank("text"))]

# The two ways to give texts; `one_or_several` says which was taken.
OneText = Annotated[Text | None, Field(description="One text; give this or `texts`.")]
SeveralTexts = Annotated[list[Text] | None, Field(description="Several texts.")]

TRUNCATED = "Whether it has more tokens than the model takes, so that the model was given its beginning alone."

IMAGE = "A JPEG, PNG, WebP, BMP or GIF file, in base64; lines, the URL-safe alphabet and a data: URL are fine."


_MOST_FIELDS = 32


class TaskRequest(BaseModel):
    """Base of the requests. Unknown fields are refused: they are typos.

    The context of a validation may tell how many entries each of the lists may have.
    """

    model_config = ConfigDict(extra="forbid")

    repeated: ClassVar[Mapping[str, str]] = {}
    """Fields of a form that may be repeated, and the field that then holds them all."""

    @model_validator(mode="before")
    @classmethod
    def _few_enough(cls, fields: Any, info: ValidationInfo) -> Any:
        """Count before anything is looked at: a body has room for millions, each with an error of its own."""
        if not isinstance(fields, dict):
            return fields
        if len(fields) > _MOST_FIELDS:
            message = "{count} fields in one request; send those that are documented"
            raise PydanticCustomError("too_many_fields", message, {"count": len(fields)})
        limits: Mapping[str, int] = info.context or {}
        for name, most in limits.items():
            if isinstance(values := fields.get(name), list) and len(values) > most:
                message = "{count} {name} in one request; send at most {most}"
                told = {"count": len(values), "name": name, "most": most}
                raise PydanticCustomError(f"too_many_{name}", message, told)
        return fields


def one_or_several(name: str, one: str | None, several: list[str] | None) -> tuple[str, ...]:
    """The texts, whichever field they came in: ``name`` or, in the plural, several.

    Raises:
        PydanticCustomError: they came in both or in none, or there are none.
    """
    if (one is None) == (several is None):
        message = "give either '{name}' or '{name}s', and not both"
        raise PydanticCustomError(f"no_{name}", message, {"name": name})
    if several is not None and not several:
        raise PydanticCustomError(f"empty_{name}", "'{name}s' is empty; give at least one", {"name": name})
    return (one,) if one is not None else tuple(several or ())


class ModelVersion(BaseModel):
    """A model in the registry."""

    name: str
    version: str


EXAMPLE_MODEL: JsonDict = {"name": "vlmodel", "version": "3"}


class TaskResponse(BaseModel):
    """What every answer tells."""

    model: ModelVersion = Field(description="The model that gave this answer.")
    latency_ms: float = Field(description="Time inside the service, from the head of the request to its answer.")


class AttentionMap(BaseModel):
    """Where the model looked: one weight for each cell of a grid over the resized picture; they sum to 1."""

    rows: int
    columns: int
    weights: list[list[float]] = Field(description="`rows` lists of `columns` weights, from the top left.")


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
