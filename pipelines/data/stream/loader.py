"""From the plan to collated batches: which samples, read, turned into examples, decoded, augmented, collated.

The sequences here make batch ``i`` from ``i`` alone, in any process, and are small and picklable. A batch can be made
at once, as a bare loop does, or in two halves, as the stream does (stream.py): its texts, which are small, wherever
there is time for it, and its images, which are large, where they are needed.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass

import numpy as np

from pipelines.data.stream.augment import AugmentConfig, augment, draw, swapped
from pipelines.data.stream.dataset import Arrays, Mixture, Samples, Source, open_samples
from pipelines.data.stream.plan import SampleIndices, Schedule, derive_seed, fixed_batches
from pipelines.data.stream.rows import rows_to_answer, to_examples
from pipelines.data.tars.reader import Record
from vlmodel.processor import Example

PROVENANCE = frozenset({"step", "source_B", "epoch_B", "shard_B", "row_B", "counts_B", "rows_json"})
"""Arrays that tell where a batch came from; the model takes all the others."""

ORIGIN = ("source_B", "epoch_B", "shard_B", "row_B")
"""Those of them that tell where each sample lies."""

_TOKENS = ("input_ids_NT", "text_mask_NT", "distinct_U")


class Batches(Sequence[Arrays]):
    """Batches of a source that can be made in two halves."""

    source: Source | Mixture

    @abstractmethod
    def rows(self, number: int) -> Arrays:
        """All of a batch but what is to be seen of its images, and the kept features of its texts."""

    @abstractmethod
    def images(self, rows: Arrays) -> Arrays:
        """What is to be seen of the images of a batch, ``pixels_BHWC`` or ``features_BF``, and the kept features of its
        texts, given its ``origin``. Samples without an image are left out (``image_place_B``).
        """

    def __getitem__(self, number: int) -> Arrays:  # type: ignore[override]
        rows = self.rows(number)
        return rows | self.images(rows)


@dataclass(frozen=True)
class MicroBatches(Batches):
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
        changed = {"vision": self.augmentation.active, "language": self.augmentation.changes_texts}
        for stream in (kept.stream for kept in self.source.features if changed[kept.stream]):
            raise ValueError(f"kept {stream} features are of unchanged inputs; augment nothing, or train without them")

    def __len__(self) -> int:
        return self.schedule.steps * self.accumulation

    def rows(self, number: int) -> Arrays:
        taken, weight = self._taken(number)
        samples = open_samples(self.source)
        examples = _examples(samples, self._read_texts(samples, taken), weight)
        absent = samples.image_places(taken) | samples.lone_images(taken, weight)
        provenance = _provenance(taken, number // self.accumulation, weight)
        return samples.processor.collate_rows(examples) | absent | provenance

    def images(self, rows: Arrays) -> Arrays:
        samples, whole = open_samples(self.source), _taken_by(rows)
        taken = samples.pictured(whole)
        seen = samples.see(taken) | samples.read_text_features(whole, rows)
        if self.augmentation.active:
            for i, key in enumerate(samples.keys(taken)):
                rng = self._random(int(taken.epoch[i]), key)
                seen["pixels_BHWC"][i] = augment(seen["pixels_BHWC"][i], self.augmentation, rng)
        return seen

    def _read_texts(self, samples: Samples, taken: SampleIndices) -> list[Record]:
        """The samples of a slice with their texts: of a mirrored image, as they are then true."""
        records = samples.read_texts(taken)
        if not self.augmentation.changes_texts:
            return records
        side = samples.processor.config.image_size
        return [
            record._replace(texts=swapped(record.texts, self.augmentation.swap))
            if record.pictured and draw(self.augmentation, side, side, self._random(epoch, record.key)).flipped
            else record
            for record, epoch in zip(records, taken.epoch.tolist(), strict=True)
        ]

    def _random(self, epoch: int, key: str) -> np.random.Generator:
        """The random numbers by which a sample is changed in an epoch."""
        return np.random.Generator(np.random.PCG64(derive_seed(self.schedule.plan.seed, epoch, key, "augment")))

    def _taken(self, number: int) -> tuple[SampleIndices, float]:
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
    what was asked, what is right, and whether its text is cut. None makes the rows that training makes."""
    sample: int = 0
    """Only so many samples, drawn by hash; 0 takes all."""

    @property
    def samples(self) -> int:
        """How many samples there are."""
        size = open_samples(self.source).size
        return min(self.sample, size) if self.sample else size

    def __len__(self) -> int:
        batches = len(fixed_batches(self.samples, self.batch))
        return len(range(self.rank, batches, self.world))

    def rows(self, number: int) -> Arrays:
        samples = open_samples(self.source)
        batch = range(self.rank, len(fixed_batches(self.samples, self.batch)), self.world)[number]
        # In a window of all samples the plan's order is a permutation by hash.
        plan = self.source.plan(window=samples.size, shuffle=self.sample > 0)
        taken = plan.take(batch * self.batch, min((batch + 1) * self.batch, self.samples))
        records = samples.read_texts(taken)
        provenance = samples.image_places(taken) | _provenance(taken, batch, 1.0)
        if self.answering is None:
            return samples.processor.collate_rows(_examples(samples, records)) | provenance
        asked = rows_to_answer(records, samples.processor.tasks[self.answering])
        examples = [Example(b"", tuple(row.text for row in of_record)) for of_record in asked]
        arrays = samples.processor.collate_rows({self.answering: examples}) | provenance
        flat = [row for of_record in asked for row in of_record]
        fields = samples.processor.tasks[self.answering]
        cut = samples.processor.truncated([row.text for row in flat]) if fields.text else [False] * len(flat)
        rows = [(*astuple(row), is_cut) for row, is_cut in zip(flat, cut, strict=True)]
        arrays["rows_json"] = np.frombuffer(json.dumps(rows).encode(), np.uint8)
        return arrays

    def images(self, rows: Arrays) -> Arrays:
        samples, taken = open_samples(self.source), _taken_by(rows)
        return samples.see(samples.pictured(taken)) | samples.read_text_features(taken, rows)


def origin(batches: Batches, rows: Arrays) -> Arrays:
    """What of a batch's rows its images, and the kept features of its texts, are made from."""
    tokens = [name for name in rows if name.rpartition(".")[2] in _TOKENS] if batches.source.features else []
    return {name: rows[name] for name in (*ORIGIN, *tokens)}


def model_inputs(arrays: Mapping[str, np.ndarray]) -> Arrays:
    """The arrays of a batch that the model takes."""
    return {name: array for name, array in arrays.items() if name not in PROVENANCE}


def _examples(samples: Samples, records: Sequence[Record], weight: float = 1.0) -> dict[str, list[Example]]:
    """The rows of each task over the samples."""
    return {task: to_examples(records, fields, weight) for task, fields in samples.processor.tasks.items()}


def _taken_by(rows: Arrays) -> SampleIndices:
    return SampleIndices(*(rows[name] for name in ORIGIN))


def _provenance(taken: SampleIndices, step: int, weight: float) -> Arrays:
    return {
        "step": np.array([step], np.int64),
        "source_B": taken.source,
        "epoch_B": taken.epoch,
        "shard_B": taken.shard,
        "row_B": taken.row,
        "counts_B": np.full(len(taken), weight > 0),
    }
