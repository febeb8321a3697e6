"""From the plan to collated batches: which samples, read, turned into examples, decoded, augmented, collated.

The sequences here make batch ``i`` from ``i`` alone, in any process. They are small and picklable; what is heavy is
opened once a process. A batch can be made at once, as a bare loop does, or in two halves, as the stream does
(stream.py): its texts, which are small, wherever there is time for it, and its images, which are large, where they are
needed.
"""

from __future__ import annotations

import json
import logging
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pipelines.data.augment import AugmentConfig, augment
from pipelines.data.errors import DataError
from pipelines.data.features import Features
from pipelines.data.index import Index, Shard
from pipelines.data.pixel_cache import PixelCache, PixelCacheConfig, open_pixel_cache, pays
from pipelines.data.plan import Ints, Plan, Schedule, Slice, derive_seed, fixed_batches
from pipelines.data.reader import Record, ShardReader
from pipelines.data.rows import rows_to_answer, to_examples
from vlmodel.images import ImageError
from vlmodel.processor import Example, VLProcessor

log = logging.getLogger(__name__)

Arrays = dict[str, np.ndarray]

PROVENANCE = frozenset({"step", "epoch_B", "shard_B", "row_B", "counts_B", "rows_json"})
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
        pixels: images that this node keeps once they are decoded.
    """

    tars: str
    index_hash: str
    split: str
    processor: str
    features: Features | None = None
    pixels: PixelCache | None = None

    def plan(self, *, seed: int = 0, window: int = 65536, run: int = 1, shuffle: bool) -> Plan:
        """The plan over this source's samples.

        Raises:
            DataError: the split has no sample with such texts.
        """
        return Plan(self.index_hash, _open(self).counts, seed, window, shuffle, run)


class Batches(Sequence[Arrays]):
    """Batches that can be made in two halves."""

    @abstractmethod
    def rows(self, number: int) -> Arrays:
        """All of a batch but what is to be seen of its images."""

    @abstractmethod
    def images(self, rows: Arrays) -> Arrays:
        """What is to be seen of the images of a batch, ``pixels_BHWC`` or ``features_BF``, given all the rest of it."""

    def __getitem__(self, number: int) -> Arrays:  # type: ignore[override]
        rows = self.rows(number)
        return rows | self.images(rows)


@dataclass(frozen=True)
class TrainingParts(Batches):
    """A worker's parts of all global steps, in order: ``accumulation`` parts a step.

    Attributes:
        source, schedule: what is read, in which order.
        rank, world, accumulation: which parts of a step are this worker's.
        augmentation: random changes of the pixels, seeded by (seed, epoch, sample).

    Raises:
        ValueError: augmentation of images that are not read.
    """

    source: Source
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

    def rows(self, number: int) -> Arrays:
        taken, weight = self._taken(number)
        loader = _open(self.source)
        rows = loader.processor.collate_rows(loader.examples(loader.read_texts(taken), weight))
        return rows | _provenance(taken, number // self.accumulation, weight)

    def images(self, rows: Arrays) -> Arrays:
        loader, taken = _open(self.source), _taken_by(rows)
        seen = loader.see(taken)
        if self.augmentation.active:
            for i, key in enumerate(loader.keys(taken)):
                seed = derive_seed(self.schedule.plan.seed, int(taken.epoch[i]), key, "augment")
                rng = np.random.Generator(np.random.PCG64(seed))
                seen["pixels_BHWC"][i] = augment(seen["pixels_BHWC"][i], self.augmentation, rng)
        return seen

    def _taken(self, number: int) -> tuple[Slice, float]:
        """The samples of a part, and their weight."""
        if not 0 <= number < len(self):
            raise IndexError(number)
        step, micro = divmod(number, self.accumulation)
        parts = self.world * self.accumulation
        taken = self.schedule.part(step, self.rank * self.accumulation + micro, parts)
        if len(taken):
            return taken, 1.0
        # A worker without a sample in a short last step still takes part in its collectives, with weight zero.
        origin = step * self.schedule.batch
        return self.schedule.plan.take(origin, origin + 1), 0.0


@dataclass(frozen=True)
class EvaluationBatches(Batches):
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

    def rows(self, number: int) -> Arrays:
        loader = _open(self.source)
        batch = range(self.rank, len(fixed_batches(loader.size, self.batch)), self.world)[number]
        plan = self.source.plan(shuffle=False)
        taken = plan.take(batch * self.batch, min((batch + 1) * self.batch, plan.size))
        records, provenance = loader.read_texts(taken), _provenance(taken, batch, 1.0)
        if self.answering is None:
            return loader.processor.collate_rows(loader.examples(records)) | provenance
        asked = rows_to_answer(records, loader.processor.tasks[self.answering])
        examples = [Example(b"", tuple(row.text for row in of_record)) for of_record in asked]
        arrays = loader.processor.collate_rows({self.answering: examples}) | provenance
        rows = [astuple(row) for of_record in asked for row in of_record]
        arrays["rows_json"] = np.frombuffer(json.dumps(rows).encode(), np.uint8)
        return arrays

    def images(self, rows: Arrays) -> Arrays:
        return _open(self.source).see(_taken_by(rows))


def keeping_pixels(source: Source, config: PixelCacheConfig, epochs: int) -> Source:
    """The source, whose images this node keeps once they are decoded if that is wanted."""
    if config.keep == "never" or source.features is not None or (config.keep == "auto" and epochs < 2):
        return source
    loader = _open(source)
    if (pixels := open_pixel_cache(loader.index, loader.processor.config, config)) is None:
        return source
    if config.keep == "auto":
        some = source.plan(shuffle=True)
        worth, decoding, reading = pays(lambda n: loader.see(some.take(n, n + 1))["pixels_BHWC"][0], pixels.folder)
        log.info("an image takes %.2f ms to decode, %.2f ms to read back", 1e3 * decoding, 1e3 * reading)
        if not worth:
            return source
    return replace(source, pixels=pixels)


def model_inputs(arrays: Mapping[str, np.ndarray]) -> Arrays:
    """The arrays of a batch that the model takes."""
    return {name: array for name, array in arrays.items() if name not in PROVENANCE}


class _Loader:
    """An opened source: the index, its readers and the processor."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.index = Index.open(source.tars)
        if self.index.hash != source.index_hash:
            raise DataError(
                f"the index of {source.tars} changed while it was in use ({source.index_hash[:12]} -> "
                f"{self.index.hash[:12]}); start the job again, under another name, to use the new data"
            )
        self.reader = ShardReader(self.index)
        self.processor = VLProcessor.from_pretrained(source.processor)
        self.reads = sorted({fields.reads for fields in self.processor.tasks.values()})
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
        self._rows = lru_cache(maxsize=256)(self._eligible_rows)

    def read_texts(self, taken: Slice) -> list[Record]:
        """The samples of a slice without their images, in its order; each shard is opened once."""
        records: list[Record | None] = [None] * len(taken)
        for shard, rows, places in self._by_shard(taken):
            for place, record in zip(places, self.reader.read(shard.name, rows, images=False), strict=True):
                records[place] = record
        return [record for record in records if record is not None]

    def keys(self, taken: Slice) -> list[str]:
        """The keys of the samples of a slice, in its order."""
        keys = [""] * len(taken)
        for shard, rows, places in self._by_shard(taken):
            for place, key in zip(places, self.reader.keys(shard.name, rows), strict=True):
                keys[place] = key
        return keys

    def see(self, taken: Slice) -> Arrays:
        """What the model is to see of the samples of a slice: kept features or, where there are none, their images.

        Raises:
            DataError: a shard cannot be read, or an image of it cannot be decoded.
        """
        features, size = self.source.features, self.processor.config.image_size
        if features is not None:
            features_BF = np.empty((len(taken), features.width), features.precision)
            for shard, rows, places in self._by_shard(taken):
                features_BF[places] = features.read(shard.name, rows)
            return {"features_BF": features_BF}
        pixels_BHWC = np.empty((len(taken), size, size, 3), np.uint8)
        for shard, rows, places in self._by_shard(taken):
            self._fill(shard, rows, [pixels_BHWC[place] for place in places])
        return {"pixels_BHWC": pixels_BHWC}

    def _fill(self, shard: Shard, rows: Sequence[int], out: Sequence[NDArray[np.uint8]]) -> None:
        """Images of a shard into the places given for them: kept ones, and those that are decoded now."""
        kept = self.source.pixels
        missing = range(len(rows)) if kept is None else np.flatnonzero(~kept.read(shard, rows, out)).tolist()
        if not missing:
            return
        here, places = [rows[n] for n in missing], [out[n] for n in missing]
        for record, place in zip(self.reader.read(shard.name, here, texts=False), places, strict=True):
            place[:] = self._decode(shard, record)
        if kept is not None:
            kept.write(shard, here, places)

    def _decode(self, shard: Shard, record: Record) -> NDArray[np.uint8]:
        try:
            return self.processor.decode(record.image)
        except ImageError as error:
            raise DataError(
                f"sample {record.key!r} in shard {shard.name!r} of {self.source.tars!r}: {error}; index the data again "
                "with data.index.verify=decode, which leaves such samples out"
            ) from error

    def examples(self, records: Sequence[Record], weight: float = 1.0) -> dict[str, list[Example]]:
        """The rows of each task over the samples."""
        return {task: to_examples(records, fields, weight) for task, fields in self.processor.tasks.items()}

    def _by_shard(self, taken: Slice) -> Iterator[tuple[Shard, list[int], list[int]]]:
        """(shard, rows of it, their places in the slice) for each shard of a slice."""
        for shard in np.unique(taken.shard):
            places = np.flatnonzero(taken.shard == shard)
            rows = self._rows(int(shard))[taken.row[places]]
            yield self.index.shards[shard], rows.tolist(), places.tolist()

    def _eligible_rows(self, shard: int) -> Ints:
        table = self.index.rows(self.index.shards[shard].name)
        eligible = np.logical_or.reduce([table[reads].to_numpy() > 0 for reads in self.reads])
        if self.source.split:
            eligible &= np.asarray(table["split"].to_pylist()) == self.source.split
        return np.flatnonzero(eligible).astype(np.int64)


@lru_cache(maxsize=8)
def _open(source: Source) -> _Loader:
    return _Loader(source)


def _taken_by(rows: Arrays) -> Slice:
    return Slice(rows["epoch_B"], rows["shard_B"], rows["row_B"])


def _in_split(counts: Mapping[str, int], split: str) -> int:
    return counts.get(split, 0) if split else sum(counts.values())


def _provenance(taken: Slice, step: int, weight: float) -> Arrays:
    return {
        "step": np.array([step], np.int64),
        "epoch_B": taken.epoch,
        "shard_B": taken.shard,
        "row_B": taken.row,
        "counts_B": np.full(len(taken), weight > 0),
    }
