"""The order of several sources: each keeps its own, their turns follow the weights, and any position can be sought."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.data.stream.mixture import MixturePlan
from pipelines.data.stream.plan import SampleIndices, ShufflePlan, StepSchedule

Sample = tuple[int, int, int, int]


def samples(indices: SampleIndices) -> list[Sample]:
    columns = (indices.source, indices.epoch, indices.shard, indices.row)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def plan(number: int, counts: list[int], seed: int = 0) -> ShufflePlan:
    return ShufflePlan(f"index {number}", np.array(counts), seed, window=16)


counts = st.lists(st.integers(0, 30), min_size=1, max_size=5).filter(lambda c: sum(c) > 0)
# Of very different sizes: some sources are due less than one position of a short block.
weights = st.one_of(st.integers(1, 200), st.floats(0.1, 20))
temperatures = st.lists(st.sampled_from([0.7, 1.0, 2.0, 5.0]), min_size=1, max_size=3)


@st.composite
def mixtures(draw: st.DrawFn) -> MixturePlan:
    shards = draw(st.lists(counts, min_size=1, max_size=5))
    seed = draw(st.integers(0, 3))
    plans = tuple(plan(number, one, seed) for number, one in enumerate(shards))
    by_size = draw(st.booleans())
    chosen = [p.size if by_size else draw(weights) for p in plans]
    return MixturePlan(
        tuple(f"s{number}" for number in range(len(plans))),
        plans,
        tuple(chosen),
        tuple(draw(temperatures)),
        draw(st.integers(1, 3)),
        draw(st.integers(1, 50)),
    )


def shares_at(mixture: MixturePlan, temperature: float) -> np.ndarray:
    powers = np.array(mixture.weights, float) ** (1 / temperature)
    return powers / powers.sum()


@settings(deadline=None, max_examples=50)
@given(mixtures(), st.integers(0, 400))
def test_each_source_keeps_the_order_that_it_has_alone(mixture: MixturePlan, stop: int) -> None:
    indices = mixture.samples_between(0, stop)
    assert len(indices) == stop
    for number, own in enumerate(mixture.plans):
        mine = [sample[1:] for sample in samples(indices) if sample[0] == number]
        assert mine == [sample[1:] for sample in samples(own.samples_between(0, len(mine)))]
        assert mixture.counts_before(stop)[number] == len(mine)
        # And so each of its epochs that is complete holds each of its samples once.
        for epoch in range(len(mine) // own.size):
            within = [sample[1:] for sample in mine if sample[0] == epoch]
            everything = [(shard, row) for shard, n in enumerate(own.counts.tolist()) for row in range(n)]
            assert sorted(within) == everything


@settings(deadline=None, max_examples=50)
@given(mixtures(), st.data())
def test_any_position_can_be_sought_directly(mixture: MixturePlan, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, 300))
    stop = data.draw(st.integers(start, 300))
    assert (
        samples(replace(mixture).samples_between(start, stop)) == samples(mixture.samples_between(0, 300))[start:stop]
    )


@settings(deadline=None, max_examples=50)
@given(mixtures())
def test_turns_follow_the_shares_without_drift(mixture: MixturePlan) -> None:
    """At the end of a block no source is a whole position off what is due to it, and none ever loses one."""
    due, before, start = np.zeros(len(mixture.plans)), np.zeros(len(mixture.plans)), 0
    for _ in range(40):
        block = mixture.block_at(start)
        assert mixture.block_at(block.stop - 1) == block
        assert block.start == start
        assert len(block) >= min(mixture.block, mixture.size)
        due += len(block) * np.array(mixture.source_shares(start))
        counts = np.array(mixture.counts_before(block.stop))
        assert np.abs(counts - due).max() < 1 + 1e-9
        assert (counts >= before).all()
        assert counts.sum() == block.stop
        before, start = counts, block.stop


@settings(deadline=None, max_examples=50)
@given(st.lists(counts, min_size=1, max_size=5), st.integers(0, 3), st.integers(1, 50), st.integers(0, 2))
def test_proportional_shares_show_each_sample_once_an_epoch(
    shards: list[list[int]], seed: int, block: int, epoch: int
) -> None:
    plans = tuple(plan(number, one, seed) for number, one in enumerate(shards))
    names = tuple(f"s{number}" for number in range(len(plans)))
    mixture = MixturePlan(names, plans, tuple(p.size for p in plans), block=block)
    indices = mixture.samples_between(epoch * mixture.size, (epoch + 1) * mixture.size)
    everything = [(n, epoch, s, r) for n, one in enumerate(shards) for s, k in enumerate(one) for r in range(k)]
    assert sorted(samples(indices)) == everything


@settings(deadline=None, max_examples=50)
@given(counts, st.integers(0, 3), st.floats(0.1, 5), st.integers(1, 50), st.data())
def test_a_single_source_has_its_own_order(
    shards: list[int], seed: int, weight: float, block: int, data: st.DataObject
) -> None:
    own = plan(0, shards, seed)
    mixture = MixturePlan(("only",), (own,), (weight,), block=block)
    start = data.draw(st.integers(0, 3 * own.size))
    stop = data.draw(st.integers(start, 3 * own.size))
    assert samples(mixture.samples_between(start, stop)) == samples(own.samples_between(start, stop))
    assert mixture.size == own.size


@settings(deadline=None, max_examples=50)
@given(mixtures(), st.integers(1, 20), st.integers(1, 3), st.data())
def test_workers_change_nothing_but_the_cut(mixture: MixturePlan, batch: int, epochs: int, data: st.DataObject) -> None:
    schedule = StepSchedule(mixture, batch, epochs)
    assert sum(map(schedule.count_step_samples, range(schedule.step_count))) == epochs * mixture.size
    step = data.draw(st.integers(0, schedule.step_count - 1))
    whole = samples(mixture.samples_between(step * batch, step * batch + schedule.count_step_samples(step)))
    for parts in (1, 2, 3, 8):
        cut = [samples(schedule.samples_of_part(step, number, parts)) for number in range(parts)]
        assert [sample for part in cut for sample in part] == whole


@pytest.mark.parametrize(("temperature", "shares"), [(1.0, [0.1, 0.9]), (2.0, [0.25, 0.75]), (1e9, [0.5, 0.5])])
def test_temperature_leads_from_proportional_to_equal_shares(temperature: float, shares: list[float]) -> None:
    mixture = MixturePlan(("a", "b"), (plan(0, [100]), plan(1, [900])), (100, 900), (temperature,))
    assert mixture.source_shares(0) == pytest.approx(shares)


def test_temperature_changes_over_the_training_and_then_stays() -> None:
    plans = (plan(0, [1000]), plan(1, [9000]))
    mixture = MixturePlan(("a", "b"), plans, (1000, 9000), (1.0, 1.0, 2.0), epochs=10, block=50)
    for position, temperature in [(0, 1.0), (49_000, 1.0), (75_000, 1.5), (99_999, 2.0), (10**9, 2.0)]:
        assert mixture.source_shares(position) == pytest.approx(shares_at(mixture, temperature), abs=5e-3)
    # The mean of the shares is what is seen: worked out here from the powers, not from the plan's whole numbers.
    moments = (np.arange(1000) + 0.5) / 1000
    mean = np.mean([shares_at(mixture, max(1.0, 2 * moment)) for moment in moments], axis=0)
    assert np.array(mixture.counts_before(100_000)) / 100_000 == pytest.approx(mean, abs=1e-4)


def test_a_short_training_has_the_temperature_of_its_middle() -> None:
    mixture = MixturePlan(("a", "b"), (plan(0, [10]), plan(1, [90])), (10, 90), (1.0, 3.0))
    assert mixture.source_shares(0) == pytest.approx(shares_at(mixture, 2.0), abs=5e-3)


def test_a_rare_source_has_its_turn_in_every_block() -> None:
    plans = (plan(0, [10]), plan(1, [5000] * 20))
    mixture = MixturePlan(("rare", "common"), plans, (1.0, 9999.0))
    rounds = [mixture.counts_before(10_000 * n)[0] for n in range(11)]
    assert rounds == list(range(11))


def test_the_order_is_stable_for_ever() -> None:
    """Written down once: a changed order would break the resume of every running training."""
    mixture = MixturePlan(("a", "b"), (plan(0, [2, 3], 7), plan(1, [4], 7)), (2.0, 1.0), (1.0, 2.0), 2, 4)
    assert samples(mixture.samples_between(0, 9)) == ORDER_OF_SEED_7


ORDER_OF_SEED_7 = [
    (0, 0, 1, 0),
    (0, 0, 0, 0),
    (0, 0, 1, 1),
    (1, 0, 0, 1),
    (1, 0, 0, 3),
    (0, 0, 1, 2),
    (0, 0, 0, 1),
    (0, 1, 0, 0),
    (1, 0, 0, 0),
]


@pytest.mark.parametrize(
    "change", [{"weights": (1.0, 3.0)}, {"temperatures": (2.0,)}, {"temperatures": (1.0, 2.0)}, {"block": 10}]
)
def test_order_depends_on_all_that_it_is_made_of(change: dict[str, object]) -> None:
    mixture = MixturePlan(("a", "b"), (plan(0, [40]), plan(1, [40])), (1.0, 2.0))
    other = replace(mixture, **change)  # type: ignore[arg-type]
    assert mixture != other
    assert samples(mixture.samples_between(0, 80)) != samples(other.samples_between(0, 80))


def test_a_longer_training_has_the_same_order_where_the_temperature_stays() -> None:
    mixture = MixturePlan(("a", "b"), (plan(0, [40]), plan(1, [40])), (1, 2.0), (2.0,), epochs=1)
    assert mixture == replace(mixture, epochs=5, weights=(1.0, 2))
    moving = replace(mixture, temperatures=(1.0, 2.0))
    assert moving != replace(moving, epochs=5)


def test_sources_too_rare_are_refused() -> None:
    plans = (plan(0, [10]), plan(1, [10]))
    with pytest.raises(
        ValueError, match=r"tiny would be 5\.0e-07 of the samples at temperature 1, .* raise its weight"
    ):
        MixturePlan(("big", "tiny"), plans, (2e6, 1.0))
    with pytest.raises(ValueError, match=r"at temperature 0\.5"):
        MixturePlan(("big", "tiny"), plans, (2e3, 1.0), (1.0, 0.5))


def test_figures_tell_of_each_source() -> None:
    mixture = MixturePlan(("a", "b"), (plan(0, [30]), plan(1, [10])), (1.0, 1.0))
    assert mixture.metrics(40) == {"mix/a/share": 0.5, "mix/a/epoch": 20 / 30, "mix/b/share": 0.5, "mix/b/epoch": 2.0}


def test_a_billion_samples_of_many_sources_are_sought_in_a_moment() -> None:
    shards = [np.full(1000, 100_000), np.full(5000, 200_000), np.full(10, 1000)]
    plans = tuple(ShufflePlan(f"big {n}", one, 0, window=100_000) for n, one in enumerate(shards))
    mixture = MixturePlan(("a", "b", "c"), plans, tuple(p.size for p in plans), (1.0, 3.0), epochs=10)
    position = 7 * mixture.size + 123_456_789
    indices = mixture.samples_between(position, position + 64)
    assert set(indices.source.tolist()) <= {0, 1, 2}
    assert sum(mixture.counts_before(position)) == position
