"""Mixes several data sets for training: decides from which of them each position of the order takes its sample.

Each source keeps the endless order that it has alone (plan.py), with its own epochs. The mixture's positions are cut
into blocks; in a block each source has a fixed number of positions, in a shuffled order. After n positions each source
is within one sample of its share: of the positions before a block it has ``round(S_i) - round(S_(i-1))``, where ``S_i``
is the cumulative share of sources 1 to i. So a block's counts are computed without those before it. They are never
negative, as a block is long enough for each source to have at least one position in it.

A share is ``weight ** (1 / T)``, divided by the sum of these: with the sizes of the sources as weights, the temperature
T leads from proportional (1) towards equal shares (Arivazhagan et al. 2019, https://arxiv.org/abs/1907.05019). It may
change over a training, in ``_STAGES`` steps.

An epoch of the mixture has as many positions as all sources have samples. It ends with a block, unless a source is so
rare that a block is longer than an epoch. So with proportional shares each epoch holds each sample exactly once.

All numbers are integers, or decimals of a fixed precision, so the order does not depend on a machine's rounding. A
position costs time and memory for a block (1024 positions, or more for a rare source), and for sources x stages.
"""

from __future__ import annotations

import hashlib
import json
import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Context, Decimal, localcontext
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate, pairwise

import numpy as np
from pydantic import Field

from pipelines.data.stream.plan import Ints, SampleIndices, ShufflePlan, random_permutation
from pipelines.data.tars.inputs import PAIRS, InputNames
from vlmodel.config import ConfigSection
from vlmodel.locations import Location

MIN_SHARE = 1e-6
"""Smaller shares are refused: a block, which is shuffled as a whole, would be too long."""

_STAGES = 64
_DECIMALS = Context(prec=60)


class MixedSource(ConfigSection):
    """One of several data sets that are trained on together."""

    tars: Location = Field(min_length=1)
    """Folder or URI of its tars, which are indexed."""
    weight: float | None = Field(None, gt=0, allow_inf_nan=False)
    """Its share of the samples is proportional to this. All sources have a weight, or none; then it is their size."""
    inputs: InputNames = PAIRS
    """What its samples must have, as data.index.inputs of data.tars: ["text"] are texts alone; ["image"] are images
    alone, which are negatives for contrastive tasks."""


