"""Computes the features of frozen encoders: a Ray Data pass over the shards, by actors that hold the encoder.

A shard's file appears as a whole or not at all. So an interrupted pass continues where it was, and later jobs on the
same data with the same encoder compute nothing. Of several jobs on one local folder, one computes and the others wait;
in an object store each writes the same file.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from ray.data import ActorPoolStrategy
from torch import Tensor

from pipelines.data.index.index import Index, IndexedShard
from pipelines.data.index.shard_pass import map_shards
from pipelines.data.stream import ray_private
from pipelines.data.stream.feature_cache import (
    FACTS,
    FeatureCache,
    FeatureTable,
    Precision,
    hash_token_ids,
    shorten_input_hash,
)
from pipelines.data.tars.reader import ShardReader
from pipelines.errors import DataError
from pipelines.storage.folder import StorageFolder
from vlmodel.config import dump_config
from vlmodel.encoder_parts import IMAGE
from vlmodel.model import VLModel
from vlmodel.model_config import ModelConfig
from vlmodel.parts import Encoder, LanguageEncoder, ModalityEncoder, VisionEncoder
from vlmodel.processor import VLProcessor
from vlmodel.task import Task

FORMAT = 3
SPLITS = ("train", "val")

T = TypeVar("T")

_LOCK = ".lock"
_CHUNK_ROWS = 4096
_BATCHES_SORTED = 16
"""So many batches of texts are sorted by length together, which saves padding."""


@dataclass(frozen=True)
class EncoderResources:
    """The numbers of processes, CPUs, GPUs and threads that compute features.

    Attributes:
        workers: copies of the encoder.
        cpus_per_worker: CPUs that each reserves in Ray.
        gpus_per_worker: GPUs that each reserves; 0 computes on CPU.
        threads: torch threads of each; 0 shares the machine's cores among all.
        batch: images, or texts, of one forward pass.
    """

    workers: int = 1
    cpus_per_worker: float = 1.0
    gpus_per_worker: float = 0.0
    threads: int = 0
    batch: int = 64


def open_feature_cache(
    stream: str, model: VLModel, config: ModelConfig, processor: VLProcessor, storage: str, precision: Precision
) -> FeatureCache:
    """Open the feature cache of a stream's encoder, whether it has been filled or not.

    Args:
        config: of ``model``.
        storage: folder that holds all feature caches.
    """
    encoder, kind = encoder_of_stream(model, stream), _encoding_of_stream(stream)
    backbone, part = weights_digest(encoder), config.encoders_by_stream()[stream].part
    facts = {
        "format": FORMAT,
        "stream": stream,
        "encoder": {name: value for name, value in dump_config(part).items() if name not in part.non_backbone_settings},
        "backbone": backbone,
        "precision": precision,
        **kind.facts(config, processor),
    }
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
    width = kind.width(encoder, processor)
    features = FeatureCache(
        stream, f"{storage.rstrip('/')}/{stream}-{key}", width, precision, backbone, kind.inputs(processor)
    )
    folder = StorageFolder(features.folder)
    if not folder.exists(FACTS):
        folder.write(FACTS, json.dumps({**facts, "width": width}, indent=1, sort_keys=True).encode())
    return features


def build_features(
    features: FeatureCache,
    index: Index,
    model: VLModel,
    config: ModelConfig,
    processor: VLProcessor,
    resources: EncoderResources,
    splits: Sequence[str] = SPLITS,
    report_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Compute the missing features of all shards of ``index`` with samples of the splits.

    Args:
        model, config: whose encoder of ``features.stream`` computes them.
        report_progress: called with (shards done, shards in all).

    Raises:
        DataError: a shard cannot be read, or a feature is not finite at this precision.
    """
    shards = [shard for shard in index.shards if any(split in shard.sample_counts for split in splits)]
    pooled = config.text_feature_kind() == "pooled"
    with _lock_feature_folder(features):
        complete = features.find_complete_files(features.file_name_of_shard(index, shard) for shard in shards)
        missing = [shard for shard in shards if features.file_name_of_shard(index, shard) not in complete]
        done = len(shards) - len(missing)
        if report_progress is not None:
            report_progress(done, len(shards))
        for _ in _map_shards(
            missing, index, encoder_of_stream(model, features.stream), processor, features, pooled, resources
        ):
            done += 1
            if report_progress is not None:
                report_progress(done, len(shards))


def encoder_of_stream(model: VLModel, stream: str) -> Encoder:
    """Return the model's encoder of a stream."""
    return model.encoder_of_stream(stream)


