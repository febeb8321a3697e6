"""Holds the stored vectors that a replica searches: one version at a time, a newer one as soon as a search finds it."""

from __future__ import annotations

import logging
import threading
import time

from pipelines.embeddings.search import EmbeddingSearch
from pipelines.embeddings.stored import EmbeddingsManifest
from pipelines.embeddings.thumbnails import Thumbnails
from pipelines.errors import DataError
from pipelines.serve.config import SearchServingConfig
from pipelines.storage.folder import StorageFolder

_log = logging.getLogger(__name__)


class UpdatableSearch:
    """Searches the stored vectors of a folder; opens them when they are first needed, and again once the embed job has
    written newer ones. Threads may share it.
    """

    def __init__(self, config: SearchServingConfig) -> None:
        self._config, self._folder = config, StorageFolder(config.embeddings)
        self._opening = threading.Lock()
        self._opened: tuple[EmbeddingSearch, Thumbnails] | None = None
        self._looked = -float("inf")

    @property
    def folder(self) -> str:
        """The folder of the vectors."""
        return self._folder.uri

    def newest_search(self) -> tuple[EmbeddingSearch, Thumbnails]:
        """Return the search over the newest vectors. While newer ones are opened, other threads get the earlier ones.

        Raises:
            EmbeddingsError: there are none, or they cannot be read.
            OSError: as ``StorageFolder.read``.
        """
        opened = self._opened
        if opened is not None and time.monotonic() - self._looked < self._config.refresh_s:
            return opened
        if not self._opening.acquire(blocking=opened is None):
            assert opened is not None
            return opened
        try:
            return self._open_newest()
        finally:
            self._opening.release()

    def searchable_inputs_of_model(self, digest: str) -> list[str]:
        """List what a model with this digest can search; nothing if the vectors are another model's, or cannot be
        opened.
        """
        try:
            search, _ = self.newest_search()
        except (DataError, OSError) as error:
            _log.warning("no search: %s", error)
            return []
        return list(search.inputs) if search.embeddings.model.digest == digest else []

    def _open_newest(self) -> tuple[EmbeddingSearch, Thumbnails]:
        opened = self._opened
        try:
            if opened is None or EmbeddingsManifest.read(self._folder) != opened[0].embeddings:
                search = EmbeddingSearch(self._folder.uri, self._config.exact)
                self._opened = opened = (search, Thumbnails(search.embeddings))
        except (DataError, OSError) as error:
            if opened is None:
                raise
            _log.warning("the search stays among the vectors that are open: %s", error)
        self._looked = time.monotonic()
        return opened
