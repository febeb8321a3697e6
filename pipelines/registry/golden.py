"""Golden answers: what a version said about a few pictures when it was registered, stored with it.

A file's hash says that a model is the same, and nothing about what makes answers of it: the versions of libraries, a
decoder of images, kernels, a GPU. Who loads the model elsewhere asks it the same again (serve/answerer.py).
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from PIL import Image
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from pipelines.registry.errors import ArtifactError
from vlmodel.images.pillow import open_image
from vlmodel.inference import Predictor
from vlmodel.processor import Example

GOLDEN = "golden.json"
_TOP_K, _SIDE = 5, 256

Answers = list[tuple[str, float]]


class GoldenAnswer(BaseModel):
    """One request of one of the model's tasks, and its answer.

    Attributes:
        task: "" where the model has only one.
        image: encoded, in base64.
        answers: the first few with their probabilities or scores, the best first; one where texts are written.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    task: str
    image: str
    text: str
    answers: Answers


_GOLDEN = TypeAdapter(list[GoldenAnswer])


def create(predictor: Predictor, examples: Mapping[str, tuple[bytes, str]]) -> list[GoldenAnswer]:
    """Ask the model about each task's example: as it is, and turned and stored in other formats.

    Texts that are written come out of many choices, of which a near tie falls by rounding. So only those are kept that
    are the same when the pictures are asked about one by one and all at once.

    Args:
        examples: (encoded image, text) of each of the model's tasks that is to be asked.

    Raises:
        ImageError: an example cannot be decoded.
    """
    found = []
    for task, (image, text) in examples.items():
        images = [image, *_variants(image)]
        alone = [_predict(predictor, task, text, [one])[0] for one in images]
        together = _predict(predictor, task, text, images)
        for shown, one, other in zip(images, alone, together, strict=True):
            if not _generates_text(predictor, task) or one[0][0] == other[0][0]:
                encoded = base64.b64encode(shown).decode()
                found.append(GoldenAnswer(task=task, image=encoded, text=text, answers=one))
    return found


def write(golden: Sequence[GoldenAnswer], folder: Path) -> None:
    """Store golden answers in a model's package."""
    (folder / GOLDEN).write_bytes(_GOLDEN.dump_json(list(golden), indent=1))


def read(file: Path) -> list[GoldenAnswer]:
    """Golden answers of a model's package.

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


def differences(predictor: Predictor, golden: Sequence[GoldenAnswer], tolerance: float) -> list[str]:
    """What the model answers otherwise here, a line for each request.

    Args:
        tolerance: by how much a probability or cosine may differ. A chosen answer that changes places with another
            within it is the same; a text that is written is another if a letter is.
    """
    lines = []
    for number, one in enumerate(golden):
        try:
            here = _predict(predictor, one.task, one.text, [base64.b64decode(one.image)])[0]
        except (ValueError, RuntimeError) as error:
            lines.append(f"request {number} about {one.text!r} fails here: {error}")
            continue
        exact = _generates_text(predictor, one.task)
        if any(True for _ in _differing_answers(one.answers, here, tolerance, exact)):
            lines.append(
                f"request {number} about {one.text!r}: {_format_answers(here)}, expected {_format_answers(one.answers)}"
            )
    return lines


def _predict(predictor: Predictor, task: str, text: str, images: Sequence[bytes]) -> list[Answers]:
    top_k = 1 if _generates_text(predictor, task) else _TOP_K
    predicted = predictor.predict([Example(image, (text,)) for image in images], top_k=top_k, task=task)
    return [[(answer, float(score)) for answer, score in one.answers] for (one,) in predicted]


def _generates_text(predictor: Predictor, task: str) -> bool:
    return predictor.processor.tasks[task].target == "tokens"


def _differing_answers(expected: Answers, found: Answers, tolerance: float, exact: bool) -> Iterator[str]:
    """Answers whose score is another. One that is missing from a list of the best has at most the score of the last."""
    for scores, other_scores in ((expected, found), (found, expected)):
        score_of = dict(other_scores)
        lowest = min(score_of.values())
        for answer, score in scores:
            if answer in score_of:
                unlike = not abs(score - score_of[answer]) <= tolerance  # also where it is no number
            else:
                unlike = exact or not score <= lowest + tolerance
            if unlike:
                yield answer


def _format_answers(answers: Answers) -> str:
    return ", ".join(f"{answer!r} {score:.4f}" for answer, score in answers[:2])


def _variants(image: bytes) -> list[bytes]:
    """The picture smaller and turned, in the formats that have decoders of their own."""
    with open_image(image) as opened:
        picture = opened.upright()
    picture.thumbnail((_SIDE, _SIDE))
    turned = {
        "JPEG": picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        "PNG": picture.transpose(Image.Transpose.ROTATE_90),
        "WEBP": picture.transpose(Image.Transpose.ROTATE_180),
    }
    return [_encoded(one, kind) for kind, one in turned.items()]


def _encoded(picture: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind)
    return file.getvalue()
