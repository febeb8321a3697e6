"""What the routes of all tasks do alike: read a request and wait for its answer in time, send it, document it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import Response
from pydantic import ValidationError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from pipelines.serve.config import ServeConfig
from pipelines.serve.errors import ApiError, lacks_task, not_ready
from pipelines.serve.http.middleware import STARTED, VERSION
from pipelines.serve.http.schema.common import (
    ERROR_CODES,
    AttentionMap,
    ErrorBody,
    ModelVersion,
    TaskRequest,
    TaskResponse,
)
from pipelines.serve.service import Service, ServiceResult, Task
from vlmodel.inference import Prediction

RequestT = TypeVar("RequestT", bound=TaskRequest)
ResponseT = TypeVar("ResponseT", bound=TaskResponse)
T = TypeVar("T")

# ASCII is part of it.
_UTF_8 = ("utf-8", "utf8", "us-ascii", "ascii")
_OTHER_FIELDS = 32

_ERRORS = {
    400: "The body is not JSON, or not a form in UTF-8, or not in gzip.",
    401: "The API key is missing or wrong.",
    403: "From another machine or under another name, where there are no API keys.",
    404: "The model that is loaded cannot do this; the message names what it can.",
    408: "The request took too long to arrive.",
    413: "The body or the image is too large.",
    415: "Neither application/json nor multipart/form-data, or compressed by other than gzip.",
    422: "The image or a field cannot be used.",
    429: "Too many requests, at once or of this caller; see Retry-After.",
    503: "No model is loaded yet.",
    504: "The answer took too long.",
}


class RequestHandler:
    """One request. Its time runs from here on.

    Args:
        task: what the model must be able to do; nothing if not given.

    Raises:
        ApiError: there is no model, or it lacks the task; the body is not read then.
    """

    def __init__(self, request: Request, service: Service, config: ServeConfig, task: Task | None = None) -> None:
        if service.model is None:
            raise not_ready()
        if task is not None and task not in service.model.tasks:
            raise lacks_task(task, service.model.name, service.model.tasks)
        self._request, self._limit_s = request, config.request_timeout_s
        self._config = config
        self._deadline = asyncio.get_running_loop().time() + config.request_timeout_s

    async def read(self, kind: type[RequestT]) -> RequestT:
        """The request, from JSON or a form.

        Raises:
            ApiError: it does not arrive in time, or cannot be understood.
        """
        try:
            async with asyncio.timeout_at(self._deadline):
                return await _read(self._request, kind, self._config)
        except TimeoutError:
            message = f"the request did not arrive within {self._limit_s:g} s; send a smaller image"
            raise ApiError(408, "slow_request", message, {"connection": "close"}) from None

    async def within(self, work: Awaitable[T]) -> T:
        """What ``work`` gives.

        Raises:
            ApiError: not in the time that is left.
        """
        try:
            async with asyncio.timeout_at(self._deadline):
                return await work
        except TimeoutError:
            message = f"no answer within {self._limit_s:g} s; try again, or ask for less at once"
            raise ApiError(504, "timeout", message) from None

    def body(self, kind: type[ResponseT], result: ServiceResult[Any], **fields: Any) -> ResponseT:
        """The answer, with what every answer tells."""
        self._request.scope[VERSION] = result.model.version
        model = ModelVersion(name=result.model.name, version=result.model.version)
        return kind(**fields, model=model, latency_ms=round(self._elapsed_s() * 1000, 2))

    def respond(self, kind: type[ResponseT], result: ServiceResult[Any], **fields: Any) -> Response:
        """The answer as a response."""
        return Response(
            self.body(kind, result, **fields).model_dump_json(),
            media_type="application/json",
            headers={
                "server-timing": _server_timing(result.stages_s, self._elapsed_s()),
                "cache-control": "no-store",
                "x-model-alias": result.side,
            },
        )

    def _elapsed_s(self) -> float:
        started: float = self._request.scope[STARTED]
        return time.perf_counter() - started


def check_texts(texts: Sequence[str], name: str, config: ServeConfig) -> None:
    """Refuse texts that are too long.

    Args:
        name: what they are called, in the singular.

    Raises:
        ApiError: naming the length and the limit.
    """
    longest = max(map(len, texts), default=0)
    if longest > config.max_question_chars:
        message = f"a {name} has {longest} characters; send at most {config.max_question_chars}"
        raise ApiError(422, f"{name}_too_long", message)


def truncated(result: ServiceResult[Any], texts: Sequence[str]) -> list[bool]:
    """Which of the texts the model was given the beginning of alone."""
    return list(result.truncated or [False] * len(texts))


def attention_map(prediction: Prediction) -> AttentionMap | None:
    """Where the model looked, for the wire."""
    if prediction.attention_HW is None:
        return None
    rows, columns = prediction.attention_HW.shape
    weights = prediction.attention_HW.astype(float).round(6).tolist()
    return AttentionMap(rows=rows, columns=columns, weights=weights)


def probability(value: float) -> float:
    """Without what rounding puts beyond 0 and 1."""
    return min(1.0, max(0.0, float(value)))


def documentation(request_type: type[TaskRequest], result: type[TaskResponse]) -> dict[str, Any]:
    """What FastAPI is to write into the OpenAPI page for a task's route."""
    return {
        "response_model": result,
        "responses": {status: {"model": ErrorBody, "description": text} for status, text in _ERRORS.items()},
        "openapi_extra": {"requestBody": _request_body(request_type)},
        "tags": ["tasks"],
    }


