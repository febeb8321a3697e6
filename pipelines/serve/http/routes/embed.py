"""POST /v1/embed: pictures and texts as vectors."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from pipelines.serve.config import ServeConfig
from pipelines.serve.http.routes.handler import RequestHandler, check_texts, documentation, truncated
from pipelines.serve.http.schema.embed import EmbedRequest, EmbedResponse
from pipelines.serve.service import Service


def router(service: Service, config: ServeConfig) -> APIRouter:
    """The route of embeddings."""
    routes = APIRouter()

    @routes.post(
        "/v1/embed", summary="Turn pictures and texts into vectors", **documentation(EmbedRequest, EmbedResponse)
    )
    async def embed(request: Request) -> Response:
        """Send a picture, texts or both, as JSON with the image in base64 or as a multipart form."""
        call = RequestHandler(request, service, config, "embed")
        asked = await call.read(EmbedRequest)
        texts = asked.given()
        check_texts(texts, "text", config)
        answered = await call.within(service.embed(asked.image, texts))
        image_D, text_ND = answered.result.image_D, answered.result.text_ND
        return call.respond(
            EmbedResponse,
            answered,
            width=text_ND.shape[1],
            image=None if image_D is None else image_D.tolist(),
            texts=text_ND.tolist(),
            truncated=truncated(answered, texts),
        )

    return routes
