"""The operation ``chat``, POST /v1/chat/completions, with the schemas of OpenAI's API: texts, and pictures as data:
URLs.

https://platform.openai.com/docs/api-reference/chat
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, model_validator
from pydantic.config import JsonDict, JsonValue
from pydantic_core import PydanticCustomError

from vlmodel import conversation
from vlmodel.conversation import ConversationError, ConversationTurn
from vlmodel.images.base64 import decode_base64
from vlmodel.operations import base

if TYPE_CHECKING:
    from vlmodel.inference import Predictor
    from vlmodel.parts import WrittenText
    from vlmodel.task import Task

_MAX_MESSAGES, _MAX_PARTS = 256, 64


class ImageURL(BaseModel):
    """A picture within a message, as a data: URL."""

    model_config = ConfigDict(extra="forbid")

    url: str
    detail: Literal["auto", "low", "high"] = "auto"


class TextPart(BaseModel):
    """A text within a message."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["text"]
    text: str


class ImagePart(BaseModel):
    """A picture within a message."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["image_url"]
    image_url: ImageURL


ContentPart = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class ChatMessage(BaseModel):
    """One message of a conversation."""

    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[ContentPart], Field(min_length=1, max_length=_MAX_PARTS)]
    name: str | None = None


class StreamOptions(BaseModel):
    """Settings of what a streamed response contains beside the text."""

    model_config = ConfigDict(extra="forbid")

    include_usage: bool = False


class TextFormat(BaseModel):
    """The response format "text", the only one that is supported."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["text"]


class ChatRequest(base.TaskRequest):
    """A request with a conversation whose last turn is the user's."""

    model_config = base.schema_with_examples(
        {
            "model": "vlmodel",
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base.EXAMPLE_IMAGE}"}},
                        {"type": "text", "text": "What colour is the circle?"},
                    ],
                }
            ],
        }
    )

    model: str = Field(max_length=256)
    messages: list[ChatMessage] = Field(min_length=1, max_length=_MAX_MESSAGES)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    n: int = Field(default=1, ge=1, le=8)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = Field(default=None, max_length=512)
    # What clients send though they want nothing of it.
    frequency_penalty: float | None = Field(default=None, ge=0, le=0)
    presence_penalty: float | None = Field(default=None, ge=0, le=0)
    logprobs: Literal[False] | None = None
    response_format: TextFormat | None = None
    store: Literal[False] | None = None
    min_knowledge_version: base.LeastKnowledgeVersion = 0

    @model_validator(mode="before")
    @classmethod
    def _check_entry_counts(cls, fields: Any, info: ValidationInfo) -> Any:
        """Limit the number of entries before they are validated, as ``TaskRequest`` does."""
        messages = fields.get("messages") if isinstance(fields, dict) else None
        if isinstance(messages, list) and len(messages) > _MAX_MESSAGES:
            text = "{count} messages in one request; send at most {most}"
            raise PydanticCustomError("too_many_messages", text, {"count": len(messages), "most": _MAX_MESSAGES})
        return fields

    @model_validator(mode="after")
    def _check_settings(self) -> ChatRequest:
        if self.stream and self.n > 1:
            raise PydanticCustomError("one_streamed", "one text is streamed, and n={n}; set one of both", {"n": self.n})
        if len(self.stop_texts()) > 4 or not all(self.stop_texts()):
            raise PydanticCustomError("bad_stop", "stop is at most four texts, none of which is empty")
        self.conversation_and_image()
        return self

    def stop_texts(self) -> tuple[str, ...]:
        """The texts at which generation stops; they are not part of the answer."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    def conversation_and_image(self) -> tuple[tuple[ConversationTurn, ...], bytes | None]:
        """Split the messages into a conversation and the picture in it.

        Raises:
            PydanticCustomError: it cannot be answered, or a picture is none, several, or elsewhere.
        """
        images: list[bytes] = []
        turns = []
        for message in self.messages:
            parts: list[str | None] = []
            for part in [message.content] if isinstance(message.content, str) else message.content:
                if isinstance(part, ImagePart):
                    images.append(_decode_image_url(part.image_url.url))
                    parts.append(None)
                else:
                    parts.append(part if isinstance(part, str) else part.text)
            turns.append(ConversationTurn("system" if message.role == "developer" else message.role, tuple(parts)))
        if len(images) > 1:
            text = "{count} images in one conversation, and the model takes one; send the one that is asked about"
            raise PydanticCustomError("too_many_images", text, {"count": len(images)})
        try:
            conversation.check_conversation(turns)
        except ConversationError as error:
            raise PydanticCustomError("bad_conversation", "{reason}", {"reason": str(error)}) from None
        return tuple(turns), images[0] if images else None

    def generation_settings(self) -> dict[str, Any]:
        """Build the settings of generation: greedy, unless a temperature is given."""
        found: dict[str, Any] = {}
        if (most := self.max_completion_tokens or self.max_tokens) is not None:
            found["max_new_tokens"] = most
        if self.stop_texts():
            found["stop_strings"] = list(self.stop_texts())
        if self.temperature:
            found |= {"do_sample": True, "temperature": max(self.temperature, 1e-6)}
            if self.top_p is not None:
                found["top_p"] = self.top_p
            if self.seed is not None:
                found["seed"] = self.seed
        return found


class TokenUsage(BaseModel):
    """The numbers of tokens read and generated; the tokens of a picture count as read."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class AssistantMessage(BaseModel):
    """The message that the model generated."""

    role: Literal["assistant"] = "assistant"
    content: str


