"""POST /v1/vqa: questions about a picture."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, Field, model_validator

from pipelines.serve.config import ServeConfig
from pipelines.serve.http.openapi import documentation
from pipelines.serve.http.routes import base
from pipelines.serve.service import Service, ServiceRequest


class VQARequest(base.TaskRequest):
    """One picture and one or more questions about it."""

    model_config = base.with_examples(
        {"image": base.EXAMPLE_IMAGE, "question": "What colour is the circle?"},
        {
            "image": base.EXAMPLE_IMAGE,
            "questions": ["How many squares are there?", "Is there a red circle?"],
            "top_k": 3,
            "attention": True,
        },
    )
    repeatable = {"question": "questions"}

    image: base.ImageBytes = Field(description=base.IMAGE_DESCRIPTION)
    question: base.Question | None = Field(default=None, description="One question; give this or `questions`.")
    questions: list[base.Question] | None = Field(default=None, description="Several questions about the picture.")
    top_k: int = Field(default=5, ge=1, le=20, description="How many ranked answers each question gets.")
    attention: bool = Field(default=False, description="Also return where in the picture the model looked.")

    @model_validator(mode="after")
    def _check_questions(self) -> VQARequest:
        self.all_questions()
        return self

    def all_questions(self) -> tuple[str, ...]:
        return base.one_or_several("question", self.question, self.questions)


class RankedAnswer(BaseModel):
    """One answer that the model can give."""

    answer: str
    probability: float = Field(ge=0, le=1)


class QuestionAnswers(BaseModel):
    """A question with its ranked answers."""

    question: str
    answers: list[RankedAnswer] = Field(description="Most probable first.")
    attention: base.AttentionMap | None = None
    truncated: bool = Field(default=False, description=base.TRUNCATED_DESCRIPTION)


class VQAResponse(base.TaskResponse):
    """The answers to one request."""

    model_config = base.with_examples(
        {
            "answers": [
                {
                    "question": "What colour is the circle?",
                    "answers": [{"answer": "red", "probability": 0.97}, {"answer": "blue", "probability": 0.02}],
                    "attention": None,
                    "truncated": False,
                }
            ],
            "model": base.EXAMPLE_MODEL,
            "latency_ms": 21.4,
        }
    )

    answers: list[QuestionAnswers] = Field(description="One for each question, in the order asked.")


def router(service: Service, config: ServeConfig) -> APIRouter:
    """The route of visual question answering."""
    routes = APIRouter()

    @routes.post("/v1/vqa", summary="Ask about a picture", **documentation(VQARequest, VQAResponse))
    async def vqa(request: Request) -> Response:
        """Send a picture with one or more questions, as JSON with the image in base64 or as a multipart form."""
        handler = base.RequestHandler(request, service, config, "vqa")
        body = await handler.read(VQARequest)
        questions = body.all_questions()
        base.check_lengths(questions, "question", config)
        service_request = ServiceRequest("vqa", body.image, questions, body.top_k, body.attention)
        result = await handler.within_time(service.run(service_request))
        answers = [
            QuestionAnswers(
                question=question,
                answers=[
                    RankedAnswer(answer=text, probability=base.clip_probability(p)) for text, p in prediction.answers
                ],
                attention=base.attention_map(prediction),
                truncated=is_truncated,
            )
            for question, prediction, is_truncated in zip(
                questions, result.result, base.truncated_flags(result, questions), strict=True
            )
        ]
        return handler.respond(VQAResponse, result, answers=answers)

    return routes
