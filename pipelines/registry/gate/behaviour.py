"""How a model behaves when texts are reworded, and when it is shown another image or none.

Behavioural tests after Ribeiro et al. 2020 (CheckList, arXiv 2005.04118): a rewording must not change answers
(invariance), an image that is not the one asked about must (direction). They need no right answers.
"""

from __future__ import annotations

import io
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from PIL import Image

from pipelines.data.index.index import Index
from pipelines.data.stream.rows import rows_to_answer
from pipelines.data.tars.reader import Record, ShardReader
from pipelines.errors import DataError
from pipelines.registry.config import GateConfig, Rewording
from pipelines.registry.gate.check import Check
from vlmodel.inference import Predictor
from vlmodel.processor import Example
from vlmodel.task_spec import TaskSpec

_IMAGES_AT_ONCE = 16
_LOSS = 0.1
"""A confidence that falls by so much counts as a changed answer."""

Answer = tuple[str, float]


def _other_case(text: str) -> str:
    return text.lower() if text != text.lower() else text.capitalize()


def _other_punctuation(text: str) -> str:
    bare = text.rstrip("?!. ")
    return bare if bare != text else f"{text}?"


def _polite(text: str) -> str:
    return f"please tell me, {text[:1].lower()}{text[1:]}"


REWORDINGS: Mapping[Rewording, Callable[[str], str]] = {
    "case": _other_case,
    "punctuation": _other_punctuation,
    "politeness": _polite,
}
"""Ways to say the same: in other letters, without the mark at the end (or with one), with a politeness before it."""


@dataclass(frozen=True)
class ProbeResult:
    """What a model did with some rows of one task.

    Attributes:
        rows: that were asked.
        agreement: share of equal answers to each rewording; none where the task is given no question.
        image_use: share of answers that changed or lost confidence about another image; None where there is no other.
        confidence, blank_confidence: mean confidence about the true image and about a blank one.
        finite: whether all confidences are numbers.
        blank_error: what a blank image broke, "" for nothing.
    """

    rows: int
    agreement: Mapping[Rewording, float] = field(default_factory=dict)
    image_use: float | None = None
    confidence: float = math.nan
    blank_confidence: float = math.nan
    finite: bool = True
    blank_error: str = ""


def probe_records(index: Index, split: str, config: GateConfig) -> list[Record]:
    """``config.probe_images`` samples of the split, drawn with the seed; all where there are no more.

    Raises:
        DataError: the split is empty.
    """
    places = []
    for shard in index.shards:
        splits = index.rows(shard.name)["split"].to_pylist()
        places += [(shard.name, row) for row, of_row in enumerate(splits) if of_row == split]
    if not places:
        raise DataError(f"split {split!r} of {index.tars!r} has no samples to judge by; choose registry.gate.split")
    chosen = sorted(random.Random(config.seed).sample(places, min(config.probe_images, len(places))))
    reader, records = ShardReader(index), list[Record]()
    for name in dict.fromkeys(shard for shard, _ in chosen):
        records += reader.read(name, [row for shard, row in chosen if shard == name])
    return records


def run_probe(predictor: Predictor, records: Sequence[Record], task: str) -> ProbeResult:
    """Ask the model about the records as they are, reworded, about each other's images, and about a blank one."""
    fields = predictor.processor.tasks[task]
    texts = [[row.text for row in rows] for rows in rows_to_answer(records, fields)]
    images = [record.image for record in records]
    asked = [number for number, of_image in enumerate(texts) for _ in of_image]
    if not asked:
        return ProbeResult(0)

    def answers(shown: Sequence[bytes], reworded: Callable[[str], str] = str) -> list[Answer]:
        examples = [
            Example(image, tuple(map(reworded, of_image))) for image, of_image in zip(shown, texts, strict=True)
        ]
        found: list[Answer] = []
        for start in range(0, len(examples), _IMAGES_AT_ONCE):
            predicted = predictor.predict(examples[start : start + _IMAGES_AT_ONCE], top_k=1, task=task)
            found += [prediction.answers[0] for of_image in predicted for prediction in of_image]
        return found

    plain = answers(images)
    agreement = {kind: _agreement(plain, answers(images, REWORDINGS[kind])) for kind in _kinds(fields)}
    # Of a table that asks about one picture many times, the next image may be the same one.
    others = [
        next((image for image in (*images[n:], *images[:n]) if image != images[n]), None) for n in range(len(images))
    ]
    used = None
    if all(image is not None for image in others):
        shown = answers([image for image in others if image is not None])
        used = sum(_lost(one, other) for one, other in zip(plain, shown, strict=True)) / len(plain)
    try:
        blank, error = answers([_blank()] * len(images)), ""
    except Exception as broken:  # whatever the model raises, it is the candidate that fails and not the gate
        blank, error = [], f"{type(broken).__name__}: {broken}"
    return ProbeResult(
        rows=len(plain),
        agreement=agreement,
        image_use=used,
        confidence=_mean(plain),
        blank_confidence=_mean(blank),
        finite=all(math.isfinite(confidence) for _, confidence in (*plain, *blank)),
        blank_error=error,
    )


