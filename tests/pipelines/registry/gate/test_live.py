"""What the gate makes of live traffic, on records whose figures are worked by hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.records.comparisons import Comparison, ComparisonWriter, InvalidLine, ModelResult, TextPair, text_hash
from pipelines.records.corrections import Correction, CorrectionSpool
from pipelines.registry.config import GateConfig, LiveTrafficConfig
from pipelines.registry.gate import report
from pipelines.registry.gate.check import GateCheck, GateDecision
from pipelines.registry.gate.live import (
    check_live_statistics,
    check_live_traffic,
    collect_live_statistics,
    most_common_corrections,
)
from tests.pipelines.registry.conftest import picture

IMAGE = "ab" * 32


def config(**live: Any) -> GateConfig:
    return GateConfig(live=LiveTrafficConfig(**{"requests": 10, **live}))


def compared(number: int, **changes: Any) -> Comparison:
    """Of version 2 beside version 1: 0.01 s by the champion, 0.012 s by the candidate, and the same answer."""
    fields: dict[str, Any] = {
        "time_ns": number, "task": "vqa", "mode": "shadow", "model": "vqa", "image": IMAGE, "agreement": 1.0,
        "champion": ModelResult(version="1", seconds=0.01, confidence=0.5),
        "challenger": ModelResult(version="2", seconds=0.012, confidence=0.5),
    }  # fmt: skip
    return Comparison.model_validate(fields | changes)


def failed(number: int, error: str = "late", **changes: Any) -> Comparison:
    return compared(number, challenger=ModelResult(version="2", error=error), agreement=None, **changes)


def judged(lines: list[Comparison | InvalidLine], settings: GateConfig, right: Any = None) -> dict[str, GateCheck]:
    checks, _ = check_live_statistics(collect_live_statistics(lines, "vqa", "2", "1", right or {}), settings)
    return {check.name: check for check in checks}


def results(checks: dict[str, GateCheck]) -> dict[str, bool | None]:
    return {name: check.passed for name, check in checks.items()}


def test_a_candidate_like_the_champion_passes() -> None:
    checks = judged([compared(n) for n in range(20)], config())
    assert results(checks) == {
        "live traffic": True, "live errors": True, "live agreement (vqa)": True, "live agreement (match)": None,
        "live agreement (classify)": None,
        "live latency p50": True, "live latency p95": True, "live corrections": None,
    }  # fmt: skip
    assert checks["live traffic"].measured == "20 requests compared (20 as a shadow)"
    assert checks["live latency p50"].measured == "12.0 ms against 10.0 ms"
    assert all(check.compares for check in checks.values()), "none makes a candidate unfit to be the challenger"


@pytest.mark.parametrize(("few", "passed"), [("fail", False), ("pass", None)])
def test_too_few_requests_say_nothing_else(few: str, passed: bool | None) -> None:
    checks = judged([compared(n, challenger=ModelResult(version="2", seconds=9.0)) for n in range(9)], config(few=few))
    assert results(checks) == {"live traffic": passed}
    assert checks["live traffic"].required == "at least 10"


def test_only_these_two_versions_of_this_model_count() -> None:
    lines: list[Comparison | InvalidLine] = [compared(n, mode="canary") for n in range(10)]
    lines += [compared(n, challenger=ModelResult(version="3", error="late"), agreement=None) for n in range(30)]
    lines += [compared(n, champion=ModelResult(version="2", seconds=0.001)) for n in range(30)]
    lines += [failed(n, model="another") for n in range(30)]
    lines += [InvalidLine("day/file.jsonl", 3, "cut")]
    checks = judged(lines, config())
    assert checks["live traffic"].measured == ("10 requests compared (10 as a canary); damaged lines of the records: 1")
    assert checks["live errors"].passed


def test_errors_are_held_against_the_champions() -> None:
    lines: list[Comparison | InvalidLine] = [compared(n) for n in range(96)]
    lines += [failed(n, "late") for n in range(3)] + [failed(99, "ActorDiedError")]
    checks = judged(lines, config(errors=0.03))
    assert checks["live errors"].passed is False
    assert checks["live errors"].measured == "4.00% of its requests failed (late 3, ActorDiedError 1)"
    assert checks["live errors"].required == "at most 3.00%"
    assert judged(lines, config(errors=0.04))["live errors"].passed
    lines[:2] = [compared(n, champion=ModelResult(version="1", error="RuntimeError"), agreement=None) for n in range(2)]
    assert judged(lines, config(errors=0.02))["live errors"].passed, "the champion failed twice"


def test_agreement_is_a_mean_over_the_requests_of_a_task() -> None:
    lines: list[Comparison | InvalidLine] = [compared(n, agreement=0.5 if n < 10 else 1.0) for n in range(20)]
    lines += [compared(n, task="match", agreement=0.0) for n in range(5)]
    checks = judged(lines, config(agreement={"vqa": 0.75, "match": 0.1, "embed": 0.9}))
    assert checks["live agreement (vqa)"].measured == "75.0% like the champion's (20 requests)"
    assert (checks["live agreement (vqa)"].passed, checks["live agreement (match)"].passed) == (True, False)
    assert checks["live agreement (embed)"].passed is None


def test_latencies_are_compared_at_two_places() -> None:
    slow = ModelResult(version="2", seconds=0.03)
    lines: list[Comparison | InvalidLine] = [
        compared(n, **({"challenger": slow} if n < 20 else {})) for n in range(100)
    ]
    checks = judged(lines, config())
    assert (checks["live latency p50"].passed, checks["live latency p95"].passed) == (True, False)
    assert checks["live latency p95"].measured == "30.0 ms against 10.0 ms"
    assert judged(lines, config(latency=3.1))["live latency p95"].passed


def test_a_candidate_that_never_answered_is_not_fast() -> None:
    checks = judged([failed(n) for n in range(10)], config(errors=1.0))
    assert checks["live latency p50"].passed is False


def correction(sender: str, time_ns: int, answer: str, question: str | None = "What is it?") -> Correction:
    texts = {"caption": answer} if question is None else {"question": question, "answer": answer}
    return Correction(image=f"{IMAGE}.png", sender=sender, time_ns=time_ns, **texts)


def test_the_last_word_of_each_sender_counts_and_the_most_common_wins() -> None:
    answers = [("b", 5, "Red"), ("a", 9, "red"), ("a", 1, "blue"), ("c", 2, "blue")]
    right = most_common_corrections(
        [*(correction(*one) for one in answers), correction("a", 3, "a disc", question=None)]
    )
    assert right == {(IMAGE, text_hash("what is it?")): text_hash("red"), (IMAGE, text_hash("")): text_hash("a disc")}


@pytest.mark.parametrize(("candidate", "champion", "passed"), [(0.9, 0.5, True), (0.5, 0.5, True), (0.3, 0.9, False)])
def test_corrected_answers_speak_against_a_candidate_alone(candidate: float, champion: float, passed: bool) -> None:
    rows = 60

    def said(share: float, row: int) -> str:
        return text_hash("red" if row * 7 % rows < share * rows else "blue")

    lines: list[Comparison | InvalidLine] = []
    right = {}
    for row in range(rows):
        image = f"{row:064x}"
        right[image, text_hash("?")] = text_hash("red")
        texts = (TextPair(asked=text_hash("?"), champion=said(champion, row), challenger=said(candidate, row)),)
        lines.append(compared(row, image=image, texts=texts))
    lines.append(compared(rows, image="cd" * 32, texts=texts))
    live = collect_live_statistics(lines, "vqa", "2", "1", right)
    assert len(live.corrected) == rows
    checks, [found] = check_live_statistics(live, config())
    assert checks[-1].name == found.name == "live corrections"
    assert (checks[-1].passed, found.worse) == (passed, not passed)
    assert [found.candidate, found.champion] == pytest.approx([candidate, champion])


def test_from_folders_to_the_report(tmp_path: Path) -> None:
    writer, spool = ComparisonWriter(str(tmp_path / "live"), 1 << 20), CorrectionSpool(tmp_path / "feedback", 1 << 20)
    spool.add(picture(0), sender="me", question="What colour?", answer="red", model="vqa", version="1")
    [named] = [one.image for one in corrections_of(tmp_path / "feedback")]
    texts = (TextPair(asked=text_hash("what colour?"), champion=text_hash("blue"), challenger=text_hash("red")),)
    for number in range(12):
        writer.add(compared(number, image=named.partition(".")[0], texts=texts, agreement=0.0))
    writer.flush()
    settings = config(folder=str(tmp_path / "live"), feedback=str(tmp_path / "feedback"))
    checks, differences = check_live_traffic("vqa", "2", "1", settings)
    assert results({check.name: check for check in checks})["live corrections"]
    assert (differences[0].rows, differences[0].candidate, differences[0].champion) == (12, 1.0, 0.0)
    decision = GateDecision("vqa", "2", "1", tuple(checks), tuple(differences))
    assert not decision.promote
    assert decision.is_usable
    assert "live agreement (vqa): 0.0% like the champion's" in decision.reason
    assert "live corrections" in report.decision_page(decision)
    assert report.draw_gate_decision(decision).axes
    assert check_live_traffic("vqa", "2", "1", config()) == ([], [])
    [empty], _ = check_live_traffic("vqa", "2", "1", config(folder=str(tmp_path / "nowhere")))
    assert empty.passed is False


def corrections_of(folder: Path) -> Iterator[Correction]:
    for file in folder.glob("*/corrections/*.json"):
        yield Correction.model_validate_json(file.read_bytes())
