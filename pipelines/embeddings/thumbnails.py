"""Makes small copies of the images of found samples, read from the tars."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from pipelines.data.index.index import Index
from pipelines.data.tars.reader import ShardReader
from pipelines.embeddings.search import SearchResult
from pipelines.embeddings.stored import EmbeddingsManifest
from pipelines.errors import DataError
from vlmodel.encoder_parts import IMAGE
from vlmodel.images.thumbnail import make_thumbnail
from vlmodel.media.base import DisplayCopy, MediumError

_log = logging.getLogger(__name__)

SIDE = 192
"""Pixels of the longer side."""


class Thumbnails:
    """Makes small copies of the images of samples whose vectors are stored. Threads may share it."""

    def __init__(self, embeddings: EmbeddingsManifest) -> None:
        self._tars, self._hash = embeddings.tars, embeddings.index
        self._reader: ShardReader | None = None

    def make_thumbnails(self, hits: Sequence[SearchResult]) -> list[DisplayCopy | None]:
        """Return for each search result a small JPEG of its image; None if it has none, or if its tar can no longer be
        read as it was embedded.
        """
        copies: dict[tuple[str, int], DisplayCopy | None] = {}
        for shard in dict.fromkeys(hit.shard for hit in hits):
            rows = list(dict.fromkeys(hit.row for hit in hits if hit.shard == shard))
            try:
                if self._reader is None:
                    self._reader = ShardReader(Index.open(self._tars, self._hash))
                samples = self._reader.read(shard, rows, inputs=(IMAGE,), texts=False)
            except DataError as error:
                _log.warning("no thumbnails of shard %s: %s", shard, error)
                continue
            for row, sample in zip(rows, samples, strict=True):
                copies[shard, row] = _to_thumbnail(sample.inputs.get(IMAGE))
        return [copies.get((hit.shard, hit.row)) for hit in hits]


def _to_thumbnail(image: bytes | None) -> DisplayCopy | None:
    try:
        return None if image is None else make_thumbnail(image, SIDE)
    except MediumError:
        return None
