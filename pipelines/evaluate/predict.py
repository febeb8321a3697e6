"""Answers of a saved model to every text of a data set, through Ray Data, in the order of the index.

Batches are made by tasks and answered by ``workers`` actors that hold the model. A batch holds the same samples at any
number of workers, so the answers and their probabilities are the same too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field
from ray.data import ActorPoolStrategy, Dataset

from pipelines.data.loader import EvaluationBatches, Source, model_inputs
from pipelines.data.stream import StreamConfig, packed
from pipelines.data.wire import unpack
from vlmodel.config import Section
from vlmodel.inference import Predictor

SCHEMA = pa.schema(
    [
        pa.field("key", pa.string()),
        pa.field("question", pa.string()),
        pa.field("answer", pa.string()),
        pa.field("id", pa.string()),
        pa.field("predicted", pa.string()),
        pa.field("probability", pa.float32()),
        pa.field("answers", pa.list_(pa.string())),
        pa.field("probabilities", pa.list_(pa.float32())),
    ]
)
"""A row for each text: the right answer (null where unknown), the best answer, and the ``top_k`` best."""


class PredictConfig(Section):
    """How a data set is answered."""

    workers: int = Field(1, ge=1)
    """Copies of the model."""
    cpus_per_worker: float = Field(1.0, gt=0)
    """CPUs that each reserves."""
    gpus_per_worker: float = Field(0.0, ge=0)
    """GPUs, or the share of one, that each reserves; above 0 the model runs there."""
    threads: int = Field(0, ge=0)
    """Torch threads of each; 0 for one per reserved CPU."""
    batch: int = Field(64, ge=1)
    """Images of a batch. Results may differ in the last bits between batch sizes, never between numbers of workers."""
    top_k: int = Field(5, ge=1)
    """Answers kept for each text."""


class _Answerer:
    """An actor's model."""

    def __init__(self, model: str, config: PredictConfig) -> None:
        device = "cuda" if config.gpus_per_worker else "cpu"
        self._predictor = Predictor.from_pretrained(
            model, device, config.threads or max(1, int(config.cpus_per_worker))
        )
        self._top_k = config.top_k

    def __call__(self, block: pa.Table) -> pa.Table:
        return pa.concat_tables([self._answer(block.slice(row, 1)) for row in range(block.num_rows)])

    def _answer(self, row: pa.Table) -> pa.Table:
        arrays = unpack(row)
        inputs = {name: array.copy() for name, array in model_inputs(arrays).items()}
        probabilities_NK = self._predictor.predict_collated(inputs)
        best_NK = np.argsort(-probabilities_NK, axis=1, kind="stable")[:, : self._top_k]
        about = json.loads(arrays["texts_json"].tobytes())
        names = [[self._predictor.id2label[k] for k in row] for row in best_NK.tolist()]
        values = np.take_along_axis(probabilities_NK, best_NK, axis=1)
        keys, texts, targets, ids = zip(*about, strict=True)
        columns = [keys, texts, targets, ids, [row[0] for row in names], values[:, 0], names, values.tolist()]
        return pa.Table.from_arrays(
            [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)], schema=SCHEMA
        )


def predict(model: str, source: Source, config: PredictConfig, stream: StreamConfig) -> Dataset:
    """A lazy dataset of ``SCHEMA`` rows.

    Args:
        model: folder of the saved model, readable from every node.
    """
    batches = EvaluationBatches(source, config.batch, with_texts=True)
    made = packed(batches, stream, 0, len(batches), row_is_block=False)
    return made.map_batches(
        _Answerer,
        fn_constructor_args=(model, config),
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
        compute=ActorPoolStrategy(size=config.workers),
        num_cpus=config.cpus_per_worker,
        num_gpus=config.gpus_per_worker or None,
    )


def collect(dataset: Dataset) -> Iterator[pa.Table]:
    """The rows as tables, batch by batch, while the others are still being made."""
    for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
        assert isinstance(table, pa.Table)
        if table.num_rows:
            yield table.cast(SCHEMA)


def write(tables: Iterator[pa.Table], file: Path) -> int:
    """Write tables into one Parquet file, whole or not at all; returns the number of rows."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    rows = 0
    with pq.ParquetWriter(partial, SCHEMA) as writer:
        for table in tables:
            writer.write_table(table)
            rows += table.num_rows
    partial.rename(file)
    return rows
