"""One version of a store in memory: its facts and their vectors, and the next version from what changed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.knowledge.names import normal_name
from pipelines.knowledge.store import CHANGED, TEXTS, FactStore
from vlmodel.facts import Fact

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Snapshot:
    """The M facts of one version, in the order of their ids.

    Attributes:
        texts: the columns of ``store.TEXTS``.
        vectors_MF: of length 1; (M, 0) of a store without vectors.
    """

    version: int
    texts: pa.Table
    vectors_MF: NDArray[np.float32]

    def __len__(self) -> int:
        return int(self.texts.num_rows)

    def fact(self, row: int) -> Fact:
        return Fact(**self.texts.slice(row, 1).to_pylist()[0])

    @cached_property
    def rows_by_head(self) -> dict[str, list[int]]:
        """The rows of the facts of each head, by its normal name."""
        found: dict[str, list[int]] = {}
        for row, head in enumerate(self.texts["head"].to_pylist()):
            found.setdefault(normal_name(head), []).append(row)
        return found

    @cached_property
    def longest_name(self) -> int:
        """Most words of a head's name."""
        return max((name.count(" ") + 1 for name in self.rows_by_head), default=0)


def read(store: FactStore, version: int = 0) -> Snapshot:
    """A version of a store, the newest by default.

    Raises:
        KnowledgeError: the version does not exist.
    """
    table = store.table(version)
    rows = table.to_table(columns=_columns(store), filter="valid")
    return _snapshot(int(table.version), rows, store.width if store.encoder else 0)


def refresh(store: FactStore, before: Snapshot) -> Snapshot:
    """The newest version, of which only the rows are read that changed since ``before``."""
    table = store.table()
    if table.version == before.version:
        return before
    if table.version < before.version:  # The store was built anew.
        return read(store)
    stays = table.to_table(columns=["id"], filter=f"valid and {CHANGED} <= {before.version}")["id"]
    changed = table.to_table(columns=_columns(store), filter=f"valid and {CHANGED} > {before.version}")
    kept = pc.is_in(before.texts["id"], value_set=stays.combine_chunks()).to_numpy(zero_copy_only=False)
    width = store.width if store.encoder else 0
    new = _snapshot(int(table.version), changed, width)
    if kept.all():
        if not len(new):
            return Snapshot(new.version, before.texts, before.vectors_MF)
        old_texts, old_MF = before.texts, before.vectors_MF
    else:
        old_texts, old_MF = before.texts.filter(pa.array(kept)), before.vectors_MF[kept]
    texts = pa.concat_tables([old_texts, new.texts])
    order = pc.sort_indices(texts["id"]).to_numpy()
    vectors_MF = np.concatenate([old_MF, new.vectors_MF])[order]
    return Snapshot(new.version, texts.take(pa.array(order)).combine_chunks(), vectors_MF)


def _columns(store: FactStore) -> list[str]:
    return [*TEXTS, *(("vector",) if store.encoder else ())]


def _snapshot(version: int, rows: pa.Table, width: int) -> Snapshot:
    # Two writers of an object store may both have added a fact: the later row counts.
    place = pa.array(np.arange(rows.num_rows))
    last = pa.table({"id": rows["id"], "place": place}).group_by("id").aggregate([("place", "max")]).sort_by("id")
    rows = rows.take(last["place_max"])
    vectors_MF = np.zeros((rows.num_rows, width), np.float32)
    if width and rows.num_rows:
        flat = rows["vector"].combine_chunks()
        flat = flat.chunk(0) if isinstance(flat, pa.ChunkedArray) else flat
        vectors_MF = flat.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
    return Snapshot(version, rows.select(list(TEXTS)).combine_chunks(), vectors_MF)