class ChatChoice(BaseModel):
    """One of the generated texts."""

    index: int
    message: AssistantMessage
    finish_reason: Literal["stop", "length"]


class ChatResponse(base.TaskResponse):
    """The fields of a chat completion that depend on the model."""

    choices: list[ChatChoice]
    usage: TokenUsage
    facts: base.UsedFacts = []
    knowledge_version: base.KnowledgeVersion = None


class ChatOperation(base.Operation):
    """Generates ``n`` replies to a conversation, each a ``WrittenText``, which is cut where one of the texts of
    ``stop`` begins.
    """

    name: ClassVar[str] = "chat"
    path: ClassVar[str] = "/v1/chat/completions"
    summary: ClassVar[str] = "Converse about a picture"
    description: ClassVar[str] = "OpenAI's chat completions, with a picture as a data: URL."
    request: ClassVar[type[base.TaskRequest]] = ChatRequest
    response: ClassVar[type[base.TaskResponse]] = ChatResponse
    text_name: ClassVar[str] = "conversation"

    def query_from_request(self, request: ChatRequest) -> base.ModelQuery:
        turns, image = request.conversation_and_image()
        inputs = {} if image is None else {"image": image}
        text = conversation.conversation_to_json(turns)
        return base.ModelQuery(
            inputs, (text,), request.n, stream=request.stream, least_version=request.min_knowledge_version,
            settings=request.generation_settings(),
        )  # fmt: skip

    def response_fields(
        self, query: base.ModelQuery, result: Sequence[WrittenText], truncated: Sequence[bool]
    ) -> dict[str, Any]:
        written = sum(one.tokens for one in result)
        read = result[0].prompt_tokens
        choices = [
            ChatChoice(
                index=n,
                message=AssistantMessage(content=one.text),
                finish_reason="stop" if one.is_complete else "length",
            )
            for n, one in enumerate(result)
        ]
        usage = TokenUsage(prompt_tokens=read, completion_tokens=written, total_tokens=read + written)
        facts, version = base.to_used_facts(result[0].facts), result[0].knowledge_version
        return {"choices": choices, "usage": usage, "facts": facts, "knowledge_version": version}

    def example_request(self, example: JsonDict, inputs: Mapping[str, str], texts: Sequence[str]) -> JsonDict:
        picture = inputs.get("image")
        messages: list[JsonValue] = []
        for turn in conversation.conversation_from_text(texts[0]):
            parts: list[JsonValue] = []
            for part in turn.parts:
                if part is not None:
                    parts.append({"type": "text", "text": part})
                elif picture is not None:
                    url = f"data:image/png;base64,{picture}"
                    parts.append({"type": "image_url", "image_url": {"url": url}})
                    picture = None  # it is sent once
            messages.append({"role": turn.role, "content": parts})
        return {**example, "messages": messages}

    def run(self, predictor: Predictor, task: str, items: Sequence[base.BatchedRequest]) -> list[list[WrittenText]]:
        results: list[list[WrittenText]] = [[] for _ in items]
        for indices in _group_for_generation(items):
            first = items[indices[0]]
            settings = _limit_new_tokens(first.settings, predictor.processor.tasks[task])
            # What is written greedily is the same each time.
            top_k = first.top_k if settings.get("do_sample") else 1
            seed = settings.pop("seed", None)
            with _with_torch_seed(seed):
                written = predictor.generate_texts([items[i].example for i in indices], top_k, task, **settings)
            for i, of_item in zip(indices, written, strict=True):
                cut = [_cut_at_stop_text(one, settings.get("stop_strings", ())) for one in of_item]
                results[i] = cut * (first.top_k if top_k == 1 else 1)
        return results

    def stream_result(
        self, predictor: Predictor, task: str, item: base.BatchedRequest, streamer: Any
    ) -> list[WrittenText]:
        settings = _limit_new_tokens(item.settings, predictor.processor.tasks[task])
        with _with_torch_seed(settings.pop("seed", None)):
            [[written]] = predictor.generate_texts([item.example], 1, task, streamer=streamer, **settings)
        return [_cut_at_stop_text(written, settings.get("stop_strings", ()))]

    def result_agreement(self, champion: Sequence[WrittenText], challenger: Sequence[WrittenText]) -> float:
        """1 if both models' first texts are the same, else 0."""
        return float(champion[0].text == challenger[0].text)

    def result_confidence(self, result: Sequence[WrittenText]) -> float:
        """The probability of the first text that was generated."""
        return result[0].probability


