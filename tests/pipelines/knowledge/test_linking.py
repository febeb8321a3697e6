"""From texts to facts, by names and by vectors."""

from __future__ import annotations

import pytest

from pipelines.knowledge import snapshot
from pipelines.knowledge.errors import KnowledgeError
from pipelines.knowledge.linking import FactLinker, QueryVectorCache
from pipelines.knowledge.names import find_mentions, normalize_entity_name
from pipelines.knowledge.store import FactStore
from tests.pipelines.knowledge.conftest import WordEncoder, put
from vlmodel.facts import FactLinkingConfig

TRIPLES = (
    ("ice cream", "Is", "cold"),
    ("ice", "Is", "slippery"),
    ("strawberry", "Is", "red"),
    ("strawberry", "GrowsIn", "garden"),
    ("the sky", "Is", "blue"),
)


@pytest.fixture
def linker(store: FactStore) -> FactLinker:
    put(store, *TRIPLES)
    return FactLinker(snapshot.read_snapshot(store), QueryVectorCache(WordEncoder()))  # type: ignore[arg-type]


def tails(linker: FactLinker, text: str, **settings: object) -> list[str]:
    (found,) = linker.find_facts([text], FactLinkingConfig(**settings)).by_text
    return [linked.fact.tail for linked in found]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Is the ice cream cold?", ["cold"]),
        ("Are STRAWBERRIES sweet?", ["garden", "red"]),
        ("What colour is the sky?", ["blue"]),
        ("Nothing of this is named.", []),
        ("", []),
    ],
)
def test_names_find_the_facts_of_the_longest_name(linker: FactLinker, text: str, expected: list[str]) -> None:
    assert sorted(tails(linker, text, by="names")) == expected


def test_both_takes_the_nearest_of_the_named(linker: FactLinker) -> None:
    assert tails(linker, "is strawberry red", by="both", top=1) == ["red"]
    assert tails(linker, "strawberry grows in garden", by="both", top=1) == ["garden"]
    assert tails(linker, "cold cream", by="both", top=1) == ["cold"], "where no head is named, the nearest of all"


def test_the_least_similarity_holds_for_what_is_not_named(linker: FactLinker) -> None:
    assert tails(linker, "cold cream", by="dense", least_similarity=0.99) == []
    assert tails(linker, "sky", by="both", least_similarity=0.99) == ["blue"]


def test_a_mention_is_a_place_in_the_text(linker: FactLinker) -> None:
    text = "Are Strawberries red?"
    (found,) = linker.find_facts([text], FactLinkingConfig(by="names")).by_text
    start, stop = found[0].mention or (0, 0)
    assert text[start:stop] == "Strawberries"
    assert all(0 <= linked.weight <= 1 for linked in found)


def test_texts_do_not_change_each_others_facts(linker: FactLinker) -> None:
    texts = ["Is ice cream cold?", "cold", "Is a strawberry red?"]
    together = linker.find_facts(texts, FactLinkingConfig()).by_text
    assert [linker.find_facts([text], FactLinkingConfig()).by_text[0] for text in texts] == together
    assert linker.find_facts([], FactLinkingConfig()).by_text == []


def test_vectors_that_are_not_there_are_asked_for(store: FactStore) -> None:
    put(store, *TRIPLES)
    linker = FactLinker(snapshot.read_snapshot(store), None)
    assert tails(linker, "ice", by="names") == ["slippery"]
    with pytest.raises(KnowledgeError, match=r"link\.by"):
        linker.find_facts(["ice"], FactLinkingConfig(by="both"))


def test_an_empty_store_finds_nothing(store: FactStore) -> None:
    linker = FactLinker(snapshot.read_snapshot(store), QueryVectorCache(WordEncoder()))  # type: ignore[arg-type]
    for by in ("names", "dense", "both"):
        assert tails(linker, "ice", by=by) == []


def test_names_are_compared_by_their_words() -> None:
    assert normalize_entity_name("  The Ice_Cream! ") == "ice cream"
    assert normalize_entity_name("The The") == "the", "an article alone is a name"
    assert [m.name for m in find_mentions("new york city", {"new york", "york city"}, 3)] == ["new york"]
    # "İ" becomes two letters when it is folded; places stay those of the text.
    (mention,) = find_mentions("İ dog", {"dog"}, 1)
    assert "İ dog"[mention.start : mention.stop] == "dog"
