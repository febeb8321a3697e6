"""Makes collated batches of the planned samples: reads, decodes and augments them.

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
from pipelines.data.stream.dataset import (
    Arrays,
    OpenedSamples,
    Source,
    SourceMixture,
    open_samples,
    select_samples_with_input,
)
from pipelines.data.stream.plan import SampleIndices, StepSchedule, derive_seed, split_into_batches
from vlmodel.array_names import prefix_array_names
from vlmodel.encoder_parts import IMAGE
from vlmodel.processor import Example
from vlmodel.sample import Sample
from vlmodel.task import Task, TaskRow, answerable_rows, learnable_rows

PROVENANCE = frozenset({"step", "source_B", "epoch_B", "shard_B", "row_B", "counts_B", "rows_json"})
"""Arrays about where a batch came from; all others are the model's inputs."""

PIXELS = f"{IMAGE}.pixels_BHWC"
"""The images of a batch."""

TEACHER = "(teacher)"
"""Stands before the names of the arrays that a teacher reads, as a task's name does; no task and no input has it."""

ORIGIN = ("source_B", "epoch_B", "shard_B", "row_B")
"""The fields of ``SampleIndices``."""

_TOKENS = ("input_ids_NT", "text_mask_NT", "distinct_U")


class BatchLoader(Sequence[Arrays]):
    """Makes the batches of a source, each in two steps: first its texts, then its images and other inputs."""

    source: Source | SourceMixture

    @abstractmethod
    def make_rows(self, number: int) -> Arrays:
        """Make the first half of a batch: its texts and targets, without images, other inputs and cached features."""

    @abstractmethod
    def load_inputs_of_rows(self, rows: Arrays) -> Arrays:
        """Load the second half of a batch: its images and other inputs, or the cached features of these and of the
        texts.

        Samples without an input are left out of its arrays (``INPUT.place_B``).

        Args:
            rows: at least ``arrays_for_loading_inputs`` of the batch's rows.
        """

    def __getitem__(self, number: int) -> Arrays:  # type: ignore[override]
        rows = self.make_rows(number)
        return rows | self.load_inputs_of_rows(rows)


@dataclass(frozen=True)
class MicroBatches(BatchLoader):
    """The micro-batches of one training worker in order, ``accumulation`` of them for each global step.

    Attributes:
        source, schedule: what is read, in which order.
        rank, world, accumulation: which parts of a step are this worker's.
        augmentation: random changes of images, seeded by (seed, epoch, sample), as are those of further inputs, which
            are settings of their encoders.
        drop_streams: for inputs by name the share of samples that are trained without it (``draw_dropped_inputs``).

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
        changed = {"vision": self.augmentation.is_active, "language": self.augmentation.changes_texts}
        for stream in (cache.stream for cache in self.source.features if changed.get(cache.stream)):
            raise ValueError(f"cached {stream} features are of unchanged inputs; do not augment, or train without them")

    def __len__(self) -> int:
        return self.schedule.step_count * self.accumulation

    def make_rows(self, number: int) -> Arrays:
        indices, weight = self._micro_batch_indices(number)
        samples = open_samples(self.source)
        records = self._read_texts(samples, indices)
        examples = _examples_by_task(samples, records, weight)
        of_samples: Arrays = {}
        for task in samples.tasks_with_samples_without_targets:
            of_samples |= prefix_array_names(task, samples.processor.tasks[task].collate_samples(records, weight))
        masks = samples.places_of_inputs_in_batch(self._drop_inputs(samples, records, indices)) | of_samples
        provenance = _sample_provenance(indices, number // self.accumulation, weight)
        arrays = samples.processor.collate_rows(examples) | masks | provenance
        if samples.teacher is not None:
            (of_task,) = examples.values()
            arrays |= prefix_array_names(TEACHER, samples.teacher.collate_rows({"": of_task}))
        return arrays

    def load_inputs_of_rows(self, rows: Arrays) -> Arrays:
        samples, indices = open_samples(self.source), _sample_indices_of(rows)
        arrays = samples.load_inputs(indices, rows, self._sample_generator)
        arrays |= samples.read_text_features(indices, rows)
        if self.augmentation.is_active and samples.processor.reads_images:
            pixels_BHWC, with_image = arrays[PIXELS], select_samples_with_input(indices, rows, IMAGE)
            for i, key in enumerate(samples.sample_keys(with_image)):
                rng = self._sample_generator(int(with_image.epoch[i]), key)
                pixels_BHWC[i] = augment_image(pixels_BHWC[i], self.augmentation, rng)
        return arrays

    def _read_texts(self, samples: OpenedSamples, indices: SampleIndices) -> list[Sample]:
        """Read the samples' texts; left and right are swapped in them if the image will be mirrored."""
        records = samples.read_texts(indices)
        if not self.augmentation.changes_texts:
            return records
        size = samples.processor.config.image_resizing.size
        return [
            record._replace(texts=swap_left_and_right(record.texts, self.augmentation.swap))
            if IMAGE in record.present
            and draw_change(self.augmentation, *size, self._sample_generator(epoch, record.key)).flipped
            else record
            for record, epoch in zip(records, indices.epoch.tolist(), strict=True)
        ]

    def _drop_inputs(self, samples: OpenedSamples, records: list[Sample], indices: SampleIndices) -> list[Sample]:
        """Remove from samples the inputs that are randomly dropped in this epoch."""
        if not self.drop_streams:
            return records
        processor = samples.processor
        keep_one = not all(task.reads_text() for task in processor.tasks.values())
        return [
            record._replace(
                present=record.present
                - draw_dropped_inputs(
                    self.drop_streams,
                    [name for name in processor.input_names if name in record.present],
                    self._sample_generator(epoch, record.key, "drop"),
                    keep_one,
                )
            )
            for record, epoch in zip(records, indices.epoch.tolist(), strict=True)
        ]

    def _sample_generator(self, epoch: int, key: str, use: str = "augment") -> np.random.Generator:
        return np.random.Generator(np.random.PCG64(derive_seed(self.schedule.plan.seed, epoch, key, use)))

    def _micro_batch_indices(self, number: int) -> tuple[SampleIndices, float]:
        """Return the indices of the samples of a micro-batch, and their weight in the loss."""
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
    """The evaluation batches of one worker: every ``world``-th batch of a split in index order, beginning with batch
    ``rank``.

    The batches are the same for any number of workers, so metrics agree to the last bit. Of a source for answering
    only the rows of that task are made, without targets for the model, and ``rows_json`` lists them: key and split of
    the sample, the fields of ``TaskRow``, and whether the text is truncated.
    """

    source: Source
    batch: int
    rank: int = 0
    world: int = 1
    sample: int = 0
    """Only so many samples, chosen by hash; 0 takes all."""
    even: bool = False
    """All workers make equally many batches: those that have fewer repeat one, none of whose samples counts."""

    @property
    def sample_count(self) -> int:
        """The number of samples that are evaluated."""
        size = open_samples(self.source).size
        return min(self.sample, size) if self.sample else size

    def __len__(self) -> int:
        batches = len(split_into_batches(self.sample_count, self.batch))
        return len(range(0 if self.even else self.rank, batches, self.world))

    def make_rows(self, number: int) -> Arrays:
        samples = open_samples(self.source)
        batches = len(split_into_batches(self.sample_count, self.batch))
        place = range(self.rank, self.rank + len(self) * self.world, self.world)[number]
        batch, repeated = place % batches, place >= batches
        # With a window of all samples, the plan's order is a permutation by hash.
        plan = self.source.plan_order(window=samples.size, shuffle=self.sample > 0)
        indices = plan.samples_between(batch * self.batch, min((batch + 1) * self.batch, self.sample_count))
        records = samples.read_texts(indices)
        provenance = samples.places_of_inputs_in_batch(records) | _sample_provenance(
            indices, batch, 0.0 if repeated else 1.0
        )
        if (name := self.source.answering) is None:
            return samples.processor.collate_rows(_examples_by_task(samples, records)) | provenance
        task = samples.processor.tasks[name]
        rows_by_sample = answerable_rows(task, records)
        examples = [Example({}, tuple(row.text for row in rows)) for rows in rows_by_sample]
        arrays = samples.processor.collate_rows({name: examples}) | provenance
        described = _describe_rows(samples, task, records, rows_by_sample)
        arrays["rows_json"] = np.frombuffer(json.dumps(described).encode(), np.uint8)
        return arrays

    def load_inputs_of_rows(self, rows: Arrays) -> Arrays:
        samples, indices = open_samples(self.source), _sample_indices_of(rows)
        return samples.load_inputs(indices, rows) | samples.read_text_features(indices, rows)


