"""Builds a store of facts: the facts of a source are encoded by Ray Data and written batch by batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import ray.data
from ray.data import ActorPoolStrategy

from pipelines.knowledge.config import KnowledgeConfig
from pipelines.knowledge.encoder import open_encoder
from pipelines.knowledge.errors import KnowledgeError
from pipelines.knowledge.sources._source import SourcePart
from pipelines.knowledge.store import FactStore
from pipelines.knowledge.triples import BadLine, FactFault, find_triple_fault, triple_to_fact
from vlmodel.facts import Fact


@dataclass(frozen=True)
class FactStoreBuildResult:
    """What a build of the fact store did: how many facts were new or changed, how many were unchanged, and how many
    lines were invalid.
    """

    version: int
    written: int
    kept: int
    faults: Counter[str]

    def describe(self) -> str:
        bad = ", ".join(f"{count} {fault}" for fault, count in sorted(self.faults.items()))
        lines = f"; {self.faults.total()} lines are no facts ({bad})" if bad else ""
        return f"version {self.version}: {self.written} facts written, {self.kept} were there{lines}"


def build_fact_store(
    config: KnowledgeConfig, progress: Callable[[int, int], object] = lambda done, total: None
) -> FactStoreBuildResult:
    """Add the facts of ``config.source`` to the store, or update them. Other facts of the store stay.

    It continues where a build that was stopped ended: a fact that is there with the same text is not encoded again.

    Raises:
        KnowledgeError: no store is named, a file of the source cannot be read, or the store has vectors of another
            encoder.
    """
    if not config.store:
        raise KnowledgeError("knowledge.store is not set; name the folder of the store that is to be built")
    encoder = open_encoder(config.encoder) if config.encoder else None
    identity, width = (encoder.identity, encoder.width) if encoder else ("", 0)
    store = FactStore.create(config.store, identity, width)
    known = store.texts_by_id()
    source: SourcePart = config.source
    facts, splits, bad = _separate_facts_from_bad_lines(source)
    missing_facts = [fact for fact in facts.values() if known.get(fact.id) != fact.text]
    if bad:
        store.put_bad_lines(bad, source.title())
    done = 0
    for batch, vectors_MF in _encode_facts_in_batches(missing_facts, config):
        store.put(batch, vectors_MF, [splits[fact.id] for fact in batch])
        done += len(batch)
        progress(done, len(missing_facts))
    faults = Counter(str(line.fault) for line in bad)
    return FactStoreBuildResult(store.version, done, len(facts) - len(missing_facts), faults)


def _separate_facts_from_bad_lines(source: SourcePart) -> tuple[dict[str, Fact], dict[str, str], list[BadLine]]:
    """Read a source: its valid facts by id, their splits, and the invalid lines."""
    facts: dict[str, Fact] = {}
    splits: dict[str, str] = {}
    bad: list[BadLine] = []
    title = source.title()
    for number, triple in enumerate(source.read(), 1):
        if isinstance(triple, BadLine):
            bad.append(triple)
            continue
        fact = triple_to_fact(triple, title, source.phrases)
        fault = find_triple_fault(triple) or (FactFault.DUPLICATE if fact.id in facts else None)
        if fault is not None:
            bad.append(BadLine(f"triple {number}", fault, "\t".join((triple.head, triple.relation, triple.tail))))
            continue
        facts[fact.id], splits[fact.id] = fact, triple.split
    return facts, splits, bad


def _encode_facts_in_batches(facts: list[Fact], config: KnowledgeConfig) -> Iterator[tuple[list[Fact], Any]]:
    """Yield batches of facts with their vectors, in order."""
    rest = iter(facts)
    if not config.encoder:
        while batch := list(islice(rest, config.batch)):
            yield batch, None
        return
    if not facts:
        return
    count = max(1, -(-len(facts) // config.batch))
    rows = [{"number": n, "texts": [f.text for f in facts[n * config.batch : (n + 1) * config.batch]]}
            for n in range(count)]  # fmt: skip
    encoded = ray.data.from_items(rows, override_num_blocks=count).map(
        _EncodeFactsActor,  # type: ignore[arg-type]  # a class, of which each actor makes one
        fn_constructor_args=(config.encoder,),
        compute=ActorPoolStrategy(size=config.workers),
        num_cpus=1,
    )
    for row in encoded.iter_rows():
        number = int(row["number"])
        yield facts[number * config.batch : (number + 1) * config.batch], np.asarray(row["vectors_MF"], np.float32)


class _EncodeFactsActor:
    """A Ray Data actor that holds a copy of the encoder."""

    def __init__(self, folder: str) -> None:
        self._encoder = open_encoder(folder)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return {"number": row["number"], "vectors_MF": self._encoder.encode(list(row["texts"]))}
