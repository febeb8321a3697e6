"""Answers every row of a task over a data set by a saved model and Ray Data, in the order of the index.

Ray tasks make batches, and ``workers`` actors that hold the model answer them. A batch holds the same samples with any
number of workers, so the answers and their probabilities are the same too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from ray.data import ActorPoolStrategy, Dataset

from pipelines.data.index.index import Index
from pipelines.data.stream import ray_private
from pipelines.data.stream.config import StreamConfig
from pipelines.data.stream.dataset import Source, connect_fact_lookup
from pipelines.data.stream.loader import EvaluationBatches
from pipelines.data.stream.stream import batch_dataset
from pipelines.data.stream.wire import unpack_arrays
from pipelines.errors import DataError
from pipelines.evaluate.config import PredictConfig
from pipelines.evaluate.schema import SCHEMA
from pipelines.knowledge.opened import FactSource
from pipelines.report.progress import Progress
from vlmodel.array_names import prefix_array_names, select_task_arrays
from vlmodel.config import ConfigError
from vlmodel.processor import Example, VLProcessor, input_indices

if TYPE_CHECKING:
    from vlmodel.parts import Answers


_BATCHES_PER_TASK = 16
SHUFFLED_IMAGES = 512
"""Enough images to measure how far the answers depend on the image."""


class _PredictActor:
    def __init__(
        self, model: str, task: str, config: PredictConfig, shuffled_share: float, facts: FactSource | None
    ) -> None:
        from vlmodel.inference import Predictor

        device = "cuda" if config.gpus_per_worker else "cpu"
        self._predictor = Predictor.from_pretrained(model, device, max(1, int(config.cpus_per_worker)))
        connect_fact_lookup(self._predictor.processor, facts)
        self._task, self._config, self._exchanged = task, config, shuffled_share

    def __call__(self, row: pa.Table) -> pa.Table:
        arrays = {name: array.copy() for name, array in unpack_arrays(row).items()}
        rows = json.loads(arrays["rows_json"].tobytes())
        if not rows:
            return SCHEMA.empty_table()
        answered = self._answer_batch(arrays)
        columns = dict(zip(SCHEMA.names, zip(*rows, strict=True), strict=False))
        columns["answers"] = [[answer for answer, _ in answers] for answers in answered]
        columns["probabilities"] = [[value for _, value in answers] for answers in answered]
        columns["predicted"] = [answers[0] for answers in columns["answers"]]
        columns["probability"] = [values[0] for values in columns["probabilities"]]
        columns |= self._answer_about_other_images(arrays, columns)
        embedded = self._predictor.embed_collated(arrays, self._task)
        if embedded is not None:
            image_BD, text_ND = embedded
            columns["text_embedding"] = list(text_ND)
        if embedded is not None and image_BD is not None:
            samples = list(zip(columns["split"], columns["key"], strict=True))
            first = [n == 0 or samples[n] != samples[n - 1] for n in range(len(samples))]
            image_N = arrays["sample_N" if not self._task else f"{self._task}.sample_N"]
            columns["image_embedding"] = [image_BD[b] if f else None for f, b in zip(first, image_N, strict=True)]
        none = [None] * len(rows)
        return pa.Table.from_arrays(
            [pa.array(columns.get(field.name, none), field.type) for field in SCHEMA], schema=SCHEMA
        )

    def _answer_about_other_images(
        self, arrays: dict[str, np.ndarray], columns: Mapping[str, Sequence[Any]]
    ) -> dict[str, Any]:
        """Answer the texts of some samples about the inputs of another sample, which is half a batch away, as
        neighbours may show the same scene. Samples without inputs are left out.
        """
        processor = self._predictor.processor
        given_G = samples_with_inputs(arrays, processor.input_names)
        sample_of_row = arrays[f"{self._task}.sample_N" if self._task else "sample_N"]
        drawn = [
            is_in_hash_sample(*sample, self._exchanged) for sample in zip(columns["split"], columns["key"], strict=True)
        ]
        rows = np.flatnonzero(drawn & np.isin(sample_of_row, given_G)).tolist()
        if len(given_G) < 2 or not rows:
            return {}
        sample_N = sample_of_row[rows]
        texts: dict[int, list[str]] = {}
        for row, sample in zip(rows, sample_N.tolist(), strict=True):
            texts.setdefault(sample, []).append(columns["text"][row])
        examples = [Example({}, tuple(of_sample)) for of_sample in texts.values()]
        other_B = given_G[(np.searchsorted(given_G, list(texts)) + len(given_G) // 2) % len(given_G)]
        batch = processor.collate_rows({self._task: examples}) | select_inputs(arrays, processor.input_names, other_B)
        answer: list[str | None] = [None] * len(drawn)
        probability: list[float | None] = [None] * len(drawn)
        for row, best in zip(rows, self._answer_batch(batch), strict=True):
            answer[row], probability[row] = best[0]
        return {"shuffled": answer, "shuffled_probability": probability}

    def _answer_batch(self, arrays: dict[str, np.ndarray]) -> list[Answers]:
        return self._predictor.predict_collated(arrays, self._config.top_k, self._task, **self._config.generation)


def samples_with_inputs(arrays: Mapping[str, np.ndarray], names: Sequence[str]) -> np.ndarray:
    """Return the indices (G,) of the samples of a batch that have at least one of the named inputs, in
    ascending order.
    """
    has_input_B = np.zeros(len(arrays["row_B"]), bool)
    for name in names:
        of_input = select_task_arrays(arrays, name)
        place_B = of_input.pop("place_B", None)
        has_input_B |= True if place_B is None else place_B < len(next(iter(of_input.values())))
    return np.flatnonzero(has_input_B)


def select_inputs(
    arrays: Mapping[str, np.ndarray], names: Sequence[str], sample_B: np.ndarray
) -> dict[str, np.ndarray]:
    """Select the inputs of some samples of a batch, in the order of ``sample_B``."""
    chosen: dict[str, np.ndarray] = {}
    for name in names:
        of_input = select_task_arrays(arrays, name)
        place_B = of_input.pop("place_B", np.arange(1 + sample_B.max()))[sample_B]
        is_given_B = place_B < len(next(iter(of_input.values())))
        chosen |= prefix_array_names(name, {array: values[place_B[is_given_B]] for array, values in of_input.items()})
        if not is_given_B.all():
            chosen[f"{name}.place_B"] = input_indices(is_given_B)
    return chosen


def is_in_hash_sample(split_name: str, key: str, share: float) -> bool:
    """Whether the hash of a sample's key puts the sample into a subset with this share of all samples, the same in
    every run.
    """
    digest = hashlib.sha256(f"exchanged|{split_name}|{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def predict_dataset(
    model: str,
    source: Source,
    config: PredictConfig,
    stream: StreamConfig,
    task: str | None = None,
    sample: int = 0,
    shuffled: int = SHUFFLED_IMAGES,
) -> Dataset:
    """Create a lazy dataset of a model's answers, with a row of ``SCHEMA`` for each text.

    Args:
        model: folder of the saved model, readable from every node.
        task: by default the model's first one.
        sample: answer only this many samples, drawn by hash; 0 answers all.
        shuffled: about this many images, drawn by hash, are also replaced by others of their batch.

    Raises:
        ConfigError: the model has no such task.
        DataError: the task needs images or texts, and the data set has none.
    """
    tasks = VLProcessor.from_pretrained(model).tasks
    task = next(iter(tasks)) if task is None else task
    if task not in tasks:
        raise ConfigError(f"evaluate.task={task!r} is no task of this model; it has {', '.join(map(repr, tasks))}")
    index = Index.open(source.tars)
    if not index.count(tasks[task].can_answer):
        raise DataError(
            f"{source.tars} was indexed as {index.validity_settings['inputs']}, and the model's task"
            f"{f' {task!r}' if task else ''} is about {tasks[task].learning_requirement}; name data that has some, or "
            "another task in evaluate.task"
        )
    batches = EvaluationBatches(replace(source, answering=task), config.batch, sample=sample)
    dataset = batch_dataset(batches.__getitem__, stream.tasks, _BATCHES_PER_TASK, 0, len(batches), row_is_block=False)
    ray_private.pass_arguments_by_value()
    return dataset.map_batches(
        _PredictActor,
        fn_constructor_args=(model, task, config, min(1.0, shuffled / batches.sample_count), source.facts),
        batch_size=1,  # a row is a batch for the model
        batch_format="pyarrow",
        zero_copy_batch=True,
        compute=ActorPoolStrategy(size=config.workers),
        num_cpus=config.cpus_per_worker,
        num_gpus=config.gpus_per_worker or None,
    )


def iterate_answer_tables(dataset: Dataset, name: str, samples: int) -> Iterator[pa.Table]:
    """Iterate over the answers as tables, batch by batch, while later batches are still being computed.

    Args:
        name, samples: what the progress is called, and how many samples are answered in all.
    """
    done = 0
    with Progress(name, "sample") as progress:
        for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
            assert isinstance(table, pa.Table)
            if table.num_rows:
                done += pc.count_distinct(table["key"]).as_py()  # A batch has all rows of its samples.
                progress(min(done, samples), samples)
                yield table.cast(SCHEMA)


def write_answer_tables(tables: Iterator[pa.Table], file: Path) -> tuple[int, int]:
    """Write tables of answers into one Parquet file, which appears only once it is complete. Returns the number of
    rows, and of those whose text was truncated.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    rows = cut = 0
    with pq.ParquetWriter(partial, SCHEMA) as writer:
        for table in tables:
            writer.write_table(table)
            rows += table.num_rows
            cut += pc.sum(table["truncated"]).as_py() or 0
    partial.rename(file)
    return rows, cut
