"""Facts (triples of head, relation and tail, with a text) and their links to the texts of a task's rows.

torch is not imported here: processes that only collate stay small.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from pydantic import Field

from vlmodel.config import ConfigSection


@dataclass(frozen=True)
class Fact:
    """One fact of a fact store: a triple with its text.

    Attributes:
        id: within its store; an edited fact keeps it.
        head, relation, tail: the triple.
        text: the triple as a sentence, which the model reads.
        source: where it comes from.
    """

    id: str
    head: str
    relation: str
    tail: str
    text: str
    source: str = ""


@dataclass(frozen=True)
class LinkedFact:
    """A fact that was found for a text, with its weight.

    Attributes:
        weight: how well it fits the text, from 0 to 1.
        mention: (start, stop) of the letters in the text that name its head; None where it was found otherwise.
    """

    fact: Fact
    weight: float
    mention: tuple[int, int] | None = None


def reweight_by_named_fact(facts: Sequence[LinkedFact], named: str) -> tuple[LinkedFact, ...]:
    """Give the facts that the model named in its answers weight 1 and place them first; all others get weight 0.

    Args:
        named: the text of a fact as a model wrote it: its tokenizer may change case and blanks.
    """
    letters = _letters_and_digits(named)
    weighed = [replace(one, weight=float(_letters_and_digits(one.fact.text) == letters)) for one in facts]
    return tuple(sorted(weighed, key=lambda one: -one.weight))


def _letters_and_digits(text: str) -> str:
    return "".join(filter(str.isalnum, text.casefold()))


@dataclass(frozen=True)
class FoundFacts:
    """The facts that were found for several texts, all in one version of the store.

    Attributes:
        version: of the store, the same for all texts.
        by_text: for each text its facts, the best first.
    """

    version: int
    by_text: list[tuple[LinkedFact, ...]]


class FactLinkingConfig(ConfigSection):
    """Settings of how facts are found for a text, the same in training and in serving."""

    by: Literal["names", "dense", "both"] = "both"
    """"names": facts whose head is named in the text. "dense": facts whose vector is nearest to that of the text.
    "both": of the facts whose head is named the nearest ones, and the nearest of all where no head is named."""
    top: int = Field(4, ge=1, le=1024)
    """Most facts of a text."""
    least_similarity: float = Field(0.0, ge=-1, le=1)
    """Facts that were found by their vector only are left out below this cosine."""


class FactFinder(Protocol):
    """The interface of objects that find facts for texts, such as an opened fact store."""

    def find_facts(self, texts: Sequence[str], link: FactLinkingConfig) -> FoundFacts:
        """Find the facts for each text, all of them in one version of the store."""
