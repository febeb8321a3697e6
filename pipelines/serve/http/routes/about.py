"""The routes GET /healthz, /readyz and /v1/model: is the service alive, is it ready, which model does it have?"""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, Field

from pipelines.serve.config import ServeConfig
from pipelines.serve.errors import not_ready_error
from pipelines.serve.http.openapi import ErrorBody
from pipelines.serve.search import UpdatableSearch
from pipelines.serve.service import ModelInfo, Service
from vlmodel.conversation import extract_question


class RequestLimits(BaseModel):
    """The limits of what one request may contain."""

    body_bytes: int
    questions: int
    texts: int
    question_chars: int = Field(description="Of a question or text.")


class ModelDescription(BaseModel):
    """The model in use, what it can do, and which inputs it takes."""

    name: str
    version: str
    tasks: list[str] = Field(description="What it can do: each is a route, POST /v1/TASK.")
    labels: int = Field(description="Number of answers that it chooses among; 0 where it writes them, or gives none.")
    inputs: list[str] = Field(description="What it takes beside texts: `image`, and names of further inputs.")
    media: dict[str, str] = Field(description="What each of these is: image, audio, video, series or row.")
    image_size: list[int] = Field(description="Height and width, in pixels, that a picture is brought to.")
    resize: str = Field(description="How it gets this shape: `squash`, `crop` to its middle, or `pad`.")
    crop: float = Field(description="Share of height and width, of the middle with `crop`, that the model sees.")
    needs_classes: bool = Field(
        description="Whether `/v1/classify` chooses among classes that are given with each request."
    )
    search: list[str] = Field(
        default=[], description="What can be searched, at POST /v1/search: names of inputs, and `text`."
    )
    feedback: bool = Field(description="Whether corrections are taken, at POST /v1/feedback.")
    limits: RequestLimits


class InputForPage(BaseModel):
    """One input of an example, as the web page shows it."""

    media_type: str = Field(description="Such as image/png, audio/flac, video/mp4 or text/csv.")
    data: str = Field(description="In base64.")


class ExampleForPage(BaseModel):
    """A sample of the data on which the model was evaluated, with texts that can be asked about it."""

    task: str = Field(description="The route that answers, POST /v1/TASK.")
    inputs: dict[str, InputForPage] = Field(description="By their names: `image`, and those of further inputs.")
    texts: list[str] = Field(description="Questions, or texts to match; empty texts where the route takes none.")


class ExamplesForPage(BaseModel):
    """Example requests about the model's own data; if possible, ones that it answered right."""

    examples: list[ExampleForPage]


class HealthResponse(BaseModel):
    """The response that says that the service is healthy."""

    status: str = "ok"


def router(service: Service, config: ServeConfig, search: UpdatableSearch | None = None) -> APIRouter:
    """Create the routes /healthz, /readyz and /v1/model.

    Args:
        search: among vectors; None without any.
    """
    routes = APIRouter(tags=["service"])
    unready: dict[int | str, dict[str, Any]] = {503: {"model": ErrorBody, "description": "No model is loaded yet."}}

    def model() -> ModelInfo:
        if service.model is None:
            raise not_ready_error()
        return service.model

    @routes.get("/healthz", summary="Is the process alive?")
    async def healthz() -> HealthResponse:
        return HealthResponse()

    @routes.get("/readyz", summary="Is the model loaded and warm?", responses=unready)
    async def readyz() -> HealthResponse:
        model()
        return HealthResponse()

    @routes.get("/v1/model", summary="The model in use", responses=unready)
    async def describe_model() -> ModelDescription:
        info = model()
        searched = await asyncio.to_thread(search.searchable_inputs_of_model, info.digest) if search is not None else []
        return ModelDescription(
            name=info.name,
            version=info.version,
            tasks=list(info.tasks),
            labels=info.labels,
            inputs=list(info.inputs),
            media=dict(info.media),
            image_size=list(info.image_size),
            resize=info.resize,
            crop=info.crop,
            needs_classes=info.needs_classes,
            search=searched,
            feedback=bool(config.feedback.folder),
            limits=RequestLimits(
                body_bytes=config.max_body_bytes,
                questions=config.max_texts,
                texts=config.max_texts,
                question_chars=config.max_question_chars,
            ),
        )

    @routes.get("/v1/examples", summary="Examples of the model's own data", responses=unready)
    async def list_examples() -> ExamplesForPage:
        model()
        offered = service.examples if config.shows_examples else ()
        return ExamplesForPage(
            examples=[
                ExampleForPage(
                    task=one.task,
                    inputs={
                        name: InputForPage(media_type=given.media_type, data=given.data)
                        for name, given in one.inputs.items()
                    },
                    texts=[extract_question(asked.text) for asked in one.texts],
                )
                for one in offered
            ]
        )

    return routes
