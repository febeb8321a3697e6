"""From the plan to collated batches: which samples, read, turned into examples, decoded, augmented, collated.

The sequences here make batch ``i`` from ``i`` alone, in any process: Ray tasks index into them (stream.py), and so can
a bare loop. They are small and picklable; what is heavy is opened once a process.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import lru_cache

import numpy as np

from pipelines.data.augment import AugmentConfig, augment
from pipelines.data.errors import DataError
from pipelines.data.features import Features
from pipelines.data.index import Index
from pipelines.data.plan import Ints, Plan, Schedule, Slice, derive_seed, fixed_batches
from pipelines.data.reader import Record, ShardReader
from pipelines.data.rows import rows_to_answer, to_examples
from vlmodel.processor import Example, VLProcessor

Arrays = dict[str, np.ndarray]

PROVENANCE = frozenset({"step", "source_B", "epoch_B", "shard_B", "row_B", "counts_B", "rows_json"})
"""Arrays that tell where a batch came from; the model takes all the others."""


@dataclass(frozen=True)
class Source:
    """Where samples come from and what makes them examples.

    Attributes:
        tars: folder or URI of the tars and their index.
        index_hash: the index as it was when the plan was made; a changed one is refused.
        split: train, val or test; "" takes all.
        processor: folder of the saved VLProcessor. It knows which texts the tasks read; a sample without any is left
            out.
        features: kept features of the images; where they are given a batch has ``features_BF`` (B, F) in place of
            ``pixels_BHWC``, and no image is read.
    """

    tars: str
    index_hash: str
    split: str
    processor: str
    features: Features | None = None

    def plan(self, *, seed: int = 0, window: int = 65536, shuffle: bool) -> Plan:
        """The plan over this source's samples.

        Raises:
            DataError: the split has no sample with such texts.
        """
        return Plan(self.index_hash, _open_member(self).counts, seed, window, shuffle)


@dataclass(frozen=True)
class Mixture:
    """Several sources that are read as one; their numbers are those of an order over them (mixture.py).

    Attributes:
        members: the sources, of one processor; all have kept features of one backbone, or none has.
    """

    members: tuple[Source, ...]

    def __post_init__(self) -> None:
        kept = [member.features for member in self.members]
        assert len({member.processor for member in self.members}) == 1
        assert len({f and (f.width, f.precision, f.backbone) for f in kept}) == 1

    @property
    def processor(self) -> str:
        """Folder of the saved VLProcessor."""
        return self.members[0].processor

    @property
    def features(self) -> Features | None:
        """The first source's kept features: None, or of all sources' width, precision and backbone."""
        return self.members[0].features


@dataclass(frozen=True)
class TrainingParts(Sequence[Arrays]):
    """A worker's parts of all global steps, in order: ``accumulation`` parts a step.

    Attributes:
        source, schedule: what is read, in which order.
        rank, world, accumulation: which parts of a step are this worker's.
        augmentation: random changes of the pixels, seeded by (seed, epoch, sample).

    Raises:
        ValueError: augmentation of images that are not read.
    """

    source: Source | Mixture
    schedule: Schedule
    rank: int
    world: int
    accumulation: int
    augmentation: AugmentConfig

    def __post_init__(self) -> None:
        if self.source.features is not None and self.augmentation.active:
            raise ValueError("kept features are of unchanged images; augment nothing, or train on the images")

    def __len__(self) -> int:
        return self.schedule.steps * self.accumulation

    def __getitem__(self, number: int) -> Arrays:  # type: ignore[override]
        if not 0 <= number < len(self):
            raise IndexError(number)
        step, micro = divmod(number, self.accumulation)
        parts = self.world * self.accumulation
        taken = self.schedule.part(step, self.rank * self.accumulation + micro, parts)
        weight = 1.0
        if not len(taken):
            # A worker without a sample in a short last step still takes part in its collectives, with weight zero.
            origin = step * self.schedule.batch
            taken, weight = self.schedule.plan.take(origin, origin + 1), 0.0
        loader = _open(self.source)
        records = loader.read(taken)
        examples = loader.examples(records, weight)
        seen = loader.see(taken, records)
        if self.augmentation.active:
            for i, record in enumerate(records):
                seed = derive_seed(self.schedule.plan.seed, int(taken.epoch[i]), record.key, "augment")
                rng = np.random.Generator(np.random.PCG64(seed))
                seen["pixels_BHWC"][i] = augment(seen["pixels_BHWC"][i], self.augmentation, rng)
        return seen | loader.processor.collate_rows(examples) | _provenance(taken, step, weight)


@dataclass(frozen=True)
class EvaluationBatches(Sequence[Arrays]):
    """Every ``world``-th batch of a split in index order, from batch ``rank`` on.

    The batches are the same ones at any number of workers, so figures agree to the last bit.
    """

    source: Source
    batch: int
    rank: int = 0
    world: int = 1
    answering: str | None = None
    """The task to be answered: only its rows are made, without targets for the model, and ``rows_json`` tells of each
    what was asked and what is right. None makes the rows that training makes."""

    def __len__(self) -> int:
        batches = len(fixed_batches(_open(self.source).size, self.batch))
        return len(range(self.rank, batches, self.world))

    def __getitem__(self, number: int) -> Arrays:  # type: ignore[override]
        loader = _open(self.source)
        mine = range(self.rank, len(fixed_batches(loader.size, self.batch)), self.world)
        batch = mine[number]
        plan = self.source.plan(shuffle=False)
        taken = plan.take(batch * self.batch, min((batch + 1) * self.batch, plan.size))
        records = loader.read(taken)
        seen = loader.see(taken, records) | _provenance(taken, batch, 1.0)
        if self.answering is None:
            return seen | loader.processor.collate_rows(loader.examples(records))
        asked = rows_to_answer(records, loader.processor.tasks[self.answering])
        examples = [
            Example(record.image, tuple(r.text for r in rows)) for record, rows in zip(records, asked, strict=True)
        ]
        arrays = seen | loader.processor.collate_rows({self.answering: examples})
        rows = [astuple(row) for of_record in asked for row in of_record]
        arrays["rows_json"] = np.frombuffer(json.dumps(rows).encode(), np.uint8)
        return arrays


def model_inputs(arrays: Mapping[str, np.ndarray]) -> Arrays:
    """The arrays of a batch that the model takes."""
    return {name: array for name, array in arrays.items() if name not in PROVENANCE}


class _Member:
    """An opened source: its index and reader."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.index = Index.open(source.tars)
        if self.index.hash != source.index_hash:
            raise DataError(
                f"the index of {source.tars} changed while it was in use ({source.index_hash[:12]} -> "
                f"{self.index.hash[:12]}); start the job again, under another name, to use the new data"
            )
        self.reader = ShardReader(self.index)
        self.reads = sorted({fields.reads for fields in _processor(source.processor).tasks.values()})
        # Every sample has a caption or a question.
        counted = f"with_{self.reads[0]}" if len(self.reads) == 1 else "samples"
        self.counts: Ints = np.array(
            [_in_split(getattr(shard, counted), source.split) for shard in self.index.shards], np.int64
        )
        self.size = int(self.counts.sum())
        if not self.size:
            found = {split: n for split, n in self.index.counts().items() if n}
            raise DataError(
                f"{source.tars} has no {source.split or 'indexed'} sample with {' or '.join(self.reads)} "
                f"(it has {found}); choose another split, or raise data.index.validation_fraction and index again"
            )
        self.rows = lru_cache(maxsize=256)(self._eligible_rows)

    def _eligible_rows(self, shard: int) -> Ints:
        table = self.index.rows(self.index.shards[shard].name)
        eligible = np.logical_or.reduce([table[reads].to_numpy() > 0 for reads in self.reads])
        if self.source.split:
            eligible &= np.asarray(table["split"].to_pylist()) == self.source.split
        return np.flatnonzero(eligible).astype(np.int64)


