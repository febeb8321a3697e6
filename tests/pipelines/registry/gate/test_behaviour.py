from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.registry.config import GateConfig
from pipelines.registry.gate.behaviour import REWORDINGS, ProbeResult, check_behaviour, run_behaviour_probe
from pipelines.registry.gate.check import GateCheck
from vlmodel.inference import Prediction, Predictor
from vlmodel.processor import Example
from vlmodel.sample import Question, Sample, SampleTexts

CONFIG = GateConfig()
GOOD = ProbeResult(
    rows=10,
    agreement={"case": 1.0, "punctuation": 0.9, "politeness": 0.6},
    input_use=0.4,
    confidence=0.8,
    blank_confidence=0.5,
)


def failed(found: ProbeResult, champion: ProbeResult | None = None) -> list[str]:
    return [check.name for check in check_behaviour(found, champion, CONFIG) if check.passed is False]


def test_rewordings_say_the_same() -> None:
    said = {kind: [reword(text) for text in ("Is it red?", "a dog")] for kind, reword in REWORDINGS.items()}
    assert said == {
        "case": ["is it red?", "A dog"],
        "punctuation": ["Is it red", "a dog?"],
        "politeness": ["please tell me, is it red?", "please tell me, a dog"],
    }


@pytest.mark.parametrize(
    ("change", "fails"),
    [
        ({}, []),
        ({"agreement": {"case": 0.94, "punctuation": 0.9, "politeness": 0.2}}, ["paraphrase: case"]),
        ({"agreement": {"case": 1.0, "punctuation": 0.7, "politeness": 0.2}}, ["paraphrase: punctuation"]),
        ({"input_use": 0.04}, ["irrelevant image"]),
        ({"blank_confidence": 0.95}, ["blank image"]),
        ({"blank_confidence": math.nan}, ["blank image"]),
        ({"finite": False}, ["blank image"]),
        ({"blank_error": "RuntimeError: no"}, ["blank image"]),
    ],
)  # fmt: skip
def test_each_behaviour_has_a_check(change: dict[str, Any], fails: list[str]) -> None:
    assert failed(replace(GOOD, **change)) == fails


def test_a_candidate_may_not_fall_far_behind_the_champion() -> None:
    assert failed(replace(GOOD, input_use=0.31), GOOD) == []
    assert failed(replace(GOOD, input_use=0.29), GOOD) == ["irrelevant image"]
    assert failed(replace(GOOD, agreement={**GOOD.agreement, "politeness": 0.4}), GOOD) == ["paraphrase: politeness"]


def test_what_does_not_apply_says_so() -> None:
    checks = check_behaviour(replace(GOOD, agreement={}, input_use=None), None, CONFIG, "caption")
    assert [check.passed for check in checks] == [None, None, None, None, True]
    assert all(check.name.endswith("(caption)") for check in checks)
    (nothing,) = check_behaviour(ProbeResult(0), None, CONFIG)
    assert nothing.passed is None


def records(pictures: Sequence[bytes]) -> list[Sample]:
    questions = (Question("What colour is the shape?", "red"), Question("is the shape red?", None))
    return [
        Sample(f"k{n}", {"image": image}, SampleTexts((), questions), frozenset({"image", "questions"}))
        for n, image in enumerate(pictures)
    ]


def test_a_model_is_observed(checkpoint: Path, pictures: list[bytes]) -> None:
    found = run_behaviour_probe(Predictor.from_pretrained(checkpoint), records(pictures), "")
    assert found.rows == 6
    assert set(found.agreement) == {"case", "punctuation", "politeness"}
    assert found.finite
    assert not found.blank_error
    assert 0 < found.confidence <= 1
    assert 0 < found.blank_confidence <= 1


class Recorded:
    """A predictor whose answer is given by a function of (image, text)."""

    def __init__(self, processor: Any, answer: Any) -> None:
        self.processor, self._answer = processor, answer

    def predict(self, examples: Sequence[Example], top_k: int, task: str) -> list[list[Prediction]]:
        return [[Prediction([self._answer(e.inputs["image"], text)]) for text in e.texts] for e in examples]


def observed(checkpoint: Path, shown: list[Sample], answer: Any) -> ProbeResult:
    return run_behaviour_probe(Recorded(Predictor.from_pretrained(checkpoint).processor, answer), shown, "")  # type: ignore[arg-type]


def place(pictures: Sequence[bytes], image: bytes) -> str:
    """An answer for each picture, and one for what is none of them."""
    return str(pictures.index(image)) if image in pictures else "none"


def checks_of(found: ProbeResult) -> dict[str, GateCheck]:
    return {check.name: check for check in check_behaviour(found, None, CONFIG)}


def test_a_model_that_does_not_look_is_found_out(checkpoint: Path, pictures: list[bytes]) -> None:
    blind = observed(checkpoint, records(pictures), lambda image, text: ("yes", 0.9))
    assert blind.input_use == 0
    assert checks_of(blind)["irrelevant image"].passed is False
    assert checks_of(blind)["paraphrase: case"].passed
    looking = observed(checkpoint, records(pictures), lambda image, text: (place(pictures, image), 0.9))
    assert looking.input_use == 1
    unsure = observed(checkpoint, records(pictures), lambda image, text: ("yes", 0.9 if image == pictures[0] else 0.5))
    assert unsure.input_use == pytest.approx(1 / 3), "the confidence about the first image's questions falls"


def test_a_model_that_hangs_on_the_wording_is_found_out(checkpoint: Path, pictures: list[bytes]) -> None:
    found = observed(checkpoint, records(pictures), lambda image, text: ("yes" if text.endswith("?") else "no", 0.9))
    assert found.agreement == {"case": 1, "punctuation": 0, "politeness": 1}


def test_a_model_that_breaks_at_a_blank_image_fails_the_check_alone(checkpoint: Path, pictures: list[bytes]) -> None:
    def answer(image: bytes, text: str) -> tuple[str, float]:
        if image not in pictures:
            raise RuntimeError("division by zero")
        return "yes", 0.9

    found = observed(checkpoint, records(pictures), answer)
    assert checks_of(found)["blank image"].measured == "RuntimeError: division by zero"


def test_a_model_that_is_surest_of_nothing_is_found_out(checkpoint: Path, pictures: list[bytes]) -> None:
    found = observed(checkpoint, records(pictures), lambda image, text: ("yes", 0.6 if image in pictures else 0.99))
    assert checks_of(found)["blank image"].passed is False
    found = observed(checkpoint, records(pictures), lambda image, text: ("yes", math.nan))
    assert checks_of(found)["blank image"].measured == "a confidence is not finite"


def test_another_image_is_another_one(checkpoint: Path, pictures: list[bytes]) -> None:
    """A table may ask about one picture in many samples."""
    same = observed(checkpoint, records([pictures[0]] * 3), lambda image, text: ("yes", 0.9))
    assert same.input_use is None
    twice = [pictures[0], pictures[0], pictures[1]]
    found = observed(checkpoint, records(twice), lambda image, text: (place(twice, image), 0.9))
    assert found.input_use == 1
