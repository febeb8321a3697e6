"""What each task makes of samples."""

from __future__ import annotations

import pytest

from vlmodel.conversation import Conversation, ConversationTurn, conversation_to_json
from vlmodel.sample import Question, Sample, SampleTexts
from vlmodel.task import Task, TaskRow, answerable_rows, learnable_rows
from vlmodel.tasks import answer, caption, classify, contrastive, converse, matching, vqa

QUESTIONS = (Question("what?", "red", ("red", "rose"), "7"), Question("is it?", "yes"), Question("unknown?"))
ABOUT_QUESTIONS: tuple[Task, ...] = (vqa.Config(), answer.Config(), matching.Config(pairs="questions"))


def record(key: str, *captions: str, questions: tuple[Question, ...] = ()) -> Sample:
    present = {"image"} | ({"captions"} if captions else set()) | ({"questions"} if questions else set())
    return Sample(key, {"image": key.encode()}, SampleTexts(captions, questions), frozenset(present), split="val")


def learned(records: list[Sample], task: Task) -> list[list[tuple[str, str | None]]]:
    return [[(row.text, row.target) for row in rows] for rows in learnable_rows(task, records)]


@pytest.mark.parametrize("task", ABOUT_QUESTIONS)
def test_questions(task: Task) -> None:
    records = [record("a", "ignored", questions=QUESTIONS), record("b", "ignored")]
    assert learned(records, task) == [[("what?", "red"), ("is it?", "yes"), ("unknown?", None)], []]
    assert answerable_rows(task, records) == [
        [
            TaskRow("what?", "red", ("red", "rose"), "7"),
            TaskRow("is it?", "yes", ("yes",), None),
            TaskRow("unknown?", None, (), None),
        ],
        [],
    ]


def conversation(*texts: str, places: int = 1) -> Conversation:
    """User and assistant in turns, of which the first turn has the sample's inputs."""
    said = [ConversationTurn(("user", "assistant")[n % 2], (text,)) for n, text in enumerate(texts)]
    return (ConversationTurn("user", (*(None,) * places, texts[0])), *said[1:])


def test_each_reply_is_a_row_of_the_turns_before_it() -> None:
    turns = conversation("what?", "a dog", "old?", "no", "sure?")
    talked = Sample("a", {}, SampleTexts(conversations=(turns,)), frozenset({"conversations"}), "val")
    task = converse.Config()
    before = [conversation_to_json(turns[:1]), conversation_to_json(turns[:3])]
    assert learned([talked, record("b", questions=QUESTIONS[:1]), record("c", "ignored")], task) == [
        [(before[0], "a dog"), (before[1], "no")],
        [("what?", "red")],
        [],
    ]
    assert answerable_rows(task, [talked])[0] == [
        TaskRow(before[0], "a dog", ("a dog",)),
        TaskRow(before[1], "no", ("no",)),
        TaskRow(conversation_to_json(turns)),
    ]
    assert list(task.texts_to_read(talked.texts)) == ["what?", "old?", "sure?"]
    assert list(task.texts_to_generate(talked.texts)) == ["a dog", "no"]


def test_of_long_conversations_the_last_turns_stay() -> None:
    turns = (ConversationTurn("system", ("brief",)), *conversation("what?", "a dog", "old?", "no"))
    talked = Sample("a", {}, SampleTexts(conversations=(turns,)), frozenset({"conversations"}), "val")
    for history, expected in (
        (15, turns[:4]),
        (14, turns[:4]),
        (13, (turns[0], ConversationTurn("user", (None, "old?")))),
        (2, (turns[0], ConversationTurn("user", (None, "d?")))),
    ):
        assert learned([talked], converse.Config(history=history))[0][1] == (conversation_to_json(expected), "no"), (
            history
        )


def test_captions_to_be_written_are_asked_for_once_an_image() -> None:
    records = [record("a", "one", "two"), record("b", questions=QUESTIONS), record("c", "three")]
    assert learned(records, caption.Config()) == [[("", "one"), ("", "two")], [], [("", "three")]]
    asked = answerable_rows(caption.Config(), records)
    assert asked == [[TaskRow("", "one", ("one", "two"))], [TaskRow()], [TaskRow("", "three", ("three",))]]


def test_captions_to_be_found() -> None:
    records = [record("a", "one", "two"), record("b", "three")]
    assert learned(records, contrastive.Config()) == [[("one", None), ("two", None)], [("three", None)]]
    assert answerable_rows(contrastive.Config(), records)[0] == [TaskRow("one"), TaskRow("two")]


MATCH = matching.Config()


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
    asked = [[(row.text, row.target) for row in rows] for rows in answerable_rows(MATCH, records)]
    assert asked == learned(records, MATCH)


def test_texts_without_an_image_make_rows_of_tasks_that_need_none() -> None:
    alone = record("a", "one", "two", questions=QUESTIONS)._replace(present=frozenset({"captions", "questions"}))
    records = [alone, record("b", "three")]
    for task in ABOUT_QUESTIONS[:2]:
        assert len(learned(records, task)[0]) == len(answerable_rows(task, records)[0]) == 3
    about_captions: tuple[Task, ...] = (caption.Config(), contrastive.Config(), MATCH)
    for task in (*about_captions, matching.Config(pairs="questions")):
        assert not learned(records, task)[0]
        assert not answerable_rows(task, records)[0]
        assert len(answerable_rows(task, records)[1]) == (task in about_captions) * (1 + (task is MATCH))
    # A text of no image is one that does not match another's.
    assert learned(records, MATCH)[1] == [("three", "match"), ("one", "no match")]


@pytest.mark.parametrize(
    ("present", "answered", "learned", "used"),
    [
        ({"image"}, ["caption"], [], ["contrastive"]),
        ({"questions"}, ["answer", "vqa"], ["answer", "vqa"], ["answer", "vqa"]),
        ({"captions"}, [], [], []),
        ({"image", "captions"}, *[["caption", "contrastive", "matching"]] * 3),
        ({"image", "questions"}, ["answer", "caption", "vqa"], ["answer", "vqa"], ["answer", "vqa"]),
    ],
)
def test_of_which_samples_a_task_makes_something(
    present: set[str], answered: list[str], learned: list[str], used: list[str]
) -> None:
    has = frozenset(present)
    tasks: list[Task] = [answer.Config(), caption.Config(), contrastive.Config(), matching.Config(), vqa.Config()]
    assert [task.kind for task in tasks if task.can_answer(has)] == answered
    assert [task.kind for task in tasks if task.can_learn(has)] == learned
    assert [task.kind for task in tasks if task.is_used_in_training(has)] == used


def test_classes() -> None:
    records = [
        Sample("a", {"image": b"a"}, SampleTexts(label="cat"), frozenset({"image", "class"})),
        Sample("b", {"image": b"b"}, SampleTexts(("a cat",)), frozenset({"image", "captions"})),
        Sample("c", {}, SampleTexts(label="dog"), frozenset({"class"})),
    ]
    assert learned(records, classify.Config()) == [[("", "cat")], [], []]
    assert answerable_rows(classify.Config(), records) == [[TaskRow("", "cat", ("cat",))], [TaskRow()], []]
    assert [
        *classify.Config().label_candidates(records[0].texts),
        *classify.Config().label_candidates(records[1].texts),
    ] == ["cat"]
