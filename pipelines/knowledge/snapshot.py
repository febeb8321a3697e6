"""Holds one version of a store in memory (facts and their vectors), and updates it to the next version from the
changes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.knowledge.names import normalize_entity_name
from pipelines.knowledge.store import CHANGED, TEXTS, FactStore
from pipelines.vectors.search import EXACT, VectorSearch, build_vector_search
from vlmodel.facts import Fact

if TYPE_CHECKING:
    from numpy.typing import NDArray

_LEAST_CHANGED, _SHARE_CHANGED = 1000, 0.02
"""With more changes than the greater of these since it was read, a store is read anew."""


@dataclass(frozen=True)
class FactTable:
    """A table of facts in the order of their ids, with the structures that are derived from it once.

    Attributes:
        texts: the columns of ``store.TEXTS``.
        vectors_MF: of length 1; (M, 0) of a store without vectors.
        exact: up to how many facts the search is exact.
    """

    texts: pa.Table
    vectors_MF: NDArray[np.float32]
    exact: int

    def __len__(self) -> int:
        return int(self.texts.num_rows)

    @cached_property
    def rows_by_head(self) -> dict[str, list[int]]:
        """Map the normalized name of each head to the rows of its facts."""
        found: dict[str, list[int]] = {}
        for row, head in enumerate(self.texts["head"].to_pylist()):
            found.setdefault(normalize_entity_name(head), []).append(row)
        return found

    @cached_property
    def longest_name(self) -> int:
        """The greatest number of words in the name of a head."""
        return max((name.count(" ") + 1 for name in self.rows_by_head), default=0)

    @cached_property
    def search(self) -> VectorSearch:
        """The search for the facts whose vectors are nearest to a query."""
        return build_vector_search(self.vectors_MF, self.exact)


@dataclass(frozen=True)
class Snapshot:
    """The facts of one version of a store: those of a base version that still exist, then those added or edited since.
    So an edit costs only what it changes, and versions share the base.

    Attributes:
        base: the facts of the version that was read whole.
        base_version: which one that was.
        gone_M: True where a fact of the base was removed or edited since.
        added: facts that were added or edited since.
    """

    version: int
    base: FactTable
    base_version: int
    gone_M: NDArray[np.bool_]
    added: FactTable

    def __len__(self) -> int:
        return len(self.base) - int(self.gone_M.sum()) + len(self.added)

    def __contains__(self, name: object) -> bool:
        """Whether a fact has a head with this normalized name."""
        return isinstance(name, str) and bool(self.rows_of_head(name))

    @property
    def longest_name(self) -> int:
        """The greatest number of words in the name of a head."""
        return max(self.base.longest_name, self.added.longest_name)

    def rows_of_head(self, name: str) -> list[int]:
        """Return the rows of the facts whose head has this normalized name."""
        rows = [row for row in self.base.rows_by_head.get(name, ()) if not self.gone_M[row]]
        return rows + [len(self.base) + row for row in self.added.rows_by_head.get(name, ())]

    def fact(self, row: int) -> Fact:
        """Return the fact in a row, as ``rows_of_head`` and ``nearest`` number them."""
        of, row = (self.base, row) if row < len(self.base) else (self.added, row - len(self.base))
        return Fact(**of.texts.slice(row, 1).to_pylist()[0])

    def cosines(self, query_F: NDArray[np.float32], rows: Iterable[int]) -> NDArray[np.float32]:
        """Compute the cosines of a query with the facts in these rows."""
        chosen = np.fromiter(rows, np.int64)
        is_added = chosen >= len(self.base)
        cosines = np.empty(len(chosen), np.float32)
        cosines[~is_added] = self.base.vectors_MF[chosen[~is_added]] @ query_F
        cosines[is_added] = self.added.vectors_MF[chosen[is_added] - len(self.base)] @ query_F
        return cosines

    def nearest(self, queries_NF: NDArray[np.float32], top: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the rows and the cosines (N, J) of the nearest facts; J is ``top``, or the number of facts if that is
        less.
        """
        rows_NJ, cosines_NJ = self.base.search.nearest(queries_NF, top, np.flatnonzero(self.gone_M))
        if len(self.added):
            more_NJ, values_NJ = self.added.search.nearest(queries_NF, top)
            rows_NJ = np.concatenate([rows_NJ, more_NJ + len(self.base)], axis=1)
            cosines_NJ = np.concatenate([cosines_NJ, values_NJ], axis=1)
            order_NJ = np.lexsort((rows_NJ, -cosines_NJ), axis=1)[:, :top]
            rows_NJ, cosines_NJ = np.take_along_axis(rows_NJ, order_NJ, 1), np.take_along_axis(cosines_NJ, order_NJ, 1)
        return rows_NJ, cosines_NJ

    def build_lazy_structures(self) -> None:
        """Build the lazily built structures now, so that the first question does not wait for them."""
        for rows in (self.base, self.added):
            _ = rows.longest_name
            if rows.vectors_MF.shape[1]:
                _ = rows.search

    @cached_property
    def all_facts(self) -> FactTable:
        """Return all facts as one table, in the order of their ids."""
        texts = pa.concat_tables([self.base.texts.filter(pa.array(~self.gone_M)), self.added.texts])
        order = pc.sort_indices(texts["id"])
        vectors_MF = np.concatenate([self.base.vectors_MF[~self.gone_M], self.added.vectors_MF])
        return FactTable(texts.take(order).combine_chunks(), vectors_MF[order.to_numpy()], self.base.exact)