@dataclass(frozen=True, eq=False)
class MixturePlan:
    """The order in which the samples of several data sets are mixed in training.

    Attributes:
        names: of the sources, for metrics and messages.
        plans: their orders, all of one seed.
        weights: of the sources, before the temperature; above zero. Their sizes give proportional shares.
        temperatures: at evenly spaced moments of the training, the first at its start and the last at its end; changes
            linearly between them. One alone stays.
        epochs: of the mixture in the whole training, over which the temperature changes; afterwards it stays.
        block: positions of a block, at least, where an epoch has as many; more where a source would otherwise have less
            than one of them.
        size: positions of an epoch of the mixture: the samples of all sources (derived).
        key: digest of all that the order depends on (derived).

    Raises:
        ValueError: a source would have less than ``MIN_SHARE`` of the positions; the message names it and the remedy.
    """

    names: tuple[str, ...]
    plans: tuple[ShufflePlan, ...]
    weights: tuple[float, ...]
    temperatures: tuple[float, ...] = (1.0,)
    epochs: int = 1
    block: int = 1024
    size: int = field(init=False)
    key: str = field(init=False)

    def __post_init__(self) -> None:
        assert len(self.names) == len(self.plans) == len(self.weights) > 0
        assert len({plan.seed for plan in self.plans}) == 1
        assert min(self.weights) > 0
        assert min(self.temperatures) > 0
        object.__setattr__(self, "size", sum(plan.size for plan in self.plans))
        changes = len(set(self.temperatures)) > 1
        facts = [
            [plan.key for plan in self.plans],
            [float(weight) for weight in self.weights],
            [float(temperature) for temperature in (self.temperatures if changes else self.temperatures[:1])],
            self.epochs if changes else 0,
            self.block,
        ]
        object.__setattr__(self, "key", hashlib.sha256(json.dumps(facts).encode()).hexdigest())
        self._refuse_rare_sources()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MixturePlan) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    @property
    def seed(self) -> int:
        """The random seed of the whole training."""
        return self.plans[0].seed

    @property
    def plans_by_source(self) -> dict[str, ShufflePlan]:
        """Map each data set's name to the order of its own samples."""
        return dict(zip(self.names, self.plans, strict=True))

    def samples_between(self, start: int, stop: int) -> SampleIndices:
        """Return the samples at positions ``[start, stop)`` of the endless order."""
        source_P = self._sources_between(start, stop)
        merged = SampleIndices(source_P, *np.empty((3, len(source_P)), np.int64))
        before = self.counts_before(start)
        for number in np.unique(source_P).tolist():
            at = np.flatnonzero(source_P == number)
            own = self.plans[number].samples_between(before[number], before[number] + len(at))
            merged.epoch[at], merged.shard[at], merged.row[at] = own.epoch, own.shard, own.row
        return merged

    def counts_before(self, position: int) -> list[int]:
        """Count how many of the first ``position`` samples come from each data set."""
        layout = _mixture_layout(self)
        number = layout.block_at(position)
        in_block = np.bincount(
            _draw_block_sources(self, number)[: position - layout.block_start(number)], minlength=len(self.plans)
        )
        return [
            before + within
            for before, within in zip(layout.counts_before_block(number), in_block.tolist(), strict=True)
        ]

    def block_at(self, position: int) -> range:
        """Return the range of positions of the block in which a position lies."""
        layout = _mixture_layout(self)
        number = layout.block_at(position)
        return range(layout.block_start(number), layout.block_start(number + 1))

    def source_shares(self, position: int) -> list[float]:
        """Return the share of each data set among the samples around a position, by its weight and the temperature
        there.
        """
        layout = _mixture_layout(self)
        return [quota / layout.unit for quota in layout.quotas[layout.stage_of_block(layout.block_at(position))]]

    def metrics(self, position: int) -> dict[str, float]:
        """Compute metrics of a position: the share of each data set around it, and how many of the data set's epochs
        lie before it.
        """
        sources = zip(self.names, self.plans, self.source_shares(position), self.counts_before(position), strict=True)
        return {
            f"mix/{name}/{metric}": value
            for name, plan, share, count in sources
            for metric, value in (("share", share), ("epoch", count / plan.size))
        }

    def _sources_between(self, start: int, stop: int) -> Ints:
        """Return the number of the data set from which each of the positions ``[start, stop)`` takes its sample."""
        layout, pieces = _mixture_layout(self), [np.zeros(0, np.int64)]
        while start < stop:
            number = layout.block_at(start)
            origin, end = layout.block_start(number), layout.block_start(number + 1)
            pieces.append(_draw_block_sources(self, number)[start - origin : stop - origin])
            start = end
        return np.concatenate(pieces)

    def _refuse_rare_sources(self) -> None:
        # The smallest weight's share grows with the temperature, so it is least at one of these.
        for temperature in self.temperatures:
            rarest, name = min(zip(_source_shares(self.weights, Fraction(temperature)), self.names, strict=True))
            if rarest < MIN_SHARE:
                raise ValueError(
                    f"{name} would be {float(rarest):.1e} of the samples at temperature {temperature:g}, and less than "
                    f"{MIN_SHARE:g} cannot be mixed; raise its weight or the temperature, or leave it out"
                )


