"""Plans the order of the samples as a pure function of (index hash, seed, epoch).

The order is one endless sequence: the permutation of epoch 0, then that of epoch 1, and so on. Global step ``s`` takes
positions ``[s * batch, (s + 1) * batch)`` of it. So a batch may hold the end of one epoch and the start of the next,
every batch but the very last is full, and each epoch holds each sample exactly once. A cursor is one number, the step.

An epoch's permutation has two levels, so that its memory grows with shards and not with samples: the shards are
permuted, consecutive shards form windows of about ``window`` samples, and the samples of a window, or short blocks of
neighbours, are permuted. Seeking to a position builds one window only.

Random numbers are the raw output of PCG64, which NumPy keeps stable for ever (NEP 19), ordered by a stable sort;
``Generator.permutation`` makes no such promise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class SampleIndices:
    """Identifies samples at consecutive positions of the order, as parallel arrays.

    Attributes:
        source: number of the source of each position; 0 where there is one.
        epoch: the epoch of its source.
        shard: number of its shard in the source's list.
        row: number of the sample among the shard's samples of this split.
    """

    source: Ints
    epoch: Ints
    shard: Ints
    row: Ints

    def __len__(self) -> int:
        return len(self.row)

    def __getitem__(self, where: slice | Ints) -> SampleIndices:
        return SampleIndices(self.source[where], self.epoch[where], self.shard[where], self.row[where])


class SampleOrder(Protocol):
    """The interface of an endless order of samples: of one source (Plan) or of several (mixture.py)."""

    @property
    def size(self) -> int:
        """The number of samples in one epoch."""

    @property
    def seed(self) -> int:
        """The random seed of the whole training."""

    def samples_between(self, start: int, stop: int) -> SampleIndices:
        """Return the samples at positions ``[start, stop)`` of the order."""

    @property
    def plans_by_source(self) -> Mapping[str, ShufflePlan]:
        """Map each data set's name to the order of its own samples; the name is "" if there is only one data set."""

    def metrics(self, position: int) -> Mapping[str, float]:
        """Compute metrics of the order at a position, by the names that tracking uses."""


@dataclass(frozen=True, eq=False)
class ShufflePlan:
    """The shuffled order of the samples of one split, epoch after epoch.

    Attributes:
        identity: of the data, normally the index hash; another identity gives another order.
        counts: samples of each shard, in the index's order of shards; an int64 array.
        seed: of the whole training.
        window: samples that are shuffled together, at least; at most one shard more.
        shuffle: False keeps the order of the index in every epoch, for evaluation.
        block: so many neighbours in a shard stay together, and are read at once.
        size: samples in an epoch (derived).
        key: digest of all the above, by which plans compare and hash (derived).
    """

    identity: str
    counts: Ints
    seed: int
    window: int = 65536
    shuffle: bool = True
    block: int = 1
    size: int = field(init=False)
    key: str = field(init=False)

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(f"window = {self.window} must be at least 1 sample")
        if self.block < 1:
            raise ValueError(f"block = {self.block} must be at least 1 sample")
        counts = np.asarray(self.counts, np.int64)
        object.__setattr__(self, "counts", counts)
        object.__setattr__(self, "size", int(counts.sum()))
        block = f"{self.block}|" if self.block > 1 else ""
        facts = f"{self.identity}|{self.seed}|{self.window}|{self.shuffle}|{block}".encode()
        object.__setattr__(self, "key", hashlib.sha256(facts + counts.tobytes()).hexdigest())
        if self.size <= 0:
            raise ValueError("a plan needs at least one sample; index the data, or choose another split")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ShufflePlan) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def samples_between(self, start: int, stop: int) -> SampleIndices:
        """Return the samples at positions ``[start, stop)`` of the endless order."""
        pieces: list[SampleIndices] = []
        size = self.size
        while start < stop:
            epoch, offset = divmod(start, size)
            end = min(size, offset + stop - start)
            pieces.extend(self._samples_in_epoch(epoch, offset, end))
            start += end - offset
        if not pieces:
            empty = np.zeros(0, np.int64)
            return SampleIndices(empty, empty, empty, empty)
        names = ("source", "epoch", "shard", "row")
        return SampleIndices(*(np.concatenate([getattr(p, name) for p in pieces]) for name in names))

    @property
    def plans_by_source(self) -> Mapping[str, ShufflePlan]:
        return {"": self}

    def metrics(self, position: int) -> Mapping[str, float]:
        """Return no metrics: with a single source, the epoch already tells the position."""
        return {}

    def _samples_in_epoch(self, epoch: int, start: int, stop: int) -> list[SampleIndices]:
        layout_of, window_of = _cached_layout_functions(self)
        layout = layout_of(epoch if self.shuffle else 0)
        pieces = []
        window = int(np.searchsorted(layout.starts, start, side="right")) - 1
        while start < stop:
            shard, row = window_of(epoch if self.shuffle else 0, window)
            origin = int(layout.starts[window])
            part = slice(start - origin, min(stop - origin, len(row)))
            n = part.stop - part.start
            pieces.append(SampleIndices(np.zeros(n, np.int64), np.full(n, epoch, np.int64), shard[part], row[part]))
            start = origin + part.stop
            window += 1
        return pieces


