"""Finds the facts for a text: by the names in it, by its vector, or both; the same in training and in serving."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np

from pipelines.knowledge.errors import KnowledgeError
from pipelines.knowledge.names import Mention, find_mentions
from vlmodel.facts import FactLinkingConfig, FoundFacts, LinkedFact

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipelines.knowledge.encoder import SentenceEncoder
    from pipelines.knowledge.snapshot import Snapshot

_REMEMBERED = 20_000


class QueryVectorCache:
    """Caches the vectors of the latest texts, as each epoch asks the same questions.

    Threads may share it.
    """

    def __init__(self, encoder: SentenceEncoder) -> None:
        self._encoder, self._lock = encoder, Lock()
        self._known: OrderedDict[str, NDArray[np.float32]] = OrderedDict()

    def vectors_of(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the vectors of texts, (N, F)."""
        with self._lock:
            known = {text: self._known[text] for text in texts if text in self._known}
        missing = list(dict.fromkeys(text for text in texts if text not in known))
        if missing:
            known |= dict(zip(missing, self._encoder.encode(missing), strict=True))
        with self._lock:
            for text in missing:
                self._known[text] = known[text]
            while len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        return np.stack([known[text] for text in texts])


class FactLinker:
    """Finds facts in one version of a store (``vlmodel.facts.FactFinder``).

    Args:
        queries: of the store's encoder; None for a store without vectors.
    """

    def __init__(self, snapshot: Snapshot, queries: QueryVectorCache | None) -> None:
        self.snapshot, self._queries = snapshot, queries

    def find_facts(self, texts: Sequence[str], link: FactLinkingConfig) -> FoundFacts:
        """Find the facts for each text, see ``FactFinder``.

        Raises:
            KnowledgeError: facts are found by their vectors, and the store has none.
        """
        self.check_linking(link)
        named = [self._facts_named_in_text(text) if link.by != "dense" else {} for text in texts]
        found: list[tuple[LinkedFact, ...]] = [()] * len(texts)
        if link.by == "names":
            return FoundFacts(self.snapshot.version, [self._sort_by_name_length(text, rows, link.top) for text, rows in
                                                      zip(texts, named, strict=True)])  # fmt: skip
        if not texts:
            return FoundFacts(self.snapshot.version, found)
        assert self._queries is not None
        queries_NF = self._queries.vectors_of(texts)
        unnamed = [n for n, rows in enumerate(named) if not rows]
        if unnamed:
            rows_NJ, cosines_NJ = self.snapshot.nearest(queries_NF[unnamed], link.top)
            for n, rows, cosines in zip(unnamed, rows_NJ.tolist(), cosines_NJ.tolist(), strict=True):
                pairs = zip(rows, cosines, strict=True)
                found[n] = tuple(self._to_linked_fact(row, c, None) for row, c in pairs if c >= link.least_similarity)
        for n, rows in enumerate(named):
            if rows:
                found[n] = self._nearest_facts_of_texts(queries_NF[n], rows, link.top)
        return FoundFacts(self.snapshot.version, found)

    def check_linking(self, link: FactLinkingConfig) -> None:
        """Raise an error for a way of linking that the store does not support.

        Raises:
            KnowledgeError: facts are found by their vectors, and the store has none.
        """
        if link.by != "names" and self._queries is None:
            raise KnowledgeError(
                f"link.by={link.by!r} compares vectors, and this store was built without an encoder; build it with "
                "knowledge.encoder, or set link.by=names"
            )

    def _facts_named_in_text(self, text: str) -> dict[int, Mention]:
        """Return the rows of the facts whose head the text names, each with the mention of the name."""
        found = find_mentions(text, self.snapshot, self.snapshot.longest_name)
        return {row: mention for mention in found for row in self.snapshot.rows_of_head(mention.name)}

    def _sort_by_name_length(self, text: str, rows: dict[int, Mention], top: int) -> tuple[LinkedFact, ...]:
        """Return the first ``top`` facts, those with the longest names first. Facts with the same name are sorted by
        id, as the order of rows differs between processes.
        """
        ids = {row: self.snapshot.fact(row).id for row in rows}
        order = sorted(rows, key=lambda row: (rows[row].start - rows[row].stop, rows[row].start, ids[row]))
        letters = max(1, len(text))
        return tuple(
            self._to_linked_fact(row, (rows[row].stop - rows[row].start) / letters, rows[row]) for row in order[:top]
        )

    def _nearest_facts_of_texts(
        self, query_F: NDArray[np.float32], rows: dict[int, Mention], top: int
    ) -> tuple[LinkedFact, ...]:
        chosen = np.fromiter(rows, np.int64)
        cosines = self.snapshot.cosines(query_F, rows)
        order = np.lexsort((chosen, -cosines))[:top]
        return tuple(self._to_linked_fact(int(chosen[n]), float(cosines[n]), rows[int(chosen[n])]) for n in order)

    def _to_linked_fact(self, row: int, weight: float, mention: Mention | None) -> LinkedFact:
        span = None if mention is None else (mention.start, mention.stop)
        return LinkedFact(self.snapshot.fact(row), min(1.0, max(0.0, weight)), span)