def behaviour_checks(
    candidate: ProbeResult, champion: ProbeResult | None, config: GateConfig, task: str = ""
) -> list[Check]:
    """A check for each rewording, for another image, and for a blank one.

    Args:
        champion: of the same rows; None without a champion.
        task: told in the checks' names where the model has several.
    """
    of_task = f" ({task})" if task else ""
    if not candidate.rows:
        return [Check(f"behaviour{of_task}", None, "", "", "the drawn images have no text to ask")]
    checks = []
    for kind, least in config.agreement.items():
        name, why = f"paraphrase: {kind}{of_task}", "answers must not depend on how a question is put"
        if kind not in candidate.agreement:
            checks.append(Check(name, None, "", "", "the task is not one that this rewording leaves as it is"))
            continue
        champion_value = champion.agreement.get(kind) if champion else None
        checks.append(
            _at_least(name, candidate.agreement[kind], least, champion_value, config, "of the answers stay", why)
        )
    name, why = f"irrelevant image{of_task}", "answers must come from looking"
    if candidate.image_use is None:
        checks.append(Check(name, None, "", "", "the drawn images are all the same"))
    else:
        champion_value = champion.image_use if champion else None
        said = "of the answers change or lose confidence"
        checks.append(_at_least(name, candidate.image_use, config.image_use, champion_value, config, said, why))
    return [*checks, _blank_check(f"blank image{of_task}", candidate, config)]


def _blank_check(name: str, found: ProbeResult, config: GateConfig) -> Check:
    measured = f"confidence {found.blank_confidence:.3f}, about true images {found.confidence:.3f}"
    if found.blank_error:
        measured = found.blank_error
    elif not found.finite:
        measured = "a confidence is no number"
    highest = found.confidence + config.blank_confidence
    return Check(
        name=name,
        passed=not found.blank_error and found.finite and found.blank_confidence <= highest,
        measured=measured,
        required=f"an answer, with a confidence of at most {highest:.3f}",
        explanation="of nothing a model should not be surer than of something",
    )


def _at_least(
    name: str,
    candidate_value: float,
    least: float,
    champion_value: float | None,
    config: GateConfig,
    said: str,
    why: str,
) -> Check:
    if champion_value is not None:
        least = max(least, champion_value - config.behaviour_tolerance)
        why = f"{why}; the champion has {champion_value:.1%}"
    return Check(name, candidate_value >= least, f"{candidate_value:.1%} {said}", f"at least {least:.1%}", why)


def _kinds(fields: TaskSpec) -> list[Rewording]:
    """Rewordings under which the right answer stays: a politeness belongs to questions, and a likeness is no answer."""
    if not fields.text or fields.target == "none":
        return []
    return [
        kind for kind in REWORDINGS if kind != "politeness" or (fields.reads, fields.target) != ("captions", "match")
    ]


def _agreement(one: Sequence[Answer], other: Sequence[Answer]) -> float:
    return sum(a == b for (a, _), (b, _) in zip(one, other, strict=True)) / len(one)


def _lost(one: Answer, other: Answer) -> bool:
    return one[0] != other[0] or other[1] < one[1] - _LOSS


def _mean(answers: Sequence[Answer]) -> float:
    return sum(confidence for _, confidence in answers) / len(answers) if answers else math.nan


def _blank() -> bytes:
    png = io.BytesIO()
    Image.new("RGB", (224, 224), (128, 128, 128)).save(png, "PNG")
    return png.getvalue()
