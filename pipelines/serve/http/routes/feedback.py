"""The route POST /v1/feedback: receives the right answer or caption, for the next training."""

from __future__ import annotations

import asyncio
import logging
import math

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from pipelines.records.corrections import CorrectionSpool, SpoolFullError
from pipelines.serve.config import ServeConfig
from pipelines.serve.errors import ApiError
from pipelines.serve.http.middleware import sender_of
from pipelines.serve.http.openapi import document_route
from pipelines.serve.http.routes import base
from pipelines.serve.http.token_bucket import TokenBuckets
from pipelines.serve.service import Service
from vlmodel.operations import base as schemas

_log = logging.getLogger(__name__)


class FeedbackRequest(schemas.TaskRequest):
    """A request with a correction for a picture: the right answer to a question, or the right caption."""

    model_config = schemas.schema_with_examples(
        {"image": schemas.EXAMPLE_IMAGE, "question": "What colour is the circle?", "answer": "red", "version": "3"},
        {"image": schemas.EXAMPLE_IMAGE, "caption": "a red circle on white"},
    )

    image: schemas.ImageBytes = Field(description=schemas.IMAGE_DESCRIPTION)
    question: schemas.Question | None = Field(default=None, description="The question that was answered wrongly.")
    answer: schemas.Text | None = Field(default=None, description="Its right answer.")
    caption: schemas.Text | None = Field(default=None, description="A right caption; instead of an answer.")
    version: str = Field(default="", max_length=64, description="Model version of the answer that is corrected.")

    @model_validator(mode="after")
    def _check_one_correction(self) -> FeedbackRequest:
        if (self.question is None) != (self.answer is None) or (self.answer is None) == (self.caption is None):
            raise PydanticCustomError("no_correction", "give 'question' and 'answer', or 'caption' alone")
        return self


class FeedbackResponse(schemas.TaskResponse):
    """The response that says that the correction was stored."""

    model_config = schemas.schema_with_examples(
        {"id": "01769817600000000000-5f0c1a2b", "model": schemas.EXAMPLE_MODEL, "latency_ms": 3.1}
    )

    id: str = Field(description="Name of the correction, for who wants it taken back.")


def router(service: Service, config: ServeConfig) -> APIRouter:
    """Create the route /v1/feedback; without ``config.feedback.folder`` it answers that no corrections are accepted."""
    routes = APIRouter()
    if not config.feedback.folder:

        @routes.post("/v1/feedback", include_in_schema=False)
        async def refuse_corrections() -> Response:
            message = (
                "this service takes no corrections; its operator can name a folder for them, serve.feedback.folder"
            )
            raise ApiError(404, "no_feedback", message)

        return routes
    spool = CorrectionSpool(config.feedback.folder, int(config.feedback.max_gb * 1e9))
    rate = TokenBuckets(config.feedback.per_minute, burst=config.feedback.per_minute)

    @routes.post("/v1/feedback", summary="Correct an answer", **document_route(FeedbackRequest, FeedbackResponse))
    async def receive_correction(request: Request) -> Response:
        """Store a correction: a picture with the right answer or caption, as JSON with the image in base64 or as a
        multipart form.
        """
        sender = sender_of(request.scope)
        handler = base.RequestHandler(request, service, config)
        if wait_s := rate.take_token_or_wait_time(sender):
            seconds = math.ceil(wait_s)
            message = f"more than {config.feedback.per_minute} corrections in a minute; try again in {seconds} s"
            raise ApiError(429, "too_much_feedback", message, {"retry-after": str(seconds)})
        body = await handler.read_request(FeedbackRequest)
        texts = [text for text in (body.question, body.answer, body.caption) if text is not None]
        base.check_text_lengths(texts, "text", config)
        checked = await handler.run_within_time_limit(service.check_image(body.image))
        try:
            correction_id = await asyncio.to_thread(
                spool.add, body.image, sender=sender, question=body.question, answer=body.answer,
                caption=body.caption, model=checked.model.name, version=body.version,
            )  # fmt: skip
        except (SpoolFullError, OSError) as error:
            _log.warning("a correction was refused: %s", error)
            message = "no more corrections are taken for now; try again later"
            raise ApiError(503, "feedback_unavailable", message) from None
        return handler.send_response(FeedbackResponse, checked, id=correction_id)

    return routes
