"""POST /v1/feedback: what would have been right, for the next training."""

from __future__ import annotations

import asyncio
import logging
import math

from fastapi import APIRouter, Request
from fastapi.responses import Response

from pipelines.records.corrections import Spool, SpoolFullError
from pipelines.serve.config import ServeConfig
from pipelines.serve.errors import ApiError
from pipelines.serve.http.middleware import sender_of
from pipelines.serve.http.routes.handler import RequestHandler, check_texts, documentation
from pipelines.serve.http.schema.feedback import FeedbackRequest, FeedbackResponse
from pipelines.serve.http.token_bucket import TokenBuckets
from pipelines.serve.service import Service

_log = logging.getLogger(__name__)


def router(service: Service, config: ServeConfig) -> APIRouter:
    """The route of corrections; where none are taken, one that says so."""
    routes = APIRouter()
    if not config.feedback.folder:

        @routes.post("/v1/feedback", include_in_schema=False)
        async def decline() -> Response:
            message = (
                "this service takes no corrections; its operator can name a folder for them, serve.feedback.folder"
            )
            raise ApiError(404, "no_feedback", message)

        return routes
    spool = Spool(config.feedback.folder, int(config.feedback.max_gb * 1e9))
    rate = TokenBuckets(config.feedback.per_minute, burst=config.feedback.per_minute)

    @routes.post("/v1/feedback", summary="Correct an answer", **documentation(FeedbackRequest, FeedbackResponse))
    async def correct(request: Request) -> Response:
        """Send a picture with what is right of it, as JSON with the image in base64 or as a multipart form."""
        sender = sender_of(request.scope)
        call = RequestHandler(request, service, config)
        if wait_s := rate.take(sender):
            seconds = math.ceil(wait_s)
            message = f"more than {config.feedback.per_minute} corrections in a minute; try again in {seconds} s"
            raise ApiError(429, "too_much_feedback", message, {"retry-after": str(seconds)})
        asked = await call.read(FeedbackRequest)
        texts = [text for text in (asked.question, asked.answer, asked.caption) if text is not None]
        check_texts(texts, "text", config)
        checked = await call.within(service.check(asked.image))
        try:
            kept = await asyncio.to_thread(
                spool.add, asked.image, sender=sender, question=asked.question, answer=asked.answer,
                caption=asked.caption, model=checked.model.name, version=asked.version,
            )  # fmt: skip
        except (SpoolFullError, OSError) as error:
            _log.warning("a correction was refused: %s", error)
            message = "no more corrections are taken for now; try again later"
            raise ApiError(503, "feedback_unavailable", message) from None
        return call.respond(FeedbackResponse, checked, id=kept)

    return routes
