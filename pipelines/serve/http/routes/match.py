"""POST /v1/match: does a text belong to a picture?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, Field, model_validator

from pipelines.serve.config import ServeConfig
from pipelines.serve.http.openapi import documentation
from pipelines.serve.http.routes import base
from pipelines.serve.service import Matches, Service, ServiceRequest


class MatchRequest(base.TaskRequest):
    """One picture and one or more texts that may belong to it."""

    model_config = base.with_examples(
        {"image": base.EXAMPLE_IMAGE, "text": "a red circle"},
        {"image": base.EXAMPLE_IMAGE, "texts": ["a red circle", "a blue square"]},
    )
    repeatable = {"text": "texts"}

    image: base.ImageBytes = Field(description=base.IMAGE_DESCRIPTION)
    text: base.OneText = None
    texts: base.SeveralTexts = None

    @model_validator(mode="after")
    def _check_texts(self) -> MatchRequest:
        self.all_texts()
        return self

    def all_texts(self) -> tuple[str, ...]:
        return base.one_or_several("text", self.text, self.texts)


class TextMatch(BaseModel):
    """Whether a text belongs to the picture."""

    text: str
    probability: float | None = Field(
        ge=0,
        le=1,
        description="See `method`; null for a single text by `similarity`, as there is nothing to choose among.",
    )
    similarity: float | None = Field(
        default=None, ge=-1, le=1, description="By `similarity`: cosine of the angle between text and picture."
    )
    truncated: bool = Field(default=False, description=base.TRUNCATED_DESCRIPTION)


class MatchResponse(base.TaskResponse):
    """How well each text fits the picture."""

    model_config = base.with_examples(
        {
            "method": "matching",
            "temperature": None,
            "matches": [
                {"text": "a red circle", "probability": 0.98, "similarity": None, "truncated": False},
                {"text": "a blue square", "probability": 0.03, "similarity": None, "truncated": False},
            ],
            "model": base.EXAMPLE_MODEL,
            "latency_ms": 23.9,
        },
        {
            "method": "similarity",
            "temperature": 0.05,
            "matches": [
                {"text": "a red circle", "probability": 0.9526, "similarity": 0.36, "truncated": False},
                {"text": "a blue square", "probability": 0.0474, "similarity": 0.21, "truncated": False},
            ],
            "model": base.EXAMPLE_MODEL,
            "latency_ms": 19.3,
        },
    )

    method: Literal["matching", "similarity"] = Field(
        description="`matching`: a matching decoder judges each text by itself. `similarity`: a contrastive decoder "
        "compares; probabilities are the softmax of similarity / temperature over the texts of the request."
    )
    temperature: float | None = Field(default=None, description="By `similarity`: the temperature that was learned.")
    matches: list[TextMatch] = Field(description="One for each text, in the order given.")


def router(service: Service, config: ServeConfig) -> APIRouter:
    """The route of image-text matching."""
    routes = APIRouter()

    @routes.post("/v1/match", summary="Which texts belong to a picture?", **documentation(MatchRequest, MatchResponse))
    async def match(request: Request) -> Response:
        """Send a picture with one or more texts, as JSON with the image in base64 or as a multipart form.

        By a matching decoder each text gets the probability that it belongs to the picture. By a contrastive one it
        gets the cosine similarity, and its share among the texts sent.
        """
        handler = base.RequestHandler(request, service, config, "match")
        body = await handler.read(MatchRequest)
        texts = body.all_texts()
        base.check_lengths(texts, "text", config)
        result = await handler.within_time(service.run(ServiceRequest("match", body.image, texts)))
        found: Matches = result.result
        similarities: Sequence[float | None] = found.similarities or [None] * len(texts)
        matches = [
            TextMatch(
                text=text,
                probability=None if share is None else base.clip_probability(share),
                similarity=None if cosine is None else min(1.0, max(-1.0, cosine)),
                truncated=is_truncated,
            )
            for text, share, cosine, is_truncated in zip(
                texts, found.probabilities, similarities, base.truncated_flags(result, texts), strict=True
            )
        ]
        return handler.respond(
            MatchResponse, result, method=found.method, temperature=found.temperature, matches=matches
        )

    return routes
