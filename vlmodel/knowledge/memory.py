"""Knowledge part ``memory``: attention from image and text selects among the facts of a row; the selected facts become
a stream.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field

from vlmodel.answers import normalize_for_comparison
from vlmodel.facts import LinkedFact
from vlmodel.knowledge_parts import KnowledgePart

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vlmodel.knowledge._memory import FactMemory
    from vlmodel.processor import VLProcessor


class Config(KnowledgePart):
    """Settings of a memory whose keys and values are the ``link.top`` facts of a row. The query is computed from all
    streams, so that the picture too decides which facts are selected.
    """

    gives_stream: ClassVar[bool] = True

    kind: Literal["memory"] = "memory"
    width: int = Field(256, ge=1)
    """Width of queries, keys and the stream."""
    read: int = Field(4, ge=1)
    """So many facts, those of the greatest weight, are read as tokens; the others only as a mean by their weights."""
    max_fact_tokens: int = Field(24, ge=3)
    """Longer facts are cut to this many tokens."""
    contrast: float = Field(1.0, ge=0)
    """Weight of a loss of the selection in training, of rows whose answer is the tail of a fact: the negative log of
    the weight of these facts among all of the row (a contrastive loss). 0 learns to select by the answers alone."""

    def tokenize(
        self, texts: Sequence[str], facts: Sequence[tuple[LinkedFact, ...]], processor: VLProcessor
    ) -> dict[str, NDArray[np.generic]]:
        """Tokenize texts as ``VLProcessor.tokenize`` does, and add ``fact_ids_MT`` int64 and ``fact_mask_MT`` bool, the
        tokens of the M distinct facts, and ``fact_rows_NJ`` int64, which of these facts each text has (-1 where it has
        fewer than J).
        """
        fact_texts = dict.fromkeys(one.fact.text for one in chain.from_iterable(facts))
        row_of = {text: row for row, text in enumerate(fact_texts)}
        rows_NJ = np.full((len(texts), max(1, max(map(len, facts), default=1))), -1, np.int64)
        for n, of_text in enumerate(facts):
            rows_NJ[n, : len(of_text)] = [row_of[one.fact.text] for one in of_text]
        # Encoders need a text at least; nothing points at this one. What a fact says is data: none of its words is read
        # as a special token.
        encoded = processor.tokenizer(
            list(fact_texts) or [""], padding=True, truncation=True, max_length=self.max_fact_tokens,
            split_special_tokens=True, return_tensors="np",
        )  # fmt: skip
        return processor.tokenize(texts) | {
            "fact_ids_MT": encoded["input_ids"].astype(np.int64, copy=False),
            "fact_mask_MT": encoded["attention_mask"].astype(np.bool_),
            "fact_rows_NJ": rows_NJ,
        }

    def collate_right_facts(
        self, targets: Sequence[str | None], facts: Sequence[tuple[LinkedFact, ...]], processor: VLProcessor
    ) -> dict[str, NDArray[np.generic]]:
        """Mark the facts whose tail is the right answer: ``fact_right_NJ`` bool."""
        if not self.contrast:
            return {}
        right_NJ = np.zeros((len(targets), max(1, max(map(len, facts), default=1))), np.bool_)
        for n, (target, of_row) in enumerate(zip(targets, facts, strict=True)):
            if target is not None:
                form = normalize_for_comparison(target, processor.normalizer)
                saying = [normalize_for_comparison(one.fact.tail, processor.normalizer) == form for one in of_row]
                right_NJ[n, : len(saying)] = saying
        return {"fact_right_NJ": right_NJ}

    def build(self, widths: Mapping[str, int]) -> FactMemory:
        from vlmodel.knowledge._memory import FactMemory

        return FactMemory(self, widths)
