"""Stores of facts for tests: small vectors of a hash of the text, which need no model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import pytest

from pipelines.knowledge.store import FactStore
from pipelines.knowledge.triples import Triple, triple_to_fact
from vlmodel.facts import Fact

WIDTH = 16


def vectors_of(texts: Sequence[str]) -> np.ndarray:
    """Vectors (M, 16) of length 1 that depend on the words of a text."""
    vectors_MF = np.zeros((len(texts), WIDTH), np.float32)
    for n, text in enumerate(texts):
        for word in text.lower().split():
            seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "big")
            vectors_MF[n] += np.random.default_rng(seed).standard_normal(WIDTH).astype(np.float32)
    return vectors_MF / np.linalg.norm(vectors_MF, axis=1, keepdims=True).clip(1e-6)


class WordEncoder:
    """Stands where ``SentenceEncoder`` does."""

    identity, width = "words", WIDTH

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        return vectors_of(texts)


def facts_of(*triples: tuple[str, str, str]) -> list[Fact]:
    return [triple_to_fact(Triple(*triple), "test") for triple in triples]


def put(store: FactStore, *triples: tuple[str, str, str]) -> list[Fact]:
    facts = facts_of(*triples)
    store.put(facts, vectors_of([fact.text for fact in facts]) if store.encoder else None)
    return facts


@pytest.fixture
def store(tmp_path) -> FactStore:
    """An empty store with vectors of ``WordEncoder``."""
    return FactStore.create(str(tmp_path / "store"), WordEncoder.identity, WIDTH)
