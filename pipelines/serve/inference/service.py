"""A ``Service`` with a loaded model: decodes beside the event loop, predicts in batches, replaces the model under load.

It uses the decoding, tokenization and collation of training, and knows neither HTTP nor Ray.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from transformers import AsyncTextIteratorStreamer

from pipelines.knowledge.errors import KnowledgeError
from pipelines.knowledge.trained_facts import TrainedFacts
from pipelines.registry.errors import ArtifactError
from pipelines.registry.own_examples import ModelExample
from pipelines.serve.config import (
    ServeConfig,
    concurrent_forward_passes,
    model_threads,
    threads_for_decoding,
)
from pipelines.serve.errors import ApiError, ServeError, not_ready_error, unknown_task_error
from pipelines.serve.facts import UpdatableFactStore
from pipelines.serve.inference import loading
from pipelines.serve.inference.batching import Batcher, InferenceThreadPool, TimedResult
from pipelines.serve.inference.decoding import ImageDecoder, decoding_pixel_limit
from pipelines.serve.inference.predecoded import DecodedExample
from pipelines.serve.inference.priority import run_at_low_priority
from pipelines.serve.service import AnswerStream, ModelInfo, ServiceMetrics, ServiceRequest, ServiceResult
from pipelines.storage import manifest
from vlmodel.encoder_parts import IMAGE
from vlmodel.facts import FactLinkingConfig
from vlmodel.inference import Predictor
from vlmodel.knowledge_parts import KnowledgePart
from vlmodel.operations.base import BatchedRequest, Operation, operations_of_tasks
from vlmodel.operations.classify import ClassifyOperation
from vlmodel.processor import VLProcessor

# A pass that runs for this many request time-outs hangs; Serve then replaces the replica.
_HANGING_TIMEOUTS = 6


@dataclass(frozen=True)
class _LoadedModel:
    """A model with queues of its own, so that inputs decoded for one model never reach another.

    Attributes:
        operations: by their names, each with the name of the task that does it.
        batchers: of each operation.
        examples: of the model's own data, named by operation.
    """

    predictor: Predictor
    info: ModelInfo
    operations: Mapping[str, tuple[str, Operation]]
    batchers: Mapping[str, Batcher[BatchedRequest, TimedResult[Any]]]
    examples: Sequence[ModelExample] = ()


@dataclass(frozen=True)
class _DecodedRequest:
    """A request with its decoded inputs, when decoding started and ended, which texts are truncated, and their words
    that the model does not know.
    """

    example: DecodedExample
    started: float
    ended: float
    truncated: tuple[bool, ...]
    unknown_words: tuple[str, ...]


class InferenceService:
    """A ``Service`` that answers with the model that was loaded last.

    Args:
        config: sizes of batches and thread pools.
        metrics: counts forward passes.
        facts: those that models which read facts answer with; ``close`` ends their thread, too.
    """

    def __init__(
        self, config: ServeConfig, metrics: ServiceMetrics | None = None, facts: UpdatableFactStore | None = None
    ) -> None:
        self._facts = facts
        self._config, self._metrics = config, metrics or ServiceMetrics()
        self._passes = concurrent_forward_passes(config)
        self._decoder = ImageDecoder(threads_for_decoding(config))
        self._threads = InferenceThreadPool(self._passes, model_threads(config))
        self._loaded: _LoadedModel | None = None

    @property
    def model(self) -> ModelInfo | None:
        return self._loaded.info if self._loaded else None

    @property
    def examples(self) -> Sequence[ModelExample]:
        return self._loaded.examples if self._loaded else ()

    async def load(self, folder: str | Path, name: str, version: str, digest: str = "", golden_file: str = "") -> None:
        """Load a model and warm it up, then answer with it. Requests in flight end with the previous one.

        Args:
            digest: of the folder (``manifest.folder_digest``) when it was deployed; changed files are refused.
            golden_file: the version's golden answers, which it must give here too; "" for a model without. Examples of
                its own data lie beside this file.

        Raises:
            ServeError: the folder holds no usable model, or it gives other answers than its golden ones. The previous
                model, if any, stays.
        """
        model = f"model {name!r} version {version} in {str(folder)!r}"
        device = "cuda" if self._config.num_gpus > 0 else "cpu"
        try:
            read = partial(loading.load_predictor, Path(folder), digest, device)
            predictor = await asyncio.to_thread(run_at_low_priority, read)
            operations = operations_of_tasks(predictor.processor.tasks)
            if not operations:
                tasks = ", ".join(task.kind for task in predictor.processor.tasks.values())
                raise ValueError(f"none of its tasks ({tasks}) is one that can be served; serve a model with another")
        except (OSError, ValueError, RuntimeError) as error:
            raise ServeError(f"{model} does not load: {error}") from error
        try:
            is_compared = self._config.golden_tolerance < 1
            answers = await asyncio.to_thread(loading.read_golden_answers, golden_file, compared=is_compared)
            warm_up = partial(loading.warm_up, predictor, operations.values(), self._config.max_batch_size, answers)
            await self._threads.run(warm_up, measured=False)
            if is_compared:
                tolerance = self._config.golden_tolerance
                check = partial(loading.check_golden_answers, predictor, answers, tolerance)
                await self._threads.run(check, measured=False)
        except (ArtifactError, ServeError) as error:
            raise ServeError(f"{model} is not served: {error}") from error
        examples = await asyncio.to_thread(loading.read_examples, golden_file, operations)
        processor = predictor.processor
        if processor.knowledge.reads_facts:
            # Not before: golden answers have facts of their own, which edits do not change.
            processor.finder = self._require_facts_version(model, processor.knowledge.link, Path(folder))
        info = ModelInfo(
            name=name,
            version=version,
            tasks=tuple(operations),
            labels=len(processor.labels),
            image_size=processor.config.image_resizing.size,
            resize=processor.config.image_resizing.resize,
            crop=processor.config.image_resizing.crop,
            inputs=processor.input_names,
            media=processor.media,
            needs_classes=ClassifyOperation.name in operations
            and operations[ClassifyOperation.name][1].unsupported_request_reason({}) is not None,
            digest=digest or await asyncio.to_thread(manifest.folder_digest, Path(folder)),
        )
        batchers = {name: self._make_batcher(predictor, *operation, version) for name, operation in operations.items()}
        self._loaded = _LoadedModel(predictor, info, operations, batchers, examples)

    async def run(self, request: ServiceRequest) -> ServiceResult:
        """See ``Service``."""
        loaded = self._get_loaded(request.task)
        if problem := loaded.operations[request.task][1].unsupported_request_reason(request.settings):
            raise ApiError(422, *problem)
        await self._wait_for_facts(request.least_version)
        decoded = await self._decode_request(loaded, request.inputs, request.texts)
        timed = await loaded.batchers[request.task].submit(
            BatchedRequest(decoded.example, request.top_k, request.attention, request.settings)
        )
        return _service_result(loaded, decoded, timed)

    async def stream(self, request: ServiceRequest) -> AnswerStream:
        """See ``Service``."""
        loaded = self._get_loaded(request.task)
        await self._wait_for_facts(request.least_version)
        decoded = await self._decode_request(loaded, request.inputs, request.texts)
        return self._stream_generated_text(
            loaded, request.task, BatchedRequest(decoded.example, 1, request.attention, request.settings), decoded
        )

    async def check_image(self, image: bytes) -> ServiceResult:
        """See ``Service``."""
        if self._loaded is None:
            raise not_ready_error()
        decoded = await self._decode_request(self._loaded, {IMAGE: image}, ())
        return ServiceResult(None, self._loaded.info, {"decode": decoded.ended - decoded.started})

    def check_health(self) -> None:
        """Raise an error if a forward pass hangs.

        Raises:
            ServeError: Serve then replaces this replica.
        """
        limit_s = _HANGING_TIMEOUTS * self._config.request_timeout_s
        if self._threads.longest_running_seconds() > limit_s:
            raise ServeError(f"a forward pass has been running for more than {limit_s:g} s")

    def close(self) -> None:
        """End the threads after their current work."""
        if self._facts is not None:
            self._facts.close()
        self._decoder.close()
        self._threads.close()

    def _make_batcher(
        self, predictor: Predictor, task: str, operation: Operation, version: str
    ) -> Batcher[BatchedRequest, TimedResult[Any]]:
        async def run(items: list[BatchedRequest]) -> list[TimedResult[Any]]:
            texts = sum(len(item.example.texts) for item in items)
            # Times within a kind differ by at most a factor of two for each of both numbers.
            kind = f"{operation.name} {len(items).bit_length()} {texts.bit_length()}"
            timed = await self._threads.run(partial(operation.run, predictor, task, items), kind=kind)
            self._metrics.count_batch(operation.name, len(items), timed.seconds, version)
            return [TimedResult(result, timed.started, timed.ended) for result in timed.result]

        return Batcher(run, self._config.max_batch_size, self._passes)

    def _require_facts_version(self, model: str, link: FactLinkingConfig, folder: Path) -> UpdatableFactStore:
        if self._facts is None:
            raise ServeError(f"{model} reads facts; name their store in knowledge.store, or in serve.knowledge.store")
        try:
            self._facts.check_linking(link)
            if link.by != "names" and (trained := TrainedFacts.load(folder)) is not None:
                trained.check_encoder(self._facts.encoder)
        except KnowledgeError as error:
            raise ServeError(f"{model} is not served: {error}") from error
        return self._facts

    async def _wait_for_facts(self, least_version: int) -> None:
        """Wait until this replica uses at least this version of the facts."""
        if not least_version:
            return
        if self._facts is None:
            raise ApiError(422, "no_facts", "this service has no store of facts; leave min_knowledge_version out")
        limit_s = self._config.request_timeout_s / 2
        if not await asyncio.to_thread(self._facts.wait_for_version, least_version, limit_s):
            message = f"the facts are of version {self._facts.version}, and {least_version} is not there; try again"
            raise ApiError(503, "facts_behind", message, {"retry-after": "1"})

    def _get_loaded(self, task: str) -> _LoadedModel:
        if self._loaded is None:
            raise not_ready_error()
        if task not in self._loaded.operations:
            raise unknown_task_error(task, self._loaded.info.name, self._loaded.info.tasks)
        return self._loaded

    async def _decode_request(
        self, loaded: _LoadedModel, inputs: Mapping[str, bytes], texts: Sequence[str]
    ) -> _DecodedRequest:
        started = time.perf_counter()
        _check_encodable(texts)
        processor = loaded.predictor.processor
        if unknown := sorted(set(inputs) - set(processor.input_names)):
            taken = ", ".join(processor.input_names) or "texts alone"
            message = f"the model takes no input {unknown[0][:80]!r}; it takes {taken}"
            raise ApiError(422, "unknown_input", message)
        decoded: dict[str, Mapping[str, Any]] = {}
        for name, data in inputs.items():
            if name == IMAGE:
                limit = decoding_pixel_limit(self._config, processor.config.image_resizing.size)
                decoded[IMAGE] = {"pixels_HWC": await self._decoder.decode(processor, data, limit)}
            else:
                decoded[name] = await self._decoder.decode_input(processor, name, data)
        seen: tuple[tuple[bool, ...], tuple[str, ...]] = (), ()
        if any(texts):
            seen = await asyncio.to_thread(_find_truncated_and_unknown_words, processor, texts)
        example = DecodedExample({}, tuple(texts), decoded=decoded)
        return _DecodedRequest(example, started, time.perf_counter(), *seen)

    async def _stream_generated_text(
        self, loaded: _LoadedModel, name: str, item: BatchedRequest, decoded: _DecodedRequest
    ) -> AnswerStream:
        task, operation = loaded.operations[name]
        streamer = AsyncTextIteratorStreamer(loaded.predictor.processor.tokenizer, True, skip_special_tokens=True)

        def generate() -> Any:
            try:
                return operation.stream_result(loaded.predictor, task, item, streamer)
            finally:
                # The loop below must end also if the pass fails.
                streamer.end()

        running = asyncio.ensure_future(self._threads.run(generate, kind="stream"))
        try:
            async for piece in answered_pieces(streamer, loaded.predictor.processor.knowledge):
                if piece:
                    yield piece
            timed = await running
        finally:
            running.cancel()
        self._metrics.count_batch(name, 1, timed.seconds, loaded.info.version)
        yield _service_result(loaded, decoded, timed)


async def answered_pieces(pieces: AsyncIterator[str], knowledge: KnowledgePart) -> AsyncIterator[str]:
    """Yield what a text answers that comes in pieces. Of a model that names a fact first the fact is left out, and a
    text that names none comes when it has ended: until then it may be a fact.
    """
    if not knowledge.writes_evidence():
        async for piece in pieces:
            yield piece
        return
    written, answers = "", False
    async for piece in pieces:
        if answers:
            yield piece
            continue
        written += piece
        # The last word may be a part of one.
        whole, _, rest = written.rpartition(" ")
        fact, answer = knowledge.split_evidence(whole)
        if fact:
            answers = True
            yield f"{answer} {rest}" if answer else rest
    if not answers:
        yield knowledge.split_evidence(written)[1]


def _service_result(loaded: _LoadedModel, decoded: _DecodedRequest, timed: TimedResult[Any]) -> ServiceResult:
    stages_s = {
        "decode": decoded.ended - decoded.started,
        "queue": timed.started - decoded.ended,
        "model": timed.seconds,
    }
    return ServiceResult(
        timed.result, loaded.info, stages_s, truncated=decoded.truncated, unknown_words=decoded.unknown_words
    )


def _find_truncated_and_unknown_words(
    processor: VLProcessor, texts: Sequence[str]
) -> tuple[tuple[bool, ...], tuple[str, ...]]:
    """Find for each text whether it is truncated, and the unknown words of all texts."""
    return tuple(processor.are_texts_truncated(texts)), tuple(processor.unknown_words(texts))


def _check_encodable(texts: Sequence[str]) -> None:
    """Refuse a text that no tokenizer accepts, before it joins a batch."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            message = f"a text has half a surrogate pair (at character {error.start}), which is no character; remove it"
            raise ApiError(422, "bad_text", message) from None
