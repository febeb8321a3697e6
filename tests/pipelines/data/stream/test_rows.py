"""What each task makes of samples."""

from __future__ import annotations

import pytest

from pipelines.data.stream.rows import Row, rows_to_answer, to_examples
from vlmodel.sample import Question, Sample, Texts
from vlmodel.task_spec import TaskSpec

QUESTIONS = (Question("what?", "red", ("red", "rose"), "7"), Question("is it?", "yes"), Question("unknown?"))


def record(key: str, *captions: str, questions: tuple[Question, ...] = ()) -> Sample:
    present = {"image"} | ({"captions"} if captions else set()) | ({"questions"} if questions else set())
    return Sample(key, {"image": key.encode()}, Texts(captions, questions), frozenset(present), split="val")


def learned(records: list[Sample], spec: TaskSpec) -> list[list[tuple[str, str | None]]]:
    examples = to_examples(records, spec, weight=0.5)
    assert [example.inputs for example in examples] == [record.inputs for record in records]
    assert all(example.weights == (0.5,) * len(example.texts) for example in examples)
    return [list(zip(example.texts, example.targets, strict=True)) for example in examples]


def test_questions() -> None:
    records = [record("a", "ignored", questions=QUESTIONS), record("b", "ignored")]
    expected = [[("what?", "red"), ("is it?", "yes"), ("unknown?", None)], []]
    for target in ("answer", "match", "tokens"):
        assert learned(records, TaskSpec(reads="questions", target=target)) == expected
    assert rows_to_answer(records, TaskSpec(reads="questions")) == [
        [
            Row("a", "val", "what?", "red", ("red", "rose"), "7"),
            Row("a", "val", "is it?", "yes", ("yes",), None),
            Row("a", "val", "unknown?", None, (), None),
        ],
        [],
    ]


def test_captions_to_be_written_are_asked_for_once_an_image() -> None:
    spec = TaskSpec(reads="captions", text=False, target="tokens")
    records = [record("a", "one", "two"), record("b", questions=QUESTIONS), record("c", "three")]
    assert learned(records, spec) == [[("", "one"), ("", "two")], [], [("", "three")]]
    asked = rows_to_answer(records, spec)
    assert asked[0] == [Row("a", "val", "", "one", ("one", "two"), None)]
    assert asked[2] == [Row("c", "val", "", "three", ("three",), None)]


def test_captions_to_be_found() -> None:
    spec = TaskSpec(reads="captions", target="none")
    records = [record("a", "one", "two"), record("b", "three")]
    assert learned(records, spec) == [[("one", None), ("two", None)], [("three", None)]]
    assert rows_to_answer(records, spec)[0] == [
        Row("a", "val", "one", None, (), None),
        Row("a", "val", "two", None, (), None),
    ]


MATCH = TaskSpec(reads="captions", target="match")


@pytest.mark.parametrize("counts", [[1, 1], [5, 5], [1, 5], [5, 1, 0, 3], [5, 5, 5], [2] * 8, [0, 4, 0, 2]])
def test_each_caption_meets_its_image_and_another(counts: list[int]) -> None:
    records = [record(f"{i}", *(f"{i}:{j}" for j in range(count))) for i, count in enumerate(counts)]
    for i, pairs in enumerate(learned(records, MATCH)):
        own = [text for text, target in pairs if target == "match"]
        strange = [text for text, target in pairs if target == "no match"]
        assert own == list(records[i].texts.captions)
        assert len(strange) == len(own)
        assert not any(text.startswith(f"{i}:") for text in strange)
    assert learned(records, MATCH) == learned(records, MATCH)


def test_others_take_turns() -> None:
    records = [record(f"{i}", *(f"{i}:{j}" for j in range(3))) for i in range(4)]
    strange = [text for text, target in learned(records, MATCH)[2] if target == "no match"]
    assert strange == ["3:0", "0:1", "1:2"]


def test_a_caption_of_both_images_is_no_counterexample() -> None:
    records = [record("a", "a dog", "it runs"), record("b", "a cat", "a dog"), record("c", "a dog")]
    for of_record, pairs in zip(records, learned(records, MATCH), strict=True):
        strange = {text for text, target in pairs if target == "no match"}
        assert not strange & set(of_record.texts.captions)
    assert ("a cat", "no match") in learned(records, MATCH)[0]


@pytest.mark.parametrize("records", [[], [record("a", "one", "two")], [record("a", "one"), record("b")]])
def test_where_there_is_no_other(records: list[Sample]) -> None:
    assert all(target == "match" for pairs in learned(records, MATCH) for _, target in pairs)


def test_matching_is_asked_what_it_learns() -> None:
    records = [record("a", "one", "two"), record("b", "three")]
    asked = [[(row.text, row.target) for row in rows] for rows in rows_to_answer(records, MATCH)]
    assert asked == learned(records, MATCH)
    assert {row.key for row in rows_to_answer(records, MATCH)[1]} == {"b"}


def test_texts_without_an_image_make_rows_of_tasks_that_need_none() -> None:
    alone = record("a", "one", "two", questions=QUESTIONS)._replace(present=frozenset({"captions", "questions"}))
    records = [alone, record("b", "three")]
    for target in ("answer", "tokens"):
        spec = TaskSpec(reads="questions", target=target)
        assert len(learned(records, spec)[0]) == len(rows_to_answer(records, spec)[0]) == 3
    for spec in (
        TaskSpec(reads="captions", text=False, target="tokens"),
        TaskSpec(reads="captions", target="none"),
        TaskSpec(reads="captions", target="match"),
        TaskSpec(reads="questions", target="match"),
    ):
        assert spec.needs_image
        assert not learned(records, spec)[0]
        assert not rows_to_answer(records, spec)[0]
        assert len(rows_to_answer(records, spec)[1]) == (spec.reads == "captions") * (1 + (spec.target == "match"))
    # A text of no image is one that does not match another's.
    assert learned(records, TaskSpec(reads="captions", target="match"))[1] == [("three", "match"), ("one", "no match")]
