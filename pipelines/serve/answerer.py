"""The model's side of the service: decode beside the event loop, predict in batches, swap models under load.

It uses the decoding, tokenization and collation that training used, and knows neither HTTP nor Ray.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from pipelines.registry import manifest
from pipelines.registry.errors import ArtifactError
from pipelines.serve.batching import Batcher
from pipelines.serve.config import ServeConfig, model_threads
from pipelines.serve.errors import ApiError, ServeError
from pipelines.serve.service import Answered, Metrics, ModelInfo, NoMetrics
from vlmodel.images import ImageError
from vlmodel.inference import Prediction, Predictor
from vlmodel.processor import Example, VLProcessor

if TYPE_CHECKING:
    from numpy.typing import NDArray

_IMAGE_ERRORS = {
    "truncated": (422, "truncated_image", "the image file ends early; send it whole"),
    "undecodable": (422, "undecodable_image", "the image cannot be decoded; send a JPEG, PNG, WebP, BMP or GIF file"),
    "too_large": (413, "image_too_large", "the image has too many pixels; send a smaller one"),
}

# A pass that runs for this many request time-outs hangs; Serve then replaces the replica.
_HANGING_PASS = 6


@dataclass(frozen=True)
class _Decoded(Example):
    """An example whose image was decoded ahead; its encoded bytes are gone."""

    pixels_HWC: NDArray[np.uint8] | None = None


class _AheadProcessor(VLProcessor):
    """The processor, spared the decoding of what was decoded ahead."""

    def images(self, examples: Sequence[Example]) -> list[NDArray[np.uint8]]:
        pixels = [e.pixels_HWC if isinstance(e, _Decoded) else None for e in examples]
        return [self.decode(e.image) if p is None else p for e, p in zip(examples, pixels, strict=True)]


@dataclass(frozen=True)
class _Item:
    example: _Decoded
    top_k: int
    attention: bool


@dataclass(frozen=True)
class _Outcome:
    predictions: Sequence[Prediction]
    started: float
    ended: float


@dataclass(frozen=True)
class _Loaded:
    """A model with a queue of its own, so that what was decoded for one model never meets another."""

    predictor: Predictor
    info: ModelInfo
    batcher: Batcher[_Item, _Outcome]


class Answerer:
    """A ``Service`` that answers with the model it has loaded.

    Args:
        config: sizes of batches and pools.
        metrics: where forward passes are counted.
    """

    def __init__(self, config: ServeConfig, metrics: Metrics | None = None) -> None:
        self._config = config
        self._metrics = metrics or NoMetrics()
        self._threads = model_threads(config)
        self._decoding = ThreadPoolExecutor(config.decode_threads, thread_name_prefix="decode")
        # One thread: passes side by side would fight for the same cores, or for the same GPU's memory. The number of
        # OpenMP threads belongs to the thread that calls, and Ray's OMP_NUM_THREADS would make it one.
        self._predicting = ThreadPoolExecutor(
            1, "predict", initializer=torch.set_num_threads, initargs=(self._threads,)
        )
        self._loaded: _Loaded | None = None
        self._pass_started: float | None = None

    @property
    def model(self) -> ModelInfo | None:
        return self._loaded.info if self._loaded else None

    async def load(self, folder: str | Path, name: str, version: str, digest: str = "") -> None:
        """Load a model, warm it up and answer with it from then on. Requests in flight end with the former one.

        Args:
            digest: of the folder (``manifest.digest``) when it was deployed; files that changed since are refused.

        Raises:
            ServeError: the folder holds no usable model; the former one, if any, goes on.
        """
        try:
            predictor = await asyncio.to_thread(self._read, Path(folder), digest)
        except (OSError, ValueError, RuntimeError) as error:
            raise ServeError(f"model {name!r} version {version} in {str(folder)!r} does not load: {error}") from error
        await asyncio.get_running_loop().run_in_executor(self._predicting, self._warm_up, predictor)
        processor = predictor.processor
        info = ModelInfo(
            name=name,
            version=version,
            labels=len(processor.labels),
            image_size=processor.config.image_size,
            resize=processor.config.resize,
        )

        async def run(items: list[_Item]) -> list[_Outcome]:
            return await self._pass(predictor, version, items)

        batcher = Batcher(run, self._config.max_batch_size, self._config.batch_wait_s)
        self._loaded = _Loaded(predictor, info, batcher)

    async def answer(self, image: bytes, questions: Sequence[str], top_k: int, attention: bool) -> Answered:
        """See ``Service.answer``."""
        loaded = self._loaded
        if loaded is None:
            raise ApiError(503, "not_ready", "the model is still loading; try again shortly", {"retry-after": "1"})
        received = time.perf_counter()
        pixels_HWC = await asyncio.get_running_loop().run_in_executor(self._decoding, _decode, loaded.predictor, image)
        decoded = time.perf_counter()
        example = _Decoded(b"", tuple(questions), pixels_HWC=pixels_HWC)
        outcome = await loaded.batcher.submit(_Item(example, top_k, attention))
        stages_s = {
            "decode": decoded - received,
            "queue": outcome.started - decoded,
            "model": outcome.ended - outcome.started,
        }
        return Answered(outcome.predictions, loaded.info, stages_s)

    def check_health(self) -> None:
        """Fail where a forward pass hangs.

        Raises:
            ServeError: so that Serve replaces this replica.
        """
        started = self._pass_started
        limit_s = _HANGING_PASS * self._config.request_timeout_s
        if started is not None and time.perf_counter() - started > limit_s:
            raise ServeError(f"a forward pass has been running for more than {limit_s:g} s")

    def close(self) -> None:
        """End the threads, once what they are at is done."""
        self._decoding.shutdown(cancel_futures=True)
        self._predicting.shutdown(cancel_futures=True)

    def _read(self, folder: Path, digest: str) -> Predictor:
        # A replica that starts anew, maybe weeks after the deployment, reads the files as they are then.
        if digest and manifest.digest(folder) != digest:
            raise ArtifactError(
                "its files are not those that were deployed; deploy it again (python -m jobs.serve), which restores "
                "a damaged copy of a registered model"
            )
        device = "cuda" if self._config.num_gpus > 0 else "cpu"
        predictor = Predictor.from_pretrained(folder, device=device, threads=self._threads)
        plain = predictor.processor
        if plain.fields.reads != "questions" or not plain.fields.text:
            raise ValueError(
                "its first task is given no questions, and this service asks some; serve a model whose decoder.kind is "
                "vqa or answer"
            )
        ahead = _AheadProcessor(plain.config, plain.tokenizer, plain.labels, plain.tasks)
        return Predictor(predictor.model, ahead, device)

    def _warm_up(self, predictor: Predictor) -> None:
        """The first passes allocate and choose kernels; no caller should wait for that."""
        size = predictor.processor.config.image_size
        for batch_size in {1, self._config.max_batch_size}:
            blank = _Decoded(b"", ("what is this?",), pixels_HWC=np.zeros((size, size, 3), np.uint8))
            predictor.predict([blank] * batch_size, attention=True)

    async def _pass(self, predictor: Predictor, version: str, items: list[_Item]) -> list[_Outcome]:
        loop = asyncio.get_running_loop()
        started = self._pass_started = time.perf_counter()
        try:
            predictions = await loop.run_in_executor(self._predicting, _predict, predictor, items)
        finally:
            self._pass_started = None
        ended = time.perf_counter()
        self._metrics.batch(len(items), ended - started, version)
        return [_Outcome(of_one, started, ended) for of_one in predictions]


def _decode(predictor: Predictor, image: bytes) -> NDArray[np.uint8]:
    try:
        return predictor.processor.decode(image)
    except ImageError as error:
        raise ApiError(*_IMAGE_ERRORS[error.kind]) from error


def _predict(predictor: Predictor, items: Sequence[_Item]) -> list[list[Prediction]]:
    """One pass for all; each gets as much of it as it asked for."""
    attention = any(item.attention for item in items)
    found = predictor.predict([item.example for item in items], max(item.top_k for item in items), attention)
    return [
        [Prediction(p.answers[: item.top_k], p.attention_HW if item.attention else None) for p in of_one]
        for item, of_one in zip(items, found, strict=True)
    ]
