"""Computing the features of a frozen backbone: a Ray Data pass over the shards, by actors that hold the backbone.

A shard's file appears as a whole or not at all. So a pass that is interrupted goes on where it was, and a complete one
is not repeated by later trainings on the same data with the same backbone.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch
from ray.data import ActorPoolStrategy
from torch import Tensor

from pipelines.data.errors import DataError
from pipelines.data.index.index import Index, Shard
from pipelines.data.index.shard_pass import over_shards
from pipelines.data.reader import ShardReader
from pipelines.data.storage import Folder
from pipelines.data.stream.features import FACTS, Features, Precision, file_of
from vlmodel.config import Part, dump
from vlmodel.parts import VisionEncoder
from vlmodel.processor import VLProcessor

FORMAT = 2
_SPLITS = ("train", "val")


@dataclass(frozen=True)
class Resources:
    """What computes the features.

    Attributes:
        workers: copies of the backbone.
        cpus_per_worker: CPUs that each reserves in Ray's books.
        gpus_per_worker: GPUs that each reserves; 0 computes on CPU.
        threads: torch threads of each; 0 shares the machine's cores among all.
        batch: images of one forward pass.
    """

    workers: int = 1
    cpus_per_worker: float = 1.0
    gpus_per_worker: float = 0.0
    threads: int = 0
    batch: int = 64


def build_features(
    index: Index,
    config: Part,
    encoder: VisionEncoder,
    processor: VLProcessor,
    storage: str,
    precision: Precision,
    resources: Resources,
    report_progress: Callable[[int, int], None] | None = None,
) -> Features:
    """The features of all training and validation samples of ``index``; those that are kept already are not computed.

    Args:
        config: of ``encoder``, whose backbone rests.
        storage: their folder is made in this one.
        report_progress: called with (shards done, shards in all).

    Raises:
        DataError: a shard cannot be read, or a feature is not finite at this precision.
    """
    size, backbone = processor.config.image_size, digest(encoder)
    facts = {
        "format": FORMAT,
        "index": index.hash,
        "image": {"image_size": size, "resize": processor.config.resize},
        "vision": dump(config),
        "backbone": backbone,
        "precision": precision,
    }
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
    with torch.inference_mode():
        width = encoder.features(torch.zeros(1, size, size, 3, dtype=torch.uint8)).shape[1]
    features = Features(f"{storage.rstrip('/')}/{key}", width, precision, backbone)
    folder = Folder(features.folder)
    shards = [shard for shard in index.shards if any(split in shard.samples for split in _SPLITS)]
    kept = {(file.name, file.size) for file in folder.files()}
    missing = [shard for shard in shards if (file_of(shard.name), features.file_bytes(shard)) not in kept]
    done = len(shards) - len(missing)
    if report_progress is not None:
        report_progress(done, len(shards))
    if missing:
        folder.write(FACTS, json.dumps({**facts, "width": width}, indent=1, sort_keys=True).encode())
    for _ in _map_shards(missing, index, encoder, processor, features, resources):
        done += 1
        if report_progress is not None:
            report_progress(done, len(shards))
    return features


def digest(encoder: VisionEncoder) -> str:
    """Digest of all weights that the features depend on, wherever they are and however they lie in memory."""
    found = hashlib.sha256()
    for name, value in sorted(encoder.resting().items()):
        found.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        found.update(value.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def check_backbone(encoder: VisionEncoder, features: Features) -> None:
    """Refuse features of another backbone than the one that is trained on.

    Raises:
        DataError: they are.
    """
    if (found := digest(encoder)) != features.backbone:
        raise DataError(
            f"the features in {features.folder!r} are of another backbone ({features.backbone[:12]}) than the run's "
            f"({found[:12]}): what model.vision.weights names has changed since the run began; go on with "
            "train.feature_cache=off, or start a run under another name"
        )


def _map_shards(
    shards: list[Shard],
    index: Index,
    encoder: VisionEncoder,
    processor: VLProcessor,
    features: Features,
    resources: Resources,
) -> Iterator[str]:
    """The shards' names, in the order in which they are done."""
    if not shards:
        return
    # One copy in the object store for all actors.
    shared = ray.put((index, encoder, processor))
    for row in over_shards(
        [{"shard": shard.name} for shard in shards],
        _Backbone,
        fn_constructor_args=(shared, features, resources),
        compute=ActorPoolStrategy(size=min(resources.workers, len(shards))),
        num_cpus=resources.cpus_per_worker,
        num_gpus=resources.gpus_per_worker or None,
    ):
        yield row["shard"]


class _Backbone:
    """An actor's encoder."""

    def __init__(self, shared: Any, features: Features, resources: Resources) -> None:
        index, encoder, self._processor = ray.get(shared)
        self._reader, self._features, self._batch = ShardReader(index), features, resources.batch
        self._device = torch.device("cuda" if resources.gpus_per_worker else "cpu")
        self._encoder: VisionEncoder = encoder.to(self._device).eval()
        self._threads = resources.threads or max(1, (os.cpu_count() or 1) // resources.workers)
        torch.set_num_threads(self._threads)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        self.write(row["shard"])
        return row

    def write(self, shard: str) -> None:
        """Compute and write a shard's features."""
        count = sum(self._reader.index.shard(shard).samples.values())
        features_BF = np.empty((count, self._features.width), self._features.precision)
        with ThreadPoolExecutor(self._threads) as pool:
            for start in range(0, count, self._batch):
                rows = range(start, min(start + self._batch, count))
                records = self._reader.read(shard, rows)
                pixels = list(pool.map(self._processor.decode, [record.image for record in records]))
                given_BF = self._of(torch.from_numpy(np.stack(pixels)))
                # Too great a number is no error of NumPy's but infinite, and is refused below.
                with np.errstate(over="ignore"):
                    features_BF[rows.start : rows.stop] = given_BF
        if not np.isfinite(features_BF).all():
            raise DataError(
                f"features of shard {shard!r} are not finite as {self._features.precision}; "
                + ("set train.feature_cache=float32" if self._features.precision != "float32" else "see the weights")
            )
        Folder(self._features.folder).write(file_of(shard), features_BF.tobytes())

    @torch.inference_mode()
    def _of(self, pixels_BHWC: Tensor) -> np.ndarray:
        features_BF: np.ndarray = self._encoder.features(pixels_BHWC.to(self._device)).float().cpu().numpy()
        return features_BF
