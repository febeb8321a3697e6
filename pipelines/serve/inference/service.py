"""The model's side of the service: decode beside the event loop, predict in batches, swap models under load.

It uses the decoding, tokenization and collation that training used, and knows neither HTTP nor Ray.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from transformers import AsyncTextIteratorStreamer

from pipelines.registry import golden, manifest
from pipelines.registry.errors import ArtifactError
from pipelines.serve.config import ServeConfig, forward_passes, model_threads
from pipelines.serve.errors import ApiError, ServeError, lacks_task, not_ready
from pipelines.serve.inference.adapters import (
    Answering,
    DecodedExample,
    Item,
    PredecodedProcessor,
    TaskAdapter,
    task_adapters,
)
from pipelines.serve.inference.batching import Batcher
from pipelines.serve.inference.decoding import Decoding, pixel_limit
from pipelines.serve.inference.priority import run_at_low_priority
from pipelines.serve.inference.threads import InferenceThreadPool, TimedResult
from pipelines.serve.service import Embeddings, Matches, Metrics, ModelInfo, NoMetrics, ServiceResult, Task
from vlmodel.inference import Prediction, Predictor

# A pass that runs for this many request time-outs hangs; Serve then replaces the replica.
_HANGING_PASS = 6


@dataclass(frozen=True)
class _Loaded:
    """A model with queues of its own, so that what was decoded for one model never meets another."""

    predictor: Predictor
    info: ModelInfo
    heads: Mapping[Task, TaskAdapter[Any]]
    batchers: Mapping[Task, Batcher[Item, TimedResult[Any]]]


@dataclass(frozen=True)
class _Decoded:
    """A request whose image was decoded, when that began and ended, and which of its texts are cut."""

    example: DecodedExample
    received: float
    ended: float
    truncated: tuple[bool, ...]


class InferenceService:
    """A ``Service`` that answers with the model it has loaded.

    Args:
        config: sizes of batches and pools.
        metrics: where forward passes are counted.
    """

    def __init__(self, config: ServeConfig, metrics: Metrics | None = None) -> None:
        self._config = config
        self._metrics = metrics or NoMetrics()
        self._at_once = forward_passes(config)
        self._decoding = Decoding(config.decode_threads)
        self._passes = InferenceThreadPool(self._at_once, model_threads(config))
        self._loaded: _Loaded | None = None

    @property
    def model(self) -> ModelInfo | None:
        return self._loaded.info if self._loaded else None

    async def load(self, folder: str | Path, name: str, version: str, digest: str = "", golden_file: str = "") -> None:
        """Load a model, warm up all its tasks and answer with it from then on. Requests in flight end with the former
        one.

        Args:
            digest: of the folder (``manifest.digest``) when it was deployed; files that changed since are refused.
            golden_file: the version's golden answers, which it must give here too; "" for a model without.

        Raises:
            ServeError: the folder holds no usable model, or it gives other answers than its golden ones; the former
                one, if any, goes on.
        """
        try:
            predictor = await asyncio.to_thread(run_at_low_priority, partial(self._read, Path(folder), digest))
            heads = task_adapters(predictor)
            if not heads:
                tasks = ", ".join(map(repr, predictor.processor.tasks))
                raise ValueError(f"this service can do none of its tasks ({tasks}); serve a model with another decoder")
        except (OSError, ValueError, RuntimeError) as error:
            raise ServeError(f"model {name!r} version {version} in {str(folder)!r} does not load: {error}") from error
        await self._passes.run(partial(self._warm_up, heads), watched=False)
        if golden_file and self._config.golden_tolerance < 1:
            check = partial(_check_golden, predictor, Path(golden_file), self._config.golden_tolerance)
            try:
                await self._passes.run(check, watched=False)
            except (ArtifactError, ServeError) as error:
                raise ServeError(
                    f"model {name!r} version {version} in {str(folder)!r} is not served: {error}"
                ) from error
        processor = predictor.processor
        info = ModelInfo(
            name=name,
            version=version,
            tasks=tuple(heads),
            labels=len(processor.labels),
            image_size=processor.config.image_size,
            resize=processor.config.resize,
        )
        batchers = {task: self._batcher(task, head, version) for task, head in heads.items()}
        self._loaded = _Loaded(predictor, info, heads, batchers)

    async def answer(
        self, image: bytes, questions: Sequence[str], top_k: int, attention: bool
    ) -> ServiceResult[Sequence[Prediction]]:
        """See ``Service``."""
        return await self._ask("vqa", image, questions, top_k, attention)

    async def caption(self, image: bytes, top_k: int, attention: bool) -> ServiceResult[Prediction]:
        """See ``Service``."""
        answered = await self._ask("caption", image, ("",), top_k, attention)
        return ServiceResult(answered.result[0], answered.model, answered.stages_s)

    async def stream_caption(
        self, image: bytes, attention: bool
    ) -> AsyncGenerator[str | ServiceResult[Prediction], None]:
        """See ``Service``. What keeps it from being begun is raised here, and not by the iterator."""
        loaded = self._with("caption")
        head = loaded.heads["caption"]
        assert isinstance(head, Answering)
        return self._write(loaded, head, await self._decode(loaded, image, ("",)), attention)

    async def match(self, image: bytes, texts: Sequence[str]) -> ServiceResult[Matches]:
        """See ``Service``."""
        return await self._ask("match", image, texts)

    async def embed(self, image: bytes | None, texts: Sequence[str]) -> ServiceResult[Embeddings]:
        """See ``Service``."""
        return await self._ask("embed", image, texts)

    async def check(self, image: bytes) -> ServiceResult[None]:
        """See ``Service``."""
        if self._loaded is None:
            raise not_ready()
        decoded = await self._decode(self._loaded, image, ())
        return ServiceResult(None, self._loaded.info, {"decode": decoded.ended - decoded.received})

    def check_health(self) -> None:
        """Fail where a forward pass hangs.

        Raises:
            ServeError: so that Serve replaces this replica.
        """
        limit_s = _HANGING_PASS * self._config.request_timeout_s
        if self._passes.busy_s() > limit_s:
            raise ServeError(f"a forward pass has been running for more than {limit_s:g} s")

    def close(self) -> None:
        """End the threads, once what they are at is done."""
        self._decoding.close()
        self._passes.close()

    def _read(self, folder: Path, digest: str) -> Predictor:
        # A replica that starts anew, maybe weeks after the deployment, reads the files as they are then.
        if digest and manifest.digest(folder) != digest:
            raise ArtifactError(
                "its files are not those that were deployed; deploy it again (python -m jobs.serve), which restores "
                "a damaged copy of a registered model"
            )
        device = "cuda" if self._config.num_gpus > 0 else "cpu"
        predictor = Predictor.from_pretrained(folder, device=device)
        plain = predictor.processor
        ahead = PredecodedProcessor(plain.config, plain.tokenizer, plain.labels, plain.tasks, plain.normalizer)
        return Predictor(predictor.model, ahead, device)

    def _warm_up(self, heads: Mapping[Task, TaskAdapter[Any]]) -> None:
        """The first passes allocate and choose kernels; no caller should wait for that."""
        for head in heads.values():
            for item in head.warm_ups():
                for batch_size in {1, self._config.max_batch_size}:
                    head.run([item] * batch_size)

    def _batcher(self, task: Task, head: TaskAdapter[Any], version: str) -> Batcher[Item, TimedResult[Any]]:
        async def run(items: list[Item]) -> list[TimedResult[Any]]:
            texts = sum(len(item.example.texts) for item in items)
            # Alike in time to within a factor of two each.
            kind = f"{task} {len(items).bit_length()} {texts.bit_length()}"
            passed = await self._passes.run(partial(head.run, items), kind=kind)
            self._metrics.batch(task, len(items), passed.seconds, version)
            return [TimedResult(of_one, passed.started, passed.ended) for of_one in passed.result]

        return Batcher(run, self._config.max_batch_size, self._config.batch_wait_s, self._at_once)

    def _with(self, task: Task) -> _Loaded:
        if self._loaded is None:
            raise not_ready()
        if task not in self._loaded.heads:
            raise lacks_task(task, self._loaded.info.name, self._loaded.info.tasks)
        return self._loaded

    async def _ask(
        self, task: Task, image: bytes | None, texts: Sequence[str], top_k: int = 1, attention: bool = False
    ) -> ServiceResult[Any]:
        loaded = self._with(task)
        decoded = await self._decode(loaded, image, texts)
        passed = await loaded.batchers[task].submit(Item(decoded.example, top_k, attention))
        return _answered(loaded, decoded, passed)

    async def _decode(self, loaded: _Loaded, image: bytes | None, texts: Sequence[str]) -> _Decoded:
        received = time.perf_counter()
        _check_texts(texts)
        processor = loaded.predictor.processor
        pixels_HWC = None
        if image is not None:
            limit = pixel_limit(self._config, processor.config.image_size)
            pixels_HWC = await self._decoding.decode(processor, image, limit)
        truncated = tuple(await asyncio.to_thread(processor.truncated, texts)) if any(texts) else ()
        example = DecodedExample(b"", tuple(texts), pixels_HWC=pixels_HWC)
        return _Decoded(example, received, time.perf_counter(), truncated)

    async def _write(
        self, loaded: _Loaded, head: Answering, decoded: _Decoded, attention: bool
    ) -> AsyncGenerator[str | ServiceResult[Prediction], None]:
        streamer = AsyncTextIteratorStreamer(loaded.predictor.processor.tokenizer, True, skip_special_tokens=True)

        def write() -> Prediction:
            try:
                return head.write(Item(decoded.example, attention=attention), streamer)
            finally:
                # Who waits for the next piece must hear of an end that came too early.
                streamer.end()

        writing = asyncio.ensure_future(self._passes.run(write, kind="stream"))
        try:
            async for piece in streamer:
                if piece:
                    yield piece
            passed = await writing
        finally:
            writing.cancel()
        self._metrics.batch("caption", 1, passed.seconds, loaded.info.version)
        yield _answered(loaded, decoded, passed)


def _check_golden(predictor: Predictor, file: Path, tolerance: float) -> None:
    answers = golden.read(file)
    if found := golden.differences(predictor, answers, tolerance):
        raise ServeError(
            f"{len(found)} of its {len(answers)} golden answers are others here ({found[0]}); compare the versions of "
            "libraries and the hardware with those of its training, or raise serve.golden_tolerance"
        )


def _answered(loaded: _Loaded, decoded: _Decoded, passed: TimedResult[Any]) -> ServiceResult[Any]:
    stages_s = {
        "decode": decoded.ended - decoded.received,
        "queue": passed.started - decoded.ended,
        "model": passed.seconds,
    }
    return ServiceResult(passed.result, loaded.info, stages_s, truncated=decoded.truncated)


def _check_texts(texts: Sequence[str]) -> None:
    """Refuse what no tokenizer takes, before it joins the batch of others."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            message = f"a text has half a surrogate pair (at character {error.start}), which is no character; remove it"
            raise ApiError(422, "bad_text", message) from None
