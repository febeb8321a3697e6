"""POST /v1/caption: a picture described, at once or while it is being written."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel

from pipelines.serve.config import ServeConfig
from pipelines.serve.errors import ApiError, internal
from pipelines.serve.http.middleware import ERROR_CODE, error_body
from pipelines.serve.http.routes.handler import RequestHandler, attention_map, documentation, probability
from pipelines.serve.http.schema.caption import CaptionPiece, CaptionRequest, CaptionResponse, RankedCaption
from pipelines.serve.service import Service, ServiceResult
from vlmodel.inference import Prediction

_STREAMED = """`stream: true` answers with server-sent events instead: `piece` with what was written since the last one,
then `done` with the whole answer; or `error`, in the shape of every error, where it cannot be finished."""

_log = logging.getLogger(__name__)


def router(service: Service, config: ServeConfig) -> APIRouter:
    """The route of captioning."""
    routes = APIRouter()
    documented = documentation(CaptionRequest, CaptionResponse)
    documented["responses"][200] = {
        "description": f"The captions. {_STREAMED}",
        "content": {
            "text/event-stream": {
                "schema": {"type": "string"},
                "example": 'event: piece\ndata: {"text":"a red "}\n\nevent: done\ndata: {"captions": ...}\n\n',
            }
        },
    }

    @routes.post("/v1/caption", summary="Describe a picture", **documented)
    async def describe(request: Request) -> Response:
        """Send a picture, as JSON with the image in base64 or as a multipart form."""
        call = RequestHandler(request, service, config, "caption")
        asked = await call.read(CaptionRequest)
        if not asked.stream:
            answered = await call.within(service.caption(asked.image, asked.top_k, asked.attention))
            return call.respond(CaptionResponse, answered, **_fields(answered))
        pieces = await call.within(service.stream_caption(asked.image, asked.attention))
        return StreamingResponse(
            _events(call, request, pieces), media_type="text/event-stream", headers={"cache-control": "no-store"}
        )

    return routes


async def _events(
    call: RequestHandler, request: Request, pieces: AsyncGenerator[str | ServiceResult[Prediction], None]
) -> AsyncIterator[bytes]:
    """The events of a stream. Its status has been sent, so what goes wrong from here on is an event as well."""
    try:
        # Closed even where the client leaves early, so that a caption nobody waits for is not begun.
        async with aclosing(pieces):
            while isinstance(piece := await call.within(anext(pieces)), str):
                yield _event("piece", CaptionPiece(text=piece))
            yield _event("done", call.body(CaptionResponse, piece, **_fields(piece)))
    except ApiError as error:
        request.scope[ERROR_CODE] = error.code
        yield _framed("error", error_body(error))
    except Exception:
        _log.exception("a caption that was being streamed failed")
        request.scope[ERROR_CODE] = internal().code
        yield _framed("error", error_body(internal()))


def _event(name: str, data: BaseModel) -> bytes:
    return _framed(name, data.model_dump_json().encode())


def _framed(name: str, data: bytes) -> bytes:
    """https://html.spec.whatwg.org/multipage/server-sent-events.html; JSON on one line needs no more."""
    return b"event: %s\ndata: %s\n\n" % (name.encode(), data)


def _fields(answered: ServiceResult[Prediction]) -> dict[str, Any]:
    captions = [RankedCaption(caption=text, probability=probability(p)) for text, p in answered.result.answers]
    return {"captions": captions, "attention": attention_map(answered.result)}
