"""Checks a candidate's behaviour: its answers to reworded texts, about another sample's inputs, and about a blank
image.

After Ribeiro et al. 2020 (CheckList, arXiv 2005.04118): a rewording must not change answers (invariance); showing an
image, or other inputs, that the question is not about must change them (direction). They need no right answers.
"""

from __future__ import annotations

import io
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from PIL import Image

from pipelines.data.index.index import Index
from pipelines.data.tars.reader import ShardReader
from pipelines.errors import DataError
from pipelines.registry.config import GateConfig, Rewording
from pipelines.registry.gate.check import GateCheck
from vlmodel.encoder_parts import IMAGE
from vlmodel.processor import Example
from vlmodel.sample import Sample
from vlmodel.task import answerable_rows

if TYPE_CHECKING:
    from vlmodel.inference import Predictor


_SAMPLES_AT_ONCE = 16
_SAMPLES = 64
"""Of the hold-out, and those that are read at once; the checks run in the job's process."""
_BLANK_CONFIDENCE = 0.1
"""How far the mean confidence about a blank image may exceed that about the true one."""
_CONFIDENCE_LOSS = 0.1
"""A confidence that falls by more than this counts as a changed answer."""

Answer = tuple[str, float]


def _change_case(text: str) -> str:
    return text.lower() if text != text.lower() else text.capitalize()


def _change_punctuation(text: str) -> str:
    bare = text.rstrip("?!. ")
    return bare if bare != text else f"{text}?"


def _make_question_polite(text: str) -> str:
    return f"please tell me, {text[:1].lower()}{text[1:]}"


REWORDINGS: Mapping[Rewording, Callable[[str], str]] = {
    "case": _change_case,
    "punctuation": _change_punctuation,
    "politeness": _make_question_polite,
}


@dataclass(frozen=True)
class ProbeResult:
    """How a model answered the probe's rows of one task.

    Attributes:
        rows: number of rows.
        agreement: share of equal answers to each rewording that must not change them (``Task.invariances``).
        input_use: share of answers that changed or lost confidence about another sample's inputs; None if all samples
            have the same.
        has_images: whether they include images; only then is a blank one shown.
        confidence, blank_confidence: mean confidence about the true image and about a blank one.
        finite: whether all confidences are finite.
        blank_error: the error that a blank image raised, "" for none.
    """

    rows: int
    agreement: Mapping[Rewording, float] = field(default_factory=dict)
    input_use: float | None = None
    has_images: bool = True
    confidence: float = math.nan
    blank_confidence: float = math.nan
    finite: bool = True
    blank_error: str = ""


def draw_probe_samples(index: Index, split: str) -> list[Sample]:
    """Draw 64 samples of a split, the same at each call; all samples if there are fewer.

    Raises:
        DataError: the split is empty.
    """
    return list(iterate_probe_samples(index, split, _SAMPLES))


def iterate_probe_samples(index: Index, split: str, most: int) -> Iterator[Sample]:
    """Yield at most ``most`` samples of a split, the same at each call, each read when it is asked for.

    Raises:
        DataError: the split is empty.
    """
    rows = [
        (shard.name, row)
        for shard in index.shards
        for row, row_split in enumerate(index.rows(shard.name)["split"].to_pylist())
        if row_split == split
    ]
    if not rows:
        raise DataError(f"split {split!r} of {index.tars!r} has no samples to judge by; choose registry.gate.split")
    drawn, reader = random.Random(0).sample(rows, min(most, len(rows))), ShardReader(index)
    for start in range(0, len(drawn), _SAMPLES):
        chosen = sorted(drawn[start : start + _SAMPLES])
        for name in dict.fromkeys(shard for shard, _ in chosen):
            yield from reader.read(name, [row for shard, row in chosen if shard == name])


