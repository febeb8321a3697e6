"""POST /v1/caption: a picture described, at once or while the caption is generated."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel, Field, model_validator
from pydantic_core import PydanticCustomError

from pipelines.serve.config import ServeConfig
from pipelines.serve.errors import ApiError, internal
from pipelines.serve.http.middleware import ERROR_CODE, error_body
from pipelines.serve.http.openapi import documentation
from pipelines.serve.http.routes import base
from pipelines.serve.service import CaptionStream, Service, ServiceRequest, ServiceResult

_STREAMED = """`stream: true` answers with server-sent events instead: `piece` with what was written since the last one,
then `done` with the whole answer; or `error`, in the shape of every error, where it cannot be finished."""

_log = logging.getLogger(__name__)


class CaptionRequest(base.TaskRequest):
    """One picture to be described."""

    model_config = base.with_examples(
        {"image": base.EXAMPLE_IMAGE, "top_k": 3},
        {"image": base.EXAMPLE_IMAGE, "attention": True},
        {"image": base.EXAMPLE_IMAGE, "stream": True},
    )

    image: base.ImageBytes = Field(description=base.IMAGE_DESCRIPTION)
    top_k: int = Field(
        default=1,
        ge=1,
        le=10,
        description="How many captions: one is written greedily, more by a search of as many beams.",
    )
    attention: bool = Field(default=False, description="Also return where in the picture the model looked.")
    stream: bool = Field(
        default=False, description="Send the one caption as server-sent events, while it is being written."
    )

    @model_validator(mode="after")
    def _check_stream(self) -> CaptionRequest:
        if self.stream and self.top_k > 1:
            message = "one caption is streamed as it is written, and top_k={top_k}; set it to 1, or stream to false"
            raise PydanticCustomError("one_streamed", message, {"top_k": self.top_k})
        return self


class RankedCaption(BaseModel):
    """One caption."""

    caption: str
    probability: float = Field(ge=0, le=1, description="Product of the probabilities of its tokens, its end included.")


class CaptionResponse(base.TaskResponse):
    """The captions of one picture."""

    model_config = base.with_examples(
        {
            "captions": [
                {"caption": "a red circle on white", "probability": 0.41},
                {"caption": "a red disc", "probability": 0.17},
            ],
            "attention": None,
            "model": base.EXAMPLE_MODEL,
            "latency_ms": 48.2,
        }
    )

    captions: list[RankedCaption] = Field(
        description="Most probable first; fewer than asked for where beams end in the same text."
    )
    attention: base.AttentionMap | None = Field(default=None, description="Of the first caption.")


class CaptionPiece(BaseModel):
    """The data of an event `piece`: what was written since the last one."""

    text: str


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
    async def caption(request: Request) -> Response:
        """Send a picture, as JSON with the image in base64 or as a multipart form."""
        handler = base.RequestHandler(request, service, config, "caption")
        body = await handler.read(CaptionRequest)
        service_request = ServiceRequest("caption", body.image, (), body.top_k, body.attention)
        if not body.stream:
            result = await handler.within_time(service.run(service_request))
            return handler.respond(CaptionResponse, result, **_result_fields(result))
        stream = await handler.within_time(service.stream_caption(service_request))
        return StreamingResponse(
            _caption_events(handler, request, stream),
            media_type="text/event-stream",
            headers={"cache-control": "no-store"},
        )

    return routes


async def _caption_events(
    handler: base.RequestHandler, request: Request, stream: CaptionStream
) -> AsyncIterator[bytes]:
    """The events of a stream. The status was sent before, so an error is an event too."""
    try:
        # Closed also if the client leaves, so that a caption that nobody awaits is not generated.
        async with aclosing(stream):
            while isinstance(piece := await handler.within_time(anext(stream)), str):
                yield _server_sent_event("piece", CaptionPiece(text=piece).model_dump_json().encode())
            whole = handler.body(CaptionResponse, piece, **_result_fields(piece))
            yield _server_sent_event("done", whole.model_dump_json().encode())
    except ApiError as error:
        request.scope[ERROR_CODE] = error.code
        yield _server_sent_event("error", error_body(error))
    except Exception:
        _log.exception("a streamed caption failed")
        request.scope[ERROR_CODE] = internal().code
        yield _server_sent_event("error", error_body(internal()))


def _server_sent_event(name: str, data: bytes) -> bytes:
    """https://html.spec.whatwg.org/multipage/server-sent-events.html; JSON on one line needs no more."""
    return b"event: %s\ndata: %s\n\n" % (name.encode(), data)


def _result_fields(result: ServiceResult) -> dict[str, Any]:
    [prediction] = result.result
    captions = [RankedCaption(caption=text, probability=base.clip_probability(p)) for text, p in prediction.answers]
    return {"captions": captions, "attention": base.attention_map(prediction)}
