"""Audits a training's ledger without the training's own code: was each sample seen exactly once an epoch?

    python tests/faults/ledger.py build/runs/NAME/ledger SAMPLES EPOCHS

A worker that died leaves its file, and the one that took over writes again the steps since the last checkpoint. What
counts for a step is what the workers that were started last wrote, however many they are; what was written before must
have been of the same samples, since the update that it led to was undone and done again.
"""

from __future__ import annotations

import json
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

Sample = tuple[int, int, int]
"""Epoch, shard, row."""


@dataclass(frozen=True)
class Audit:
    """What the ledger says.

    Attributes:
        steps: the samples of each global step, by the workers that count, in the order of their ranks.
        replayed: (step, rank) pairs that were run more than once.
        faults: everything that is wrong, as sentences; empty for a sound training.
    """

    steps: dict[int, list[Sample]]
    replayed: int
    faults: list[str]


@dataclass(frozen=True)
class _Worker:
    started: int
    rank: int
    world: int


def audit(folder: Path, samples: int, epochs: int) -> Audit:
    """Check the ledger of a finished training over ``samples`` samples and ``epochs`` epochs."""
    by_step = _read(folder)
    faults, replayed = [], 0
    steps: dict[int, list[Sample]] = {}
    for step, written in sorted(by_step.items()):
        last = max(written, key=lambda worker: worker.started)
        steps[step] = []
        for rank in range(last.world):
            of_rank = [worker for worker in written if (worker.rank, worker.world) == (rank, last.world)]
            if not of_rank:
                faults.append(f"step {step}: rank {rank} of {last.world} is missing")
                continue
            steps[step] += written[max(of_rank, key=lambda worker: worker.started)]
            if len({tuple(written[worker]) for worker in of_rank}) > 1:
                faults.append(f"step {step}, rank {rank}: a replay saw other samples")
        runs = Counter(worker.rank for worker in written)
        replayed += sum(n > 1 for n in runs.values())
        if strange := {sample for seen in written.values() for sample in seen} - set(steps[step]):
            faults.append(f"step {step}: {len(strange)} samples were seen only before it was run again")

    if list(steps) != list(range(len(steps))):
        faults.append(f"steps are missing: {sorted(set(range(max(steps) + 1)) - set(steps))[:5]}")
    for epoch in range(epochs):
        counts = Counter(sample[1:] for seen in steps.values() for sample in seen if sample[0] == epoch)
        twice = [sample for sample, n in counts.items() if n > 1]
        if twice:
            faults.append(f"epoch {epoch}: {len(twice)} samples seen more than once, such as {twice[0]}")
        if len(counts) != samples:
            faults.append(f"epoch {epoch}: {len(counts)} of {samples} samples seen")
    return Audit(steps, replayed, faults)


def _read(folder: Path) -> dict[int, dict[_Worker, list[Sample]]]:
    """The samples of each step, by the worker that used them."""
    found: defaultdict[int, defaultdict[_Worker, list[Sample]]] = defaultdict(lambda: defaultdict(list))
    for file in folder.glob("*.jsonl"):
        started = int(file.stem.split("-")[1])
        for line in file.read_text().splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue  # the last line of a worker that was killed while it wrote
            seen = zip(row["epoch"], row["shard"], row["row"], strict=True)
            # Several lines of one step, with accumulation.
            found[row["step"]][_Worker(started, row["rank"], row["world"])] += seen
    return {step: dict(workers) for step, workers in found.items()}


if __name__ == "__main__":
    found = audit(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    print(
        f"{len(found.steps)} steps, {found.replayed} replayed; "
        + ("; ".join(found.faults) or "every sample once an epoch")
    )
    sys.exit(bool(found.faults))
