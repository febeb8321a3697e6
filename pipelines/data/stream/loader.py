"""Collated batches: the samples of the plan, read, decoded, augmented.

The sequences here make batch ``i`` from ``i`` alone, in any process, and are small and picklable. A batch can be made
at once, or in two halves, as the stream does (stream.py): its texts, which are small, on any node, and its inputs,
which are large, where they are consumed.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from pipelines.data.stream.augment import AugmentConfig, augment_image, draw_change, swap_left_and_right
from pipelines.data.stream.dataset import Arrays, OpenedSamples, Source, SourceMixture, open_samples, with_input
from pipelines.data.stream.plan import SampleIndices, StepSchedule, derive_seed, fixed_batches
from vlmodel.array_names import prefix_array_names
from vlmodel.encoder_parts import IMAGE
from vlmodel.processor import Example
from vlmodel.sample import Sample
from vlmodel.task import Row, Task, answerable_rows, learnable_rows

PROVENANCE = frozenset({"step", "source_B", "epoch_B", "shard_B", "row_B", "counts_B", "rows_json"})
"""Arrays about where a batch came from; all others are the model's inputs."""

PIXELS = f"{IMAGE}.pixels_BHWC"
"""The images of a batch."""

ORIGIN = ("source_B", "epoch_B", "shard_B", "row_B")
"""The fields of ``SampleIndices``."""

_TOKENS = ("input_ids_NT", "text_mask_NT", "distinct_U")


class BatchLoader(Sequence[Arrays]):
    """Batches of a source, made in two halves."""

    source: Source | SourceMixture

    @abstractmethod
    def rows(self, number: int) -> Arrays:
        """Make a batch without its inputs and without the cached features of its texts."""

    @abstractmethod
    def images(self, rows: Arrays) -> Arrays:
        """The inputs of a batch, or their cached features, and those of its texts.

        Samples without an input are left out of its arrays (``INPUT.place_B``).

        Args:
            rows: at least ``image_inputs`` of the batch's rows.
        """

    def __getitem__(self, number: int) -> Arrays:  # type: ignore[override]
        rows = self.rows(number)
        return rows | self.images(rows)