def find_stop_text(text: str, stop: Sequence[str]) -> int | None:
    """Find where the first of the stop texts begins in a text; None if the text contains none."""
    return min((at for one in stop if (at := text.find(one)) >= 0), default=None)


def count_possible_stop_characters(text: str, stop: Sequence[str]) -> int:
    """Count the characters at the end of a text that may be the beginning of a stop text."""
    return max((n for one in stop for n in range(1, len(one)) if text.endswith(one[:n])), default=0)


def _limit_new_tokens(settings: Mapping[str, Any], task: Task) -> dict[str, Any]:
    """Limit ``max_new_tokens`` to what the model can generate."""
    bounded, most = dict(settings), task.max_generated_tokens()
    if most is not None and "max_new_tokens" in bounded:
        bounded["max_new_tokens"] = min(bounded["max_new_tokens"], most)
    return bounded


def _cut_at_stop_text(written: WrittenText, stop: Sequence[str]) -> WrittenText:
    from dataclasses import replace

    at = find_stop_text(written.text, stop)
    return written if at is None else replace(written, text=written.text[:at], is_complete=True)


def _group_for_generation(items: Sequence[base.BatchedRequest]) -> list[list[int]]:
    """Group the indices of requests that can be generated in one pass: those of equal settings, and each seeded one
    alone; texts of similar length follow each other, so that they are padded least.
    """
    groups: dict[tuple[Any, ...], list[int]] = {}
    for i, item in enumerate(items):
        alone = i if "seed" in item.settings else -1
        groups.setdefault((item.top_k, repr(sorted(item.settings.items())), alone), []).append(i)
    lengths = [sum(map(len, item.example.texts)) for item in items]
    passes = []
    for indices in groups.values():
        indices.sort(key=lambda i: lengths[i])
        # A text twice as long as another is in another pass.
        start = 0
        for stop in range(1, len(indices) + 1):
            if stop == len(indices) or lengths[indices[stop]] > 2 * max(200, lengths[indices[start]]):
                passes.append(indices[start:stop])
                start = stop
    return passes


def _with_torch_seed(seed: int | None) -> Any:
    """Seed torch's random numbers within the block, and restore their state after it."""
    import contextlib

    import torch

    if seed is None:
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def seeded_block() -> Any:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            yield

    return seeded_block()


def _decode_image_url(url: str) -> bytes:
    scheme, _, data = url.partition(":")
    if scheme.lower() in ("http", "https"):
        raise PydanticCustomError(
            "no_remote_images", "this service fetches no images from other addresses; send it as a data: URL"
        )
    header, comma, payload = data.partition(",")
    if scheme.lower() != "data" or not comma or not header.lower().endswith(";base64"):
        raise PydanticCustomError("bad_image_url", "image_url is no data: URL; send data:image/png;base64,...")
    try:
        image = decode_base64(payload)
    except ValueError as error:
        raise PydanticCustomError("bad_base64", "not valid base64; {hint}", {"hint": str(error)}) from None
    if not image:
        raise PydanticCustomError("empty_image", "the image has no bytes; send the content of an image file")
    return image
