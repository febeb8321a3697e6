"""The operation ``match``, POST /v1/match: tells how well texts fit a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import BaseModel, Field, model_validator

from vlmodel.facts import LinkedFact
from vlmodel.operations import base
from vlmodel.operations.base import ModelQuery, Operation

if TYPE_CHECKING:
    from vlmodel.inference import Prediction

_COSINE_TOLERANCE = 0.1
"""Two cosines of a single text agree within this, as there is no other text to rank it against."""


class MatchRequest(base.InputsRequest):
    """A request with one picture and one or more texts that may belong to it."""

    model_config = base.schema_with_examples(
        {"image": base.EXAMPLE_IMAGE, "text": "a red circle"},
        {"image": base.EXAMPLE_IMAGE, "texts": ["a red circle", "a blue square"]},
    )
    repeatable = {"text": "texts"}

    image: base.ImageUnlessInputs = Field(default=None, validate_default=True, description=base.IMAGE_DESCRIPTION)
    text: base.OneText = None
    texts: base.SeveralTexts = None
    min_knowledge_version: base.LeastKnowledgeVersion = 0

    @model_validator(mode="after")
    def _check_texts(self) -> MatchRequest:
        self.all_texts()
        return self

    def all_texts(self) -> tuple[str, ...]:
        return base.merge_singular_and_plural("text", self.text, self.texts)


class TextMatch(BaseModel):
    """How well one text fits the picture."""

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
    facts: base.UsedFacts = []


class MatchResponse(base.TaskResponse):
    """The response that says how well each text fits the picture."""

    model_config = base.schema_with_examples(
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
    knowledge_version: base.KnowledgeVersion = None


@dataclass(frozen=True)
class MatchResult:
    """The scores by which each of N texts fits an image.

    Attributes:
        probabilities: by "matching", that the text belongs to the image; by "similarity", the softmax over the N texts,
            None for a single text.
        similarities: cosines, by "similarity".
        temperature: of the softmax, by "similarity".
        facts: of each text those that the model got with it.
        knowledge_version: of the store that they are from; None without one.
    """

    method: Literal["matching", "similarity"]
    probabilities: Sequence[float | None]
    similarities: Sequence[float] | None = None
    temperature: float | None = None
    facts: Sequence[Sequence[LinkedFact]] = ()
    knowledge_version: int | None = None

    @classmethod
    def from_predictions(cls, predictions: Sequence[Prediction], **fields: Any) -> MatchResult:
        """Create a result with the facts of the predictions for N texts."""
        version = predictions[0].knowledge_version if predictions else None
        return cls(**fields, facts=[one.facts for one in predictions], knowledge_version=version)

    @property
    def text_scores(self) -> list[float]:
        """The score of each text: its probability, or the cosine for a single text of a model that compares by
        similarity.
        """
        probabilities = [probability for probability in self.probabilities if probability is not None]
        return probabilities or list(self.similarities or ())


class MatchOperation(Operation):
    """Scores texts that may belong to a picture; the result is ``MatchResult``. Tasks subclass it and define
    ``run``.
    """

    name: ClassVar[str] = "match"
    summary: ClassVar[str] = "Which texts belong to a picture?"
    description: ClassVar[str] = (
        "Send a picture with one or more texts, as JSON with the image in base64 or as a multipart form.\n\n"
        "By a matching decoder each text gets the probability that it belongs to the picture. By a contrastive one it\n"
        "gets the cosine similarity, and its share among the texts sent."
    )
    request: ClassVar[type[base.TaskRequest]] = MatchRequest
    response: ClassVar[type[base.TaskResponse]] = MatchResponse
    least_agreement: ClassVar[float | None] = 0.7

    def query_from_request(self, request: MatchRequest) -> ModelQuery:
        return ModelQuery(
            request.inputs_with_image(request.image), request.all_texts(), least_version=request.min_knowledge_version
        )

    def response_fields(self, query: ModelQuery, result: MatchResult, truncated: Sequence[bool]) -> dict[str, Any]:
        similarities: Sequence[float | None] = result.similarities or [None] * len(query.texts)
        matches = [
            TextMatch(
                text=text,
                probability=None if share is None else base.clip_probability(share),
                similarity=None if cosine is None else min(1.0, max(-1.0, cosine)),
                truncated=is_truncated,
                facts=base.to_used_facts(facts),
            )
            for text, share, cosine, is_truncated, facts in zip(
                query.texts, result.probabilities, similarities, truncated, result.facts or [()] * len(query.texts),
                strict=True,
            )
        ]  # fmt: skip
        return {
            "method": result.method, "temperature": result.temperature, "matches": matches,
            "knowledge_version": result.knowledge_version,
        }  # fmt: skip

    def result_agreement(self, champion: MatchResult, challenger: MatchResult) -> float:
        """1 if both models rank the same text first, else 0; for a single text, 1 if both say that it fits, or if the
        cosines are close.
        """
        scores, others = champion.text_scores, challenger.text_scores
        if len(scores) > 1:
            return float(int(np.argmax(scores)) == int(np.argmax(others)))
        if champion.probabilities[0] is None or challenger.probabilities[0] is None:
            return float(abs(scores[0] - others[0]) <= _COSINE_TOLERANCE)
        return float((scores[0] >= 0.5) == (others[0] >= 0.5))

    def largest_difference(self, champion: MatchResult, challenger: MatchResult) -> float:
        """The largest difference between the texts' probabilities; for a single text, between the cosines."""
        return max(abs(a - b) for a, b in zip(champion.text_scores, challenger.text_scores, strict=True))

    def result_confidence(self, result: MatchResult) -> float:
        """The highest score of all texts."""
        return max(result.text_scores)
