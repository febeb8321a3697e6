"""Opens a store of facts once in each process, from a small description that can be sent to other processes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from pipelines.knowledge import snapshot
from pipelines.knowledge.config import KnowledgeConfig
from pipelines.knowledge.encoder import open_encoder
from pipelines.knowledge.errors import KnowledgeError
from pipelines.knowledge.linking import FactLinker, QueryVectorCache
from pipelines.knowledge.store import FactStore


@dataclass(frozen=True)
class FactSource:
    """Identifies one version of a store of facts. Small and picklable.

    Attributes:
        store: its folder or URI.
        version: never 0.
        encoder: folder of the sentence encoder; "" for none.
        exact: up to how many facts the search is exact.
    """

    store: str
    version: int
    encoder: str
    exact: int

    @classmethod
    def of(cls, config: KnowledgeConfig, version: int = 0) -> FactSource:
        """Describe the fact store that the settings name.

        Args:
            version: 0 takes the one of the settings, or the newest.

        Raises:
            KnowledgeError: no store is named, or there is none.
        """
        if not config.store:
            raise KnowledgeError(
                "the model reads facts (model.knowledge), and knowledge.store is not set; name the store, or set "
                "model.knowledge.kind=none"
            )
        chosen = version or config.version or FactStore(config.store).version
        return cls(config.store, chosen, config.encoder, config.exact)


@lru_cache(maxsize=4)
def open_fact_linker(source: FactSource) -> FactLinker:
    """Open the facts of a store for linking, once in a process.

    Raises:
        KnowledgeError: the version does not exist, or the store has vectors of another encoder.
    """
    store = FactStore(source.store)
    return FactLinker(
        snapshot.read_snapshot(store, source.version, source.exact), open_query_vector_cache(store, source.encoder)
    )


def open_query_vector_cache(store: FactStore, encoder: str) -> QueryVectorCache | None:
    """Open a cache of query vectors by the encoder of a store; None for a store without vectors, or if its encoder is
    missing.

    Raises:
        KnowledgeError: the store has vectors of another encoder.
    """
    if not store.encoder or not encoder:
        return None
    opened = open_encoder(encoder)
    store.check_encoder(opened.identity)
    return QueryVectorCache(opened)
