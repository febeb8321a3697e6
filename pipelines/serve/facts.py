"""Holds the facts with which a replica answers: one version at a time, replaced by newer versions as soon as they
exist.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence

from pipelines.knowledge import snapshot
from pipelines.knowledge.errors import FactRefusedError, KnowledgeError
from pipelines.knowledge.linking import FactLinker
from pipelines.knowledge.opened import open_query_vector_cache
from pipelines.knowledge.store import FactStore
from pipelines.knowledge.triples import Triple, find_triple_fault, triple_to_fact
from pipelines.serve.config import KnowledgeServingConfig
from vlmodel.facts import Fact, FactLinkingConfig, FoundFacts

_log = logging.getLogger(__name__)

_STEP_S = 0.05


class UpdatableFactStore:
    """A store of facts that is read and edited while the service runs; a ``vlmodel.facts.FactFinder``. Threads may
    share it.

    A thread looks for newer versions, and prepares one beside that in use: a request gets all its facts from one
    version, and never waits for the next. ``close`` ends the thread.

    Raises:
        KnowledgeError: there is no store, or it has vectors of another encoder.
    """

    def __init__(self, config: KnowledgeServingConfig) -> None:
        self._config, self._store = config, FactStore(config.store)
        self._queries = open_query_vector_cache(self._store, config.encoder)
        self._linker = self._prepare_for_first_request(snapshot.read_snapshot(self._store, exact=config.exact))
        self._refreshing, self._closed = threading.Lock(), threading.Event()
        threading.Thread(target=self._poll_for_newer_versions, name="facts", daemon=True).start()

    @property
    def version(self) -> int:
        """The version of the store that is in use."""
        return self._linker.snapshot.version

    @property
    def encoder(self) -> str:
        """The hash of the encoder of the store's vectors; "" without vectors."""
        return self._store.encoder

    def find_facts(self, texts: Sequence[str], link: FactLinkingConfig) -> FoundFacts:
        """Find the facts for each text, see ``FactFinder``."""
        return self._linker.find_facts(texts, link)

    def check_linking(self, link: FactLinkingConfig) -> None:
        """Raise an error for a way of linking that the store does not support.

        Raises:
            KnowledgeError: facts are found by their vectors, and the store has none.
        """
        self._linker.check_linking(link)

    def find_facts_of_entity(self, name: str, limit: int) -> tuple[int, list[Fact]]:
        """Return the version in use, and its facts whose head or tail has a name."""
        version = self.version
        return version, self._store.find_facts_of_entity(name, limit, version)

    def put(self, triple: Triple, fact_id: str, source: str) -> tuple[int, Fact]:
        """Add a fact, or replace the one with this id, and use the new version here at once.

        Raises:
            FactRefusedError: it is no fact; ``fault`` says why.
            KnowledgeError: the store has vectors, and this service no encoder for them.
        """
        if (fault := find_triple_fault(triple)) is not None:
            raise FactRefusedError(str(fault), f"this is no fact ({fault}); correct its head, relation, tail or text")
        if self._store.encoder and self._queries is None:
            raise KnowledgeError("facts of this store have vectors; name its encoder in knowledge.encoder to add some")
        fact = triple_to_fact(triple, source, fact_id=fact_id)
        vectors_MF = self._queries.vectors_of([fact.text]) if self._queries is not None else None
        version = self._store.put([fact], vectors_MF)
        self.refresh()
        return version, fact

    def delete(self, fact_id: str) -> int:
        """Remove a fact, and use the new version here at once.

        Raises:
            UnknownFactError: there is none of this id.
        """
        version = self._store.delete([fact_id])
        self.refresh()
        return version

    def refresh(self) -> None:
        """Use the newest version from now on; requests in flight keep theirs."""
        with self._refreshing:
            if self._store.version != self.version:
                self._linker = self._prepare_for_first_request(
                    snapshot.refresh_snapshot(self._store, self._linker.snapshot)
                )

    def wait_for_version(self, least: int, timeout_s: float) -> bool:
        """Whether this version, or a newer one, is in use; waits for it up to ``timeout_s``."""
        deadline = time.monotonic() + timeout_s
        while self.version < least and time.monotonic() < deadline:
            self.refresh()
            time.sleep(_STEP_S)
        return self.version >= least

    def close(self) -> None:
        """End the thread that polls for newer versions."""
        self._closed.set()

    def _prepare_for_first_request(self, facts: snapshot.Snapshot) -> FactLinker:
        """Build lazily built structures now, so that the first request does not wait for them."""
        facts.build_lazy_structures()
        return FactLinker(facts, self._queries)

    def _poll_for_newer_versions(self) -> None:
        while not self._closed.wait(self._config.refresh_s):
            try:
                self.refresh()
            except (KnowledgeError, OSError) as error:
                _log.warning("facts stay those of version %d: %s", self.version, error)
