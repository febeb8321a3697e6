"""The operation ``classify``, POST /v1/classify: returns the classes of a sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, Field, model_validator
from pydantic.config import JsonDict
from pydantic_core import PydanticCustomError

from vlmodel.operations import base
from vlmodel.operations.base import ModelQuery
from vlmodel.operations.ranked import RankedAnswersOperation
from vlmodel.zero_shot import TEMPLATES, TemplateError, make_prompts

if TYPE_CHECKING:
    from vlmodel.inference import Prediction


CLASSES = "classes"
"""The setting of a ``ModelQuery`` that names classes; its texts are then theirs (``zero_shot.make_prompts``)."""
_MOST_PROMPTS = 1024


class ClassifyRequest(base.InputsRequest):
    """A request about one sample: a picture, a sound, a video, or another input of the model."""

    model_config = base.schema_with_examples(
        {"image": base.EXAMPLE_IMAGE, "top_k": 3},
        {"image": base.EXAMPLE_IMAGE, "attention": True},
        {"image": base.EXAMPLE_IMAGE, "classes": ["circle", "square"], "templates": ["a photo of a {}.", "a {}"]},
    )
    repeatable = {"classes": "classes", "templates": "templates"}

    image: base.ImageUnlessInputs = Field(default=None, validate_default=True, description=base.IMAGE_DESCRIPTION)
    top_k: int = Field(default=5, ge=1, le=100, description="How many classes.")
    attention: bool = Field(default=False, description="Also return where in its inputs the model looked.")
    classes: list[base.Text] | None = Field(
        default=None,
        description="Names of the classes, for a contrastive model, which has none of its own: it compares the input "
        "with texts made of them.",
    )
    templates: list[base.Text] | None = Field(
        default=None,
        description="The texts into which it puts each name, at the place {}; the mean of their vectors stands for the "
        "class. By default 'a photo of a {}.'.",
    )

    @model_validator(mode="after")
    def _check_prompts(self) -> ClassifyRequest:
        if self.classes is None:
            if self.templates is not None:
                raise PydanticCustomError("no_classes", "templates are for given classes; give 'classes' too")
            return self
        if not self.classes or self.templates == []:
            raise PydanticCustomError("empty_classes", "'classes' or 'templates' is empty; give at least one of each")
        if len(set(self.classes)) < len(self.classes):
            raise PydanticCustomError("repeated_class", "a class is named twice; name each once")
        try:
            count = len(self.prompts())
        except TemplateError as error:
            raise PydanticCustomError("bad_template", "{problem}", {"problem": str(error)}) from None
        if count > _MOST_PROMPTS:
            message = "{count} texts, of each class in each template; make them at most {most}"
            raise PydanticCustomError("too_many_prompts", message, {"count": count, "most": _MOST_PROMPTS})
        return self

    def prompts(self) -> tuple[str, ...]:
        """The prompts for the classes that a request names (``zero_shot.make_prompts``)."""
        return make_prompts(self.classes or (), self.templates or TEMPLATES)


class RankedClass(BaseModel):
    """A class and its probability."""

    label: str
    probability: float = Field(ge=0, le=1)


class ClassifyResponse(base.TaskResponse):
    """The response to a classification: the most probable classes of the sample."""

    model_config = base.schema_with_examples(
        {
            "classes": [{"label": "circle", "probability": 0.96}, {"label": "square", "probability": 0.03}],
            "attention": None,
            "model": base.EXAMPLE_MODEL,
            "latency_ms": 12.5,
        }
    )

    classes: list[RankedClass] = Field(description="Most probable first.")
    attention: base.AttentionMap | None = Field(default=None, description="For the first class.")
    attention_over_time: dict[str, list[float]] = Field(default={}, description=base.OVER_TIME_DESCRIPTION)


class ClassifyOperation(RankedAnswersOperation):
    """Classifies a sample."""

    name: ClassVar[str] = "classify"
    summary: ClassVar[str] = "Classify a picture or another input"
    description: ClassVar[str] = (
        "Send a picture or the inputs that the model takes, as JSON in base64 or as a multipart form.\n\n"
        "A classifier chooses among the classes that it has learned. A contrastive model chooses among `classes`,\n"
        "which are given with each request: probabilities are the softmax of similarity / temperature over them."
    )
    request: ClassVar[type[base.TaskRequest]] = ClassifyRequest
    response: ClassVar[type[base.TaskResponse]] = ClassifyResponse
    least_agreement: ClassVar[float | None] = 0.7

    def query_from_request(self, request: ClassifyRequest) -> ModelQuery:
        inputs = request.inputs_with_image(request.image)
        if request.classes is None:
            # A class is the answer to an empty question.
            return ModelQuery(inputs, ("",), request.top_k, request.attention)
        settings = {CLASSES: tuple(request.classes)}
        return ModelQuery(inputs, request.prompts(), request.top_k, request.attention, settings=settings)

    def unsupported_request_reason(self, settings: Mapping[str, Any]) -> tuple[str, str] | None:
        if CLASSES not in settings:
            return None
        message = "this model chooses among the classes that it has learned; leave 'classes' and 'templates' out"
        return "own_classes", message

    def response_fields(
        self, query: ModelQuery, result: Sequence[Prediction], truncated: Sequence[bool]
    ) -> dict[str, Any]:
        [prediction] = result
        classes = [RankedClass(label=label, probability=base.clip_probability(p)) for label, p in prediction.answers]
        return {
            "classes": classes,
            "attention": base.to_attention_map(prediction),
            "attention_over_time": base.to_attention_over_time(prediction),
        }

    def example_response(self, answered: Sequence[tuple[str, str, float]]) -> JsonDict | None:
        text, label, probability = answered[0]
        if text:  # of a contrastive model, which has no classes of its own
            return None
        ranked: JsonDict = {"label": label, "probability": round(base.clip_probability(probability), 4)}
        return {"classes": [ranked], "attention": None}

    def best_answers(self, query_texts: Sequence[str], result: Sequence[Prediction]) -> list[tuple[str, str]]:
        # People correct answers and captions; no record of theirs holds a class.
        return []
