"""The flip test: a model that reads its facts follows an edit, one that does not is found out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from pipelines.registry.config import GateConfig
from pipelines.registry.gate.knowledge import (
    FactProbeResult,
    FactRow,
    check_facts_are_used,
    draw_fact_rows,
    run_fact_probe,
)
from tests.pipelines.registry.conftest import save_model
from vlmodel.config import parse_part_config
from vlmodel.facts import Fact, FactLinkingConfig, FoundFacts, LinkedFact
from vlmodel.inference import Prediction
from vlmodel.processor import Example, VLProcessor
from vlmodel.sample import Question, Sample, SampleTexts

COLOURS = {"strawberry": "red", "sky": "blue", "apple": "red", "banana": "yellow", "sea": "blue"}
CONFIG = GateConfig()

Answer = Callable[[str, Sequence[LinkedFact]], str]


class Finder:
    """The colour of what a text names, as ``COLOURS`` says it."""

    def find_facts(self, texts: Sequence[str], link: FactLinkingConfig) -> FoundFacts:
        found = []
        for text in texts:
            named = [(name, at) for name in COLOURS if (at := text.find(name)) >= 0]
            found.append(
                tuple(
                    LinkedFact(Fact(n, n, "Is", COLOURS[n], f"{n} is {COLOURS[n]}"), 1.0, (at, at + len(n)))
                    for n, at in named
                )
            )
        return FoundFacts(7, found)


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> VLProcessor:
    """One that reads facts, with the labels yes, no, red and blue."""
    plain = VLProcessor.from_pretrained(save_model(tmp_path_factory.mktemp("checkpoint") / "model", seed=0))
    made = VLProcessor(
        plain.config, plain.tokenizer, plain.labels, plain.tasks,
        knowledge=parse_part_config("vlmodel.knowledge", {"kind": "injection", "link": {"by": "names"}}),
    )  # fmt: skip
    made.finder = Finder()
    return made


def asked(*questions: tuple[str, str | None], count: int = 1) -> list[Sample]:
    texts = SampleTexts((), tuple(Question(question, answer) for question, answer in questions))
    return [Sample(f"k{n}", {"image": b"red"}, texts, frozenset({"image", "questions"})) for n in range(count)]


def same(shown: str, name: str) -> tuple[str, str]:
    """Whether something has the colour that the picture shows."""
    article = "an" if name[0] in "aeio" else "a"
    return f"is {article} {name} as {shown} as this?", "yes" if COLOURS[name] == shown else "no"


class Reader:
    """A predictor whose answer is a function of a text and its facts."""

    def __init__(self, processor: VLProcessor, answer: Answer) -> None:
        self.processor, self._answer = processor, answer

    def predict(self, examples: Sequence[Example], top_k: int, task: str) -> list[list[Prediction]]:
        return [
            [Prediction([(self._answer(text, facts), 0.9)]) for text, facts in zip(e.texts, e.facts or (), strict=True)]
            for e in examples
        ]


def probe(processor: VLProcessor, samples: list[Sample], answer: Answer) -> FactProbeResult:
    reader: Any = Reader(processor, answer)
    return run_fact_probe(reader, *draw_fact_rows(processor, samples, ""), "")


def compares(text: str, facts: Sequence[LinkedFact]) -> str:
    return "yes" if any(one.fact.text.endswith("red") for one in facts) else "no"


def test_another_entity_of_one_sample_says_what_is_right_after_an_edit(processor: VLProcessor) -> None:
    samples = asked(same("red", "strawberry"), same("red", "apple"), same("red", "sky"), ("is it red?", "yes"))
    kept, rows = draw_fact_rows(processor, samples, "")
    assert kept == samples
    assert [(row.target, row.then) for row in rows] == [("yes", "no"), ("yes", "no"), ("no", "yes")]
    (edited,) = rows[1].edited
    assert (edited.fact.id, edited.fact.head, edited.fact.tail) == ("sky", "apple", "blue")
    assert (edited.fact.text, edited.mention) == ("apple is blue", (6, 11)), "it is the fact of the row's own entity"
    assert rows[1].text[6:11] == "apple"


def test_the_answer_that_a_fact_says_is_edited(processor: VLProcessor) -> None:
    samples = asked(("what colour has a strawberry?", "red"), ("what colour has the sea?", "blue"))
    _, rows = draw_fact_rows(processor, samples, "")
    assert {row.then for row in rows} == {"red", "blue"}
    assert all(row.then != row.target for row in rows)
    assert {one.fact.text for row in rows for one in row.edited} == {"strawberry is blue", "sea is red"}


def test_no_answer_is_expected_that_the_model_cannot_give(processor: VLProcessor) -> None:
    """Yellow is none of its labels."""
    _, rows = draw_fact_rows(processor, asked(("what colour has a strawberry?", "red"), ("has a banana?", "yes")), "")
    assert [row.then for row in rows] == ["", ""]
    _, rows = draw_fact_rows(processor, asked(("what is a banana?", "yellow"), ("what is an apple?", "red")), "")
    assert [(row.target, row.then) for row in rows] == [("yellow", "red"), ("red", "")]


def test_rows_without_facts_or_answers_are_left_out(processor: VLProcessor) -> None:
    kept, rows = draw_fact_rows(processor, asked(("is it red?", "yes"), ("is the sky red?", None)), "")
    assert (kept, rows) == ([], [])
    assert probe(processor, asked(("is it red?", "yes")), compares) == FactProbeResult(0)


def test_samples_are_read_until_there_are_enough(processor: VLProcessor) -> None:
    read = []

    def samples() -> Any:
        for sample in asked(same("red", "strawberry"), same("red", "sky"), count=100):
            read.append(sample)
            yield sample

    _, rows = draw_fact_rows(processor, samples(), "", most=9)
    assert (len(read), len(rows)) == (5, 9)


@pytest.mark.parametrize(
    ("answer", "followed", "right", "without", "changed"),
    [
        (compares, 1.0, 1.0, 1 / 3, 2 / 3),
        # It knows by heart what the facts say.
        (lambda text, facts: "no" if "sky" in text else "yes", 0.0, 1.0, 1.0, 0.0),
        # Half of the answers are right after an edit, and none of them because of it.
        (lambda text, facts: "yes", 0.0, 2 / 3, 2 / 3, 0.0),
    ],
    ids=["reads", "knows by heart", "constant"],
)  # fmt: skip
def test_only_a_model_that_reads_follows(
    processor: VLProcessor, answer: Answer, followed: float, right: float, without: float, changed: float
) -> None:
    samples = asked(same("red", "strawberry"), same("red", "apple"), same("red", "sky"), count=10)
    found = probe(processor, samples, answer)
    assert (found.rows, found.edits) == (30, 30)
    assert found.followed == followed
    assert (found.right, found.without) == pytest.approx((right, without))
    assert found.changed == pytest.approx(changed)
    checks = {check.name: check for check in check_facts_are_used(found, None, CONFIG)}
    assert checks["edited facts"].passed is (followed == 1)
    assert checks["exchanged facts"].passed is (changed > 0)
    assert f"{without:.1%} without" in checks["edited facts"].measured


def test_what_cannot_be_said_does_not_apply() -> None:
    (edited, exchanged) = check_facts_are_used(FactProbeResult(0), None, CONFIG, "vqa")
    assert (edited.passed, exchanged.passed) == (None, None)
    assert edited.name == "edited facts (vqa)"
    few = FactProbeResult(100, changed=None, edits=19, followed=0.0)
    assert [check.passed for check in check_facts_are_used(few, None, CONFIG)] == [None, None]


def test_a_candidate_may_not_fall_far_behind_the_champion() -> None:
    good = FactProbeResult(200, changed=0.5, edits=200, followed=0.95)

    def passed(followed: float, champion: FactProbeResult | None) -> bool | None:
        (edited, _) = check_facts_are_used(FactProbeResult(200, 0.5, 200, followed), champion, CONFIG)
        return edited.passed

    assert [passed(0.7, None), passed(0.7, good), passed(0.86, good)] == [True, False, True]


def test_of_equal_facts_nothing_is_exchanged(processor: VLProcessor) -> None:
    found = probe(processor, asked(("has a strawberry seeds?", "yes"), ("is a strawberry sweet?", "yes")), compares)
    assert (found.rows, found.changed) == (2, None)
    assert FactRow(0, "", "", ()).then == ""
