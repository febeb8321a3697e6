"""What a model's folder says of the facts with which it was trained."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.knowledge.errors import KnowledgeError
from pipelines.knowledge.opened import FactSource
from pipelines.knowledge.store import FactStore
from pipelines.knowledge.trained_facts import FILE, TrainedFacts
from tests.pipelines.knowledge.conftest import WIDTH, WordEncoder, put

TRIPLES = (("ice cream", "Is", "cold"), ("strawberry", "Is", "red"))


def source_of(store: FactStore, version: int = 0) -> FactSource:
    return FactSource(store.uri, version or store.version, "", 1000)


def test_it_is_of_one_version_of_the_store(store: FactStore, tmp_path: Path) -> None:
    put(store, *TRIPLES)
    before = source_of(store)
    first = TrainedFacts.of(before)
    put(store, ("sky", "Is", "blue"))
    assert TrainedFacts.of(before) == first, "later edits do not change what a version has"
    assert TrainedFacts.of(source_of(store)).hash != first.hash
    assert TrainedFacts.load(tmp_path) is None
    assert first.save(tmp_path) == tmp_path / FILE
    assert TrainedFacts.load(tmp_path) == first
    assert first.tags() == {
        "knowledge_version": str(before.version), "knowledge_hash": first.hash, "knowledge_encoder": "words",
    }  # fmt: skip


def test_equal_facts_have_one_hash(store: FactStore, tmp_path: Path) -> None:
    put(store, *TRIPLES)
    other = FactStore.create(str(tmp_path / "other"), WordEncoder.identity, WIDTH)
    for triple in reversed(TRIPLES):
        put(other, triple)
    assert TrainedFacts.of(source_of(other)).hash == TrainedFacts.of(source_of(store)).hash


def test_a_store_of_another_encoder_is_refused(store: FactStore, tmp_path: Path) -> None:
    put(store, *TRIPLES)
    trained = TrainedFacts.of(source_of(store))
    trained.check_encoder(WordEncoder.identity)
    trained.check_encoder("")
    with pytest.raises(KnowledgeError, match=r"encoder words, and the store has vectors of other"):
        trained.check_encoder("other")


@pytest.mark.parametrize("content", ["{}", "not JSON", '{"version": "1", "hash": "", "encoder": ""}'])
def test_a_damaged_file_is_said(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE).write_text(content)
    with pytest.raises(KnowledgeError, match=r"facts\.json.*restore"):
        TrainedFacts.load(tmp_path)
