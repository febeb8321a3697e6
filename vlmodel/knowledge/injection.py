"""Knowledge part ``injection``: the facts of a text are added to it as text, and the language encoder reads both."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, chain
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import Field

from vlmodel.facts import LinkedFact
from vlmodel.knowledge._evidence import THEREFORE, prepend_supporting_facts, split_evidence
from vlmodel.knowledge_parts import KnowledgePart

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vlmodel.processor import VLProcessor


class Config(KnowledgePart):
    """Settings of facts as additional tokens of a text: the model reads each word of a fact, even of facts that it
    never saw in training.
    """

    changes_texts: ClassVar[bool] = True

    kind: Literal["injection"] = "injection"
    where: Literal["input", "output"] = "input"
    """"output": a task that writes is trained to name its evidence before it answers: the fact that says the answer,
    else the one that fits the text best, "strawberry has property red therefore yes". The answer that is judged and
    served is what follows; the facts of an answer weigh 1 where it named them and 0 where not."""
    layout: Literal["flat", "before", "tree"] = "flat"
    """"flat": the facts follow the text, each after a separator. "before": the text follows the facts, which then stand
    at the same positions however long it is. "tree": each fact is a branch at the words that name its head, by
    positions that go on there and by attention that only these words and the fact itself have (K-BERT's soft positions
    and visible matrix); not every language encoder can do that."""
    max_fact_tokens: int = Field(48, ge=4)
    """Most tokens of all facts beside a text; the last ones are left out as a whole where there are more. They come on
    top of processor.max_tokens, and where texts are named as evidence, on top of what processor.max_target_tokens=0
    finds in the data."""

    def max_added_tokens(self) -> int:
        return self.max_fact_tokens

    def returns_token_layout(self) -> bool:
        return self.layout == "tree"

    def writes_evidence(self) -> bool:
        return self.where == "output"

    def added_target_words(self) -> tuple[str, ...]:
        return (THEREFORE,) if self.writes_evidence() else ()

    def max_added_target_tokens(self) -> int:
        return self.max_fact_tokens if self.writes_evidence() else 0

    def add_evidence_to_targets(
        self, targets: Sequence[str | None], facts: Sequence[tuple[LinkedFact, ...]], processor: VLProcessor
    ) -> list[str | None]:
        return prepend_supporting_facts(targets, facts, processor) if self.writes_evidence() else list(targets)

    def split_evidence(self, text: str) -> tuple[str, str]:
        return split_evidence(text) if self.writes_evidence() else ("", text)

    def tokenize(
        self, texts: Sequence[str], facts: Sequence[tuple[LinkedFact, ...]], processor: VLProcessor
    ) -> dict[str, NDArray[np.generic]]:
        """The arrays of ``VLProcessor.tokenize``; for layout "tree" also ``text_positions_NT`` int64, the position of
        each token, and ``text_visible_NTT`` bool, whether the first token attends to the second.
        """
        keys = [(text, tuple((f.fact.text, f.mention) for f in of_text)) for text, of_text in
                zip(texts, facts, strict=True)]  # fmt: skip
        row_of = {key: row for row, key in enumerate(dict.fromkeys(keys))}
        sequences = _tokenize_texts_with_facts(
            list(row_of), processor, self.max_fact_tokens, before=self.layout == "before"
        )
        row_N = np.array([row_of[key] for key in keys], np.int64)
        left = processor.tokenizer.padding_side == "left"
        ids_UT, mask_UT = _pad_to_longest([s.ids for s in sequences], processor.tokenizer.pad_token_id, left)
        arrays: dict[str, NDArray[np.generic]] = {
            "input_ids_NT": ids_UT[row_N],
            "text_mask_NT": mask_UT[row_N],
        } | processor.distinct_text_arrays(row_N, mask_UT)
        if self.layout == "tree":
            positions_UT, _ = _pad_to_longest([s.positions for s in sequences], 0, left)
            arrays["text_positions_NT"] = positions_UT[row_N]
            branches, anchors = [s.branches for s in sequences], [s.anchors for s in sequences]
            arrays["text_visible_NTT"] = _visibility_matrix(branches, anchors, mask_UT.shape[1], left)[row_N]
        return arrays


class _TextWithFacts(NamedTuple):
    """The tokens of one text and of its facts.

    Attributes:
        ids: of the tokens.
        positions: soft positions: those of a fact continue from the words that name its head.
        branches: 0 for the text, n for the n-th fact.
        anchors: for each fact the tokens of the text at which it branches off.
    """

    ids: list[int]
    positions: list[int]
    branches: list[int]
    anchors: list[list[int]]


def _tokenize_texts_with_facts(
    keys: Sequence[tuple[str, tuple[tuple[str, tuple[int, int] | None], ...]]],
    processor: VLProcessor,
    most: int,
    *,
    before: bool,
) -> list[_TextWithFacts]:
    """Tokenize distinct texts together with their facts, with at most ``most`` tokens of facts for each text.

    Args:
        before: the facts stand before the text, and not behind it; positions are then those of the sequence.
    """
    if not keys:
        return []
    tokenizer = processor.tokenizer
    encoded = tokenizer(
        [text for text, _ in keys], padding=False, truncation=True, max_length=processor.config.max_tokens,
        return_offsets_mapping=True, return_special_tokens_mask=True,
    )  # fmt: skip
    fact_texts = list(dict.fromkeys(text for _, facts in keys for text, _ in facts))
    of_facts: list[list[int]] = []
    if fact_texts:  # What a fact says is data: "[SEP]" in it separates nothing.
        of_facts = tokenizer(fact_texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    ids_of = dict(zip(fact_texts, of_facts, strict=True))
    between = [] if processor.end_id is None else [processor.end_id]
    sequences = []
    for row, (_, facts) in enumerate(keys):
        ids, special = encoded["input_ids"][row], encoded["special_tokens_mask"][row]
        spans = encoded["offset_mapping"][row]
        # What ends a text ([SEP]; XLNet's <cls>) ends it with its facts, too.
        stop = len(ids) - 1 if ids and special[-1] else len(ids)
        if before:
            # What begins a text ([CLS]) begins it with its facts, too.
            start = next((n for n, is_special in enumerate(special) if not is_special), 0)
            block = _take_facts_up_to_limit([[*ids_of[text], *between] for text, _ in facts], most)
            together = [*ids[:start], *chain.from_iterable(block), *ids[start:]]
            sequences.append(_TextWithFacts(together, list(range(len(together))), [0] * len(together), []))
            continue
        sequence = _TextWithFacts(list(ids[:stop]), list(range(stop)), [0] * stop, [])
        used = 0
        for text, mention in facts:
            tokens = [*between, *ids_of[text]]
            if used + len(tokens) > most:
                break
            used += len(tokens)
            anchor = _anchor_token_indices(spans[:stop], mention)
            first = (anchor[-1] if mention is not None and anchor else stop - 1) + 1
            sequence.ids.extend(tokens)
            sequence.positions.extend(range(first, first + len(tokens)))
            sequence.branches.extend([len(sequence.anchors) + 1] * len(tokens))
            sequence.anchors.append(anchor)
        sequence.ids.extend(ids[stop:])
        sequence.positions.extend(range(stop, len(ids)))
        sequence.branches.extend([0] * (len(ids) - stop))
        sequences.append(sequence)
    return sequences


def _take_facts_up_to_limit(facts: Sequence[list[int]], most: int) -> Sequence[list[int]]:
    """Take facts from the first on as long as they have at most ``most`` tokens together."""
    totals = accumulate(map(len, facts))
    return facts[: sum(total <= most for total in totals)]


def _anchor_token_indices(spans: Sequence[tuple[int, int]], mention: tuple[int, int] | None) -> list[int]:
    """Return the indices of the tokens to which a fact is attached: those that name its head, or the first token if
    none does or the name was cut off.
    """
    if mention is not None:
        start, stop = mention
        if found := [n for n, (first, last) in enumerate(spans) if first < stop and last > start]:
            return found
    return [0] if spans else []


def _visibility_matrix(
    branches: Sequence[Sequence[int]], anchors: Sequence[Sequence[Sequence[int]]], length: int, left: bool
) -> NDArray[np.bool_]:
    """Build K-BERT's visible matrix (Liu et al. 2020, arXiv:1909.07606), (U, T, T): tokens of the text attend to each
    other; tokens of a fact attend to each other and, in both directions, to the words that name the fact's head.
    """
    visible_UTT = np.zeros((len(branches), length, length), np.bool_)
    for u, (of_text, anchors_of_text) in enumerate(zip(branches, anchors, strict=True)):
        branch_T = np.array(of_text, np.int64)
        seen_TT = branch_T[:, None] == branch_T
        for number, anchor in enumerate(anchors_of_text, 1):
            fact = np.flatnonzero(branch_T == number)
            at = np.array(anchor, np.int64)
            seen_TT[np.ix_(fact, at)] = True
            seen_TT[np.ix_(at, fact)] = True
        place = slice(length - len(branch_T), length) if left else slice(0, len(branch_T))
        visible_UTT[u, place, place] = seen_TT
    return visible_UTT


def _pad_to_longest(
    rows: Sequence[Sequence[int]], padding: int, left: bool
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Pad rows of numbers to the longest, (U, T); also return a mask of the numbers that are no padding."""
    length = max(map(len, rows), default=0) or 1
    values_UT, mask_UT = np.full((len(rows), length), padding, np.int64), np.zeros((len(rows), length), np.bool_)
    for u, row in enumerate(rows):
        place = slice(length - len(row), length) if left else slice(0, len(row))
        values_UT[u, place], mask_UT[u, place] = row, True
    return values_UT, mask_UT
