"""POST /v1/vqa: questions about a picture."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from pipelines.serve.config import ServeConfig
from pipelines.serve.http.routes.handler import (
    RequestHandler,
    attention_map,
    check_texts,
    documentation,
    probability,
    truncated,
)
from pipelines.serve.http.schema.vqa import QuestionAnswers, RankedAnswer, VQARequest, VQAResponse
from pipelines.serve.service import Service


def router(service: Service, config: ServeConfig) -> APIRouter:
    """The route of visual question answering."""
    routes = APIRouter()

    @routes.post("/v1/vqa", summary="Ask about a picture", **documentation(VQARequest, VQAResponse))
    async def ask(request: Request) -> Response:
        """Send a picture with one or more questions, as JSON with the image in base64 or as a multipart form."""
        call = RequestHandler(request, service, config, "vqa")
        asked = await call.read(VQARequest)
        questions = asked.asked()
        check_texts(questions, "question", config)
        answered = await call.within(service.answer(asked.image, questions, asked.top_k, asked.attention))
        answers = [
            QuestionAnswers(
                question=question,
                answers=[RankedAnswer(answer=text, probability=probability(p)) for text, p in prediction.answers],
                attention=attention_map(prediction),
                truncated=cut,
            )
            for question, prediction, cut in zip(
                questions, answered.result, truncated(answered, questions), strict=True
            )
        ]
        return call.respond(VQAResponse, answered, answers=answers)

    return routes