def run_behaviour_probe(predictor: Predictor, records: Sequence[Sample], task: str) -> ProbeResult:
    """Ask the model the texts of some samples: unchanged, reworded, about another sample's inputs, and about a blank
    image.
    """
    asked = predictor.processor.tasks[task]
    reads = predictor.processor.input_names
    records = [record for record in records if record.inputs.keys() & set(reads)]
    texts = [[row.text for row in rows] for rows in answerable_rows(asked, records)]
    inputs = [{name: record.inputs[name] for name in reads if name in record.inputs} for record in records]
    if not any(texts):
        return ProbeResult(0)

    def best_answers_for_images(
        shown: Sequence[Mapping[str, bytes]], reword: Callable[[str], str] = str
    ) -> list[Answer]:
        examples = [Example(one, tuple(map(reword, asked))) for one, asked in zip(shown, texts, strict=True)]
        best: list[Answer] = []
        for start in range(0, len(examples), _SAMPLES_AT_ONCE):
            predicted = predictor.predict(examples[start : start + _SAMPLES_AT_ONCE], top_k=1, task=task)
            best += [prediction.answers[0] for of_sample in predicted for prediction in of_sample]
        return best

    original = best_answers_for_images(inputs)
    agreement = {
        kind: _answer_agreement(original, best_answers_for_images(inputs, reword))
        for kind, reword in REWORDINGS.items()
        if kind in asked.invariances
    }
    # A table may ask about one picture in many samples, so the next image may be the same one.
    others = [
        next((other for other in (*inputs[n:], *inputs[:n]) if other != inputs[n]), None) for n in range(len(inputs))
    ]
    input_use = None
    if all(other is not None for other in others):
        exchanged = best_answers_for_images([other for other in others if other is not None])
        input_use = sum(map(answers_differ, original, exchanged)) / len(original)
    has_images = any(IMAGE in one for one in inputs)
    blank: list[Answer] = []
    error = ""
    try:
        if has_images:
            blank = best_answers_for_images([{IMAGE: _blank_image()}] * len(inputs))
    except Exception as raised:  # whatever the model raises, the candidate fails and not the gate
        error = f"{type(raised).__name__}: {raised}"
    return ProbeResult(
        rows=len(original),
        agreement=agreement,
        input_use=input_use,
        has_images=has_images,
        confidence=_mean_confidence(original),
        blank_confidence=_mean_confidence(blank),
        finite=all(math.isfinite(confidence) for _, confidence in (*original, *blank)),
        blank_error=error,
    )


def check_behaviour(
    candidate: ProbeResult, champion: ProbeResult | None, config: GateConfig, task: str = ""
) -> list[GateCheck]:
    """Make one gate check for each kind of rewording, one for exchanged inputs, and one for a blank image.

    Args:
        champion: on the same rows; None without a champion.
        task: appended to the checks' names if the model has several.
    """
    suffix = f" ({task})" if task else ""
    if not candidate.rows:
        return [GateCheck(f"behaviour{suffix}", None, "", "", "the drawn samples have nothing to ask")]
    checks = []
    for kind, least in config.agreement.items():
        name = f"paraphrase: {kind}{suffix}"
        if kind in candidate.agreement:
            shares = candidate.agreement[kind], champion.agreement.get(kind) if champion else None
            reason = "answers must not depend on how a question is put"
            checks.append(check_answer_share(name, *shares, least, config, "of the answers stay", reason))
        else:
            reason = "for this task, such a rewording may change the right answer"
            checks.append(GateCheck(name, None, "", "", reason))
    shown = "image" if candidate.has_images else "input"
    name = f"irrelevant {shown}{suffix}"
    if candidate.input_use is None:
        checks.append(GateCheck(name, None, "", "", f"the drawn {shown}s are all the same"))
    else:
        unit, reason = "of the answers change or lose confidence", f"answers must depend on the {shown}"
        champion_share = champion.input_use if champion else None
        checks.append(
            check_answer_share(name, candidate.input_use, champion_share, config.image_use, config, unit, reason)
        )
    if candidate.has_images:
        checks.append(_check_blank_image(f"blank image{suffix}", candidate))
    return checks


def check_answer_share(
    name: str, candidate: float, champion: float | None, least: float, config: GateConfig, unit: str, reason: str
) -> GateCheck:
    """Check that a share of answers is at least ``least``, and not far below the champion's.

    Args:
        unit: what the share is of, with what it does.
    """
    if champion is not None:
        least = max(least, champion - config.behaviour_tolerance)
        reason = f"{reason}; the champion has {champion:.1%}"
    return GateCheck(name, candidate >= least, f"{candidate:.1%} {unit}", f"at least {least:.1%}", reason)


def _check_blank_image(name: str, candidate: ProbeResult) -> GateCheck:
    measured = f"confidence {candidate.blank_confidence:.3f}, about true images {candidate.confidence:.3f}"
    if candidate.blank_error:
        measured = candidate.blank_error
    elif not candidate.finite:
        measured = "a confidence is not finite"
    highest = candidate.confidence + _BLANK_CONFIDENCE
    return GateCheck(
        name=name,
        passed=not candidate.blank_error and candidate.finite and candidate.blank_confidence <= highest,
        measured=measured,
        required=f"an answer, with a confidence of at most {highest:.3f}",
        explanation="a model should not be surer about a blank image than about a true one",
    )


def _answer_agreement(original: Sequence[Answer], reworded: Sequence[Answer]) -> float:
    return sum(a == b for (a, _), (b, _) in zip(original, reworded, strict=True)) / len(original)


def answers_differ(original: Answer, exchanged: Answer) -> bool:
    """Whether two answers differ, or the second has lost confidence."""
    return original[0] != exchanged[0] or exchanged[1] < original[1] - _CONFIDENCE_LOSS


def _mean_confidence(answers: Sequence[Answer]) -> float:
    return sum(confidence for _, confidence in answers) / len(answers) if answers else math.nan


def _blank_image() -> bytes:
    png = io.BytesIO()
    Image.new("RGB", (224, 224), (128, 128, 128)).save(png, "PNG")
    return png.getvalue()
