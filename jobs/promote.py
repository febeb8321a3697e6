"""Make a model the champion if the gate agrees: better than the question alone, no worse than the champion."""

from __future__ import annotations

import sys

from jobs import runs
from jobs.config import JobConfig
from jobs.job import main
from pipelines.registry.errors import RegistryError
from pipelines.registry.gate import Decision, decide
from pipelines.registry.registry import Registry


def run(config: JobConfig) -> Decision:
    """Judge the version that ``evaluate.model`` means ("" is the run's newest) and set the alias if it passes."""
    registry = Registry.open(config.tracking, runs.storage(config), config.registry)
    candidate = registry.version(config.evaluate.model) if config.evaluate.model else registry.newest(config.name)
    if candidate is None or candidate.score is None:
        raise RegistryError(f"run {config.name!r} has registered no scored model; run the train job first")
    champion = registry.find()
    decision = decide(candidate.score, champion.score if champion else None, config.registry.margin)
    if decision.promote:
        registry.promote(candidate.version, decision.reason)
    verdict = "is the champion" if decision.promote else "was not promoted"
    print(f"{candidate.name} version {candidate.version} {verdict}: {decision.reason}", flush=True)
    return decision


if __name__ == "__main__":
    sys.exit(main(run, "promote"))
