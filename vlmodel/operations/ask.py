"""The operation ``vqa``, POST /v1/vqa: answers questions about a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, Field, model_validator
from pydantic.config import JsonDict

from vlmodel.operations import base
from vlmodel.operations.base import ModelQuery
from vlmodel.operations.ranked import RankedAnswersOperation

if TYPE_CHECKING:
    from vlmodel.inference import Prediction


class VQARequest(base.InputsRequest):
    """A request with one picture and one or more questions about it."""

    model_config = base.schema_with_examples(
        {"image": base.EXAMPLE_IMAGE, "question": "What colour is the circle?"},
        {
            "image": base.EXAMPLE_IMAGE,
            "questions": ["How many squares are there?", "Is there a red circle?"],
            "top_k": 3,
            "attention": True,
        },
    )
    repeatable = {"question": "questions"}

    image: base.ImageUnlessInputs = Field(default=None, validate_default=True, description=base.IMAGE_DESCRIPTION)
    question: base.Question | None = Field(default=None, description="One question; give this or `questions`.")
    questions: list[base.Question] | None = Field(default=None, description="Several questions about the picture.")
    top_k: int = Field(default=5, ge=1, le=20, description="How many ranked answers each question gets.")
    attention: bool = Field(default=False, description="Also return where in its inputs the model looked.")
    min_knowledge_version: base.LeastKnowledgeVersion = 0

    @model_validator(mode="after")
    def _check_questions(self) -> VQARequest:
        self.all_questions()
        return self

    def all_questions(self) -> tuple[str, ...]:
        return base.merge_singular_and_plural("question", self.question, self.questions)


class RankedAnswer(BaseModel):
    """One answer that the model can give, with its probability."""

    answer: str
    probability: float = Field(ge=0, le=1)


class QuestionAnswers(BaseModel):
    """A question and its ranked answers."""

    question: str
    answers: list[RankedAnswer] = Field(description="Most probable first.")
    attention: base.AttentionMap | None = None
    attention_over_time: dict[str, list[float]] = Field(default={}, description=base.OVER_TIME_DESCRIPTION)
    truncated: bool = Field(default=False, description=base.TRUNCATED_DESCRIPTION)
    facts: base.UsedFacts = []


class VQAResponse(base.TaskResponse):
    """The response to a VQA request: the answers to each of its questions."""

    model_config = base.schema_with_examples(
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
    knowledge_version: base.KnowledgeVersion = None


class VQAOperation(RankedAnswersOperation):
    """Answers questions about a picture."""

    name: ClassVar[str] = "vqa"
    summary: ClassVar[str] = "Ask about a picture"
    description: ClassVar[str] = (
        "Send a picture with one or more questions, as JSON with the image in base64 or as a multipart form."
    )
    request: ClassVar[type[base.TaskRequest]] = VQARequest
    response: ClassVar[type[base.TaskResponse]] = VQAResponse
    text_name: ClassVar[str] = "question"
    least_agreement: ClassVar[float | None] = 0.7

    def query_from_request(self, request: VQARequest) -> ModelQuery:
        return ModelQuery(
            request.inputs_with_image(request.image),
            request.all_questions(),
            request.top_k,
            request.attention,
            least_version=request.min_knowledge_version,
        )

    def response_fields(
        self, query: ModelQuery, result: Sequence[Prediction], truncated: Sequence[bool]
    ) -> dict[str, Any]:
        answers = [
            QuestionAnswers(
                question=question,
                answers=[
                    RankedAnswer(answer=text, probability=base.clip_probability(p)) for text, p in prediction.answers
                ],
                attention=base.to_attention_map(prediction),
                attention_over_time=base.to_attention_over_time(prediction),
                truncated=is_truncated,
                facts=base.to_used_facts(prediction.facts),
            )
            for question, prediction, is_truncated in zip(query.texts, result, truncated, strict=True)
        ]
        return {"answers": answers, "knowledge_version": result[0].knowledge_version if result else None}

    def example_response(self, answered: Sequence[tuple[str, str, float]]) -> JsonDict | None:
        text, answer, probability = answered[0]
        ranked: JsonDict = {"answer": answer, "probability": round(base.clip_probability(probability), 4)}
        return {"answers": [{"question": text, "answers": [ranked], "attention": None, "truncated": False}]}