def _request_body(request_type: type[TaskRequest]) -> dict[str, Any]:
    """OpenAPI of the two ways to send a request; FastAPI itself can declare only one of them for a route."""
    schema = request_type.model_json_schema()
    examples = schema.pop("examples")
    properties, required = dict(schema["properties"]), list(schema.get("required", ()))
    properties["image"] = {"type": "string", "format": "binary", "description": "The image file."}
    for one, several in request_type.repeated.items():
        description = f"{properties[several]['description']} Repeat the field to send several."
        properties[one] = {"type": "array", "items": {"type": "string"}, "description": description}
        del properties[several]
    return {
        "required": True,
        "content": {
            "application/json": {
                "schema": schema,
                "examples": {f"example {i}": {"value": value} for i, value in enumerate(examples, start=1)},
            },
            "multipart/form-data": {
                "schema": {"type": "object", "properties": properties, "required": required},
                "example": {**examples[0], "image": "@picture.jpg"},
            },
        },
    }


async def _read(request: Request, kind: type[RequestT], config: ServeConfig) -> RequestT:
    content_type, options = parse_options_header(request.headers.get("content-type", ""))
    media_type = content_type.decode("latin-1").lower()
    limits = {"questions": config.max_questions, "texts": config.max_texts}
    try:
        if media_type == "application/json":
            body = await request.body()
            _check_parts(body, config)
            return kind.model_validate_json(body, strict=True, context=limits)
        if media_type == "multipart/form-data":
            return kind.model_validate(await _read_form(request, kind.repeated, options, config), context=limits)
    except ValidationError as error:
        raise _explain(error, kind) from None
    raise ApiError(
        415,
        "unsupported_media_type",
        f"content type {media_type[:80]!r} is not supported; send application/json or multipart/form-data",
    )


def _check_parts(body: bytes, config: ServeConfig) -> None:
    """Refuse JSON of more parts than the longest texts that are allowed could seem to have: millions of empty lists
    fit into a body, and take seconds to be made.

    Raises:
        ApiError: naming the number and the limit.
    """
    parts = sum(map(body.count, (b",", b"[", b"{")))
    most = max(config.max_questions, config.max_texts) * config.max_question_chars + _OTHER_FIELDS
    if parts > most:
        message = f"the body has {parts} commas and opening brackets; send JSON of at most {most}"
        raise ApiError(400, "bad_json", message)