def read_snapshot(store: FactStore, version: int = 0, exact: int = EXACT) -> Snapshot:
    """Read a version of a store into memory, the newest by default.

    Args:
        exact: up to how many facts the search is exact.

    Raises:
        KnowledgeError: the version does not exist.
    """
    table = store.table(version)
    base = _rows(store, table.to_table(columns=_columns(store), filter="valid"), exact)
    nothing = _rows(store, table.schema.empty_table(), exact)
    newest = int(table.version)
    return Snapshot(newest, base, newest, np.zeros(len(base), np.bool_), nothing)


def refresh_snapshot(store: FactStore, before: Snapshot) -> Snapshot:
    """Read the newest version, loading only the rows that changed since the base version of ``before``."""
    table = store.table()
    if table.version == before.version:
        return before
    base, since = before.base, before.base_version
    if table.version < before.version:  # The store was built anew.
        return read_snapshot(store, exact=base.exact)
    stays = table.to_table(columns=["id"], filter=f"valid and {CHANGED} <= {since}")["id"]
    gone_M = ~pc.is_in(base.texts["id"], value_set=stays.combine_chunks()).to_numpy()
    changed = table.count_rows(f"valid and {CHANGED} > {since}") + int(gone_M.sum())
    if changed > max(_LEAST_CHANGED, _SHARE_CHANGED * len(base)):
        return read_snapshot(store, exact=base.exact)
    rows = table.to_table(columns=_columns(store), filter=f"valid and {CHANGED} > {since}")
    return Snapshot(int(table.version), base, since, gone_M, _rows(store, rows, base.exact))


def _columns(store: FactStore) -> list[str]:
    return [*TEXTS, *(("vector",) if store.encoder else ())]


def _rows(store: FactStore, rows: pa.Table, exact: int) -> FactTable:
    # Two writers of an object store may both have added a fact: the later row counts.
    place = pa.array(np.arange(rows.num_rows))
    last = pa.table({"id": rows["id"], "place": place}).group_by("id").aggregate([("place", "max")]).sort_by("id")
    rows = rows.take(last["place_max"])
    width = store.width if store.encoder else 0
    vectors_MF = np.zeros((rows.num_rows, width), np.float32)
    if width and rows.num_rows:
        flat = rows["vector"].combine_chunks()
        flat = flat.chunk(0) if isinstance(flat, pa.ChunkedArray) else flat
        vectors_MF = flat.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
    return FactTable(rows.select(list(TEXTS)).combine_chunks(), vectors_MF, exact)
