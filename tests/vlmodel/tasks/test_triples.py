"""Facts learned by heart: rows, loss, and that a text encoder learns them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pipelines.data.texts.corpus import train_tokenizer
from tests.vlmodel.tiny import tiny_tree
from vlmodel.config import parse_part_config
from vlmodel.decoder.triples import TriplesDecoder
from vlmodel.facts import Fact, LinkedFact
from vlmodel.inference import Predictor
from vlmodel.judging import AnsweredRows, NoScorableRowsError
from vlmodel.model import VLModel
from vlmodel.processor import Example, ProcessorConfig, VLProcessor
from vlmodel.sample import Question, Sample, SampleTexts
from vlmodel.task import Task, TaskRow, answerable_rows, learnable_rows
from vlmodel.tasks.triples import Config
from vlmodel.tokens import DecoderInput, Tokens

FACTS = (("strawberry is", "red"), ("sky is", "blue"), ("sea is", "blue"), ("sea is", "wet"), ("grass is", "green"))


def samples_of(*facts: tuple[str, str | None]) -> list[Sample]:
    return [
        Sample(f"k{n}", {}, SampleTexts((), (Question(question, tail),)), frozenset({"questions"}))
        for n, (question, tail) in enumerate(facts)
    ]


def test_only_what_has_no_inputs_is_a_fact() -> None:
    task = Config()
    picture = Sample(
        "p", {"image": b""}, SampleTexts((), (Question("what is it?", "red"),)), frozenset({"image", "questions"})
    )
    (fact,) = samples_of(("sky is", "blue"))
    assert learnable_rows(task, [picture, fact]) == [[], [TaskRow("sky is", "blue")]]
    assert answerable_rows(task, [fact]) == [[TaskRow("sky is", "blue"), TaskRow("blue", id="tail")]]
    assert learnable_rows(task, samples_of(("sky is", None))) == [[]]
    assert list(task.texts_to_read(fact.texts)) == ["sky is", "blue"]


@pytest.fixture(scope="module")
def made() -> tuple[VLModel, VLProcessor]:
    tree = tiny_tree(task={"kind": "triples", "width": 16})
    tokenizer = train_tokenizer([text for fact in FACTS for text in fact] * 5, 200)
    processor = VLProcessor(
        ProcessorConfig(image_size=32, max_tokens=8), tokenizer, [], tree.task.tasks_by_name(), reads_images=False
    )
    torch.manual_seed(0)
    return VLModel.create_from_config(tree, processor), processor


def examples_of(*facts: tuple[str, str | None], weight: float = 1.0) -> list[Example]:
    return [Example({}, (question,), (tail,), (weight,)) for question, tail in facts]


def test_rows_are_questions_and_then_their_tails(made: tuple[VLModel, VLProcessor]) -> None:
    _, processor = made
    examples = [*examples_of(("sky is", "blue"), ("sea is", None)), Example({}, ("sea is",), ("blue",), (0.5,))]
    arrays = processor.collate_tasks([{}] * 3, {"": examples})
    assert arrays["sample_N"].tolist() == [0, 1, 2, 0, 1, 2]
    assert arrays["weights_N"].tolist() == [1, 0, 0.5, 0, 0, 0]
    asked, told = arrays["text_key_N"][:3], arrays["text_key_N"][3:]
    assert asked[1] == asked[2] != asked[0]
    assert told[0] == told[2]
    assert not set(asked) & set(told)
    assert len(arrays["input_ids_NT"]) == 6
    alone = processor.collate_tasks([{}], {"": [Example({}, ("sky is", "blue"))]})
    assert alone["sample_N"].tolist() == [0, 0]
    assert "text_key_N" not in alone


def test_a_model_that_reads_facts_does_not_read_them_here(made: tuple[VLModel, VLProcessor]) -> None:
    _, plain = made
    reading = VLProcessor(
        plain.config, plain.tokenizer, [], plain.tasks, reads_images=False,
        knowledge=parse_part_config("vlmodel.knowledge", {"kind": "injection"}),
    )  # fmt: skip
    fact = LinkedFact(Fact("1", "sky", "is", "blue", "sky is blue"), 1.0)
    examples = [Example({}, ("sky is",), ("blue",), facts=((fact,),))]
    for name, array in plain.collate_rows({"": examples}).items():
        assert np.array_equal(array, reading.collate_rows({"": examples})[name])


def test_the_loss_by_hand() -> None:
    """Three facts: two questions share a tail, one question has two, and one row counts nothing."""
    torch.manual_seed(0)
    head = TriplesDecoder(4, 3, 0.5).train()
    pooled = torch.randn(8, 4)
    tokens = Tokens(pooled.unsqueeze(1), torch.ones(8, 1, dtype=torch.bool), pooled)
    encoded = DecoderInput({"language": tokens}, {"language": torch.arange(8)}, None)
    # The questions a, b, b and c; the tails x, x, y and z, the last of weight 0.
    keys = torch.tensor([0, 1, 1, 2, 10, 10, 11, 12])
    out = head(encoded, torch.tensor([1.0, 1, 2, 0, 0, 0, 0, 0]), keys)
    query = F.normalize(pooled[:3] @ head.query.weight.T, dim=-1)
    tail = F.normalize(pooled[[4, 6]] @ head.tail.weight.T, dim=-1)  # x and y, each once
    log_p = (query @ tail.T / 0.5).log_softmax(1)
    both = log_p[1:].mean(1)
    expected = -(log_p[0, 0] + both[0] + 2 * both[1])
    assert out.loss_sum is not None
    assert out.loss_sum.item() == pytest.approx(expected.item(), abs=1e-5)
    assert (out.count, out.total) == (4, 4)
    assert out.correct == float(log_p[0, 0] > log_p[0, 1]) + 3, "b has no wrong tail"


def answered(task: Task, predictor: Predictor) -> AnsweredRows:
    rows = [row for of_sample in task.rows_to_answer(samples_of(*FACTS)) for row in of_sample]
    vectors = predictor.embed([Example({}, tuple(row.text for row in rows))])[0][1]
    none = [None] * len(rows)
    return AnsweredRows(
        np.arange(len(rows)), rows, ["embedded"] * len(rows), [1.0] * len(rows), [["embedded"]] * len(rows), none, none,
        none, list(vectors),
    )  # fmt: skip


def test_a_text_encoder_learns_facts(made: tuple[VLModel, VLProcessor]) -> None:
    model, processor = made
    task = processor.default_task
    before = task.judge_answers(answered(task, Predictor(model, processor)), None, [], "none")
    arrays = processor.collate_tasks([{}] * len(FACTS), {"": examples_of(*FACTS)})
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    model.train()
    for _ in range(150):
        optimizer.zero_grad()
        model(**tensors).loss.backward()
        optimizer.step()
    told = answered(task, Predictor(model, processor))
    after = task.judge_answers(told, None, [], "none")
    assert after.metrics == {"mrr": 1.0, "hits_at_1": 1.0, "hits_at_10": 1.0}
    assert before.metrics["mrr"] < 1
    assert after.rows == 5
    (chance,) = after.baselines
    assert chance.metrics["mrr"] == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4), "four tails"
    assert [example.right for example in task.rows_for_examples_page(told, "none")].count(True) >= 4, (
        "one question has two tails"
    )


def test_without_facts_nothing_is_judged() -> None:
    empty = AnsweredRows(np.zeros(0, np.int64), [], [], [], [], [], [], [], [])
    with pytest.raises(NoScorableRowsError, match="no fact has a tail"):
        Config().judge_answers(empty, None, [], "none")
