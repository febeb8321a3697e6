"""When a triple is a fact, and what it is then."""

from __future__ import annotations

import pytest

from pipelines.knowledge.triples import (
    MAX_LETTERS,
    FactFault,
    Triple,
    derive_fact_id,
    find_triple_fault,
    relation_to_phrase,
    triple_to_fact,
)

SOUND = Triple("strawberry", "HasProperty", "red")


@pytest.mark.parametrize(
    ("triple", "fault"),
    [
        (SOUND, None),
        (Triple("", "HasProperty", "red"), FactFault.EMPTY_PART),
        (Triple("strawberry", " ", "red"), FactFault.EMPTY_PART),
        (Triple("dog", "RelatedTo", "Dog "), FactFault.REPEATED_PART),
        (Triple("x" * MAX_LETTERS, "Is", "red"), FactFault.TOO_LONG),
        (Triple("a", "Is", "b", text="y" * 10_000), FactFault.TOO_LONG),
        (Triple("straw\u202eberry", "Is", "red"), FactFault.UNSEEN_CHARACTERS),
        (Triple("straw\nberry", "Is", "red"), FactFault.UNSEEN_CHARACTERS),
        (Triple("straw\ud800berry", "Is", "red"), FactFault.UNSEEN_CHARACTERS),
        # Persian spells this word with a joiner of width zero.
        (Triple("می\u200cخواهم", "Is", "verb"), None),
    ],
)
def test_what_is_no_fact_has_a_typed_reason(triple: Triple, fault: FactFault | None) -> None:
    assert find_triple_fault(triple) is fault


def test_a_fact_is_the_triple_in_words() -> None:
    fact = triple_to_fact(SOUND, "here")
    assert (fact.text, fact.source, fact.id) == (
        "strawberry has property red",
        "here",
        derive_fact_id("strawberry", "HasProperty", "red"),
    )
    assert triple_to_fact(SOUND, "here", {"HasProperty": "is"}).text == "strawberry is red"
    assert triple_to_fact(Triple("a", "b", "c", text="A sentence."), "", fact_id="mine").text == "A sentence."


def test_ids_depend_on_where_the_parts_end() -> None:
    assert derive_fact_id("ab", "c", "d") != derive_fact_id("a", "bc", "d")


def test_relations_are_split_into_words() -> None:
    assert relation_to_phrase("_member_of_domain_usage") == "member of domain usage"
    assert relation_to_phrase("AtLocation") == "at location"
    assert relation_to_phrase("is a kind of") == "is a kind of"