@dataclass(frozen=True)
class StepSchedule:
    """Divides the order of samples into global steps, and each global step into micro-batches.

    A step's batch has ``parts`` = workers x accumulation; worker ``r`` runs parts ``r * accumulation`` to
    ``(r + 1) * accumulation - 1``, one forward and backward pass each. Which samples are in which part of a step does
    not depend on the number of workers.

    Attributes:
        plan: the order, of one source or of several.
        batch: samples of a global step.
        epochs: passes over the data; the last step is shorter where they do not divide evenly.
    """

    plan: SampleOrder
    batch: int
    epochs: int

    @property
    def step_count(self) -> int:
        return -(-self.plan.size * self.epochs // self.batch)

    def count_step_samples(self, step: int) -> int:
        """Count the samples of a global step."""
        return min(self.batch, self.plan.size * self.epochs - step * self.batch)

    def epochs_done(self, step: int) -> int:
        """Return the number of epochs that are complete after ``step`` global steps."""
        return min(step * self.batch, self.plan.size * self.epochs) // self.plan.size

    def samples_of_part(self, step: int, number: int, parts: int) -> SampleIndices:
        """Return the samples of part ``number`` of a global step that is divided into ``parts``. Empty if a short last
        step has fewer samples than parts.
        """
        samples = self.count_step_samples(step)
        first, last = number * samples // parts, (number + 1) * samples // parts
        origin = step * self.batch
        return self.plan.samples_between(origin + first, origin + last)


def samples_per_micro_batch(batch: int, workers: int, accumulation: int) -> int:
    """Calculate the number of samples of one worker's micro-batch.

    Raises:
        ValueError: the global batch does not divide evenly; the message names fitting values.
    """
    parts = workers * accumulation
    if batch % parts:
        below, above = batch // parts * parts, -(-batch // parts) * parts
        raise ValueError(
            f"global batch {batch} does not divide into {workers} workers x {accumulation} accumulation; "
            f"use {' or '.join(str(b) for b in (below, above) if b)}, or another number of workers"
        )
    return batch // parts


@dataclass(frozen=True, eq=False)
class _EpochLayout:
    order: Ints  # shards in this epoch's order
    bounds: Ints  # window w holds order[bounds[w]:bounds[w + 1]]
    starts: Ints  # position of each window's first sample


@lru_cache(maxsize=64)
def _cached_layout_functions(
    plan: ShufflePlan,
) -> tuple[Callable[[int], _EpochLayout], Callable[[int, int], tuple[Ints, Ints]]]:
    """Return ``_epoch_layout`` and ``_shuffled_window`` with separate caches for each plan, as a mixture alternates
    between plans.
    """
    return lru_cache(maxsize=4)(partial(_epoch_layout, plan)), lru_cache(maxsize=4)(partial(_shuffled_window, plan))


def _epoch_layout(plan: ShufflePlan, epoch: int) -> _EpochLayout:
    sizes = plan.counts
    order = _shuffled_indices(len(sizes), plan, epoch, "shards") if plan.shuffle else np.arange(len(sizes))
    order = order[sizes[order] > 0]
    starts = np.concatenate([[0], np.cumsum(sizes[order])])[:-1]
    first_of_window = np.flatnonzero(np.diff(starts // plan.window, prepend=-1))
    return _EpochLayout(order, np.append(first_of_window, len(order)), starts[first_of_window])


def _shuffled_window(plan: ShufflePlan, epoch: int, window: int) -> tuple[Ints, Ints]:
    layout = _cached_layout_functions(plan)[0](epoch)
    shards = layout.order[layout.bounds[window] : layout.bounds[window + 1]]
    sizes = plan.counts[shards]
    shard = np.repeat(shards, sizes)
    row = np.arange(len(shard)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    if plan.shuffle:
        starts_block = row % plan.block == 0
        rank = np.argsort(_shuffled_indices(int(starts_block.sum()), plan, epoch, f"window {window}"))
        order = np.argsort(rank[np.cumsum(starts_block) - 1], kind="stable")
        shard, row = shard[order], row[order]
    return shard, row


def _shuffled_indices(n: int, plan: ShufflePlan, epoch: int, purpose: str) -> Ints:
    return random_permutation(n, plan.identity, plan.seed, epoch, purpose)


def random_permutation(n: int, *what: str | int) -> Ints:
    """Draw a random permutation of ``range(n)`` that depends only on the values ``what``."""
    bits = np.random.PCG64(derive_seed(*what)).random_raw(n)
    return np.argsort(bits, kind="stable").astype(np.int64)


def derive_seed(*what: str | int) -> int:
    """Derive a 128-bit seed that depends only on the values ``what``."""
    text = "\x1f".join(str(w) for w in what)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little")


def split_into_batches(size: int, batch: int) -> Sequence[tuple[int, int]]:
    """Split ``size`` positions into the batches ``[start, stop)`` of an evaluation, the same for any number of
    workers.
    """
    return [(start, min(start + batch, size)) for start in range(0, size, batch)]
