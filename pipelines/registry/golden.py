"""Golden answers: a version's answers to a few examples, recorded at its registration, to which later answers are
compared.

File hashes show that a model is unchanged, but not that it gives the same answers elsewhere, with other versions of
libraries, decoders, kernels or a GPU. A service that loads the model compares its answers with these.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from pipelines.registry.errors import ArtifactError
from vlmodel.encoder_parts import IMAGE
from vlmodel.facts import LinkedFact
from vlmodel.images.pillow import open_image
from vlmodel.processor import Example

if TYPE_CHECKING:
    from vlmodel.inference import Predictor


GOLDEN = "golden.json"
_TOP_K, _SIDE = 5, 256

Answers = list[tuple[str, float]]


class GoldenAnswer(BaseModel):
    """A request about an example image, and the answer that the model must give.

    Attributes:
        task: "" if the model has only one.
        inputs: encoded, in base64, by their names.
        facts: those that the model gets with the text, whatever a store says since.
        knowledge_version: of the store that they are from; None without one.
        answers: the best few with their probabilities or scores, the best first; one if texts are generated.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    task: str
    inputs: dict[str, str]
    text: str
    facts: tuple[LinkedFact, ...] = ()
    knowledge_version: int | None = None
    answers: Answers

    def example(self) -> Example:
        """The golden request, as an example for the processor."""
        inputs = {name: base64.b64decode(data) for name, data in self.inputs.items()}
        return Example(inputs, (self.text,), facts=(self.facts,), knowledge_version=self.knowledge_version)


_GOLDEN = TypeAdapter(list[GoldenAnswer])


def record_golden_answers(predictor: Predictor, examples: Mapping[str, Example]) -> list[GoldenAnswer]:
    """Record the answers to each task's example: unchanged, with its image transposed and stored in other formats, and
    with each of its inputs alone if it has several.

    Generated texts are the result of many choices, and rounding decides near ties. So only those are stored that are
    the same if the requests are processed one by one and in one batch.

    Args:
        examples: with one text each, and its facts, by task.

    Raises:
        MediumError: an example cannot be decoded.
    """
    golden = []
    for task, example in examples.items():
        asked = [replace(example, inputs=inputs) for inputs in _input_variants(example.inputs)]
        in_batch = _predict(predictor, task, asked)
        for one, batched in zip(asked, in_batch, strict=True):
            (alone,) = _predict(predictor, task, [one])
            if not _generates_text(predictor, task) or alone[0][0] == batched[0][0]:
                encoded = {name: base64.b64encode(data).decode() for name, data in one.inputs.items()}
                (facts,) = one.facts or ((),)
                golden.append(
                    GoldenAnswer(
                        task=task, inputs=encoded, text=one.texts[0], facts=facts,
                        knowledge_version=one.knowledge_version, answers=alone,
                    )
                )  # fmt: skip
    return golden


def write_golden_answers(golden: Sequence[GoldenAnswer], folder: Path) -> None:
    """Store golden answers in a model's package."""
    (folder / GOLDEN).write_bytes(_GOLDEN.dump_json(list(golden), indent=1))


def read_golden_answers(file: Path) -> list[GoldenAnswer]:
    """Read the golden answers of a model's package.

    Raises:
        ArtifactError: the file is missing or damaged.
    """
    try:
        return _GOLDEN.validate_json(file.read_bytes())
    except (OSError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise ArtifactError(
            f"golden answers {str(file)!r} cannot be read ({reason}); deploy again (python -m jobs.serve), which "
            "restores a damaged copy of a registered model"
        ) from error


def differing_answers(predictor: Predictor, golden: Sequence[GoldenAnswer], tolerance: float) -> list[str]:
    """Describe, one line each, the requests to which the model's answers differ from the golden ones.

    Args:
        tolerance: largest difference of a probability or cosine. Chosen answers within it may change places; generated
            texts must be equal.
    """
    lines = []
    for number, one in enumerate(golden):
        try:
            (answers,) = _predict(predictor, one.task, [one.example()])
        except (ValueError, RuntimeError) as error:
            lines.append(f"request {number} about {one.text!r} fails here: {error}")
            continue
        exact = _generates_text(predictor, one.task)
        if _scores_differ(one.answers, answers, tolerance, exact) or _scores_differ(
            answers, one.answers, tolerance, exact
        ):
            reported, expected = _format_answers(answers), _format_answers(one.answers)
            lines.append(f"request {number} about {one.text!r}: {reported}, expected {expected}")
    return lines


def _predict(predictor: Predictor, task: str, examples: Sequence[Example]) -> list[Answers]:
    top_k = 1 if _generates_text(predictor, task) else _TOP_K
    predicted = predictor.predict(examples, top_k=top_k, task=task)
    return [[(answer, float(score)) for answer, score in one.answers] for (one,) in predicted]


def _generates_text(predictor: Predictor, task: str) -> bool:
    return predictor.processor.tasks[task].writes_text


def _scores_differ(answers: Answers, others: Answers, tolerance: float, exact: bool) -> bool:
    """Whether the score of an answer differs from its score in ``others``. If the answer is missing there, its score
    counts as at most the last one's.
    """
    version_score_of_report = dict(others)
    lowest = min(version_score_of_report.values())
    for answer, score in answers:
        if answer in version_score_of_report:
            if not abs(score - version_score_of_report[answer]) <= tolerance:  # also true of NaN
                return True
        elif exact or not score <= lowest + tolerance:
            return True
    return False


def _format_answers(answers: Answers) -> str:
    return ", ".join(f"{answer!r} {score:.4f}" for answer, score in answers[:2])


def _input_variants(inputs: Mapping[str, bytes]) -> list[Mapping[str, bytes]]:
    images = _image_variants(inputs[IMAGE]) if IMAGE in inputs else []
    alone = [{name: data} for name, data in inputs.items()] if len(inputs) > 1 else []
    return [inputs, *({**inputs, IMAGE: image} for image in images), *alone]


def _image_variants(encoded: bytes) -> list[bytes]:
    """Encode the image, made smaller and transposed, in each format that has a decoder of its own."""
    with open_image(encoded) as opened:
        picture = opened.decode_upright()
    picture.thumbnail((_SIDE, _SIDE))
    transposed = {
        "JPEG": picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        "PNG": picture.transpose(Image.Transpose.ROTATE_90),
        "WEBP": picture.transpose(Image.Transpose.ROTATE_180),
    }
    return [_encode_picture(image, kind) for kind, image in transposed.items()]


def _encode_picture(picture: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind)
    return file.getvalue()
