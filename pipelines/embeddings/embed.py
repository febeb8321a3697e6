"""Computes the vectors of a data set by a pass of Ray Data, whose actors hold the model and write the files.

A file appears as a whole or not at all, under a name made of all that its vectors depend on. So a job that was stopped
computes only what is missing, and no sample is lost or twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa
from ray.data import ActorPoolStrategy

from pipelines.data.index.index import Index
from pipelines.data.index.shard_pass import map_shards
from pipelines.data.stream import ray_private
from pipelines.data.stream.dataset import connect_fact_lookup
from pipelines.data.tars.reader import ShardReader
from pipelines.embeddings.errors import EmbeddingsError
from pipelines.embeddings.stored import (
    PARTS,
    EmbeddedModel,
    EmbeddingsFile,
    EmbeddingsFileRange,
    EmbeddingsManifest,
    arrow_schema,
    describe_written_file,
    plan_embeddings_files,
    write_embeddings_file,
)
from pipelines.errors import DataError
from pipelines.knowledge.opened import FactSource
from pipelines.storage.folder import StorageFolder
from pipelines.storage.lock import hold_lock
from vlmodel.config import ConfigError
from vlmodel.encoder_parts import TEXT
from vlmodel.media.base import MediumError
from vlmodel.processor import Decoded, Example
from vlmodel.sample import Sample
from vlmodel.task import Task

if TYPE_CHECKING:
    pass


LOCK = ".lock"
_REQUESTS = 16
"""Footers that are read at one time."""

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class ModelActorResources:
    """The number and resources of the actors that hold the model.

    Attributes:
        workers: how many.
        cpus_per_worker: CPUs that each reserves, each with a thread of torch.
        gpus_per_worker: GPUs, or the share of one; above 0 the model runs there.
        batch: samples of a forward pass.
    """

    workers: int = 1
    cpus_per_worker: float = 1.0
    gpus_per_worker: float = 0.0
    batch: int = 64


@dataclass(frozen=True)
class EmbeddingJob:
    """Which samples are embedded, and with which model. Small and picklable.

    Attributes:
        model: its folder, readable from every node.
        described: the same model as it is stored with its vectors.
        tars, index_hash, split: the samples; split "" for all.
        inputs: "text", and the input that the task embeds, or one of both.
        out: folder or URI of the vectors.
        facts: of models that read some.
        samples_per_file: most samples of a file.
    """

    model: str
    described: EmbeddedModel
    tars: str
    index_hash: str
    split: str
    inputs: tuple[str, ...]
    out: str
    facts: FactSource | None = None
    samples_per_file: int = 4096


def choose_task(tasks: dict[str, Task], named: str) -> str:
    """Choose the task whose vectors are stored; returns its name.

    Args:
        named: of a setting; "" takes the first that embeds.

    Raises:
        ConfigError: there is no such task, or none that embeds.
    """
    embedding = [name for name, task in tasks.items() if task.embedded_input]
    if named and named not in embedding:
        raise ConfigError(
            f"embed.task={named!r} is no task of this model that embeds; those are "
            f"{', '.join(map(repr, embedding)) or 'none'}"
        )
    if not embedding:
        kinds = ", ".join(task.kind for task in tasks.values())
        raise ConfigError(
            f"the model's tasks ({kinds}) give no vectors; name a model of task.kind=contrastive in evaluate.model"
        )
    return named or embedding[0]


def choose_inputs(task: Task, wanted: Sequence[str]) -> tuple[str, ...]:
    """Choose which inputs and texts of each sample are embedded.

    Args:
        wanted: of the setting; none takes all.

    Raises:
        ConfigError: the task does not embed one of them.
    """
    known = (task.embedded_input, TEXT)
    if unknown := [name for name in wanted if name not in known]:
        raise ConfigError(
            f"embed.inputs={list(wanted)!r}: the model embeds {' and '.join(known)}, and not {unknown[0]!r}"
        )
    return tuple(name for name in known if not wanted or name in wanted)


def embed_dataset(
    job: EmbeddingJob, copies: ModelActorResources, progress: Callable[[int, int], object] = lambda done, total: None
) -> EmbeddingsManifest:
    """Compute and store the vectors that are missing, then the manifest; files that it does not name are deleted.

    Args:
        progress: called with the numbers of samples that are done, and of all.

    Raises:
        EmbeddingsError: the split has no sample with anything to embed, or another job writes to the folder.
        DataError: a shard cannot be read, or an input of it cannot be decoded.
    """
    folder = StorageFolder(job.out)
    if not folder.is_local:
        return _embed_dataset(job, copies, folder, progress)
    refusal = lambda holder: EmbeddingsError(  # noqa: E731
        f"{holder} writes vectors to {job.out!r}; wait for it, or name another folder in embed.out"
    )
    with hold_lock(Path(folder.path(LOCK)), refusal):
        return _embed_dataset(job, copies, folder, progress)


def _embed_dataset(
    job: EmbeddingJob, copies: ModelActorResources, folder: StorageFolder, progress: Callable[[int, int], object]
) -> EmbeddingsManifest:
    index = Index.open(job.tars, job.index_hash)
    planned = plan_embeddings_files(index, job.split, job.described, list(job.inputs), job.samples_per_file)
    there = {stamp.name for stamp in folder.files(PARTS)}
    with ThreadPoolExecutor(_REQUESTS) as pool:
        read = pool.map(lambda name: describe_written_file(folder, name), [p.name for p in planned if p.name in there])
        written = {part.name: part for part in read}
    missing = [part for part in planned if part.name not in written]
    total = sum(part.stop - part.start for part in planned)
    done = total - sum(part.stop - part.start for part in missing)
    progress(done, total)
    sizes = {part.name: part.stop - part.start for part in missing}
    for part in _write_parts(missing, job, copies):
        written[part.name] = part
        progress(done := done + sizes[part.name], total)
    parts = [written[part.name] for part in planned]
    found = EmbeddingsManifest(
        model=job.described, tars=job.tars, index=job.index_hash, split=job.split, inputs=list(job.inputs), parts=parts
    )
    if not any(found.count(name) for name in job.inputs):
        raise EmbeddingsError(
            f"no {job.split or 'indexed'} sample of {job.tars!r} has {' or '.join(job.inputs)}; choose another split "
            "(embed.split) or other data"
        )
    found.write(folder)
    for name in there - written.keys():
        folder.remove(f"{PARTS}/{name}")
    return found


def _write_parts(
    parts: Sequence[EmbeddingsFileRange], job: EmbeddingJob, copies: ModelActorResources
) -> Iterator[EmbeddingsFile]:
    """Write files by actors, and yield them as they are done."""
    ray_private.pass_arguments_by_value()
    rows = map_shards(
        [{"number": number} for number in range(len(parts))],
        _EmbedActor,
        fn_constructor_args=(job, copies, list(parts)),
        compute=ActorPoolStrategy(size=min(copies.workers, max(1, len(parts)))),
        num_cpus=copies.cpus_per_worker,
        num_gpus=copies.gpus_per_worker or None,
    )
    for row in rows:
        yield EmbeddingsFile.model_validate_json(row["written"])


class _EmbedActor:
    """A Ray actor that holds the model and writes files of vectors."""

    def __init__(self, job: EmbeddingJob, copies: ModelActorResources, parts: Sequence[EmbeddingsFileRange]) -> None:
        self._parts, self._writer = parts, EmbeddingsFileWriter(job, copies)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return {"written": self._writer.write(self._parts[row["number"]]).model_dump_json()}


class EmbeddingsFileWriter:
    """Computes and writes the vectors of one file after the other, in this process."""

    def __init__(self, job: EmbeddingJob, copies: ModelActorResources) -> None:
        from vlmodel.inference import Predictor

        self._job, self._batch = job, copies.batch
        self._threads = max(1, int(copies.cpus_per_worker))
        device = "cuda" if copies.gpus_per_worker else "cpu"
        self._predictor = Predictor.from_pretrained(job.model, device, self._threads)
        connect_fact_lookup(self._predictor.processor, job.facts)
        self._task = self._predictor.processor.tasks[job.described.task]
        index = Index.open(job.tars, job.index_hash)
        self._reader, self._folder = ShardReader(index), StorageFolder(job.out)
        [(_, text_ND)] = self._predictor.embed([Example({}, ("?",))], job.described.task)
        self._schema = arrow_schema(text_ND.shape[1])

    def write(self, part: EmbeddingsFileRange) -> EmbeddingsFile:
        """Compute the vectors of one file and write it.

        Raises:
            DataError: the shard cannot be read, or an input of it cannot be decoded.
        """
        split = self._job.split
        splits = self._reader.index.rows(part.shard)["split"].to_pylist()[part.start : part.stop]
        rows = [part.start + n for n, own in enumerate(splits) if not split or own == split]
        tables = [self._schema.empty_table()]
        with ThreadPoolExecutor(self._threads) as decoders:
            load = lambda chosen: self._load(part.shard, chosen, decoders)  # noqa: E731
            for batch in _prefetch_one(load, _batches(rows, self._batch)):
                tables.append(self._embed(part.shard, *batch))
        return write_embeddings_file(
            self._folder, part, self._job.index_hash, pa.concat_tables(tables).combine_chunks()
        )

    def _load(
        self, shard: str, rows: Sequence[int], decoders: ThreadPoolExecutor
    ) -> tuple[Sequence[int], list[Sample], list[Decoded]]:
        """Load samples and decode their inputs."""
        embeds, wanted = self._task.embedded_input, self._job.inputs
        inputs = (embeds,) if embeds in wanted else ()
        samples = self._reader.read(shard, rows, inputs=inputs, texts=TEXT in wanted)
        return rows, samples, list(decoders.map(lambda sample: self._decode(shard, sample), samples))

    def _decode(self, shard: str, sample: Sample) -> Decoded:
        try:
            return self._predictor.processor.decode_inputs(Example(sample.inputs, ()))
        except MediumError as error:
            raise DataError(
                f"{self._task.embedded_input} of sample {sample.key!r} in shard {shard!r} of {self._job.tars!r}: "
                f"{error}; index the data again with data.index.verify=decode, which leaves such samples out"
            ) from error

    def _embed(
        self, shard: str, rows: Sequence[int], samples: Sequence[Sample], decoded: Sequence[Decoded]
    ) -> pa.Table:
        """Embed some samples; returns a row for each vector: for each sample its input, then its texts."""
        texts = [tuple(self._task.texts_to_read(sample.texts)) for sample in samples]
        examples = [Example({}, of_sample) for of_sample in texts]
        columns: dict[str, list[Any]] = {name: [] for name in self._schema.names}
        vectors: list[np.ndarray] = []
        embedded = self._predictor.embed_decoded(decoded, examples, self._job.described.task)
        for row, sample, of_sample, (input_D, text_ND) in zip(rows, samples, texts, embedded, strict=True):
            own: list[tuple[str, str | None]] = [] if input_D is None else [(self._task.embedded_input, None)]
            own += [(TEXT, text) for text in of_sample]
            vectors += [] if input_D is None else [input_D]
            vectors += list(text_ND)
            for name, text in own:
                values = (sample.key, sample.split, shard, row, name, text)
                for column, value in zip(self._schema.names, values, strict=False):
                    columns[column].append(value)
        flat = np.concatenate([np.zeros(0, np.float32), *vectors]).astype(np.float32)
        if not np.isfinite(flat).all():
            raise DataError(
                f"vectors of shard {shard!r} of {self._job.tars!r} are not finite; check the model's weights"
            )
        *fields, vector = self._schema
        arrays = [pa.array(columns[field.name], field.type) for field in fields]
        arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(flat), vector.type.list_size))
        return pa.Table.from_arrays(arrays, schema=self._schema)


def _batches(rows: Sequence[int], size: int) -> Iterator[list[int]]:
    left = iter(rows)
    while batch := list(islice(left, size)):
        yield batch


def _prefetch_one(load: Callable[[T], R], items: Iterator[T]) -> Iterator[R]:
    """Yield ``load(item)`` of each item; the next item is loaded while one is used."""
    with ThreadPoolExecutor(1) as loader:
        waiting: Future[R] | None = None
        for item in items:
            following = loader.submit(load, item)
            if waiting is not None:
                yield waiting.result()
            waiting = following
        if waiting is not None:
            yield waiting.result()
