"""Searches stored vectors: which samples, or texts, are nearest to a vector of the same model."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from pipelines.embeddings.errors import EmbeddingsError
from pipelines.embeddings.search_files import map_vectors, open_search_files
from pipelines.embeddings.stored import EmbeddingsManifest
from pipelines.storage.folder import StorageFolder
from pipelines.vectors.search import EXACT, ApproximateVectorSearch, ExactVectorSearch, VectorSearch, load_graphs

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class SearchResult:
    """One result of a search: a sample, or one of its texts, and its similarity to the query.

    Attributes:
        row: of the sample in the index of its shard.
        text: None where an input was found.
        similarity: cosine, from -1 to 1.
    """

    key: str
    split: str
    shard: str
    row: int
    text: str | None
    similarity: float


class EmbeddingSearch:
    """Searches stored vectors. Threads may share it; the vectors are mapped from files and not held in memory.

    Args:
        folder: folder or URI of the embed job's ``embed.out``.
        exact: up to so many vectors of an input the search is exact.

    Raises:
        EmbeddingsError: there are none, or they cannot be read.
    """

    def __init__(self, folder: str, exact: int = EXACT) -> None:
        opened = StorageFolder(folder)
        self.folder, self.embeddings = opened.uri, EmbeddingsManifest.read(opened)
        files = open_search_files(opened, self.embeddings, exact)
        self._searches = {
            name: _OpenedInput(files, self.embeddings, name, exact)
            for name in self.embeddings.inputs
            if self.embeddings.count(name)
        }

    @property
    def inputs(self) -> dict[str, int]:
        """What can be searched, with the number of vectors of each."""
        return {name: self.embeddings.count(name) for name in self._searches}

    def nearest(self, query_D: NDArray[np.float32], name: str, top: int) -> list[SearchResult]:
        """Return the ``top`` nearest vectors, the nearest first.

        Args:
            query_D: of length one.
            name: what is searched, one of ``inputs``.

        Raises:
            EmbeddingsError: it has no vectors, or those of another width.
        """
        if name not in self._searches:
            raise EmbeddingsError(
                f"{self.folder!r} has no vectors of {name!r}; it has those of {', '.join(self._searches)}"
            )
        if query_D.shape != (self.embeddings.width,):
            raise EmbeddingsError(
                f"the vectors in {self.folder!r} have {self.embeddings.width} numbers, and this one has {query_D.size}"
            )
        return self._searches[name].nearest(query_D, top)


class _OpenedInput:
    """The opened vectors of one input."""

    def __init__(self, files: Path, embeddings: EmbeddingsManifest, name: str, exact: int) -> None:
        count = embeddings.count(name)
        vectors_MD = map_vectors(files, name, count, embeddings.width)
        self._search: VectorSearch = (
            ExactVectorSearch(vectors_MD)
            if count <= exact
            else ApproximateVectorSearch(vectors_MD, load_graphs(count, files / f"{name}.graph"))
        )
        self._rows = pa.ipc.open_file(pa.memory_map(str(files / f"{name}.rows")))
        self._starts = [0, *accumulate(n for part in embeddings.parts if (n := part.vectors.get(name, 0)))]

    def nearest(self, query_D: NDArray[np.float32], top: int) -> list[SearchResult]:
        rows_1J, cosines_1J = self._search.nearest(query_D[None], top)
        return [
            self._to_search_result(row, cosine)
            for row, cosine in zip(rows_1J[0].tolist(), cosines_1J[0].tolist(), strict=True)
        ]

    def _to_search_result(self, row: int, cosine: float) -> SearchResult:
        batch = bisect_right(self._starts, row) - 1
        [facts] = self._rows.get_batch(batch).slice(row - self._starts[batch], 1).to_pylist()
        return SearchResult(**facts, similarity=min(1.0, max(-1.0, cosine)))
