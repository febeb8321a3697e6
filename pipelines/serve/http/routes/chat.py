"""The routes POST /v1/chat/completions and GET /v1/models, as in OpenAI's API, so that its clients work unchanged.

https://platform.openai.com/docs/api-reference/chat
"""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from pipelines.serve.config import ServeConfig
from pipelines.serve.errors import ApiError, internal_error, invalid_conversation_error, not_ready_error
from pipelines.serve.http.error_bodies import openai_error
from pipelines.serve.http.middleware import ERROR_CODE, VERSION
from pipelines.serve.http.openapi import document_route
from pipelines.serve.http.routes import base
from pipelines.serve.http.routes._openai import check_model
from pipelines.serve.service import AnswerStream, ModelInfo, Service, ServiceRequest, ServiceResult
from vlmodel.conversation import ConversationError
from vlmodel.operations.base import ModelQuery
from vlmodel.operations.chat import ChatOperation, ChatRequest, count_possible_stop_characters, find_stop_text

_log = logging.getLogger(__name__)


def router(service: Service, config: ServeConfig) -> APIRouter:
    """Create the routes /v1/chat/completions and /v1/models."""
    routes, operation = APIRouter(), ChatOperation()

    @routes.get("/v1/models", summary="The models that can be asked", tags=["service"])
    async def models() -> dict[str, Any]:
        if service.model is None:
            raise not_ready_error()
        return {"object": "list", "data": [_describe_model(service.model)]}

    @routes.get("/v1/models/{name}", summary="One model that can be asked", tags=["service"])
    async def model(name: str) -> dict[str, Any]:
        if service.model is None:
            raise not_ready_error()
        check_model(name, service.model)
        return _describe_model(service.model)

    @routes.post(
        ChatOperation.path,
        name="chat",
        summary=ChatOperation.summary,
        description=ChatOperation.description,
        **document_route(ChatOperation.request, ChatOperation.response, form=False),
    )
    async def complete_chat(request: Request) -> Response:
        return await _complete_chat(request, service, config, operation)

    return routes


async def _complete_chat(request: Request, service: Service, config: ServeConfig, operation: ChatOperation) -> Response:
    handler = base.RequestHandler(request, service, config, operation.name)
    body = await handler.read_request(ChatRequest)
    assert service.model is not None
    check_model(body.model, service.model)
    query = operation.query_from_request(body)
    if (length := len(query.texts[0])) > (most := config.max_texts * config.max_question_chars):
        raise ApiError(400, "conversation_too_long", f"the messages have {length} characters; send at most {most}")
    asked = ServiceRequest(
        operation.name, query.inputs, query.texts, query.top_k, least_version=query.least_version,
        settings=query.settings,
    )  # fmt: skip
    identity = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())
    if body.stream:
        stream = await handler.run_within_time_limit(service.stream(asked))
        usage = body.stream_options is not None and body.stream_options.include_usage
        return StreamingResponse(
            _stream_chunks(handler, request, operation, query, stream, identity, usage),
            media_type="text/event-stream",
            headers={"cache-control": "no-store"},
        )
    result = await handler.run_within_time_limit(service.run(asked))
    request.scope[VERSION] = result.model.version
    fields = operation.response_fields(query, result.result, ())
    choices = [{**choice.model_dump(), "logprobs": None} for choice in fields["choices"]]
    answer = {**_first_response_fields(identity, result.model, "chat.completion"), "choices": choices}
    return JSONResponse(
        {**answer, "usage": fields["usage"].model_dump(), **_knowledge_fields(fields)},
        headers={"cache-control": "no-store", "x-model-alias": result.alias},
    )


async def _stream_chunks(
    handler: base.RequestHandler,
    request: Request,
    operation: ChatOperation,
    query: ModelQuery,
    stream: AnswerStream,
    identity: tuple[str, int],
    usage: bool,
) -> AsyncIterator[bytes]:
    """Yield the chunks of a stream. The HTTP status was sent before them, so an error is an event too."""
    stop, text, sent = query.settings.get("stop_strings", ()), "", 0
    model: ModelInfo | None = None

    def make_chunk(delta: dict[str, str]) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}
        return _format_event({**_first_response_fields(identity, model, "chat.completion.chunk"), "choices": [choice]})

    try:
        # Closed also if the client leaves, so that an answer that nobody awaits is not generated.
        async with aclosing(stream):
            yield make_chunk({"role": "assistant", "content": ""})
            while isinstance(piece := await handler.run_within_time_limit(anext(stream)), str):
                text += piece
                # What may be the beginning of a text that ends the answer waits for what follows.
                end = find_stop_text(text, stop)
                end = len(text) - count_possible_stop_characters(text, stop) if end is None else end
                if end > sent:
                    yield make_chunk({"content": text[sent:end]})
                    sent = end
            assert isinstance(piece, ServiceResult)
            model = piece.model
            request.scope[VERSION] = model.version
            fields = operation.response_fields(query, piece.result, ())
            [choice] = fields["choices"]
            end = find_stop_text(text, stop)
            if (rest := text[sent:end]) and end != sent:
                yield make_chunk({"content": rest})
            last = _first_response_fields(identity, model, "chat.completion.chunk")
            ended = {"index": 0, "delta": {}, "logprobs": None, "finish_reason": choice.finish_reason}
            yield _format_event({**last, "choices": [ended], **_knowledge_fields(fields)})
            if usage:
                whole = {**_first_response_fields(identity, model, "chat.completion.chunk"), "choices": []}
                yield _format_event({**whole, "usage": fields["usage"].model_dump()})
            yield b"data: [DONE]\n\n"
    except (ApiError, ConversationError) as error:
        known = error if isinstance(error, ApiError) else invalid_conversation_error(error)
        request.scope[ERROR_CODE] = known.code
        yield _format_event(openai_error(known))
    except Exception:
        _log.exception("a streamed answer failed")
        request.scope[ERROR_CODE] = internal_error().code
        yield _format_event(openai_error(internal_error()))


def _first_response_fields(identity: tuple[str, int], model: ModelInfo | None, kind: str) -> dict[str, Any]:
    """Build the first fields of a chat completion. Its fingerprint is the version of the model."""
    named = {} if model is None else {"model": model.name, "system_fingerprint": f"version {model.version}"}
    return {"id": identity[0], "object": kind, "created": identity[1], "model": "", **named}


def _describe_model(model: ModelInfo) -> dict[str, Any]:
    return {"id": model.name, "object": "model", "created": 0, "owned_by": "vlmodel"}


def _knowledge_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts that the model got, which OpenAI's responses do not have; {} for a model without a store."""
    if fields["knowledge_version"] is None:
        return {}
    return {
        "facts": [fact.model_dump() for fact in fields["facts"]], "knowledge_version": fields["knowledge_version"],
    }  # fmt: skip


def _format_event(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data, ensure_ascii=False).encode() + b"\n\n"
