"""The order of samples: a permutation each epoch, seekable, the same at any number of workers."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.data.stream.plan import (
    ShufflePlan,
    StepSchedule,
    derive_seed,
    samples_per_micro_batch,
    split_into_batches,
)

sizes = st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(lambda counts: sum(counts) > 0)


def plan(counts: list[int], seed: int = 0, window: int = 16, **more: object) -> ShufflePlan:
    return ShufflePlan("an index", np.array(counts), seed, window, **more)  # type: ignore[arg-type]


def pairs(indices) -> list[tuple[int, int, int]]:
    return list(zip(indices.epoch.tolist(), indices.shard.tolist(), indices.row.tolist(), strict=True))


@settings(deadline=None)
@given(sizes, st.integers(0, 5), st.integers(1, 60), st.integers(0, 3), st.integers(1, 9))
def test_every_epoch_holds_every_sample_once(counts: list[int], seed: int, window: int, epoch: int, block: int) -> None:
    p = plan(counts, seed, window, block=block)
    indices = p.samples_between(epoch * p.size, (epoch + 1) * p.size)
    everything = [(epoch, shard, row) for shard, n in enumerate(counts) for row in range(n)]
    assert sorted(pairs(indices)) == everything


@settings(deadline=None)
@given(sizes, st.integers(2, 9))
def test_blocks_stay_together(counts: list[int], block: int) -> None:
    p = plan(counts, window=10_000, block=block)
    order = pairs(p.samples_between(0, p.size))
    for (_, shard, row), (_, next_shard, next_row) in itertools.pairwise(order):
        if (row + 1) % block and row + 1 < counts[shard]:
            assert (next_shard, next_row) == (shard, row + 1)


@settings(deadline=None)
@given(sizes, st.data())
def test_any_position_can_be_sought_directly(counts: list[int], data: st.DataObject) -> None:
    p = plan(counts, window=7)
    whole = pairs(p.samples_between(0, 2 * p.size))
    start = data.draw(st.integers(0, 2 * p.size))
    stop = data.draw(st.integers(start, 2 * p.size))
    assert pairs(plan(counts, window=7).samples_between(start, stop)) == whole[start:stop]


@settings(deadline=None)
@given(sizes, st.integers(1, 20), st.integers(1, 3), st.data())
def test_workers_and_accumulation_change_nothing_but_the_cut(
    counts: list[int], batch: int, epochs: int, data: st.DataObject
) -> None:
    schedule = StepSchedule(plan(counts), batch, epochs)
    step = data.draw(st.integers(0, schedule.step_count - 1))
    whole = pairs(schedule.samples_of_part(step, 0, 1))
    assert len(whole) == schedule.count_step_samples(step)
    for parts in (2, 3, 8):
        cut = [pairs(schedule.samples_of_part(step, number, parts)) for number in range(parts)]
        assert [sample for part in cut for sample in part] == whole
        assert max(map(len, cut)) - min(map(len, cut)) <= 1


@settings(deadline=None)
@given(sizes, st.integers(1, 20), st.integers(1, 3))
def test_all_steps_together_are_the_epochs(counts: list[int], batch: int, epochs: int) -> None:
    schedule = StepSchedule(plan(counts), batch, epochs)
    seen = [sample for step in range(schedule.step_count) for sample in pairs(schedule.samples_of_part(step, 0, 1))]
    assert len(seen) == len(set(seen)) == schedule.plan.size * epochs
    assert schedule.epochs_done(schedule.step_count) == epochs


def test_the_order_is_stable_for_ever() -> None:
    """Written down once: a changed order would break the resume of every running training."""
    indices = plan([3, 0, 2, 4], seed=7, window=5).samples_between(0, 9)
    assert pairs(indices) == ORDER_OF_SEED_7


ORDER_OF_SEED_7 = [(0, s, r) for s, r in [(3, 3), (0, 0), (3, 1), (3, 0), (0, 2), (3, 2), (0, 1), (2, 1), (2, 0)]]


@pytest.mark.parametrize("change", [{"identity": "other"}, {"seed": 1}, {"window": 10}, {"block": 3}])
def test_order_depends_on_identity_seed_and_window(change: dict[str, object]) -> None:
    arguments = {"identity": "an index", "counts": np.array([30, 30, 30]), "seed": 0, "window": 40}
    one, other = ShufflePlan(**arguments), ShufflePlan(**{**arguments, **change})  # type: ignore[arg-type]
    assert one != other
    assert pairs(one.samples_between(0, 90)) != pairs(other.samples_between(0, 90))


def test_epochs_differ_and_evaluation_keeps_the_order_of_the_index() -> None:
    p = plan([20, 20], window=100)
    assert p.samples_between(0, 40).row.tolist() != p.samples_between(40, 80).row.tolist()
    kept = plan([2, 1], shuffle=False)
    assert pairs(kept.samples_between(0, 6)) == [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (1, 0, 1), (1, 1, 0)]


def test_memory_and_seeking_grow_with_shards_not_samples() -> None:
    counts = np.full(10_000, 1_000_000)
    p = ShufflePlan("big", counts, 0, window=1_000_000)
    indices = p.samples_between(5 * p.size + 3_456_789_000, 5 * p.size + 3_456_789_064)
    assert len(indices) == 64
    assert set(indices.epoch.tolist()) == {5}


def test_errors_name_the_remedy() -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        plan([0, 0])
    with pytest.raises(ValueError, match=r"global batch 10 .* 4 workers x 1 accumulation; use 8 or 12"):
        samples_per_micro_batch(10, 4, 1)
    assert samples_per_micro_batch(32, 4, 2) == 4


def test_fixed_batches_cover_everything_once() -> None:
    assert split_into_batches(10, 4) == [(0, 4), (4, 8), (8, 10)]
    assert split_into_batches(0, 4) == []


def test_seeds_are_told_apart_by_every_part() -> None:
    assert len({derive_seed(1, 23), derive_seed(12, 3), derive_seed("1", "23", ""), derive_seed(1, 2, 3)}) == 4
