"""Facts behind texts: tokens, positions, visibility, and that the model reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.data.texts.corpus import train_tokenizer
from tests.vlmodel.conftest import encode
from tests.vlmodel.tiny import tiny_tree
from vlmodel.config import ConfigError, list_part_kinds, parse_config, parse_part_config
from vlmodel.facts import Fact, FactLinkingConfig, FoundFacts, LinkedFact
from vlmodel.inference import Predictor
from vlmodel.model import VLModel
from vlmodel.model_config import ModelConfig
from vlmodel.processor import Example, VLProcessor

KINDS = [kind for kind in list_part_kinds("vlmodel.knowledge") if kind != "none"]


def linked(text: str, mention: tuple[int, int] | None = None, weight: float = 0.5) -> LinkedFact:
    return LinkedFact(Fact(text, "head", "is", "tail", text), weight, mention)


def fact_of(tail: str, text: str) -> LinkedFact:
    return LinkedFact(Fact(text, "head", "is", tail, text), 0.5)


@pytest.fixture(scope="module")
def png() -> bytes:
    return encode(np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8))


class Finder:
    """Finds one fact for every text, of a version that grows."""

    def __init__(self, text: str = "is it red?") -> None:
        self.version, self.text, self.asked = 1, text, 0

    def find_facts(self, texts: Sequence[str], link: FactLinkingConfig) -> FoundFacts:
        self.asked += len(texts)
        return FoundFacts(self.version, [(linked(self.text),)] * len(texts))


def with_knowledge(processor: VLProcessor, tree: ModelConfig) -> VLProcessor:
    return VLProcessor(
        processor.config.model_copy(update={"max_tokens": 8}), processor.tokenizer, processor.labels,
        tree.task.tasks_by_name(), inputs=tree.inputs, reads_images=tree.reads_images(), knowledge=tree.knowledge,
    )  # fmt: skip


def tree_of(**knowledge: Any) -> ModelConfig:
    return tiny_tree(knowledge={"max_fact_tokens": 12, **knowledge}, language={"positions": 40})


def words(processor: VLProcessor, ids: np.ndarray) -> list[str]:
    return [w for w in processor.tokenizer.convert_ids_to_tokens(ids.tolist()) if w != processor.tokenizer.pad_token]


def test_facts_follow_their_text(processor: VLProcessor) -> None:
    made = with_knowledge(processor, tree_of(kind="injection"))
    facts = [(linked("it is red"), linked("is it")), ()]
    arrays = made.tokenize_with_facts(["what is it?", "what is it?"], facts)
    plain = made.tokenize(["what is it?"])
    with_facts, without = (words(made, row) for row in arrays["input_ids_NT"])
    assert without == words(made, plain["input_ids_NT"][0])
    end = made.tokenizer.sep_token
    own = [made.tokenizer.tokenize(text) for text in ("it is red", "is it")]
    assert with_facts == [*without[:-1], end, *own[0], end, *own[1], end]
    assert arrays["text_distinct_N"].tolist() == [0, 1], "one text with other facts is another one"


def test_equal_texts_with_equal_facts_are_encoded_once(processor: VLProcessor) -> None:
    made = with_knowledge(processor, tree_of(kind="injection"))
    arrays = made.tokenize_with_facts(["is it?"] * 3, [(linked("red"),), (linked("red"),), (linked("blue"),)])
    assert len(arrays["distinct_U"]) == 2


def test_facts_beyond_the_limit_are_left_out_whole(processor: VLProcessor) -> None:
    made = with_knowledge(processor, tree_of(kind="injection", max_fact_tokens=4))
    arrays = made.tokenize_with_facts(["is it?"], [(linked("it is"), linked("red"))])
    assert words(made, arrays["input_ids_NT"][0]).count(made.tokenizer.sep_token) == 2
    long = made.tokenize_with_facts(["is it?"], [(linked("it is red " * 3_000),)])
    assert np.array_equal(long["input_ids_NT"], made.tokenize(["is it?"])["input_ids_NT"])


def test_a_tree_has_soft_positions_and_a_visible_matrix(processor: VLProcessor) -> None:
    """By hand, for the text [CLS] is it red [SEP], a fact at "it" and one that is named nowhere."""
    made = with_knowledge(processor, tree_of(kind="injection", layout="tree"))
    text = "is it red"
    arrays = made.tokenize_with_facts([text], [(linked("blue", (3, 5)), linked("green"))])
    tokens = words(made, arrays["input_ids_NT"][0])
    first, second = (len(made.tokenizer.tokenize(word)) for word in ("blue", "green"))
    trunk = len(made.tokenizer.tokenize(text)) + 1
    assert tokens[0] == made.tokenizer.cls_token
    positions = arrays["text_positions_NT"][0].tolist()
    # "it" is the third token; the separator and the fact go on after it. What is named nowhere goes on after the text.
    assert positions == [
        *range(trunk), *range(3, 3 + 1 + first), *range(trunk, trunk + 1 + second), trunk
    ]  # fmt: skip
    visible = arrays["text_visible_NTT"][0]
    one, two = trunk + 1, trunk + 1 + first + 1
    assert np.array_equal(visible, visible.T)
    assert visible[2, one], "the words that name the head see the fact"
    assert not visible[0, one], "the others do not"
    assert not visible[one, two], "facts do not see each other"
    assert visible[0, two], "a fact that is named nowhere is at the first token"
    assert visible[: trunk - 1, : trunk - 1].all()


def test_facts_stand_before_their_text(processor: VLProcessor) -> None:
    made = with_knowledge(processor, tree_of(kind="injection", layout="before", max_fact_tokens=8))
    one, other, more = (linked(text) for text in ("it is red", "is it", "what is it"))
    arrays = made.tokenize_with_facts(["is it blue?", "it", "what?"], [(one, other, more), (other,), ()])
    end, begin = made.tokenizer.sep_token, made.tokenizer.cls_token
    tokens = [words(made, row) for row in arrays["input_ids_NT"]]
    own = {text: made.tokenizer.tokenize(text) for text in ("it is red", "is it", "is it blue?", "it", "what?")}
    assert len(own["it is red"]) + len(own["is it"]) + 2 <= 8, "the third is left out as a whole"
    assert tokens[0] == [begin, *own["it is red"], end, *own["is it"], end, *own["is it blue?"], end]
    assert tokens[1] == [begin, *own["is it"], end, *own["it"], end]
    assert tokens[2] == [begin, *own["what?"], end]


def test_what_is_hidden_changes_nothing(processor: VLProcessor) -> None:
    """A fact that the tree hides from a token leaves it as it is; in one layer nothing comes by another way."""
    tree = tree_of(kind="injection", layout="tree")
    made = with_knowledge(processor, tree)
    torch.manual_seed(0)
    model = VLModel.create_from_config(tree, made).eval()
    assert model.language is not None
    streams = []
    for fact in ("blue", "red"):
        arrays = made.tokenize_with_facts(["is it red"], [(linked(fact, (3, 5)),)])
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        streams.append(model._encode_task_texts(tensors)[0].x_BTD[0])
    one, other = streams
    assert torch.allclose(one[:2], other[:2], atol=1e-6), "[CLS] and 'is' do not see it"
    assert not torch.allclose(one[2], other[2], atol=1e-4), "'it' does"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("topology", list_part_kinds("vlmodel.topology"))
@pytest.mark.parametrize("fusion", list_part_kinds("vlmodel.fusion"))
def test_every_kind_in_every_topology_and_fusion(
    processor: VLProcessor, png: bytes, kind: str, topology: str, fusion: str
) -> None:
    tree = tiny_tree(
        knowledge={"kind": kind}, topology={"kind": topology}, fusion={"kind": fusion}, language={"positions": 100}
    )
    made = with_knowledge(processor, tree)
    torch.manual_seed(0)
    model = VLModel.create_from_config(tree, made)
    made.finder = Finder("it is red")
    example = Example({"image": png}, ("is it red?", "what is it?"), (made.labels[0], made.labels[1]))
    arrays = made.collate_tasks([made.decode_inputs(example)], {"": [example]})
    model.train()
    output = model(**{name: torch.from_numpy(array) for name, array in arrays.items()})
    output.loss.backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not without
    predictor = Predictor(model, made)
    (one, _) = predictor.predict([example], 2)[0]
    assert all(0 <= fact.weight <= 1 for fact in one.facts)
    assert [fact.fact.text for fact in one.facts] == ["it is red"]
    made.finder = Finder("blue blue blue")
    (other, _) = predictor.predict([example], 2)[0]
    assert dict(one.answers) != pytest.approx(dict(other.answers), abs=1e-7), "the answer depends on the fact"


def test_facts_are_looked_up_once_a_batch(processor: VLProcessor, png: bytes) -> None:
    tree = tree_of(kind="injection")
    made = with_knowledge(processor, tree)
    made.finder = finder = Finder()
    predictor = Predictor(VLModel.create_from_config(tree, made), made)
    given = Example({"image": png}, ("is it?",), facts=((linked("given"),),), knowledge_version=7)
    asked = Example({"image": png}, ("is it red?", "what is it?"))
    [(first,), others] = predictor.predict([given, asked], 1)
    assert (first.facts[0].fact.text, first.knowledge_version) == ("given", 7)
    assert [one.knowledge_version for one in others] == [1, 1]
    assert finder.asked == 2


def test_without_a_store_the_model_answers_without_facts(processor: VLProcessor, png: bytes) -> None:
    tree = tree_of(kind="injection")
    made = with_knowledge(processor, tree)
    predictor = Predictor(VLModel.create_from_config(tree, made), made)
    [(answer,)] = predictor.predict([Example({"image": png}, ("is it?",))], 1)
    assert (answer.facts, answer.knowledge_version) == ((), None)


def test_the_processor_is_saved_with_its_way(processor: VLProcessor, tmp_path) -> None:
    made = with_knowledge(processor, tree_of(kind="injection", layout="tree"))
    made.save_pretrained(tmp_path)
    loaded = VLProcessor.from_pretrained(tmp_path)
    assert loaded.knowledge == made.knowledge
    assert loaded.finder is None


def test_what_does_not_fit_is_refused(processor: VLProcessor) -> None:
    with pytest.raises(ConfigError, match="reads none"):
        tiny_tree(knowledge={"kind": "injection"}, task={"kind": "caption"})
    with pytest.raises(ConfigError, match="layout='flat'"):
        tiny_tree(knowledge={"kind": "injection", "layout": "tree"}, topology={"kind": "single"})
    with pytest.raises(ConfigError, match="layout='flat'"):
        tiny_tree(knowledge={"kind": "injection", "layout": "tree"}, language={"architecture": "xlnet"})
    tree = tiny_tree(knowledge={"kind": "injection", "max_fact_tokens": 48}, language={"positions": 12})
    with pytest.raises(ConfigError, match="max_fact_tokens"):
        tree.check_processor(processor.config)
    with pytest.raises(ConfigError, match="by"):
        parse_part_config("vlmodel.knowledge", {"kind": "injection", "link": {"by": "guess"}})


def test_texts_with_facts_are_not_cached() -> None:
    frozen = {"language": {"kind": "transformer", "frozen": True}}
    assert parse_config(ModelConfig, frozen).frozen_streams() == ("language",)
    assert parse_config(ModelConfig, {**frozen, "knowledge": {"kind": "injection"}}).frozen_streams() == ()


def test_a_memory_weighs_its_facts(processor: VLProcessor, png: bytes) -> None:
    tree = tree_of(kind="memory")
    made = with_knowledge(processor, tree)
    torch.manual_seed(0)
    predictor = Predictor(VLModel.create_from_config(tree, made), made)
    facts = tuple(linked(text) for text in ("it is red", "it is blue", "what is it"))
    rows = Example({"image": png}, ("is it red?", "is it red?", "is it red?"), facts=(facts, facts[:1], ()))
    many, one, none = predictor.predict([rows], 1)[0]
    weights = [fact.weight for fact in many.facts]
    assert weights == sorted(weights, reverse=True)
    assert sum(weights) == pytest.approx(1, abs=1e-5)
    assert [fact.weight for fact in one.facts] == pytest.approx([1])
    assert none.facts == ()
    # A row's facts are its own: what the others have changes nothing.
    [[alone]] = predictor.predict([Example({"image": png}, ("is it red?",), facts=(facts[:1],))], 1)
    assert alone.answers[0][1] == pytest.approx(one.answers[0][1], abs=1e-5)


def test_the_order_of_facts_does_not_matter_to_a_memory(processor: VLProcessor, png: bytes) -> None:
    tree = tree_of(kind="memory")
    made = with_knowledge(processor, tree)
    torch.manual_seed(0)
    predictor = Predictor(VLModel.create_from_config(tree, made), made)
    facts = tuple(linked(text) for text in ("it is red", "it is blue", "what is it"))
    [[one]] = predictor.predict([Example({"image": png}, ("is it?",), facts=(facts,))], 2)
    [[other]] = predictor.predict([Example({"image": png}, ("is it?",), facts=(facts[::-1],))], 2)
    assert dict(one.answers) == pytest.approx(dict(other.answers), abs=1e-5)
    assert [f.fact.text for f in one.facts] == [f.fact.text for f in other.facts]


def test_a_memory_learns_to_select_what_says_the_answer(processor: VLProcessor, png: bytes) -> None:
    losses = []
    for contrast in (0.0, 2.0):
        tree = tree_of(kind="memory", contrast=contrast)
        made = with_knowledge(processor, tree)
        torch.manual_seed(0)
        model = VLModel.create_from_config(tree, made)
        facts = (fact_of("red", "it is red"), fact_of("blue", "is it"), fact_of("Red", "what is it"))
        rows = Example(
            {"image": png}, ("what is it?",) * 3, ("red", "yes", None), (1.0, 1.0, 0.0), facts=(facts, facts, facts[:1])
        )
        arrays = made.collate_tasks([made.decode_inputs(rows)], {"": [rows]})
        assert ("fact_right_NJ" in arrays) is bool(contrast)
        if contrast:
            made.normalizer = "vqa"
            again = made.collate_rows({"": [rows]})["fact_right_NJ"]
            assert again.tolist() == [[True, False, True], [False] * 3, [False] * 3], "by the rules of the answers"
            assert arrays["fact_right_NJ"][0].tolist() == [True, False, False]
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        torch.manual_seed(1)
        losses.append(model.train()(**tensors).loss_sum)
        assert model.eval()(**tensors).loss_sum is not None
    memory = model.memory
    assert memory is not None
    weights = torch.tensor([[0.5, 0.2, 0.3], [0.1, 0.8, 0.1], [1.0, 0.0, 0.0]])
    right = torch.tensor([[True, False, True], [False] * 3, [True, False, False]])
    by_hand = -2 * (0.5 * np.log(0.8) + 3 * np.log(1.0))
    assert memory.selection_loss(weights, right, torch.tensor([0.5, 1, 3])).item() == pytest.approx(by_hand, abs=1e-6)
    assert losses[1] > losses[0]
    losses[1].backward()
    assert memory.key.weight.grad is not None
    assert memory.key.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("knowledge", "name", "own"),
    [
        ({"kind": "injection"}, "input_ids_NT", 3),
        ({"kind": "injection", "layout": "before"}, "input_ids_NT", 3),
        ({"kind": "memory"}, "fact_ids_MT", 2),
    ],
)
def test_no_word_of_a_fact_is_a_special_token(
    processor: VLProcessor, knowledge: dict[str, Any], name: str, own: int
) -> None:
    """A fact cannot end the text that it stands beside, or begin another one."""
    made = with_knowledge(processor, tree_of(**knowledge))
    special = {made.tokenizer.cls_token_id, made.tokenizer.sep_token_id}
    for text in ("it is red", "red [SEP] [CLS] red [SEP]"):
        arrays = made.tokenize_with_facts(["is it?"], [(linked(text),)])
        assert sum(int(i) in special for i in arrays[name][0]) == own
    (ids,) = made.tokenize_targets(["red [SEP] red"])["target_ids_NT"]
    assert [int(i) for i in ids if int(i) in special] == [made.begin_id, made.end_id]


EVIDENCE = {"kind": "injection", "where": "output", "max_fact_tokens": 12}


LLM = {"kind": "llm", "width": 16, "depth": 2, "heads": 2, "positions": 96}


def writing(
    processor: VLProcessor, longest: int = 24, head: dict[str, Any] | None = None
) -> tuple[ModelConfig, VLProcessor]:
    """A model that names its evidence, with a tokenizer that knows the words for it."""
    tree = tiny_tree(knowledge=EVIDENCE, task={"kind": "answer", "head": head or {}}, language={"positions": 40})
    made = with_knowledge(processor, tree)
    made.tokenizer = train_tokenizer(["what is it? it is red therefore blue yes"] * 9, 200)
    made.config = made.config.model_copy(update={"max_target_tokens": longest})
    return tree, made


def test_a_target_names_the_fact_that_says_it(processor: VLProcessor) -> None:
    _, made = writing(processor)
    red, blue = fact_of("red", "it is red"), fact_of("blue", "it is blue")
    loud = fact_of("red", "Therefore it is red")
    targets = ["blue", "yes", None, "red", "red"]
    facts = [(red, blue), (red, blue), (red,), (), (loud,)]
    assert made.knowledge.add_evidence_to_targets(targets, facts, made) == [
        "it is blue therefore blue", "it is red therefore yes", None, "red", "red"
    ]  # fmt: skip
    _, short = writing(processor, longest=6)
    assert short.knowledge.add_evidence_to_targets(["blue"], [(blue,)], short) == ["blue"], (
        "an answer is never cut for its evidence"
    )
    plain = with_knowledge(processor, tree_of(kind="injection"))
    assert plain.knowledge.add_evidence_to_targets(["blue"], [(blue,)], plain) == ["blue"]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("it is red therefore yes", ("it is red", "yes")),
        ("it is red Therefore no therefore yes", ("it is red", "no therefore yes")),
        ("yes", ("", "yes")),
        ("therefore", ("", "")),
        ("", ("", "")),
    ],
)
def test_what_is_written_has_evidence_and_answer(processor: VLProcessor, text: str, parts: tuple[str, str]) -> None:
    _, made = writing(processor)
    assert made.knowledge.split_evidence(text) == parts


def test_only_a_task_that_writes_names_evidence(processor: VLProcessor) -> None:
    tree, _ = writing(processor)
    with pytest.raises(ConfigError, match=r"writes 'therefore' .*where='input'"):
        VLModel.create_from_config(tree, with_knowledge(processor, tree))
    with pytest.raises(ConfigError, match=r"where='output'.*writes nothing"):
        tiny_tree(knowledge=EVIDENCE)


@pytest.mark.parametrize("head", [{}, LLM], ids=["sequence", "llm"])
def test_evidence_is_learned_cited_and_no_part_of_the_answer(
    head: dict[str, Any], processor: VLProcessor, png: bytes
) -> None:
    """Two rows with the same picture and question differ in their facts alone."""
    tree, made = writing(processor, head=head)
    torch.manual_seed(0)
    model = VLModel.create_from_config(tree, made)
    facts = ((fact_of("red", "it is red"), fact_of("what", "what is it")), (fact_of("what", "what is it"),))
    rows = Example({"image": png}, ("what is it?",) * 2, ("red", "what"), facts=facts, knowledge_version=1)
    arrays = made.collate_tasks([made.decode_inputs(rows)], {"": [rows]})
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    model.train()
    for _ in range(60):
        optimizer.zero_grad()
        model(**tensors).loss.backward()
        optimizer.step()
    predictor = Predictor(model, made)
    red, other = predictor.predict([rows], 1)[0]
    assert [one.answers[0][0] for one in (red, other)] == ["red", "what"]
    assert [(one.fact.text, one.weight) for one in red.facts] == [("it is red", 1.0), ("what is it", 0.0)]
    assert [one.weight for one in other.facts] == [1.0]
    assert [answers[0][0] for answers in predictor.predict_collated(arrays, 1)] == ["red", "what"]
    if not head:
        return
    # As a chat asks; "is" ends an answer, and not the fact before it.
    for settings in ({}, {"stop_strings": ["is"]}):
        (first,), (second,) = predictor.generate_texts([rows], **settings)
        assert [first.text, second.text] == ["red", "what"]
        assert [(one.fact.text, one.weight) for one in first.facts] == [("it is red", 1.0), ("what is it", 0.0)]