class _Loader:
    """Opened sources and their processor."""

    def __init__(self, source: Source | Mixture) -> None:
        members = source.members if isinstance(source, Mixture) else (source,)
        self.members = [_open_member(member) for member in members]
        self.processor, self.features = _processor(source.processor), source.features
        self.size = sum(member.size for member in self.members)

    def read(self, taken: Slice) -> list[Record]:
        """The samples of a slice, in its order; each shard is opened once. Where features are kept, without images."""
        records: list[Record | None] = [None] * len(taken)
        for member, shard, rows, places in self._by_shard(taken):
            found = member.reader.read(shard, rows, images=self.features is None)
            for place, record in zip(places.tolist(), found, strict=True):
                records[place] = record
        return [record for record in records if record is not None]

    def see(self, taken: Slice, records: Sequence[Record]) -> Arrays:
        """What the model is to see of the samples of a slice: kept features or, where there are none, their images."""
        if self.features is None:
            return self.processor.collate_tasks([self.processor.decode(record.image) for record in records], {})
        features_BF = np.empty((len(taken), self.features.width), self.features.precision)
        for member, shard, rows, places in self._by_shard(taken):
            assert member.source.features is not None
            features_BF[places] = member.source.features.read(shard, rows)
        return {"features_BF": features_BF}

    def examples(self, records: Sequence[Record], weight: float = 1.0) -> dict[str, list[Example]]:
        """The rows of each task over the samples."""
        return {task: to_examples(records, fields, weight) for task, fields in self.processor.tasks.items()}

    def _by_shard(self, taken: Slice) -> Iterator[tuple[_Member, str, list[int], Ints]]:
        """(source, shard, rows of it, their places in the slice) for each shard of a slice."""
        for number, shard in np.unique(np.stack([taken.source, taken.shard]), axis=1).T.tolist():
            member = self.members[number]
            places = np.flatnonzero((taken.source == number) & (taken.shard == shard))
            yield member, member.index.shards[shard].name, member.rows(shard)[taken.row[places]].tolist(), places


@lru_cache(maxsize=8)
def _open(source: Source | Mixture) -> _Loader:
    return _Loader(source)


@lru_cache(maxsize=64)
def _open_member(source: Source) -> _Member:
    return _Member(source)


@lru_cache(maxsize=8)
def _processor(folder: str) -> VLProcessor:
    return VLProcessor.from_pretrained(folder)


def _in_split(counts: Mapping[str, int], split: str) -> int:
    return counts.get(split, 0) if split else sum(counts.values())


def _provenance(taken: Slice, step: int, weight: float) -> Arrays:
    return {
        "step": np.array([step], np.int64),
        "source_B": taken.source,
        "epoch_B": taken.epoch,
        "shard_B": taken.shard,
        "row_B": taken.row,
        "counts_B": np.full(len(taken), weight > 0),
    }
