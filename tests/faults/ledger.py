"""Audits a training's ledger without the training's own code: was each sample seen exactly once an epoch?

    python tests/faults/ledger.py build/runs/NAME/ledger SAMPLES EPOCHS

A worker that died leaves its file, and the one that took over writes again the steps since the last checkpoint. What
counts for a step is what was written last; what was written before must have been the same samples, since the update
that it led to was undone and done again.
"""

from __future__ import annotations

import json
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Audit:
    """What the ledger says.

    Attributes:
        steps: global steps recorded.
        replayed: (step, rank) pairs that were run more than once.
        faults: everything that is wrong, as sentences; empty for a sound training.
    """

    steps: int
    replayed: int
    faults: list[str]


def audit(folder: Path, samples: int, epochs: int) -> Audit:
    """Check the ledger of a finished training over ``samples`` samples and ``epochs`` epochs."""
    entries: defaultdict[tuple[int, int], list[tuple[int, list[tuple[int, int, int]]]]] = defaultdict(list)
    for file in folder.glob("*.jsonl"):
        started = int(file.stem.split("-")[1])
        for line in file.read_text().splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue  # the last line of a worker that was killed while it wrote
            seen = list(zip(row["epoch"], row["shard"], row["row"], strict=True))
            entries[row["step"], row["rank"]].append((started, seen))

    faults, replayed = [], 0
    by_step: defaultdict[int, list[tuple[int, int, int]]] = defaultdict(list)
    for (step, rank), written in sorted(entries.items()):
        by_process: defaultdict[int, list[tuple[int, int, int]]] = defaultdict(list)
        for started, seen in written:
            by_process[started] += seen  # several parts of one step, with accumulation
        replayed += len(by_process) > 1
        if len({tuple(seen) for seen in by_process.values()}) > 1:
            faults.append(f"step {step}, rank {rank}: a replay saw other samples")
        by_step[step] += by_process[max(by_process)]

    steps = sorted(by_step)
    if steps != list(range(len(steps))):
        faults.append(f"steps are missing: {sorted(set(range(steps[-1] + 1)) - set(steps))[:5]}")
    for epoch in range(epochs):
        counts = Counter(
            (shard, row) for seen in by_step.values() for seen_epoch, shard, row in seen if seen_epoch == epoch
        )
        twice = [sample for sample, n in counts.items() if n > 1]
        if twice:
            faults.append(f"epoch {epoch}: {len(twice)} samples seen more than once, such as {twice[0]}")
        if len(counts) != samples:
            faults.append(f"epoch {epoch}: {len(counts)} of {samples} samples seen")
    return Audit(len(steps), replayed, faults)


if __name__ == "__main__":
    found = audit(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    print(
        f"{found.steps} steps, {found.replayed} replayed; " + ("; ".join(found.faults) or "every sample once an epoch")
    )
    sys.exit(bool(found.faults))