@dataclass(frozen=True)
class MicroBatches(BatchLoader):
    """A worker's parts of all global steps, in order: ``accumulation`` parts a step.

    Attributes:
        source, schedule: what is read, in which order.
        rank, world, accumulation: which parts of a step are this worker's.
        augmentation: random changes of images, seeded by (seed, epoch, sample).
        drop_streams: for inputs by name the share of samples that are trained without it (``dropped_inputs``).

    Raises:
        ValueError: augmentation changes inputs whose features are cached.
    """

    source: Source | SourceMixture
    schedule: StepSchedule
    rank: int
    world: int
    accumulation: int
    augmentation: AugmentConfig
    drop_streams: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        changed = {"vision": self.augmentation.active, "language": self.augmentation.changes_texts}
        for stream in (cache.stream for cache in self.source.features if changed.get(cache.stream)):
            raise ValueError(f"cached {stream} features are of unchanged inputs; do not augment, or train without them")

    def __len__(self) -> int:
        return self.schedule.steps * self.accumulation

    def rows(self, number: int) -> Arrays:
        indices, weight = self._micro_batch_indices(number)
        samples = open_samples(self.source)
        records = self._read_texts(samples, indices)
        examples = _examples_by_task(samples, records, weight)
        of_samples: Arrays = {}
        for task in samples.tasks_with_helpers:
            of_samples |= prefix_array_names(task, samples.processor.tasks[task].collate_samples(records, weight))
        masks = samples.input_places(self._without_dropped(samples, records, indices)) | of_samples
        provenance = _sample_provenance(indices, number // self.accumulation, weight)
        return samples.processor.collate_rows(examples) | masks | provenance

    def images(self, rows: Arrays) -> Arrays:
        samples, indices = open_samples(self.source), _indices_of(rows)
        arrays = samples.load_inputs(indices, rows) | samples.read_text_features(indices, rows)
        if self.augmentation.active and samples.processor.reads_images:
            pixels_BHWC, with_image = arrays[PIXELS], with_input(indices, rows, IMAGE)
            for i, key in enumerate(samples.keys(with_image)):
                rng = self._sample_generator(int(with_image.epoch[i]), key)
                pixels_BHWC[i] = augment_image(pixels_BHWC[i], self.augmentation, rng)
        return arrays

    def _read_texts(self, samples: OpenedSamples, indices: SampleIndices) -> list[Sample]:
        """The samples with their texts, which are adapted to mirrored images."""
        records = samples.read_texts(indices)
        if not self.augmentation.changes_texts:
            return records
        side = samples.processor.config.image_size
        return [
            record._replace(texts=swap_left_and_right(record.texts, self.augmentation.swap))
            if IMAGE in record.present
            and draw_change(self.augmentation, side, side, self._sample_generator(epoch, record.key)).flipped
            else record
            for record, epoch in zip(records, indices.epoch.tolist(), strict=True)
        ]

    def _without_dropped(self, samples: OpenedSamples, records: list[Sample], indices: SampleIndices) -> list[Sample]:
        """The samples without the inputs that are dropped in this epoch."""
        if not self.drop_streams:
            return records
        processor = samples.processor
        keep_one = not all(task.reads_text() for task in processor.tasks.values())
        return [
            record._replace(
                present=record.present
                - dropped_inputs(
                    self.drop_streams,
                    [name for name in processor.reads if name in record.present],
                    self._sample_generator(epoch, record.key, "drop"),
                    keep_one,
                )
            )
            for record, epoch in zip(records, indices.epoch.tolist(), strict=True)
        ]

    def _sample_generator(self, epoch: int, key: str, use: str = "augment") -> np.random.Generator:
        return np.random.Generator(np.random.PCG64(derive_seed(self.schedule.plan.seed, epoch, key, use)))

    def _micro_batch_indices(self, number: int) -> tuple[SampleIndices, float]:
        """The samples of a micro-batch, and their weight."""
        if not 0 <= number < len(self):
            raise IndexError(number)
        step, micro = divmod(number, self.accumulation)
        parts = self.world * self.accumulation
        indices = self.schedule.samples_of_part(step, self.rank * self.accumulation + micro, parts)
        if len(indices):
            return indices, 1.0
        # A worker without a sample in a short last step takes part in its collectives with one of weight zero.
        origin = step * self.schedule.batch
        return self.schedule.plan.samples_between(origin, origin + 1), 0.0


@dataclass(frozen=True)
class EvaluationBatches(BatchLoader):
    """Every ``world``-th batch of a split in index order, from batch ``rank`` on.

    The batches are the same for any number of workers, so metrics agree to the last bit. Of a source for answering
    only the rows of that task are made, without targets for the model, and ``rows_json`` lists them: key and split of
    the sample, the fields of ``Row``, and whether the text is truncated.
    """

    source: Source
    batch: int
    rank: int = 0
    world: int = 1
    sample: int = 0
    """Only so many samples, chosen by hash; 0 takes all."""

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
        # With a window of all samples, the plan's order is a permutation by hash.
        plan = self.source.plan(window=samples.size, shuffle=self.sample > 0)
        indices = plan.samples_between(batch * self.batch, min((batch + 1) * self.batch, self.samples))
        records = samples.read_texts(indices)
        provenance = samples.input_places(records) | _sample_provenance(indices, batch, 1.0)
        if (name := self.source.answering) is None:
            return samples.processor.collate_rows(_examples_by_task(samples, records)) | provenance
        task = samples.processor.tasks[name]
        rows_by_sample = answerable_rows(task, records)
        examples = [Example({}, tuple(row.text for row in rows)) for rows in rows_by_sample]
        arrays = samples.processor.collate_rows({name: examples}) | provenance
        described = _describe_rows(samples, task, records, rows_by_sample)
        arrays["rows_json"] = np.frombuffer(json.dumps(described).encode(), np.uint8)
        return arrays

    def images(self, rows: Arrays) -> Arrays:
        samples, indices = open_samples(self.source), _indices_of(rows)
        return samples.load_inputs(indices, rows) | samples.read_text_features(indices, rows)


def dropped_inputs(
    shares: Mapping[str, float], present: Sequence[str], rng: np.random.Generator, keep_one: bool
) -> frozenset[str]:
    """The inputs of a sample that are left out (ModDrop, Neverova et al. 2015, arXiv:1501.00102), each by itself.

    Args:
        shares: the probability of each, by name; others stay.
        present: the inputs that the sample has and the model reads.
        keep_one: if all were dropped, one of them stays, each as probable: nothing else tells the task anything.
    """
    drawn = rng.random(len(present) + 1)
    dropped = [name for name, value in zip(present, drawn, strict=False) if value < shares.get(name, 0.0)]
    if keep_one and dropped and len(dropped) == len(present):
        dropped.remove(dropped[int(drawn[-1] * len(dropped))])
    return frozenset(dropped)


def image_inputs(batches: BatchLoader, rows: Arrays) -> Arrays:
    """Those of a batch's rows that ``BatchLoader.images`` needs."""
    tokens = [name for name in rows if name.rpartition(".")[2] in _TOKENS] if batches.source.features else []
    places = [name for name in rows if name.endswith(".place_B")]
    return {name: rows[name] for name in (*ORIGIN, *places, *tokens)}


def model_inputs(arrays: Mapping[str, np.ndarray]) -> Arrays:
    """The arrays of a batch that are the model's inputs."""
    return {name: array for name, array in arrays.items() if name not in PROVENANCE}


def _examples_by_task(
    samples: OpenedSamples, records: Sequence[Sample], weight: float = 1.0
) -> dict[str, list[Example]]:
    """The rows of each task, of all samples."""
    return {name: _to_examples(task, records, weight) for name, task in samples.processor.tasks.items()}


def _to_examples(task: Task, records: Sequence[Sample], weight: float) -> list[Example]:
    return [
        Example({}, tuple(row.text for row in rows), tuple(row.target for row in rows), (weight,) * len(rows))
        for rows in learnable_rows(task, records)
    ]


def _describe_rows(
    samples: OpenedSamples, task: Task, records: Sequence[Sample], rows_by_sample: Sequence[Sequence[Row]]
) -> list[tuple[object, ...]]:
    """The fields of ``rows_json``."""
    rows = [(record, row) for record, of_sample in zip(records, rows_by_sample, strict=True) for row in of_sample]
    truncated = samples.processor.truncated([row.text for _, row in rows]) if task.reads_text() else [False] * len(rows)
    return [
        (record.key, record.split, row.text, row.target, row.references, row.id, is_truncated)
        for (record, row), is_truncated in zip(rows, truncated, strict=True)
    ]


def _indices_of(rows: Arrays) -> SampleIndices:
    return SampleIndices(*(rows[name] for name in ORIGIN))


def _sample_provenance(indices: SampleIndices, step: int, weight: float) -> Arrays:
    return {
        "step": np.array([step], np.int64),
        "source_B": indices.source,
        "epoch_B": indices.epoch,
        "shard_B": indices.shard,
        "row_B": indices.row,
        "counts_B": np.full(len(indices), weight > 0),
    }
