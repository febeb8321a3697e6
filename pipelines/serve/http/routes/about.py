"""The service about itself: is it alive, is it ready, which model is it."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from pipelines.serve.config import ServeConfig
from pipelines.serve.errors import not_ready
from pipelines.serve.http.schema.about import Health, Limits, ModelDescription
from pipelines.serve.http.schema.common import ErrorBody
from pipelines.serve.service import ModelInfo, Service


def router(service: Service, config: ServeConfig) -> APIRouter:
    """/healthz, /readyz and /v1/model."""
    routes = APIRouter(tags=["service"])
    unready: dict[int | str, dict[str, Any]] = {503: {"model": ErrorBody, "description": "No model is loaded yet."}}

    def model() -> ModelInfo:
        if service.model is None:
            raise not_ready()
        return service.model

    @routes.get("/healthz", summary="Is the process alive?")
    async def healthz() -> Health:
        return Health()

    @routes.get("/readyz", summary="Is the model loaded and warm?", responses=unready)
    async def readyz() -> Health:
        model()
        return Health()

    @routes.get("/v1/model", summary="The model in use", responses=unready)
    async def describe() -> ModelDescription:
        info = model()
        limits = Limits(
            body_bytes=config.max_body_bytes,
            questions=config.max_questions,
            texts=config.max_texts,
            question_chars=config.max_question_chars,
        )
        return ModelDescription(
            name=info.name,
            version=info.version,
            tasks=list(info.tasks),
            labels=info.labels,
            image_size=info.image_size,
            resize=info.resize,
            feedback=bool(config.feedback.folder),
            limits=limits,
        )

    return routes
