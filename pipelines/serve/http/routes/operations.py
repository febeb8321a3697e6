"""The routes POST /v1/NAME: one for each operation that the installed tasks declare."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel

from pipelines.serve.config import ServeConfig
from pipelines.serve.errors import ApiError, internal_error, invalid_conversation_error
from pipelines.serve.http.error_bodies import error_body
from pipelines.serve.http.middleware import ERROR_CODE
from pipelines.serve.http.openapi import document_route
from pipelines.serve.http.routes import base
from pipelines.serve.service import AnswerStream, Service, ServiceRequest, ServiceResult
from vlmodel.conversation import ConversationError
from vlmodel.operations.base import ModelQuery, Operation, all_operations

_log = logging.getLogger(__name__)


class StreamedPiece(BaseModel):
    """The data of an event `piece`: the text that was generated since the last one."""

    text: str


def router(service: Service, config: ServeConfig) -> APIRouter:
    """Create one POST route for each operation that the installed tasks offer, such as /v1/vqa.

    Raises:
        ConfigError: two installed tasks have operations of one name with different fields.
    """
    routes = APIRouter()
    for operation in all_operations().values():
        if operation.path:
            continue
        _add_route(routes, operation, service, config)
    return routes


def _add_route(routes: APIRouter, operation: Operation, service: Service, config: ServeConfig) -> None:
    documented = document_route(operation.request, operation.response)
    if operation.streaming:
        documented["responses"][200] = {
            "description": f"The answer. {operation.streaming}",
            "content": {
                "text/event-stream": {
                    "schema": {"type": "string"},
                    "example": 'event: piece\ndata: {"text":"a red "}\n\nevent: done\ndata: {"model": ...}\n\n',
                }
            },
        }

    @routes.post(
        f"/v1/{operation.name}",
        name=operation.name,
        summary=operation.summary,
        description=operation.description,
        **documented,
    )
    async def answer(request: Request) -> Response:
        handler = base.RequestHandler(request, service, config, operation.name)
        query = operation.query_from_request(await handler.read_request(operation.request))
        base.check_text_lengths(query.texts, operation.text_name, config)
        asked = ServiceRequest(
            operation.name, query.inputs, query.texts, query.top_k, query.attention, query.least_version, query.settings
        )
        if not query.stream:
            result = await handler.run_within_time_limit(service.run(asked))
            return handler.send_response(operation.response, result, **_response_fields(operation, query, result))
        stream = await handler.run_within_time_limit(service.stream(asked))
        return StreamingResponse(
            _stream_events(handler, request, operation, query, stream),
            media_type="text/event-stream",
            headers={"cache-control": "no-store"},
        )


def _response_fields(operation: Operation, query: ModelQuery, result: ServiceResult) -> dict[str, Any]:
    return operation.response_fields(query, result.result, base.which_texts_are_truncated(result, query.texts))


async def _stream_events(
    handler: base.RequestHandler, request: Request, operation: Operation, query: ModelQuery, stream: AnswerStream
) -> AsyncIterator[bytes]:
    """Yield the events of a stream. The HTTP status was sent before them, so an error is an event too."""
    try:
        # Closed also if the client leaves, so that an answer that nobody awaits is not generated.
        async with aclosing(stream):
            while isinstance(piece := await handler.run_within_time_limit(anext(stream)), str):
                yield _server_sent_event("piece", StreamedPiece(text=piece).model_dump_json().encode())
            whole = handler.build_response_body(operation.response, piece, **_response_fields(operation, query, piece))
            yield _server_sent_event("done", whole.model_dump_json().encode())
    except (ApiError, ConversationError) as error:
        known = error if isinstance(error, ApiError) else invalid_conversation_error(error)
        request.scope[ERROR_CODE] = known.code
        yield _server_sent_event("error", error_body(known))
    except Exception:
        _log.exception("a streamed answer failed")
        request.scope[ERROR_CODE] = internal_error().code
        yield _server_sent_event("error", error_body(internal_error()))


def _server_sent_event(name: str, data: bytes) -> bytes:
    """https://html.spec.whatwg.org/multipage/server-sent-events.html; JSON on one line needs no more."""
    return b"event: %s\ndata: %s\n\n" % (name.encode(), data)
