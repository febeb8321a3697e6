"""POST /v1/match: does a text belong to a picture?"""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import APIRouter, Request
from fastapi.responses import Response

from pipelines.serve.config import ServeConfig
from pipelines.serve.http.routes.handler import RequestHandler, check_texts, documentation, probability, truncated
from pipelines.serve.http.schema.match import MatchRequest, MatchResponse, TextMatch
from pipelines.serve.service import Service


def router(service: Service, config: ServeConfig) -> APIRouter:
    """The route of image-text matching."""
    routes = APIRouter()

    @routes.post("/v1/match", summary="Which texts belong to a picture?", **documentation(MatchRequest, MatchResponse))
    async def match(request: Request) -> Response:
        """Send a picture with one or more texts, as JSON with the image in base64 or as a multipart form.

        By a matching decoder each text gets the probability that it belongs to the picture. By a contrastive one it
        gets the cosine similarity, and its share among the texts sent.
        """
        call = RequestHandler(request, service, config, "match")
        asked = await call.read(MatchRequest)
        texts = asked.given()
        check_texts(texts, "text", config)
        answered = await call.within(service.match(asked.image, texts))
        found = answered.result
        similarities: Sequence[float | None] = found.similarities or [None] * len(texts)
        matches = [
            TextMatch(
                text=text,
                probability=None if share is None else probability(share),
                similarity=None if cosine is None else min(1.0, max(-1.0, cosine)),
                truncated=cut,
            )
            for text, share, cosine, cut in zip(
                texts, found.probabilities, similarities, truncated(answered, texts), strict=True
            )
        ]
        return call.respond(
            MatchResponse, answered, method=found.method, temperature=found.temperature, matches=matches
        )

    return routes
