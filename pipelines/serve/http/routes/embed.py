"""POST /v1/embed: pictures and texts as vectors."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from pipelines.serve.config import ServeConfig
from pipelines.serve.http.openapi import documentation
from pipelines.serve.http.routes import base
from pipelines.serve.service import Embeddings, Service, ServiceRequest


class EmbedRequest(base.TaskRequest):
    """A picture, texts, or both."""

    model_config = base.with_examples(
        {"image": base.EXAMPLE_IMAGE, "text": "a red circle"},
        {"image": base.EXAMPLE_IMAGE},
        {"texts": ["a red circle", "a blue square"]},
    )
    repeatable = {"text": "texts"}

    image: base.ImageBytes | None = Field(default=None, description=base.IMAGE_DESCRIPTION)
    text: base.OneText = None
    texts: base.SeveralTexts = None

    @model_validator(mode="after")
    def _check_not_empty(self) -> EmbedRequest:
        if not self.all_texts() and self.image is None:
            raise PydanticCustomError("nothing_to_embed", "there is nothing to embed; give 'image', 'texts' or both")
        return self

    def all_texts(self) -> tuple[str, ...]:
        """There may be none."""
        if self.text is None and self.texts is None:
            return ()
        return base.one_or_several("text", self.text, self.texts)


class EmbedResponse(base.TaskResponse):
    """Vectors of length one, in one space: their dot product is the cosine similarity."""

    model_config = base.with_examples(
        {
            "width": 3,
            "image": [0.6, 0.0, 0.8],
            "texts": [[0.0, 0.6, 0.8]],
            "truncated": [False],
            "model": base.EXAMPLE_MODEL,
            "latency_ms": 17.2,
        }
    )

    width: int = Field(description="Width of the space.")
    image: list[float] | None = Field(default=None, description="The picture's vector.")
    texts: list[list[float]] = Field(description="One vector for each text, in the order given.")
    truncated: list[bool] = Field(default=[], description=f"For each text. {base.TRUNCATED_DESCRIPTION}")


def router(service: Service, config: ServeConfig) -> APIRouter:
    """The route of embeddings."""
    routes = APIRouter()

    @routes.post(
        "/v1/embed", summary="Turn pictures and texts into vectors", **documentation(EmbedRequest, EmbedResponse)
    )
    async def embed(request: Request) -> Response:
        """Send a picture, texts or both, as JSON with the image in base64 or as a multipart form."""
        handler = base.RequestHandler(request, service, config, "embed")
        body = await handler.read(EmbedRequest)
        texts = body.all_texts()
        base.check_lengths(texts, "text", config)
        result = await handler.within_time(service.run(ServiceRequest("embed", body.image, texts)))
        embeddings: Embeddings = result.result
        return handler.respond(
            EmbedResponse,
            result,
            width=embeddings.text_ND.shape[1],
            image=None if embeddings.image_D is None else embeddings.image_D.tolist(),
            texts=embeddings.text_ND.tolist(),
            truncated=base.truncated_flags(result, texts),
        )

    return routes