async def _read_form(
    request: Request, repeated: Mapping[str, str], options: Mapping[bytes, bytes], config: ServeConfig
) -> dict[str, Any]:
    """The fields of a form: texts, and the bytes of its file.

    Raises:
        ApiError: it is no form, has too many fields, or is not in UTF-8.
    """
    charset, boundary = options.get(b"charset", b"utf-8").decode("latin-1"), options.get(b"boundary", b"")
    if charset.lower() not in _UTF_8:
        message = f"the form's charset {charset[:80]!r} is not supported; send it in UTF-8"
        raise ApiError(400, "unsupported_charset", message)
    if set(boundary) & set(b'"\\'):
        raise ApiError(400, "bad_request", "the form's boundary has a character that no boundary may have")
    # Starlette reads what is not in the given charset as Latin-1, without a word. So all is read as that, which loses
    # nothing, and decoded here.
    form_type = f'multipart/form-data; boundary="{boundary.decode("latin-1")}"; charset=latin-1'
    headers = Headers({"content-type": form_type} if boundary else {"content-type": "multipart/form-data"})
    # As many texts as are allowed, each in a field of its own, and some room for the other fields.
    most_fields = max(config.max_questions, config.max_texts) + _OTHER_FIELDS
    parser = MultiPartParser(
        headers, request.stream(), max_files=1, max_fields=most_fields, max_part_size=config.max_body_bytes
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise ApiError(400, "bad_request", f"the form cannot be read: {error.message}") from None
    tree: dict[str, Any] = {}
    several = set(repeated.values())
    try:
        for sent_name in form:
            values = [await v.read() if isinstance(v, UploadFile) else _utf_8(v) for v in form.getlist(sent_name)]
            name = _utf_8(sent_name)
            tree[name] = values if len(values) > 1 or name in several else values[0]
    finally:
        await form.close()
    for one, all_of_them in repeated.items():
        if isinstance(tree.get(one), list):
            tree[all_of_them] = tree.pop(one)
    return tree


def _utf_8(latin_1: str) -> str:
    try:
        return latin_1.encode("latin-1").decode()
    except UnicodeDecodeError as error:
        message = f"a field of the form is not in UTF-8 ({error.reason} at byte {error.start}); send it in UTF-8"
        raise ApiError(400, "bad_request", message) from None


def _explain(error: ValidationError, kind: type[TaskRequest]) -> ApiError:
    """The first few problems in one message; what the client sent is quoted only where it is short."""
    details = error.errors(include_url=False, include_context=False)
    first = details[0]["type"]
    if first == "json_invalid":
        return ApiError(400, "bad_json", f"the body is not JSON ({details[0]['msg']})"[:300])
    fields = ", ".join(kind.model_fields)
    lines = []
    for detail in details[:3]:
        where = ".".join(str(step) for step in detail["loc"])[:80]
        if detail["type"] == "extra_forbidden":
            lines.append(f"field '{where}' is unknown; the fields are {fields}")
            continue
        if detail["type"] == "missing":
            lines.append(f"field '{where}' is required")
            continue
        if detail["type"] == "model_type":
            lines.append(f"the body is JSON, but not an object; send one with the fields {fields}")
            continue
        given = f" (given {detail['input']!r:.40})" if isinstance(detail["input"], int | float) else ""
        lines.append(f"{where}: {detail['msg']}{given}" if where else f"{detail['msg']}{given}")
    return ApiError(422, first if first in ERROR_CODES else "invalid_request", "; ".join(lines))


def _server_timing(stages_s: Mapping[str, float], elapsed_s: float) -> str:
    """https://www.w3.org/TR/server-timing/, in milliseconds."""
    return ", ".join(f"{name};dur={seconds * 1000:.2f}" for name, seconds in {**stages_s, "total": elapsed_s}.items())
