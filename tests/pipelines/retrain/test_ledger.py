"""The ledger: what it says after any step, one writer at a time, and records that were tampered with."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from pipelines.retrain.errors import RetrainError, RetrainingBusyError
from pipelines.retrain.ledger import STEPS, IncomingTar, RetrainCycle, RetrainLedger

MONDAY, TUESDAY = "20260105T0000Z", "20260106T0000Z"


def tar(number: int) -> IncomingTar:
    return IncomingTar(f"{number}.tar", number, f"{number}.5", f"{number:064x}")


def finish(ledger: RetrainLedger, cycle: RetrainCycle) -> RetrainCycle:
    while not cycle.is_committed:
        cycle = ledger.record_step(cycle, {"step": cycle.next_step})
    return cycle


@pytest.fixture
def ledger(tmp_path: Path) -> RetrainLedger:
    return RetrainLedger(tmp_path / "ledger")


def test_a_new_ledger_is_empty(ledger: RetrainLedger) -> None:
    assert ledger.cycles() == []
    assert ledger.unfinished_cycle() is None
    assert ledger.consumed_tars() == {}


def test_each_step_is_read_back_and_tars_are_consumed_with_the_last(ledger: RetrainLedger) -> None:
    cycle = ledger.begin_cycle(MONDAY, [tar(1), tar(2)])
    for step in STEPS[1:]:
        assert ledger.consumed_tars() == {}
        assert ledger.unfinished_cycle() == cycle
        assert cycle.next_step == step
        cycle = ledger.record_step(cycle, {"found": {"by": step}})
        assert cycle.last_step == step
        assert ledger.cycles() == [cycle]
        assert cycle.records[step]["found"] == {"by": step}
    assert ledger.consumed_tars() == {tar(1): MONDAY, tar(2): MONDAY}
    assert ledger.unfinished_cycle() is None


def test_watermark_depends_on_consumed_tars_not_on_their_order(tmp_path: Path) -> None:
    one, other = RetrainLedger(tmp_path / "one"), RetrainLedger(tmp_path / "other")
    before = one.digest_of_consumed_tars()
    finish(one, one.begin_cycle(MONDAY, [tar(1), tar(2)]))
    finish(other, other.begin_cycle(MONDAY, [tar(2)]))
    assert len({before, one.digest_of_consumed_tars(), other.digest_of_consumed_tars()}) == 3
    finish(other, other.begin_cycle(TUESDAY, [tar(1)]))
    assert one.digest_of_consumed_tars() == other.digest_of_consumed_tars()


def test_second_writer_is_detected_before_it_commits(ledger: RetrainLedger) -> None:
    """On a file system whose locks do nothing two cycles could be planned over the same tars."""
    cycle = ledger.begin_cycle(MONDAY, [tar(1)])
    for _ in STEPS[1:-1]:
        cycle = ledger.record_step(cycle, {})
    other = RetrainLedger(ledger.path)
    (ledger.path / MONDAY).rename(ledger.path / "hidden")
    finish(other, other.begin_cycle(TUESDAY, [tar(1)]))
    (ledger.path / "hidden").rename(ledger.path / MONDAY)
    with pytest.raises(RetrainError, match=r"planned before another cycle was committed.*retrain.ledger"):
        ledger.record_step(cycle, {})
    assert ledger.consumed_tars() == {tar(1): TUESDAY}


def test_abandoned_cycle_frees_its_tars(ledger: RetrainLedger) -> None:
    cycle = ledger.record_step(ledger.begin_cycle(MONDAY, [tar(1)]), {})
    ledger.abandon_cycle(cycle)
    assert ledger.unfinished_cycle() is None
    again = ledger.begin_cycle(MONDAY, [tar(1)])
    assert (again.id, again.window) == (f"{MONDAY}-2", MONDAY)
    ledger.abandon_cycle(ledger.record_step(again, {}))
    assert finish(ledger, ledger.begin_cycle(MONDAY, [tar(1)])).id == f"{MONDAY}-3"
    assert ledger.consumed_tars() == {tar(1): f"{MONDAY}-3"}


def damaged(ledger: RetrainLedger) -> None:
    (ledger.path / MONDAY / "1-checked.json").write_text('{"half')


def missing(ledger: RetrainLedger) -> None:
    (ledger.path / MONDAY / "1-checked.json").unlink()


@pytest.mark.parametrize(
    ("spoil", "says"),
    [(damaged, "1-checked.json cannot be read"), (missing, "has 2-trained.json and no 1-checked.json")],
)
def test_a_spoiled_record_is_named(ledger: RetrainLedger, spoil: Callable[[RetrainLedger], None], says: str) -> None:
    ledger.record_step(ledger.record_step(ledger.begin_cycle(MONDAY, [tar(1)]), {}), {})
    spoil(ledger)
    with pytest.raises(RetrainError, match=says):
        ledger.unfinished_cycle()


def hold(path: Path, holds: Event) -> None:
    with RetrainLedger(path).hold_lock():
        holds.set()
        multiprocessing.Event().wait()


def test_lock_excludes_others_and_ends_with_its_process(ledger: RetrainLedger) -> None:
    context = multiprocessing.get_context("spawn")
    holds = context.Event()
    holder = context.Process(target=hold, args=(ledger.path, holds))
    holder.start()
    assert holds.wait(60)
    with pytest.raises(RetrainingBusyError, match="another cycle is at work"), ledger.hold_lock():
        pass
    holder.kill()
    holder.join()
    with ledger.hold_lock():
        pass
