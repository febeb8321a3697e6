"""What the routes share: a handler that reads a request and responds within a time limit."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, TypeVar, get_args

from fastapi import Request
from fastapi.responses import Response
from pydantic import ValidationError
from pydantic_core.core_schema import ErrorType
from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from pipelines.serve.config import ServeConfig
from pipelines.serve.errors import ApiError, not_ready_error, unknown_task_error
from pipelines.serve.http.middleware import STARTED, VERSION
from pipelines.serve.service import Service, ServiceResult
from vlmodel.operations.base import ModelVersion, TaskRequest, TaskResponse

RequestT = TypeVar("RequestT", bound=TaskRequest)
ResponseT = TypeVar("ResponseT", bound=TaskResponse)
T = TypeVar("T")

# Errors of the schemas that are their own have a code of their own; any of pydantic's is an "invalid_request".
_PYDANTICS = frozenset(get_args(ErrorType))
_UTF_8 = ("utf-8", "utf8", "us-ascii", "ascii")
_MAX_FIELDS, _MAX_FILES = 32, 16


class RequestHandler:
    """Reads one request and sends its response within ``config.request_timeout_s``, counted from its creation.

    Args:
        operation: what the model must be able to do; None for a request that needs no model.

    Raises:
        ApiError: there is no model, or it lacks the task; the body is not read then.
    """

    def __init__(self, request: Request, service: Service, config: ServeConfig, operation: str | None = None) -> None:
        if service.model is None:
            raise not_ready_error()
        if operation is not None and operation not in service.model.tasks:
            raise unknown_task_error(operation, service.model.name, service.model.tasks)
        self._request, self._config = request, config
        self._deadline = asyncio.get_running_loop().time() + config.request_timeout_s

    async def read_request(self, request_type: type[RequestT]) -> RequestT:
        """Read the request, from JSON or a form.

        Raises:
            ApiError: it does not arrive in time, or is not valid.
        """
        try:
            async with asyncio.timeout_at(self._deadline):
                return await _parse_request(self._request, request_type, self._config)
        except TimeoutError:
            limit_s = self._config.request_timeout_s
            message = f"the request did not arrive within {limit_s:g} s; send a smaller image"
            raise ApiError(408, "slow_request", message, {"connection": "close"}) from None

    async def run_within_time_limit(self, work: Awaitable[T]) -> T:
        """Await ``work`` within the time limit and return its result.

        Raises:
            ApiError: it takes longer than the remaining time.
        """
        try:
            async with asyncio.timeout_at(self._deadline):
                return await work
        except TimeoutError:
            limit_s = self._config.request_timeout_s
            message = f"no answer within {limit_s:g} s; try again, or ask for less at once"
            raise ApiError(504, "timeout", message) from None

    def build_response_body(self, response_type: type[ResponseT], result: ServiceResult, **fields: Any) -> ResponseT:
        """Build the response's body: the operation's ``response_fields``, the model and the latency."""
        self._request.scope[VERSION] = result.model.version
        model = ModelVersion(name=result.model.name, version=result.model.version)
        latency_ms = round(self._elapsed_s() * 1000, 2)
        return response_type(**fields, model=model, latency_ms=latency_ms, unknown_words=list(result.unknown_words))

    def send_response(self, response_type: type[ResponseT], result: ServiceResult, **fields: Any) -> Response:
        """Build the response, with the seconds of each stage (https://www.w3.org/TR/server-timing/) in a header."""
        stages_s = {**result.stages_s, "total": self._elapsed_s()}
        return Response(
            self.build_response_body(response_type, result, **fields).model_dump_json(),
            media_type="application/json",
            headers={
                "server-timing": ", ".join(f"{name};dur={seconds * 1000:.2f}" for name, seconds in stages_s.items()),
                "cache-control": "no-store",
                "x-model-alias": result.alias,
            },
        )

    def _elapsed_s(self) -> float:
        started: float = self._request.scope[STARTED]
        return time.perf_counter() - started


def check_text_lengths(texts: Sequence[str], name: str, config: ServeConfig) -> None:
    """Raise ApiError for texts longer than ``config.max_question_chars``; ``name`` is what they are called, in the
    singular.
    """
    longest = max(map(len, texts), default=0)
    if longest > config.max_question_chars:
        message = f"a {name} has {longest} characters; send at most {config.max_question_chars}"
        raise ApiError(422, f"{name}_too_long", message)


def which_texts_are_truncated(result: ServiceResult, texts: Sequence[str]) -> list[bool]:
    """Tell for each text whether it was truncated."""
    return list(result.truncated or [False] * len(texts))


async def _parse_request(request: Request, request_type: type[RequestT], config: ServeConfig) -> RequestT:
    content_type, options = parse_options_header(request.headers.get("content-type", ""))
    media_type = content_type.decode("latin-1").lower()
    limits = dict.fromkeys(("questions", "texts"), config.max_texts)
    try:
        if media_type == "application/json":
            body = await request.body()
            _check_json_size(body, config)
            return request_type.model_validate_json(body, strict=True, context=limits)
        if media_type == "multipart/form-data":
            fields = await _read_form(request, request_type, options, config)
            return request_type.model_validate(fields, context=limits)
    except ValidationError as error:
        raise _validation_message(error, request_type) from None
    raise ApiError(
        415,
        "unsupported_media_type",
        f"content type {media_type[:80]!r} is not supported; send application/json or multipart/form-data",
    )


def _check_json_size(body: bytes, config: ServeConfig) -> None:
    """Refuse JSON with more separators than the longest allowed texts could contain, as parsing the millions of empty
    lists that fit into a body takes seconds.
    """
    parts = sum(map(body.count, (b",", b"[", b"{")))
    most = config.max_texts * config.max_question_chars + _MAX_FIELDS
    if parts > most:
        message = f"the body has {parts} commas and opening brackets; send JSON of at most {most}"
        raise ApiError(400, "bad_json", message)


async def _read_form(
    request: Request, request_type: type[TaskRequest], options: Mapping[bytes, bytes], config: ServeConfig
) -> dict[str, Any]:
    """Read the fields of a form: texts, and the bytes of its files; a file without a field of its own is an input.

    Raises:
        ApiError: it is no form, has too many fields, or is not in UTF-8.
    """
    charset, boundary = options.get(b"charset", b"utf-8").decode("latin-1"), options.get(b"boundary", b"")
    if charset.lower() not in _UTF_8:
        message = f"the form's charset {charset[:80]!r} is not supported; send it in UTF-8"
        raise ApiError(400, "unsupported_charset", message)
    if set(boundary) & set(b'"\\'):
        raise ApiError(400, "bad_request", "the form's boundary has a character that no boundary may have")
    # Starlette silently reads as Latin-1 what is not in the given charset. So all is read as Latin-1, which is
    # lossless, and decoded here.
    form_type = f'multipart/form-data; boundary="{boundary.decode("latin-1")}"; charset=latin-1'
    headers = Headers({"content-type": form_type if boundary else "multipart/form-data"})
    # Each text may be in a field of its own.
    max_fields = config.max_texts + _MAX_FIELDS
    parser = MultiPartParser(
        headers, request.stream(), max_files=_MAX_FILES, max_fields=max_fields, max_part_size=config.max_body_bytes
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise ApiError(400, "bad_request", f"the form cannot be read: {error.message}") from None
    fields: dict[str, Any] = {}
    inputs: dict[str, Any] = {}
    repeatable, known = request_type.repeatable, request_type.model_fields
    plurals = set(repeatable.values())
    try:
        for raw_name in form:
            values = [await v.read() if isinstance(v, UploadFile) else _utf_8(v) for v in form.getlist(raw_name)]
            name = _utf_8(raw_name)
            is_input = name not in known and isinstance(values[0], bytes)
            of_kind = inputs if is_input and "inputs" in known else fields
            of_kind[name] = values if len(values) > 1 or name in plurals else values[0]
    finally:
        await form.close()
    for singular, plural in repeatable.items():
        if isinstance(fields.get(singular), list):
            fields[plural] = fields.pop(singular)
    return fields | ({"inputs": inputs} if inputs else {})


def _utf_8(latin_1: str) -> str:
    try:
        return latin_1.encode("latin-1").decode()
    except UnicodeDecodeError as error:
        message = f"a field of the form is not in UTF-8 ({error.reason} at byte {error.start}); send it in UTF-8"
        raise ApiError(400, "bad_request", message) from None


def _validation_message(error: ValidationError, request_type: type[TaskRequest]) -> ApiError:
    """Describe the first few validation problems in one message; what the client sent is quoted only if it is short."""
    details = error.errors(include_url=False, include_context=False)
    code = details[0]["type"]
    if code == "json_invalid":
        return ApiError(400, "bad_json", f"the body is not JSON ({details[0]['msg']})"[:300])
    fields = ", ".join(request_type.model_fields)
    lines = []
    for detail in details[:3]:
        where = ".".join(str(step) for step in detail["loc"])[:80]
        value = f" (given {detail['input']!r:.40})" if isinstance(detail["input"], int | float) else ""
        line = {
            "extra_forbidden": f"field '{where}' is unknown; the fields are {fields}",
            "missing": f"field '{where}' is required",
            "model_type": f"the body is JSON, but not an object; send one with the fields {fields}",
        }.get(detail["type"], f"{where}: {detail['msg']}{value}" if where else f"{detail['msg']}{value}")
        lines.append(line)
    first = next(iter(details[0]["loc"]), None)
    param = first if isinstance(first, str) else None
    return ApiError(422, "invalid_request" if code in _PYDANTICS else code, "; ".join(lines), param=param)
