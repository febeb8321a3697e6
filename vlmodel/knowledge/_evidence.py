"""Trains models to name the fact that supports an answer before they answer: "strawberry has property red therefore
yes".

As rationales are (Rajani et al. 2019, arXiv:1906.02361), but quoted and not made up: what is named is one of the facts
that the model got, so that it can be looked up, edited and checked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vlmodel.answers import Normalizer, normalize_for_comparison
from vlmodel.facts import LinkedFact

if TYPE_CHECKING:
    from vlmodel.processor import VLProcessor

THEREFORE = "therefore"
"""Between fact and answer: a word, which tokenizers of any kind give back. Facts with it are not named."""


def prepend_supporting_facts(
    targets: Sequence[str | None], facts: Sequence[tuple[LinkedFact, ...]], processor: VLProcessor
) -> list[str | None]:
    """Put before each right answer the fact that supports it. The answer stays alone if it has no fact, or if both
    together exceed ``processor.max_target_tokens``.
    """
    written = []
    for target, of_row in zip(targets, facts, strict=True):
        fact = None if target is None else find_supporting_fact(target, of_row, processor.normalizer)
        together = target if fact is None else f"{fact.fact.text} {THEREFORE} {target}"
        written.append(together if together == target or _fits_token_limit(str(together), processor) else target)
    return written


def find_supporting_fact(target: str, facts: Sequence[LinkedFact], normalizer: Normalizer) -> LinkedFact | None:
    """Find the fact that supports an answer: one whose tail is the answer, or else the first, which fits the
    text best.
    """
    can_be_named = [one for one in facts if THEREFORE not in one.fact.text.casefold().split()]
    form = normalize_for_comparison(target, normalizer)
    saying = (one for one in can_be_named if normalize_for_comparison(one.fact.tail, normalizer) == form)
    return next(saying, can_be_named[0] if can_be_named else None)


def split_evidence(text: str) -> tuple[str, str]:
    """Split a generated text into the fact that it names ("" for none) and its answer.

    >>> split_evidence("strawberry has property red therefore yes")
    ('strawberry has property red', 'yes')
    """
    words = text.split(" ")
    place = next((n for n, word in enumerate(words) if word.casefold() == THEREFORE), None)
    return ("", text) if place is None else (" ".join(words[:place]), " ".join(words[place + 1 :]))


def _fits_token_limit(text: str, processor: VLProcessor) -> bool:
    ids = processor.tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
    return len(ids) + 2 <= processor.config.max_target_tokens
