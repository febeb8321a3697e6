from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from pipelines.evaluate.model_card import model_card
from pipelines.evaluate.report import TaskReport
from pipelines.evaluate.verdict import BaselineComparison
from pipelines.knowledge.trained_facts import TrainedFacts
from vlmodel.config import parse_part_config

QUESTION_ONLY = BaselineComparison("question_only", "the question alone", 0.9, 0.5, 0.3, 0.5, "better", 40)
REPORT = TaskReport(
    "val", 20, 40, "questions", "accuracy", {"accuracy": 0.9, "ece": 0.05},
    {"majority": {"accuracy": 0.25}, "question_only": {"accuracy": 0.5}}, interval=(0.8, 0.95),
    comparisons=(QUESTION_ONLY,),
)  # fmt: skip


def card(kind: str, labels: list[str], facts: TrainedFacts | None = None) -> str:
    processor: Any = SimpleNamespace(tasks={"": parse_part_config("vlmodel.tasks", {"kind": kind})}, labels=labels)
    index: Any = SimpleNamespace(counts=lambda: {"train": 96, "val": 20, "test": 0}, hash="0123456789abcdef")
    return model_card("pets", {"": REPORT}, processor, index, 120, facts)


def test_figures_stand_beside_the_baselines() -> None:
    text = card("vqa", ["yes", "no"])
    assert "\n# pets\n" in text
    flat = " ".join(text.split())
    assert "| metric | model | majority | question only |\n" in text
    assert "| accuracy | 0.9000 | 0.2500 | 0.5000 |\n| ece | 0.0500 |  |  |\n" in text
    assert "accuracy 0.9000, 0.8000 to 0.9500 with 95 % confidence, on 40 questions; 20 samples." in flat
    assert "It is better than the question alone (0.5000) by 0.4000" in flat
    assert "Samples: 96 train, 20 val. Index `0123456789ab`." in text
    assert 'It chooses among 2 answers: "yes", "no". It knows no others.' in text


def test_the_head_is_what_the_hub_reads() -> None:
    expected = "---\nlibrary_name: transformers\npipeline_tag: visual-question-answering\ntags: [raylm]\n---\n"
    assert card("vqa", ["yes"]).startswith(expected)
    assert "pipeline_tag" not in card("contrastive", [])
    assert "Limits" not in card("contrastive", [])


def test_the_facts_of_the_training_are_named() -> None:
    facts = TrainedFacts(version=7, hash="fedcba9876543210", encoder="")
    assert "Index `0123456789ab`. Facts: version 7 of a store, hash `fedcba987654`." in card("vqa", ["yes"], facts)


def test_many_answers_are_counted() -> None:
    assert '"19" and 5 more. It knows no others.' in card("vqa", [str(n) for n in range(25)])
