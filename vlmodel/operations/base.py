"""The base class of operations. An operation is one thing that a service does with a model, ``POST /v1/NAME``; the
tasks declare theirs.

It has the schemas of request and response, how a model answers a batch, and how two models' results are compared. HTTP
itself is not known here, and torch is not imported.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

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
from pydantic_core import PydanticCustomError, PydanticKnownError

from vlmodel.config import ConfigError, find_part_config_class, list_part_kinds
from vlmodel.conversation import extract_question
from vlmodel.images.base64 import decode_base64

if TYPE_CHECKING:
    from vlmodel.facts import LinkedFact
    from vlmodel.inference import Prediction, Predictor
    from vlmodel.processor import Example
    from vlmodel.task import Task

# A red disc on white, 16 x 16, so that the examples of the OpenAPI page can be sent as they are.
EXAMPLE_IMAGE = (
    "iVBORw0KGgoAAAANSUhEUgAAABAAAAAQAQMAAAAlPW0iAAAABlBMVEX////cKCi5uRl6AAAAJklEQVR4"
    "2mNggAHmA0wsCkwcAkwCHEwMDFD04QfTjw9Mfx7AVQEAdUIG1racT0IAAAAASUVORK5CYII="
)
EXAMPLE_MODEL: JsonDict = {"name": "vlmodel", "version": "3"}
OVER_TIME_DESCRIPTION = (
    "Where in further inputs the model looked, by their names: a weight for each of equal parts of the time of a sound "
    "or a series, or for each frame of a video that it read; they sum to 1."
)
TRUNCATED_DESCRIPTION = "Whether it has more tokens than the model takes, so that only its beginning was used."
IMAGE_DESCRIPTION = (
    "A JPEG, PNG, WebP, BMP or GIF file, in base64; lines, the URL-safe alphabet and a data: URL are fine."
)

_MAX_FIELDS = 32


def schema_with_examples(*examples: JsonDict) -> ConfigDict:
    """Add examples to a JSON schema, for the OpenAPI page."""
    return ConfigDict(json_schema_extra={"examples": [*examples]})


def _decode_base64_field(value: Any) -> Any:
    """Decode a base64 field to bytes; bytes (an uploaded file) stay unchanged."""
    if not isinstance(value, str):
        return value
    try:
        return decode_base64(value)
    except ValueError as error:
        raise PydanticCustomError("bad_base64", "not valid base64; {hint}", {"hint": str(error)}) from None


def _check_image_not_empty(image: bytes) -> bytes:
    if not image:
        raise PydanticCustomError("empty_image", "the image has no bytes; send the content of an image file")
    return image


def _text_must_not_be_blank(name: str) -> Callable[[str], str]:
    def check(text: str) -> str:
        if not text.strip():
            raise PydanticCustomError(f"empty_{name}", "the {name} is empty; write something", {"name": name})
        return text

    return check


def _check_image_or_inputs(image: bytes | None, info: ValidationInfo) -> bytes | None:
    if image is None and not info.data.get("inputs"):
        raise PydanticKnownError("missing")
    return image


ImageBytes = Annotated[
    bytes,
    BeforeValidator(_decode_base64_field),
    AfterValidator(_check_image_not_empty),
    WithJsonSchema({"type": "string", "format": "byte"}),
]
InputBytes = Annotated[
    bytes, BeforeValidator(_decode_base64_field), WithJsonSchema({"type": "string", "format": "byte"})
]
# In an ``InputsRequest``: required unless there are other inputs; its default is None, and validated.
ImageUnlessInputs = Annotated[ImageBytes | None, AfterValidator(_check_image_or_inputs)]
Question = Annotated[str, AfterValidator(_text_must_not_be_blank("question"))]
Text = Annotated[str, AfterValidator(_text_must_not_be_blank("text"))]
# Two ways to give texts; see ``merge_singular_and_plural``.
OneText = Annotated[Text | None, Field(description="One text; give this or `texts`.")]
SeveralTexts = Annotated[list[Text] | None, Field(description="Several texts.")]


class TaskRequest(BaseModel):
    """The base class of request schemas. Unknown fields are refused, as they are typos.

    The validation context has the most entries of the lists, by field; "texts" stands for those that it does not name.
    """

    model_config = ConfigDict(extra="forbid")

    repeatable: ClassVar[Mapping[str, str]] = {}
    """Fields of a form that may be repeated, and the field that then holds all values."""

    @model_validator(mode="before")
    @classmethod
    def _check_entry_counts(cls, fields: Any, info: ValidationInfo) -> Any:
        """Limit the number of entries before they are validated: a request body has room for millions of invalid
        entries, and each would get an error of its own.
        """
        if not isinstance(fields, dict):
            return fields
        if len(fields) > _MAX_FIELDS:
            message = "{count} fields in one request; send those that are documented"
            raise PydanticCustomError("too_many_fields", message, {"count": len(fields)})
        limits: Mapping[str, int] = info.context or {}
        for name in limits.keys() | (cls.model_fields.keys() & fields.keys() if limits else ()):
            most = limits.get(name, limits.get("texts", 0))
            if isinstance(values := fields.get(name), list) and len(values) > most:
                message = "{count} {name} in one request; send at most {most}"
                details = {"count": len(values), "name": name, "most": most}
                raise PydanticCustomError(f"too_many_{name}", message, details)
        return fields


class InputsRequest(TaskRequest):
    """The base class of requests about a sample: an image, and additional inputs for models that take some."""

    inputs: dict[str, InputBytes] = Field(
        default={},
        description="Further inputs that the model takes (`inputs` of `/v1/model`), by their names: files in base64. "
        "In a form each is a file with that name.",
    )

    def inputs_with_image(self, image: bytes | None) -> dict[str, bytes]:
        """Return all inputs of the request by name, the image among them."""
        return self.inputs if image is None else {**self.inputs, "image": image}


class ModelVersion(BaseModel):
    """Identifies a model in the registry by name and version."""

    name: str
    version: str


class TaskResponse(BaseModel):
    """The base class of response schemas, with the fields of every response."""

    model: ModelVersion = Field(description="The model that gave this answer.")
    latency_ms: float = Field(description="Time inside the service, from the head of the request to its answer.")
    unknown_words: list[str] = Field(
        default=[],
        description="Words of the texts that were rare in the model's training texts, or not in them: it may not "
        "understand these. Always empty for models whose language encoder is pretrained.",
    )


class UsedFact(BaseModel):
    """A fact that the model read with a text."""

    id: str
    head: str
    relation: str
    tail: str
    source: str
    weight: float = Field(ge=0, le=1, description="How well it fits the text.")


LeastKnowledgeVersion = Annotated[
    int, Field(ge=0, description="Wait until the facts have this version, as an edit of them returns it.")
]
KnowledgeVersion = Annotated[int | None, Field(description="Version of the facts; null without a store.")]
UsedFacts = Annotated[list[UsedFact], Field(description="Facts that the model got with the text, if any.")]


class AttentionMap(BaseModel):
    """The model's attention over the picture: one weight for each cell of a grid over the resized picture; the weights
    sum to 1.
    """

    rows: int
    columns: int
    weights: list[list[float]] = Field(description="`rows` lists of `columns` weights, from the top left.")


def merge_singular_and_plural(name: str, value: str | None, values: list[str] | None) -> tuple[str, ...]:
    """Return the texts of a field that a request may give once (as ``name``) or several times (in the plural).

    Raises:
        PydanticCustomError: both or neither is given, or the list is empty.
    """
    if (value is None) == (values is None):
        message = "give either '{name}' or '{name}s', and not both"
        raise PydanticCustomError(f"no_{name}", message, {"name": name})
    if values is not None and not values:
        raise PydanticCustomError(f"empty_{name}", "'{name}s' is empty; give at least one", {"name": name})
    return (value,) if value is not None else tuple(values or ())


def to_used_facts(facts: Sequence[LinkedFact]) -> list[UsedFact]:
    """Convert the facts of a prediction to their response schema."""
    return [
        UsedFact(
            id=linked.fact.id, head=linked.fact.head, relation=linked.fact.relation, tail=linked.fact.tail,
            source=linked.fact.source, weight=round(linked.weight, 6),
        )
        for linked in facts
    ]  # fmt: skip


def to_attention_map(prediction: Prediction) -> AttentionMap | None:
    """Convert the attention of a prediction over the picture to its response schema."""
    if prediction.attention_HW is None:
        return None
    rows, columns = prediction.attention_HW.shape
    weights = prediction.attention_HW.astype(float).round(6).tolist()
    return AttentionMap(rows=rows, columns=columns, weights=weights)


def to_attention_over_time(prediction: Prediction) -> dict[str, list[float]]:
    """Convert the attention of a prediction over the time of its additional inputs to the response schema."""
    return {name: weights_T.astype(float).round(6).tolist() for name, weights_T in prediction.attention_T.items()}


def clip_probability(value: float) -> float:
    """Clip a probability to 0 and 1, which rounding errors may exceed."""
    return min(1.0, max(0.0, float(value)))


@dataclass(frozen=True)
class ModelQuery:
    """What a request asks of a model: inputs, texts and settings.

    Attributes:
        inputs: encoded, by the names of the sample's inputs.
        texts: the text of each row; "" for a row of a task that reads no text.
        top_k: how many answers each row gets.
        attention: whether the result includes attention maps.
        stream: whether the answer is sent while it is generated.
        least_version: of the facts that the model gets; 0 for whichever is in use.
        settings: of generation (``vlmodel.generation.SETTINGS``), and ``seed`` of samples; or what else an operation
            needs beside the texts.
    """

    inputs: Mapping[str, bytes] = field(default_factory=dict)
    texts: tuple[str, ...] = ()
    top_k: int = 1
    attention: bool = False
    stream: bool = False
    least_version: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class BatchedRequest:
    """One request within a batch, with its decoded inputs."""

    example: Example
    top_k: int = 1
    attention: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)


class Operation(ABC):
    """The base class of operations. Several tasks may declare operations of one name; these have the same schemas and
    differ in ``run``.

    Attributes:
        name: of the route, and in the records of a service.
        summary, description: of the route.
        request, response: the schemas; ``response_fields`` gives those of the response.
        text_name: what a text is called in errors, in the singular.
        path: the address, where it is not POST /v1/NAME; its route is then one of its own.
        streaming: how the answer is sent while it is generated, for the documentation; "" where it is not.
        rank: of the operations of one name that a model has, the one of the lowest rank is served.
        may_mix_models: whether a challenger may answer some of the requests in the champion's place.
        least_agreement: share of results that must be the champion's before a challenger takes its place; None where
            that is not asked.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    description: ClassVar[str]
    request: ClassVar[type[TaskRequest]]
    response: ClassVar[type[TaskResponse]]
    text_name: ClassVar[str] = "text"
    path: ClassVar[str] = ""
    streaming: ClassVar[str] = ""
    rank: ClassVar[int] = 0
    may_mix_models: ClassVar[bool] = True
    least_agreement: ClassVar[float | None] = None

    @abstractmethod
    def query_from_request(self, request: Any) -> ModelQuery:
        """Convert a valid request to the query that the model gets."""

    @abstractmethod
    def response_fields(self, query: ModelQuery, result: Any, truncated: Sequence[bool]) -> dict[str, Any]:
        """Build the fields of the response, without those of ``TaskResponse``.

        Args:
            result: of ``run``.
            truncated: for each text, whether it was cut.
        """

    @abstractmethod
    def run(self, predictor: Predictor, task: str, items: Sequence[BatchedRequest]) -> Sequence[Any]:
        """Compute the result for each item of a batch, in order; a result must not depend on the other items.

        Args:
            task: the model's name of the task.
        """

    def unsupported_request_reason(self, settings: Mapping[str, Any]) -> tuple[str, str] | None:
        """Explain why this model cannot answer a valid request of its operation, as an error code and a message; None
        if it can.

        Args:
            settings: of the ``ModelQuery``.
        """
        return None

    def example_request(self, example: JsonDict, inputs: Mapping[str, str], texts: Sequence[str]) -> JsonDict:
        """Adapt one of the documentation's example requests to a sample of the model's own data.

        Args:
            example: of ``request``.
            inputs: in base64, by their names.
            texts: about these.
        """
        own, texts = dict(example), [extract_question(text) for text in texts]
        if "image" in example:
            del own["image"]
            further: JsonDict = {name: data for name, data in inputs.items() if name != "image"}
            image: JsonDict = {"image": inputs["image"]} if "image" in inputs else {}
            own = {**image, **({"inputs": further} if further else {}), **own}
        if self.text_name in example:
            own[self.text_name] = texts[0]
        if f"{self.text_name}s" in example:
            own[f"{self.text_name}s"] = list(texts[:2])
        return own

    def example_response(self, answered: Sequence[tuple[str, str, float]]) -> JsonDict | None:
        """Return the documentation's example response for a sample of the model's own data, without the fields of
        ``TaskResponse``; None to keep the schema's example.

        Args:
            answered: (text, best answer, its probability) of each text.
        """
        return None

    def stream_result(self, predictor: Predictor, task: str, item: BatchedRequest, streamer: Any) -> Any:
        """Generate the result for one item; ``streamer`` receives its text token by token meanwhile."""
        raise NotImplementedError

    def warm_up_requests(self, task: Task) -> Iterable[tuple[int, bool]]:
        """List the (top_k, attention) settings of warm-up requests, one for each code path of the model."""
        return ((1, False),)

    def result_agreement(self, champion: Any, challenger: Any) -> float:
        """Measure how far two models' results for one request agree, from 0 to 1."""
        raise NotImplementedError

    def largest_difference(self, champion: Any, challenger: Any) -> float | None:
        """The largest difference between two results' probabilities; None if probabilities cannot be compared."""
        return None

    def result_confidence(self, result: Any) -> float | None:
        """Measure how sure the model is of a result; None if the result does not tell."""
        return None

    def best_answers(self, query_texts: Sequence[str], result: Any) -> list[tuple[str, str]]:
        """List the (question, best answer) pairs that people can correct, with "" as the question of a caption."""
        return []


@cache
def all_operations() -> dict[str, Operation]:
    """List one operation of each name, over all installed tasks: those that a model may be asked for.

    Raises:
        ConfigError: two tasks have operations of one name with different schemas.
    """
    found: dict[str, Operation] = {}
    for kind in list_part_kinds("vlmodel.tasks"):
        for operation in getattr(find_part_config_class("vlmodel.tasks", kind), "operations", ()):
            other = found.setdefault(operation.name, operation)
            if (other.request, other.response) != (operation.request, operation.response):
                raise ConfigError(
                    f"task {kind!r} has an operation {operation.name!r} of other fields than another task's; rename it"
                )
    return found


def operations_of_tasks(tasks: Mapping[str, Task]) -> dict[str, tuple[str, Operation]]:
    """Map the name of each operation of a model to the task that performs it: among several tasks the one of the lowest
    rank, then the first.
    """
    found: dict[str, tuple[str, Operation]] = {}
    for name in all_operations():
        able = [
            (task, one)
            for task in tasks
            for one in tasks[task].operations
            if one.name == name and tasks[task].serves_operation(one)
        ]
        if able:
            found[name] = min(able, key=lambda pair: pair[1].rank)
    return found
