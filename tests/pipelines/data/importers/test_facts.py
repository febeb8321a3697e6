"""Facts of a store become texts that are learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipelines.data.importers.facts import Config, fact_to_question
from pipelines.knowledge.errors import KnowledgeError
from pipelines.knowledge.store import FactStore
from pipelines.knowledge.triples import Triple, triple_to_fact
from vlmodel.config import ConfigError, parse_config
from vlmodel.facts import Fact
from vlmodel.sample import Question

TRIPLES = (
    ("strawberry", "HasProperty", "red", "train"),
    ("sky", "HasProperty", "blue", "test"),
    ("sea", "Is", "wet", ""),
)


@pytest.fixture
def store(tmp_path: Path) -> FactStore:
    store = FactStore.create(str(tmp_path / "store"), "", 0)
    facts = [triple_to_fact(Triple(*triple[:3]), "test") for triple in TRIPLES]
    store.put(facts, None, [triple[3] for triple in TRIPLES])
    return store


def test_a_fact_is_a_caption_and_a_question(store: FactStore, read_all: Any) -> None:
    records, rejects = read_all(Config(store=store.uri))
    assert rejects == []
    first = next(record for record in records.values() if record.texts.captions == ("strawberry has property red",))
    (question,) = first.texts.questions
    assert question == Question("strawberry has property", "red", id=first.key)
    assert (first.split, first.inputs, first.extra) == ("train", {}, {"group": "strawberry"})
    assert sorted(record.split for record in records.values()) == ["test", "train", "train"]
    contents = Config(store=store.uri).read()
    assert (contents.total, list(contents.splits)) == (3, ["train", "test"])


def test_a_version_stays_as_it_is(store: FactStore, read_all: Any) -> None:
    version, before = store.version, Config(store=store.uri).fingerprint()
    store.put([triple_to_fact(Triple("sea", "Is", "salty"), "test")], None)
    assert len(read_all(Config(store=store.uri))[0]) == 4
    assert len(read_all(Config(store=store.uri, version=version))[0]) == 3
    assert Config(store=store.uri, version=version).fingerprint() == before != Config(store=store.uri).fingerprint()


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("a strawberry is red", "a strawberry is"),
        ("red is the colour of a strawberry", "strawberry has property"),
        ("red", "strawberry has property"),
    ],
)
def test_a_question_does_not_hold_its_answer(text: str, asked: str) -> None:
    assert fact_to_question(Fact("1", "strawberry", "HasProperty", "red", text)) == asked


def test_what_cannot_be_imported_is_said(tmp_path: Path) -> None:
    with pytest.raises(KnowledgeError, match="no store of facts"):
        Config(store=str(tmp_path / "none")).read()
    with pytest.raises(ConfigError, match="facts are texts"):
        parse_config(Config, {"store": "x", "inputs": ["image", "text"]})