def weights_digest(encoder: Encoder) -> str:
    """Hash all weights that the features depend on, independent of their device and memory layout."""
    computed = hashlib.sha256()
    for name, value in sorted(encoder.frozen_state_dict().items()):
        computed.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        computed.update(value.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return computed.hexdigest()


def check_features_match_backbones(model: VLModel, features: Sequence[FeatureCache]) -> None:
    """Raise DataError if cached features were computed by another backbone than the model's."""
    for cache in features:
        if (computed := weights_digest(encoder_of_stream(model, cache.stream))) != cache.backbone:
            raise DataError(
                f"the features in {cache.folder!r} are of another backbone ({cache.backbone[:12]}) than the run's "
                f"({computed[:12]}): the weights that model.{cache.stream} names have changed since the run began; "
                "continue with train.feature_cache=off, or start a run under another name"
            )


def _lock_feature_folder(features: FeatureCache) -> AbstractContextManager[object]:
    """Lock a local feature folder against other processes while the block runs; object stores have no locks."""
    folder = StorageFolder(features.folder)
    if not folder.is_local:
        return nullcontext()
    Path(folder.path("")).mkdir(parents=True, exist_ok=True)
    return FileLock(folder.path(_LOCK))


def _map_shards(
    shards: list[IndexedShard],
    index: Index,
    encoder: Encoder,
    processor: VLProcessor,
    features: FeatureCache,
    pooled: bool,
    resources: EncoderResources,
) -> Iterator[str]:
    """Compute the features of shards by actors and yield the shards' names in the order in which they are done."""
    if not shards:
        return
    ray_private.pass_arguments_by_value()
    with ray_private.stored_in_object_store((index, encoder, processor)) as shared:
        for row in map_shards(
            [{"shard": shard.name} for shard in shards],
            _ShardFeatureBuilder,
            fn_constructor_args=(shared, features, pooled, resources),
            compute=ActorPoolStrategy(size=min(resources.workers, len(shards))),
            num_cpus=resources.cpus_per_worker,
            num_gpus=resources.gpus_per_worker or None,
        ):
            yield row["shard"]


class _ShardFeatureBuilder:
    """An actor that holds an encoder and writes the features of shards."""

    def __init__(self, shared: bytes, features: FeatureCache, pooled: bool, resources: EncoderResources) -> None:
        index, encoder, processor = ray_private.load_stored(shared)
        self._features = features
        device = torch.device("cuda" if resources.gpus_per_worker else "cpu")
        threads = resources.threads or max(1, (os.cpu_count() or 1) // resources.workers)
        torch.set_num_threads(threads)
        reader = ShardReader(index)
        self._work = _ShardEncoding(
            features.stream, reader, processor, encoder.to(device).eval(), device, pooled, resources.batch
        )
        self._threads = threads

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        self.write(row["shard"])
        return row

    def write(self, shard: str) -> None:
        """Compute and write a shard's features, a few batches at a time."""
        features, index = self._features, self._work.reader.index
        with ThreadPoolExecutor(self._threads) as pool:
            table, batches = _encoding_of_stream(features.stream).encode(self._work, shard, pool)
            with StorageFolder(features.folder).open_for_writing(
                features.file_name_of_shard(index, index.shard(shard))
            ) as file:
                file.write(table.to_bytes(features.row_bytes))
                for rows_RF in batches:
                    with np.errstate(over="ignore"):  # an overflow is infinite, which is refused below
                        rounded_RF = rows_RF.astype(features.precision)
                    if not np.isfinite(rounded_RF).all():
                        is_exact = features.precision == "float32"
                        remedy = "check the weights" if is_exact else "set train.feature_cache=float32"
                        raise DataError(
                            f"{features.stream} features of shard {shard!r} are not finite as {features.precision}; "
                            f"{remedy}"
                        )
                    file.write(rounded_RF.tobytes())


@dataclass(frozen=True)
class _ShardEncoding:
    """What is needed to encode the inputs of a shard; ``pooled``: a text has one row instead of one for each token."""

    stream: str
    reader: ShardReader
    processor: VLProcessor
    encoder: Encoder
    device: torch.device
    pooled: bool
    batch: int


Rows = NDArray[np.floating[Any]]


def _encode_images(work: _ShardEncoding, shard: str, pool: ThreadPoolExecutor) -> tuple[FeatureTable, Iterator[Rows]]:
    """Encode each distinct image of a shard as one row of features."""
    encoder = work.encoder
    assert isinstance(encoder, VisionEncoder)
    row_of = _find_distinct_inputs(work, shard, IMAGE)

    @torch.inference_mode()
    def run_encoder(pixels_BHWC: Tensor) -> Rows:
        features_BF: Rows = encoder.compute_features(pixels_BHWC.to(work.device)).float().cpu().numpy()
        return features_BF

    def iterate_feature_batches() -> Iterator[Rows]:
        for rows in _iterate_in_batches(row_of.values(), work.batch):
            records = work.reader.read(shard, rows, inputs=("image",), texts=False)
            pixels = list(pool.map(work.processor.decode_image, [record.inputs["image"] for record in records]))
            yield run_encoder(torch.from_numpy(np.stack(pixels)))

    return FeatureTable.from_row_counts(list(row_of), [1] * len(row_of)), iterate_feature_batches()


def _encode_inputs_of_modality(
    work: _ShardEncoding, shard: str, pool: ThreadPoolExecutor
) -> tuple[FeatureTable, Iterator[Rows]]:
    """Encode each distinct input of a shard to one feature row for each of its tokens. Their number is known only once
    an input is encoded, so the rows are first written into a temporary file.
    """
    encoder, name = work.encoder, work.stream
    assert isinstance(encoder, ModalityEncoder)
    row_of = _find_distinct_inputs(work, shard, name)
    width, counts = encoder.feature_width, []

    @torch.inference_mode()
    def run_encoder(arrays: Mapping[str, NDArray[Any]]) -> list[Rows]:
        tensors = {array: torch.from_numpy(values).to(work.device) for array, values in arrays.items()}
        features_BTF, mask_BT = encoder.compute_features(**tensors)
        pairs = zip(features_BTF.float().cpu().numpy(), mask_BT.cpu().numpy(), strict=True)
        return [features_TF[mask_T] for features_TF, mask_T in pairs]

    encoded = tempfile.TemporaryFile()  # noqa: SIM115 - closed with its last reference, in iterate_feature_batches()
    for rows in _iterate_in_batches(row_of.values(), work.batch):
        records = work.reader.read(shard, rows, inputs=(name,), texts=False)
        decoded = list(pool.map(partial(work.processor.decode_input, name), [r.inputs[name] for r in records]))
        for features_TF in run_encoder(work.processor.inputs[name].collate(decoded)):
            counts.append(len(features_TF))
            encoded.write(features_TF.tobytes())
    encoded.seek(0)

    def iterate_feature_batches() -> Iterator[Rows]:
        while data := encoded.read(_CHUNK_ROWS * width * np.dtype(np.float32).itemsize):
            yield np.frombuffer(data, np.float32).reshape(-1, width)

    return FeatureTable.from_row_counts(list(row_of), counts), iterate_feature_batches()


def _find_distinct_inputs(work: _ShardEncoding, shard: str, name: str) -> dict[bytes, int]:
    """Find the row of the first sample with each distinct input of a shard, by the input's hash."""
    count = sum(work.reader.index.shard(shard).sample_counts.values())
    row_of: dict[bytes, int] = {}
    for row, sha256 in enumerate(work.reader.input_sha256s(shard, range(count), name)):
        if sha256 is not None:
            row_of.setdefault(shorten_input_hash(sha256), row)
    return row_of


def _encode_texts(work: _ShardEncoding, shard: str, pool: ThreadPoolExecutor) -> tuple[FeatureTable, Iterator[Rows]]:
    """Encode each distinct text of a shard that a task reads to one feature row for each of its tokens, or to a single
    row.
    """
    encoder = work.encoder
    assert isinstance(encoder, LanguageEncoder)
    readers = _text_reading_tasks(work.processor)
    count = sum(work.reader.index.shard(shard).sample_counts.values())
    ids_of: dict[bytes, NDArray[np.int32]] = {}
    for rows in _iterate_in_batches(range(count), work.batch):
        texts = [
            text
            for record in work.reader.read(shard, rows, inputs=())
            for task in readers
            for text in task.texts_to_read(record.texts)
        ]
        tokenized = work.processor.tokenize(texts)
        ids_NT, mask_NT = tokenized["input_ids_NT"].astype(np.int32), tokenized["text_mask_NT"].astype(np.bool_)
        for hashed, ids_T, mask_T in zip(hash_token_ids(ids_NT, mask_NT), ids_NT, mask_NT, strict=True):
            ids_of.setdefault(hashed, ids_T[mask_T])
    counts = [min(1, len(ids)) if work.pooled else len(ids) for ids in ids_of.values()]

    @torch.inference_mode()
    def run_encoder(texts: Sequence[NDArray[np.int32]]) -> list[Rows]:
        length = max(1, *(len(ids) for ids in texts))
        mask_NT = torch.zeros(len(texts), length, dtype=torch.bool)
        ids_NT = torch.full((len(texts), length), int(work.processor.tokenizer.pad_token_id))
        for n, ids in enumerate(texts):
            ids_NT[n, : len(ids)], mask_NT[n, : len(ids)] = torch.from_numpy(ids), True
        features_NTF, mask_NT = encoder.compute_features(ids_NT.to(work.device), mask_NT.to(work.device))
        if work.pooled:
            features_NTF, mask_NT = encoder.pool_features(features_NTF, mask_NT)
        pairs = zip(features_NTF.float().cpu().numpy(), mask_NT.cpu().numpy(), strict=True)
        return [features_TF[mask_T] for features_TF, mask_T in pairs]

    def iterate_feature_batches() -> Iterator[Rows]:
        for chunk in _iterate_in_batches(ids_of.values(), _BATCHES_SORTED * work.batch):
            order = sorted(range(len(chunk)), key=lambda n: len(chunk[n]))
            rows: list[Rows] = [np.zeros(0)] * len(chunk)
            for numbers in _iterate_in_batches(order, work.batch):
                for number, of_text in zip(numbers, run_encoder([chunk[n] for n in numbers]), strict=True):
                    rows[number] = of_text
            yield np.concatenate(rows)

    return FeatureTable.from_row_counts(list(ids_of), counts), iterate_feature_batches()


class _StreamEncoding(NamedTuple):
    """The functions by which the inputs of a stream are encoded.

    Attributes:
        facts: what, besides encoder and precision, the features of an input depend on.
        inputs: what, besides the tar, decides which inputs a file holds.
        width: numbers of a row.
        encode: the table of a shard's inputs, and their rows in the order of row numbers.
    """

    facts: Callable[[ModelConfig, VLProcessor], Mapping[str, object]]
    inputs: Callable[[VLProcessor], str]
    width: Callable[[Any, VLProcessor], int]
    encode: Callable[[_ShardEncoding, str, ThreadPoolExecutor], tuple[FeatureTable, Iterator[Rows]]]


def _image_feature_settings(config: ModelConfig, processor: VLProcessor) -> Mapping[str, object]:
    return {"image": asdict(processor.config.image_resizing)}


def _image_feature_width(encoder: VisionEncoder, processor: VLProcessor) -> int:
    blank_BHWC = torch.zeros(1, *processor.config.image_resizing.size, 3, dtype=torch.uint8)
    with torch.inference_mode():
        return encoder.compute_features(blank_BHWC).shape[1]


def _text_feature_settings(config: ModelConfig, processor: VLProcessor) -> Mapping[str, object]:
    return {"rows": config.text_feature_kind()}


def _text_feature_width(encoder: LanguageEncoder, processor: VLProcessor) -> int:
    with torch.inference_mode():
        ids_NT = torch.full((1, 1), int(processor.tokenizer.pad_token_id))
        return encoder.compute_features(ids_NT, torch.ones(1, 1, dtype=torch.bool))[0].shape[-1]


def _hash_text_reading(processor: VLProcessor) -> str:
    """Hash the settings that decide which texts are read and how they become token ids."""
    # A tokenizer also stores the truncation and padding that it was last called with.
    tokenizer = json.loads(processor.tokenizer.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}
    readers = sorted({json.dumps(task.compatibility_key(), sort_keys=True) for task in _text_reading_tasks(processor)})
    facts = [readers, processor.config.max_tokens, tokenizer]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _iterate_in_batches(items: Collection[T], size: int) -> Iterator[tuple[T, ...]]:
    """Yield batches of ``size`` items, as ``itertools.batched`` does, which Python 3.11 lacks."""
    iterator = iter(items)
    while batch := tuple(islice(iterator, size)):
        yield batch


def _text_reading_tasks(processor: VLProcessor) -> list[Task]:
    """List the tasks that read texts."""
    return [task for task in processor.tasks.values() if task.encodes_text()]


_KINDS = {
    "vision": _StreamEncoding(_image_feature_settings, lambda processor: "", _image_feature_width, _encode_images),
    "language": _StreamEncoding(_text_feature_settings, _hash_text_reading, _text_feature_width, _encode_texts),
}
_FURTHER = _StreamEncoding(
    lambda config, processor: {}, lambda processor: "", lambda encoder, _: int(encoder.feature_width),
    _encode_inputs_of_modality,
)  # fmt: skip


def _encoding_of_stream(stream: str) -> _StreamEncoding:
    return _KINDS.get(stream, _FURTHER)
