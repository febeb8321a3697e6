"""Triples of head, relation and tail: which are valid facts, and their ids and texts."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from vlmodel.facts import Fact

MAX_LETTERS = 1000
"""Of the text of a fact. A longer one is a document and no fact, and no encoder of sentences reads it whole."""
_WORD_STARTS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|_+|\s+")
# The categories of control, format, surrogate and private characters; format has the bidirectional controls.
_UNSEEN = ("Cc", "Cf", "Cs", "Co")
_JOINERS = "\u200c\u200d"
"""Format characters that spell words, in Persian and in Indic scripts."""


class FactFault(StrEnum):
    """The reasons why a line or a triple is no valid fact."""

    COLUMNS = "columns"
    """A line with fewer columns than the order of columns names."""
    SYNTAX = "syntax"
    """A statement that its format does not allow."""
    BAD_UTF8 = "bad_utf8"
    """A line that is not UTF-8."""
    EMPTY_PART = "empty_part"
    """Head, relation or tail is blank."""
    REPEATED_PART = "repeated_part"
    """Head and tail are the same."""
    TOO_LONG = "too_long"
    """The text has more than ``MAX_LETTERS`` letters."""
    UNSEEN_CHARACTERS = "unseen_characters"
    """Control characters, those that change the direction of a text among them: what is shown is not what is read."""
    DUPLICATE = "duplicate"
    """The source has the triple more than once."""
    UNKNOWN_NAME = "unknown_name"
    """An entity of which the source has no name."""


@dataclass(frozen=True)
class Triple:
    """A triple of head, relation and tail, as its source writes it.

    Attributes:
        split: "train", "val" or "test" where the source has parts; "" otherwise.
        text: the sentence; "" makes one of the triple.
        key: what tells the triple from others of the same names, where the source has ids: senses of a word.
    """

    head: str
    relation: str
    tail: str
    split: str = ""
    text: str = ""
    key: str = ""


@dataclass(frozen=True)
class BadLine:
    """A line of a source from which no triple could be parsed."""

    where: str
    fault: FactFault
    line: str


def find_triple_fault(triple: Triple) -> FactFault | None:
    """Find the reason why a triple is no valid fact; None if it is one."""
    parts = (triple.head, triple.relation, triple.tail)
    if not all(part.strip() for part in parts):
        return FactFault.EMPTY_PART
    if has_invisible_characters("".join((*parts, triple.text))):
        return FactFault.UNSEEN_CHARACTERS
    if not triple.key and triple.head.strip().casefold() == triple.tail.strip().casefold():
        return FactFault.REPEATED_PART
    return FactFault.TOO_LONG if len(triple.text or " ".join(parts)) > MAX_LETTERS else None


def has_invisible_characters(text: str) -> bool:
    """Whether a text has characters that are not shown, or that change how others are shown."""
    return any(unicodedata.category(c) in _UNSEEN and c not in _JOINERS for c in text)


def relation_to_phrase(relation: str, phrases: Mapping[str, str] | None = None) -> str:
    """Convert the name of a relation to words.

    >>> relation_to_phrase("HasProperty"), relation_to_phrase("_member_of_domain_usage")
    ('has property', 'member of domain usage')
    """
    if phrases and relation in phrases:
        return phrases[relation]
    return " ".join(word.lower() for word in _WORD_STARTS.split(relation) if word)


def triple_to_fact(triple: Triple, source: str, phrases: Mapping[str, str] | None = None, fact_id: str = "") -> Fact:
    """Convert a valid triple to a fact."""
    head, relation, tail = (part.strip() for part in (triple.head, triple.relation, triple.tail))
    text = triple.text.strip() or f"{head} {relation_to_phrase(relation, phrases)} {tail}"
    own_id = derive_fact_id(triple.key) if triple.key else derive_fact_id(head, relation, tail)
    return Fact(fact_id or own_id, head, relation, tail, text, source)


def derive_fact_id(*parts: str) -> str:
    """Derive the id of a fact that was given none: the same triple has the same id in every store."""
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:16]
