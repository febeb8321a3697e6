"""The order of a cycle's steps, and what a start in a window does: continue, begin, or nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pipelines.retrain.ledger import Cycle, Facts, Ledger, Tar

Step = Callable[[Cycle], Facts]
"""Does one step of a cycle and returns what it found. It is done again where it was killed, or its record not written,
and must then come to the same."""


@dataclass(frozen=True)
class Outcome:
    """What a start in a window came to.

    Attributes:
        finished: the cycles that it committed: one that an earlier start had begun, its own, both or neither.
        reason: why it began none of its own, "" where it did.
    """

    finished: tuple[Cycle, ...]
    reason: str


def run_window(
    ledger: Ledger,
    window: str,
    find: Callable[[], Sequence[Tar]],
    steps: Mapping[str, Step],
    *,
    min_tars: int = 1,
    abandon: bool = False,
    dropped: Callable[[Cycle], None] = lambda cycle: None,
    report: Callable[[str], None] = lambda line: None,
) -> Outcome:
    """Finish the cycle that an earlier start began, then, unless this window has had its cycle, consume what is new.

    A cycle whose data have not passed their check is planned anew: nothing was made of them, and they may have been
    mended.

    Args:
        find: the tars that no cycle has consumed.
        steps: what each of the ``STEPS`` after "planned" does.
        min_tars: fewer new tars are left to a later window.
        abandon: give an unfinished cycle up instead of continuing it.
        dropped: called with a cycle that was forgotten or given up.
        report: told what happens.
    """
    finished = []
    if (before := ledger.unfinished()) is not None:
        if abandon or before.done == "planned":
            (ledger.discard if before.done == "planned" else ledger.abandon)(before)
            dropped(before)
        else:
            report(f"continues cycle {before.id}, which is {before.done}")
            finished.append(_advance(ledger, before, steps, report))
    if own := [cycle for cycle in ledger.committed() if cycle.window == window]:
        return Outcome(tuple(finished), f"window {window} has had its cycle ({own[-1].id})")
    new = find()
    if len(new) < min_tars:
        return Outcome(tuple(finished), f"{len(new)} new tars, and a cycle begins with {min_tars}")
    cycle = ledger.plan(window, new)
    report(f"begins cycle {cycle.id} with {len(new)} new tars")
    return Outcome((*finished, _advance(ledger, cycle, steps, report)), "")


def _advance(ledger: Ledger, cycle: Cycle, steps: Mapping[str, Step], report: Callable[[str], None]) -> Cycle:
    while not cycle.committed:
        cycle = ledger.record(cycle, steps[cycle.next](cycle))
        report(f"cycle {cycle.id} is {cycle.done}")
    return cycle