@dataclass(frozen=True)
class _MixtureLayout:
    """The blocks of a mixture, and the shares of its sources as integers, the quotas.

    Attributes:
        positions, blocks: each period of ``positions`` positions is cut into ``blocks`` blocks.
        firsts: the first block of each stage.
        unit: the sum of all sources' quotas for one position.
        quotas: for each stage, the quota of each source for one position.
        quotas_before: for each stage, the quotas summed over all earlier positions, cumulative over the sources.
    """

    positions: int
    blocks: int
    firsts: list[int]
    unit: int
    quotas: list[list[int]]
    quotas_before: list[list[int]]

    def block_start(self, block: int) -> int:
        return block * self.positions // self.blocks

    def block_at(self, position: int) -> int:
        return ((position + 1) * self.blocks - 1) // self.positions

    def stage_of_block(self, block: int) -> int:
        return bisect_right(self.firsts, block) - 1

    def counts_before_block(self, block: int) -> list[int]:
        """Count how many samples before a block come from each data set."""
        stage = self.stage_of_block(block)
        length = self.block_start(block) - self.block_start(self.firsts[stage])
        quotas = self._add_quotas_of_stage(self.quotas_before[stage], length, stage)
        rounded = [(2 * quota + self.unit) // (2 * self.unit) for quota in quotas]
        return [after - before for before, after in pairwise([0, *rounded])]

    def compute_quotas_before(self) -> None:
        self.quotas_before.append([0] * len(self.quotas[0]))
        for stage, (first, after) in enumerate(pairwise(self.firsts)):
            length = self.block_start(after) - self.block_start(first)
            self.quotas_before.append(self._add_quotas_of_stage(self.quotas_before[stage], length, stage))

    def _add_quotas_of_stage(self, before: list[int], length: int, stage: int) -> list[int]:
        return [b + length * quota for b, quota in zip(before, accumulate(self.quotas[stage]), strict=True)]


@lru_cache(maxsize=8)
def _mixture_layout(plan: MixturePlan) -> _MixtureLayout:
    unit = _integer_unit(plan.weights)
    stages = _STAGES if len(set(plan.temperatures)) > 1 else 1
    moments = [Fraction(2 * stage + 1, 2 * stages) for stage in range(stages)]
    quotas = [
        _integer_shares(_source_shares(plan.weights, _temperature_at_moment(plan.temperatures, moment)), unit)
        for moment in moments
    ]
    min_length = -(-unit // min(map(min, quotas)))
    length = max(min(plan.block, plan.size), min_length)
    positions, blocks = -(-length // plan.size) * plan.size, max(1, plan.size // length)
    total = -(-plan.epochs * plan.size * blocks // positions)
    # A block is of the stage that its middle lies in.
    firsts = [max(0, -((stages - 2 * total * stage) // (2 * stages))) for stage in range(stages)]
    layout = _MixtureLayout(positions, blocks, firsts, unit, quotas, [])
    layout.compute_quotas_before()
    return layout


@lru_cache(maxsize=8)
def _draw_block_sources(plan: MixturePlan, number: int) -> Ints:
    """Draw for each position of a block the data set from which it takes its sample."""
    layout = _mixture_layout(plan)
    counts = np.subtract(layout.counts_before_block(number + 1), layout.counts_before_block(number))
    sources = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
    return sources[random_permutation(len(sources), plan.key, plan.seed, f"block {number}")]


def _temperature_at_moment(temperatures: Sequence[float], moment: Fraction) -> Fraction:
    """Return the mixing temperature at a moment of the training, which is a fraction from 0 to less than 1."""
    segment, part = divmod(moment * (len(temperatures) - 1), 1)
    first, last = (Fraction(t) for t in (*temperatures, temperatures[-1])[segment : segment + 2])
    return first + (last - first) * part


def _source_shares(weights: Sequence[float], temperature: Fraction) -> list[Decimal]:
    with localcontext(_DECIMALS):
        logarithms = [
            _natural_logarithm(weight) * temperature.denominator / temperature.numerator for weight in weights
        ]
        powers = [(logarithm - max(logarithms)).exp() for logarithm in logarithms]
        return [power / sum(powers) for power in powers]


@lru_cache(maxsize=256)
def _natural_logarithm(weight: float) -> Decimal:
    return _DECIMALS.ln(Decimal(weight))


def _integer_unit(weights: Sequence[float]) -> int:
    """Return the number of units that makes up a whole, chosen so that each source's proportional share is a whole
    number of units; it exceeds any training's number of positions.
    """
    exact = [Fraction(weight) for weight in weights]
    common = math.lcm(*(weight.denominator for weight in exact))
    integers = [int(weight * common) for weight in exact]
    return sum(integers) // math.gcd(*integers) << 62


def _integer_shares(shares: Sequence[Decimal], unit: int) -> list[int]:
    """Round the shares to integers that add up to ``unit``."""
    with localcontext(_DECIMALS):
        up_to = [round(quota * unit) for quota in accumulate(shares[:-1], initial=Decimal(0))]
    return [after - before for before, after in pairwise([*up_to, unit])]
