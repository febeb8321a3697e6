"""Runs retraining cycles: a start of the job within a time window continues a cycle, begins one, or does nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pipelines.retrain.ledger import Facts, IncomingTar, RetrainCycle, RetrainLedger

Step = Callable[[RetrainCycle], Facts]
"""Does one step of a cycle and returns its results. It is repeated if the process was killed before its record was
written, and must then return the same."""


@dataclass(frozen=True)
class WindowOutcome:
    """What a start of the retraining job did in its time window.

    Attributes:
        finished: the cycles that it committed: one that an earlier start began, its own, both or neither.
        reason: why it began none of its own, "" if it did.
    """

    finished: tuple[RetrainCycle, ...]
    reason: str


def run_retraining_window(
    ledger: RetrainLedger,
    window: str,
    find: Callable[[], Sequence[IncomingTar]],
    steps: Mapping[str, Step],
    *,
    min_tars: int = 1,
    abandon: bool = False,
    dropped: Callable[[RetrainCycle], None] = lambda cycle: None,
    report: Callable[[str], None] = lambda line: None,
) -> WindowOutcome:
    """Finish the retraining cycle that an earlier start began; then, unless this time window already had its cycle,
    begin one with the new tars.

    A cycle whose data have not passed their check is planned again: nothing was made of them, and they may have been
    corrected.

    Args:
        find: returns the tars that no cycle has consumed.
        steps: one for each of the ``STEPS`` after "planned".
        min_tars: fewer new tars are left for a later window.
        abandon: abandon an unfinished cycle instead of continuing it.
        dropped: called with a cycle that was discarded or abandoned.
        report: called with lines that say what happens.
    """
    finished = []
    if (unfinished := ledger.unfinished_cycle()) is not None:
        if abandon or unfinished.last_step == "planned":
            (ledger.discard_planned_cycle if unfinished.last_step == "planned" else ledger.abandon_cycle)(unfinished)
            dropped(unfinished)
        else:
            report(f"continues cycle {unfinished.id}, which is {unfinished.last_step}")
            finished.append(_run_remaining_steps(ledger, unfinished, steps, report))
    if finished_here := [cycle for cycle in ledger.committed_cycles() if cycle.window == window]:
        return WindowOutcome(tuple(finished), f"window {window} has had its cycle ({finished_here[-1].id})")
    new = find()
    if len(new) < min_tars:
        return WindowOutcome(tuple(finished), f"{len(new)} new tars, and a cycle begins with {min_tars}")
    cycle = ledger.begin_cycle(window, new)
    report(f"begins cycle {cycle.id} with {len(new)} new tars")
    return WindowOutcome((*finished, _run_remaining_steps(ledger, cycle, steps, report)), "")


def _run_remaining_steps(
    ledger: RetrainLedger, cycle: RetrainCycle, steps: Mapping[str, Step], report: Callable[[str], None]
) -> RetrainCycle:
    while not cycle.is_committed:
        cycle = ledger.record_step(cycle, steps[cycle.next_step](cycle))
        report(f"cycle {cycle.id} is {cycle.last_step}")
    return cycle
