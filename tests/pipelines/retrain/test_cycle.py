"""Windows, kills and overlaps: whatever happens, each tar is consumed by exactly one committed cycle."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.retrain.cycle import WindowOutcome, run_retraining_window
from pipelines.retrain.ledger import STEPS, Facts, IncomingTar, RetrainCycle, RetrainLedger


class KilledError(BaseException):
    """As a SIGKILL: nothing may catch it."""


class World:
    """An incoming folder, and steps that leave a trace outside the ledger as real ones do."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.tars = folder, list[IncomingTar]()
        self.done, self.dropped = list[tuple[str, str]](), list[str]()
        self.kill_before: str | None = None
        self.kill_after: str | None = None

    @property
    def ledger(self) -> RetrainLedger:
        return RetrainLedger(self.folder)

    def drop(self, count: int) -> None:
        first = len(self.tars)
        self.tars += [IncomingTar(f"{n}.tar", n, "", f"{n:064x}") for n in range(first, first + count)]

    def find(self) -> Sequence[IncomingTar]:
        consumed = {tar.sha256 for tar in self.ledger.consumed_tars()}
        return [tar for tar in self.tars if tar.sha256 not in consumed]

    def step(self, name: str) -> Callable[[RetrainCycle], Facts]:
        def run(cycle: RetrainCycle) -> Facts:
            if self.kill_before == name:
                raise KilledError
            self.done.append((cycle.id, name))
            if self.kill_after == name:
                raise KilledError
            return {"tars": [tar.name for tar in cycle.tars]}

        return run

    def start(
        self, window: int, kill_before: str | None = None, kill_after: str | None = None, **more
    ) -> WindowOutcome:
        self.kill_before, self.kill_after = kill_before, kill_after
        steps = {name: self.step(name) for name in STEPS[1:]}
        with self.ledger.hold_lock():
            return run_retraining_window(
                self.ledger, f"202601{window:02d}T0000Z", self.find, steps,
                dropped=lambda cycle: self.dropped.append(cycle.id), **more,
            )  # fmt: skip

    def consumers(self) -> Counter[str]:
        """How many committed cycles each tar is in."""
        return Counter(tar.sha256 for cycle in self.ledger.committed_cycles() for tar in cycle.tars)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "ledger")


def test_a_cycle_does_each_step_once_in_order(world: World) -> None:
    world.drop(3)
    outcome = world.start(1)
    (cycle,) = outcome.finished
    assert not outcome.reason
    assert [step for _, step in world.done] == list(STEPS[1:])
    assert [tar.name for tar in cycle.tars] == ["0.tar", "1.tar", "2.tar"]


def test_the_same_window_twice_is_one_cycle(world: World) -> None:
    world.drop(1)
    world.start(1)
    world.drop(1)
    before = list(world.done)
    again = world.start(1)
    assert again.finished == ()
    assert again.reason == "window 20260101T0000Z has had its cycle (20260101T0000Z)"
    assert world.done == before
    assert len(world.start(2).finished) == 1


def test_nothing_new_is_no_cycle(world: World) -> None:
    world.drop(1)
    world.start(1)
    assert "0 new tars" in world.start(2).reason
    world.drop(1)
    assert "1 new tars, and a cycle begins with 2" in world.start(3, min_tars=2).reason
    assert len(world.ledger.cycles()) == 1


def test_missed_windows_are_made_up_by_one_cycle(world: World) -> None:
    world.drop(1)
    world.start(1)
    world.drop(1)  # in window 2, then 3 and 4, in none of which anything ran
    world.drop(1)
    world.drop(1)
    world.start(5)
    assert [(cycle.id, len(cycle.tars)) for cycle in world.ledger.cycles()] == [
        ("20260101T0000Z", 1),
        ("20260105T0000Z", 3),
    ]


@pytest.mark.parametrize("when", ["kill_before", "kill_after"])
@pytest.mark.parametrize("step", STEPS[1:])
def test_a_killed_cycle_continues_where_it_was(world: World, step: str, when: str) -> None:
    world.drop(2)
    with pytest.raises(KilledError):
        world.start(1, **{when: step})
    world.drop(1)
    world.start(1)
    kept = [name for _, name in world.done]
    twice = {step} if when == "kill_after" else set()
    assert kept == [name for name in STEPS[1:] for _ in range(2 if name in twice else 1)]
    (cycle,) = world.ledger.cycles()
    # What has not passed its check is planned anew, and takes what has come since.
    assert len(cycle.tars) == (3 if step == "checked" else 2)
    assert world.dropped == ([cycle.id] if step == "checked" else [])


def test_a_later_window_finishes_the_killed_cycle_and_then_its_own(world: World) -> None:
    world.drop(1)
    with pytest.raises(KilledError):
        world.start(1, kill_after="trained")
    world.drop(1)
    finished = world.start(2).finished
    assert [(cycle.id, [tar.name for tar in cycle.tars]) for cycle in finished] == [
        ("20260101T0000Z", ["0.tar"]),
        ("20260102T0000Z", ["1.tar"]),
    ]


def test_a_cycle_that_cannot_be_finished_is_given_up(world: World) -> None:
    world.drop(1)
    with pytest.raises(KilledError):
        world.start(1, kill_before="evaluated")
    (cycle,) = world.start(1, abandon=True).finished
    assert cycle.id == "20260101T0000Z-2"
    assert world.dropped == ["20260101T0000Z"]
    assert set(world.consumers().values()) == {1}


KILLS = st.one_of(st.none(), st.tuples(st.sampled_from(["kill_before", "kill_after"]), st.sampled_from(STEPS[1:])))
STARTS = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 3), KILLS, st.sampled_from([False, False, False, True])), max_size=12
)


@settings(deadline=None, max_examples=60)
@given(STARTS)
def test_every_tar_is_consumed_exactly_once(starts: list[tuple[int, int, tuple[str, str] | None, bool]]) -> None:
    with TemporaryDirectory() as folder:
        world, window = World(Path(folder) / "ledger"), 1
        for passed, dropped, kill, abandon in starts:
            window += passed
            world.drop(dropped)
            with contextlib.suppress(KilledError):
                world.start(window, **dict([kill] if kill else []), abandon=abandon)
            assert set(world.consumers().values()) <= {1}
            assert sum(not cycle.is_committed for cycle in world.ledger.cycles()) <= 1
        world.start(window + 1)
        assert world.consumers() == Counter(tar.sha256 for tar in world.tars)
        # No commit without every step of its own.
        for cycle in world.ledger.committed_cycles():
            assert {name for id_, name in world.done if id_ == cycle.id} == set(STEPS[1:])