def draw_dropped_inputs(
    shares: Mapping[str, float], present: Sequence[str], rng: np.random.Generator, keep_one: bool
) -> frozenset[str]:
    """Draw the inputs of a sample that are left out in training, independently of each other (ModDrop, Neverova et al.
    2015, arXiv:1501.00102).

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


def arrays_for_loading_inputs(batches: BatchLoader, rows: Arrays) -> Arrays:
    """Select the arrays of a half-made batch that are needed to load its inputs."""
    tokens = [name for name in rows if name.rpartition(".")[2] in _TOKENS] if batches.source.features else []
    places = [name for name in rows if name.endswith(".place_B")]
    return {name: rows[name] for name in (*ORIGIN, *places, *tokens)}


def without_provenance(arrays: Mapping[str, np.ndarray]) -> Arrays:
    """Select the arrays of a batch that the model takes, without those that say where its samples come from."""
    return {name: array for name, array in arrays.items() if name not in PROVENANCE}


def _examples_by_task(
    samples: OpenedSamples, records: Sequence[Sample], weight: float = 1.0
) -> dict[str, list[Example]]:
    """Make the training or evaluation examples of each task from samples."""
    return {name: _to_examples(task, records, weight) for name, task in samples.processor.tasks.items()}


def _to_examples(task: Task, records: Sequence[Sample], weight: float) -> list[Example]:
    return [
        Example({}, tuple(row.text for row in rows), tuple(row.target for row in rows), (weight,) * len(rows))
        for rows in learnable_rows(task, records)
    ]


def _describe_rows(
    samples: OpenedSamples, task: Task, records: Sequence[Sample], rows_by_sample: Sequence[Sequence[TaskRow]]
) -> list[tuple[object, ...]]:
    """Describe each row of an evaluation batch by the fields of ``rows_json``."""
    rows = [(record, row) for record, of_sample in zip(records, rows_by_sample, strict=True) for row in of_sample]
    truncated = (
        samples.processor.are_texts_truncated([row.text for _, row in rows])
        if task.reads_text()
        else [False] * len(rows)
    )
    return [
        (record.key, record.split, row.text, row.target, row.references, row.id, is_truncated)
        for (record, row), is_truncated in zip(rows, truncated, strict=True)
    ]


def _sample_indices_of(rows: Arrays) -> SampleIndices:
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
