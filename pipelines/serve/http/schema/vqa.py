"""Visual question answering over the wire."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipelines.serve.http.schema.common import (
    EXAMPLE_IMAGE,
    EXAMPLE_MODEL,
    IMAGE,
    TRUNCATED,
    AttentionMap,
    ImageBytes,
    Question,
    TaskRequest,
    TaskResponse,
    one_or_several,
)


class VQARequest(TaskRequest):
    """One picture and one or more questions about it."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"image": EXAMPLE_IMAGE, "question": "What colour is the circle?"},
                {
                    "image": EXAMPLE_IMAGE,
                    "questions": ["How many squares are there?", "Is there a red circle?"],
                    "top_k": 3,
                    "attention": True,
                },
            ]
        },
    )
    repeated = {"question": "questions"}

    image: ImageBytes = Field(description=IMAGE)
    question: Question | None = Field(default=None, description="One question; give this or `questions`.")
    questions: list[Question] | None = Field(default=None, description="Several questions about the picture.")
    top_k: int = Field(default=5, ge=1, le=20, description="How many ranked answers each question gets.")
    attention: bool = Field(default=False, description="Also return where in the picture the model looked.")

    @model_validator(mode="after")
    def _ask_one_way(self) -> VQARequest:
        self.asked()
        return self

    def asked(self) -> tuple[str, ...]:
        """The questions, whichever field they came in."""
        return one_or_several("question", self.question, self.questions)


class RankedAnswer(BaseModel):
    """One answer that the model can give."""

    answer: str
    probability: float = Field(ge=0, le=1)


class QuestionAnswers(BaseModel):
    """A question with its ranked answers."""

    question: str
    answers: list[RankedAnswer] = Field(description="Most probable first.")
    attention: AttentionMap | None = None
    truncated: bool = Field(default=False, description=TRUNCATED)


class VQAResponse(TaskResponse):
    """The answers to one request."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "answers": [
                        {
                            "question": "What colour is the circle?",
                            "answers": [
                                {"answer": "red", "probability": 0.97},
                                {"answer": "blue", "probability": 0.02},
                            ],
                            "attention": None,
                            "truncated": False,
                        }
                    ],
                    "model": EXAMPLE_MODEL,
                    "latency_ms": 21.4,
                }
            ]
        }
    )

    answers: list[QuestionAnswers] = Field(description="One for each question, in the order asked.")
