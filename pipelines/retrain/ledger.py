"""Records retraining cycles: the tars of each cycle, its finished steps, and their results.

    LEDGER/
        20260131T0000Z/         a cycle, named by its window
            0-planned.json      the tars that it consumes: name, size, sha256 ...
            1-checked.json      ... then one file a step, written as a whole when the step is done, never changed
            6-committed.json    the cycle is over, and its tars are consumed
        _abandoned/             cycles that were abandoned

A tar is identified by its content. A cycle takes only tars that no committed cycle has, and there is never more than
one uncommitted cycle: so exactly one cycle consumes each tar, whichever process is killed at any time. The watermark, a
digest of all consumed tars, is written into a plan and compared at its commit. This detects a second writer, which is
possible on a file system without working locks, before it consumes anything.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipelines.retrain.errors import RetrainError, RetrainingBusyError
from pipelines.retrain.window import PATTERN
from pipelines.storage.folder import StorageFolder
from pipelines.storage.lock import hold_lock

STEPS = ("planned", "checked", "trained", "evaluated", "gated", "swapped", "committed")

_ABANDONED = "_abandoned"

Facts = Mapping[str, Any]


@dataclass(frozen=True)
class IncomingTar:
    """A new tar, identified by its content.

    Attributes:
        name: in the folder of incoming tars.
        stamp: see ``FileStamp``; a file with the same name, size and stamp is not read again.
    """

    name: str
    size: int
    stamp: str
    sha256: str


@dataclass(frozen=True)
class RetrainCycle:
    """A retraining cycle with its finished steps.

    Attributes:
        id: its window, with ``-2`` and so on if earlier cycles of that window were abandoned.
        records: the results of each finished step, in the order of the steps.
    """

    id: str
    records: Mapping[str, Facts]

    @property
    def window(self) -> str:
        return self.id.partition("-")[0]

    @property
    def last_step(self) -> str:
        """The last finished step of a retraining cycle."""
        return STEPS[len(self.records) - 1]

    @property
    def next_step(self) -> str:
        """The next step of a retraining cycle that is not committed yet."""
        return STEPS[len(self.records)]

    @property
    def is_committed(self) -> bool:
        return len(self.records) == len(STEPS)

    @property
    def tars(self) -> list[IncomingTar]:
        return [IncomingTar(**tar) for tar in self.records["planned"]["tars"]]


class RetrainLedger:
    """The record of all retraining cycles in a folder. All methods but ``hold_lock`` require the lock."""

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder).absolute()
        self._folder = StorageFolder(self.path)

    @contextmanager
    def hold_lock(self) -> Iterator[None]:
        """Hold the ledger's lock while the block runs. The operating system frees the lock of a process that dies.

        Raises:
            RetrainingBusyError: another process holds it.
        """
        busy = RetrainingBusyError(f"another cycle is at work with the ledger {self.path}")
        with hold_lock(self.path / ".lock", busy):
            yield

    def cycles(self) -> list[RetrainCycle]:
        """Return all cycles that were not abandoned, in the order of their time windows.

        Raises:
            RetrainError: a record is missing or cannot be read.
        """
        if not self.path.is_dir():
            return []
        folders = [path for path in self.path.iterdir() if path.is_dir() and re.match(PATTERN, path.name)]
        cycles = [self._read_cycle(folder) for folder in folders]
        return sorted((cycle for cycle in cycles if cycle.records), key=lambda cycle: _cycle_sort_key(cycle.id))

    def unfinished_cycle(self) -> RetrainCycle | None:
        """Return the uncommitted cycle; there is never more than one."""
        return next((cycle for cycle in self.cycles() if not cycle.is_committed), None)

    def committed_cycles(self) -> list[RetrainCycle]:
        """Return the committed cycles, in the order of their time windows."""
        return [cycle for cycle in self.cycles() if cycle.is_committed]

    def consumed_tars(self) -> dict[IncomingTar, str]:
        """Map each consumed tar to the cycle that consumed it."""
        return {tar: cycle.id for cycle in self.committed_cycles() for tar in cycle.tars}

    def digest_of_consumed_tars(self) -> str:
        """Compute a digest of the contents of all consumed tars."""
        return hashlib.sha256("\n".join(sorted(tar.sha256 for tar in self.consumed_tars())).encode()).hexdigest()

    def begin_cycle(self, window: str, tars: Sequence[IncomingTar]) -> RetrainCycle:
        """Begin the retraining cycle of a time window."""
        assert self.unfinished_cycle() is None
        attempts = len(list((self.path / _ABANDONED).glob(f"{window}*")))
        cycle = RetrainCycle(f"{window}-{attempts + 1}" if attempts else window, {})
        facts = {"tars": [asdict(tar) for tar in tars], "watermark": self.digest_of_consumed_tars()}
        return self.record_step(cycle, facts)

    def record_step(self, cycle: RetrainCycle, facts: Facts) -> RetrainCycle:
        """Record the results (plain JSON values) of the next step of a cycle.

        Raises:
            RetrainError: at the commit, if another cycle was committed since this one was planned.
        """
        step = cycle.next_step
        if step == "committed" and cycle.records["planned"]["watermark"] != self.digest_of_consumed_tars():
            raise RetrainError(
                f"cycle {cycle.id} was planned before another cycle was committed; two have used the ledger "
                f"{self.path} at one time, so its file system has no locks: set retrain.ledger to a folder on one "
                "that has, and give this cycle up with --abandon"
            )
        record = {"at": datetime.now(UTC).isoformat(timespec="seconds"), **facts}
        self._folder.write(f"{cycle.id}/{_step_file(step)}", json.dumps(record, indent=1, sort_keys=True).encode())
        return RetrainCycle(cycle.id, {**cycle.records, step: json.loads(json.dumps(record))})

    def discard_planned_cycle(self, cycle: RetrainCycle) -> None:
        """Delete a retraining cycle that was planned and has no further steps."""
        assert cycle.last_step == "planned"
        shutil.rmtree(self.path / cycle.id)

    def abandon_cycle(self, cycle: RetrainCycle) -> None:
        """Move the records of an unfinished cycle aside; its tars are new again."""
        assert not cycle.is_committed
        aside = self.path / _ABANDONED
        aside.mkdir(exist_ok=True)
        os.rename(self.path / cycle.id, aside / cycle.id)

    def _read_cycle(self, folder: Path) -> RetrainCycle:
        records: dict[str, Facts] = {}
        names = {file.name for file in folder.iterdir() if file.suffix == ".json"}
        for step in STEPS:
            if _step_file(step) not in names:
                break
            try:
                records[step] = json.loads((folder / _step_file(step)).read_bytes())
            except ValueError as error:
                raise RetrainError(
                    f"{folder / _step_file(step)} cannot be read ({error}); restore it, or, to have that step done "
                    "again, delete it and the records of later steps"
                ) from None
        if later := sorted(names - {_step_file(step) for step in records}):
            missing = _step_file(STEPS[len(records)])
            raise RetrainError(f"{folder} has {later[0]} and no {missing}; restore that, or delete what comes after it")
        return RetrainCycle(folder.name, records)


def _step_file(step: str) -> str:
    return f"{STEPS.index(step)}-{step}.json"


def _cycle_sort_key(cycle: str) -> tuple[str, int]:
    window, _, attempt = cycle.partition("-")
    return window, int(attempt or 1)
