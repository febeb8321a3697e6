"""Finds the names of entities in texts, whatever their case, punctuation or number."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Container
from functools import lru_cache
from typing import NamedTuple

_WORD = re.compile(r"\w+(?:['’-]\w+)*")
_ARTICLES = frozenset({"a", "an", "the"})


class Mention(NamedTuple):
    """The characters ``start`` to ``stop`` of a text, which name an entity."""

    name: str
    start: int
    stop: int


@lru_cache(maxsize=1 << 18)  # of a store that is read again after each edit
def normalize_entity_name(name: str) -> str:
    """Normalize a name for comparison: its words in lower case, without articles before them.

    >>> normalize_entity_name("The  Ice_cream")
    'ice cream'
    """
    words = [word.group() for word in _WORD.finditer(_fold_for_comparison(name).replace("_", " "))]
    while len(words) > 1 and words[0] in _ARTICLES:
        words = words[1:]
    return " ".join(words)


def find_mentions(text: str, names: Container[str], longest: int) -> list[Mention]:
    """Find the names that occur in a text, the longest first at each place, none within another.

    Args:
        names: normal names; a plural finds its singular.
        longest: most words of a name.
    """
    folded = _fold_for_comparison(text)
    if len(folded) != len(text):  # A letter that becomes two when it is folded moves all after it.
        folded = text.lower() if len(text.lower()) == len(text) else text
    words = [(match.group(), match.start(), match.end()) for match in _WORD.finditer(folded)]
    found, first = [], 0
    while first < len(words):
        for count in range(min(longest, len(words) - first), 0, -1):
            chosen = words[first : first + count]
            name = next(
                (form for form in _singular_and_plural_forms([word for word, _, _ in chosen]) if form in names), None
            )
            if name is not None:
                found.append(Mention(name, chosen[0][1], chosen[-1][2]))
                first += count
                break
        else:
            first += 1
    return found


def _singular_and_plural_forms(words: list[str]) -> list[str]:
    """Return the words as one name, and with the last word in the singular."""
    whole, last = " ".join(words), words[-1]
    singulars = []
    if last.endswith("ies"):
        singulars.append(f"{last[:-3]}y")
    if last.endswith("es"):
        singulars.append(last[:-2])
    if last.endswith("s") and not last.endswith("ss"):
        singulars.append(last[:-1])
    return [whole, *(" ".join([*words[:-1], one]) for one in singulars if one)]


def _fold_for_comparison(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()
