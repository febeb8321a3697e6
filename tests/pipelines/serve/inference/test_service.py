"""The model's side of the service, without HTTP and without Ray."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.registry import golden
from pipelines.serve.config import ServeConfig
from pipelines.serve.errors import ApiError, ServeError
from pipelines.serve.inference.service import InferenceService, answered_pieces
from pipelines.serve.service import ServiceMetrics, ServiceResult
from pipelines.storage import manifest
from tests.pipelines.serve.conftest import LABELS, ask, picture
from vlmodel.inference import Predictor
from vlmodel.knowledge.injection import Config as Injection
from vlmodel.processor import Example

QUESTIONS = ("what colour is the circle ?", "is there a square ?")


class Sizes(ServiceMetrics):
    def __init__(self) -> None:
        self.sizes: list[int] = []

    def count_request(self, route: str, status: int, code: str, version: str, seconds: float) -> None:
        raise AssertionError("requests are the transport's to count")

    def count_batch(self, task: str, size: int, seconds: float, version: str) -> None:
        assert seconds > 0
        assert version in ("1", "2")
        assert task == "vqa"
        self.sizes.append(size)


@pytest.fixture
def sizes() -> Sizes:
    return Sizes()


@pytest.fixture
def service(sizes: Sizes) -> Iterator[InferenceService]:
    service = InferenceService(ServeConfig(max_batch_size=4, model_threads=1), sizes)
    yield service
    service.close()


def test_answers_are_those_of_the_predictor(service: InferenceService, sizes: Sizes, model_folder: Path) -> None:
    images = [picture(seed, (40 + seed, 50)) for seed in range(6)]

    async def go() -> list[ServiceResult]:
        await service.load(model_folder, "vqa", "1")
        one = await ask(service, images[0], QUESTIONS, 3, True)
        many = await asyncio.gather(
            *(ask(service, image, QUESTIONS[: 1 + i % 2], 1 + i, i % 2 == 1) for i, image in enumerate(images))
        )
        return [one, *many]

    answered = asyncio.run(go())
    predictor = Predictor.from_pretrained(model_folder)
    cases: list[tuple[bytes, tuple[str, ...], int, bool]] = [(images[0], QUESTIONS, 3, True)]
    cases += [(image, QUESTIONS[: 1 + i % 2], 1 + i, i % 2 == 1) for i, image in enumerate(images)]
    for result, (image, questions, top_k, attention) in zip(answered, cases, strict=True):
        [expected] = predictor.predict([Example({"image": image}, questions)], top_k, attention)
        assert len(result.result) == len(questions)
        for actual, expected_prediction in zip(result.result, expected, strict=True):
            assert [answer for answer, _ in actual.answers] == [answer for answer, _ in expected_prediction.answers]
            np.testing.assert_allclose(
                [p for _, p in actual.answers], [p for _, p in expected_prediction.answers], atol=1e-5
            )
            assert (actual.attention_HW is not None) == attention
            if actual.attention_HW is not None and expected_prediction.attention_HW is not None:
                np.testing.assert_allclose(actual.attention_HW, expected_prediction.attention_HW, atol=1e-5)
        assert (result.model.version, result.model.labels, result.model.image_size) == ("1", len(LABELS), (32, 32))
        assert result.stages_s.keys() == {"decode", "queue", "model"}
        assert min(result.stages_s.values()) >= 0
    assert sum(sizes.sizes) == 7
    assert max(sizes.sizes) <= 4
    assert len(sizes.sizes) < 7, "six requests at once were not batched at all"


@pytest.mark.parametrize(
    ("image", "status", "code"),
    [
        (b"no image", 422, "undecodable_image"),
        (picture(0, (300, 300), "JPEG")[:4000], 422, "truncated_image"),
    ],
)
def test_a_bad_image_is_refused_and_its_neighbours_are_answered(
    service: InferenceService, model_folder: Path, image: bytes, status: int, code: str
) -> None:
    async def go() -> list[Any]:
        await service.load(model_folder, "vqa", "1")
        return await asyncio.gather(
            *(ask(service, data, QUESTIONS, 1, False) for data in (picture(1), image, picture(2))),
            return_exceptions=True,
        )

    first, error, last = asyncio.run(go())
    assert len(first.result) == len(last.result) == 2
    assert isinstance(error, ApiError)
    assert (error.status, error.code) == (status, code)


def test_invalid_text_is_refused_before_batching(service: InferenceService, sizes: Sizes, model_folder: Path) -> None:
    texts = ["what is it ?", "what \ud800 ?", "is it a circle ?", "\udfff"]

    async def go() -> list[Any]:
        await service.load(model_folder, "vqa", "1")
        return await asyncio.gather(
            *(ask(service, picture(), (text,), 1, False) for text in texts), return_exceptions=True
        )

    answered = asyncio.run(go())
    assert [isinstance(one, ServiceResult) for one in answered] == [True, False, True, False]
    assert [(error.status, error.code) for error in (answered[1], answered[3])] == [(422, "bad_text")] * 2
    assert sum(sizes.sizes) == 2


def test_one_failed_item_does_not_fail_its_batch(
    service: InferenceService, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def go() -> tuple[list[Any], list[int]]:
        await service.load(model_folder, "vqa", "1")
        assert service._loaded is not None
        processor = service._loaded.predictor.processor
        tokenize, together = processor.tokenize, []

        def choosy(texts: Sequence[str]) -> Any:
            together.append(len(texts))
            if "a fault ?" in texts:
                raise RuntimeError("the tokenizer fails")
            return tokenize(texts)

        monkeypatch.setattr(processor, "tokenize", choosy)
        texts = ["what ?", "a fault ?", "is it ?", "where ?", "a fault ?", "a ?", "b ?", "c ?"]
        calls = (ask(service, picture(i), (text,), 1, False) for i, text in enumerate(texts))
        return await asyncio.gather(*calls, return_exceptions=True), together

    answered, together = asyncio.run(go())
    assert max(together) > 1, "nothing was batched"
    assert [isinstance(one, ServiceResult) for one in answered] == [True, False, True, True, False, True, True, True]
    assert {str(answered[1]), str(answered[4])} == {"the tokenizer fails"}


def test_an_image_of_too_many_pixels_is_refused_with_413(
    service: InferenceService, model_folder: Path, tmp_path: Path
) -> None:
    for file in model_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    settings = (tmp_path / "processor.json").read_text()
    (tmp_path / "processor.json").write_text(settings.replace("100000000", "1000"))

    async def go() -> None:
        await service.load(tmp_path, "vqa", "1")
        await ask(service, picture(0, (40, 40)), QUESTIONS, 1, False)

    with pytest.raises(ApiError) as caught:
        asyncio.run(go())
    assert (caught.value.status, caught.value.code) == (413, "image_too_large")


def test_model_with_other_golden_answers_is_not_served(
    service: InferenceService, model_folder: Path, tmp_path: Path
) -> None:
    golden_answers = golden.record_golden_answers(
        Predictor.from_pretrained(model_folder), {"": Example({"image": picture()}, (QUESTIONS[0],))}
    )
    golden.write_golden_answers(golden_answers, tmp_path)
    good = tmp_path / golden.GOLDEN
    (tmp_path / "other").mkdir()
    other = [one.model_copy(update={"answers": [(a, p + 0.1) for a, p in one.answers]}) for one in golden_answers[:1]]
    golden.write_golden_answers([*other, *golden_answers[1:]], tmp_path / "other")
    bad = str(tmp_path / "other" / golden.GOLDEN)

    async def go() -> None:
        await service.load(model_folder, "vqa", "1", golden_file=str(good))
        message = (
            r"version 2 in .* is not served: 1 of its 4 golden answers are others here \(request 0 about .*expected"
        )
        with pytest.raises(ServeError, match=message):
            await service.load(model_folder, "vqa", "2", golden_file=bad)
        with pytest.raises(ServeError, match="cannot be read"):
            await service.load(model_folder, "vqa", "2", golden_file=str(tmp_path / "nowhere"))
        assert (await ask(service, picture(), QUESTIONS, 1, False)).model.version == "1"
        lenient = InferenceService(ServeConfig(model_threads=1, golden_tolerance=1.0))
        await lenient.load(model_folder, "vqa", "2", golden_file=bad)
        lenient.close()

    asyncio.run(go())


def test_failed_load_keeps_the_previous_model(service: InferenceService, model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")

    async def go() -> None:
        with pytest.raises(ApiError) as caught:
            await ask(service, picture(), QUESTIONS, 1, False)
        assert caught.value.status == 503
        await service.load(model_folder, "vqa", "1")
        for folder in (tmp_path, tmp_path / "nowhere"):
            with pytest.raises(ServeError, match=f"version 2 in '{folder}' does not load"):
                await service.load(folder, "vqa", "2")
        assert (await ask(service, picture(), QUESTIONS, 1, False)).model.version == "1"

    asyncio.run(go())


def test_files_that_changed_since_the_deployment_are_refused(
    service: InferenceService, model_folder: Path, tmp_path: Path
) -> None:
    for file in model_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    deployed = manifest.folder_digest(model_folder)

    async def go() -> None:
        await service.load(tmp_path, "vqa", "1", deployed)
        weights = bytearray((tmp_path / "model.safetensors").read_bytes())
        weights[-1] ^= 1
        (tmp_path / "model.safetensors").write_bytes(weights)
        with pytest.raises(ServeError, match=r"version 2 .* does not load: its files are not those that"):
            await service.load(tmp_path, "vqa", "2", deployed)
        assert (await ask(service, picture(), QUESTIONS, 1, False)).model.version == "1"

    asyncio.run(go())


def test_swap_under_load_loses_no_request(service: InferenceService, model_folder: Path) -> None:
    async def go() -> list[str]:
        await service.load(model_folder, "vqa", "1")
        swap = asyncio.create_task(service.load(model_folder, "vqa", "2"))
        versions = []
        while not swap.done():
            versions.append((await ask(service, picture(), QUESTIONS[:1], 1, False)).model.version)
        await swap
        versions.append((await ask(service, picture(), QUESTIONS[:1], 1, False)).model.version)
        return versions

    versions = asyncio.run(go())
    assert versions[0] == "1"
    assert versions[-1] == "2"
    assert versions == sorted(versions)


def test_a_hanging_pass_makes_the_replica_unhealthy(
    service: InferenceService, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.check_health()
    monkeypatch.setattr(service._threads, "_started", {1: time.perf_counter() - 1})
    service.check_health()
    monkeypatch.setattr(service._threads, "_started", {1: time.perf_counter() - 1, 2: time.perf_counter() - 61})
    with pytest.raises(ServeError, match="60 s"):
        service.check_health()


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (["it is ", "red there", "fore ye", "s it ", "is"], ["ye", "s it ", "is"]),
        (["it is red therefore yes it ", "is"], ["yes it ", "is"]),
        (["it is red ", "therefore ", "", "yes"], ["", "", "yes"]),
        (["yes it ", "is thereforeover"], ["yes it is thereforeover"]),
        (["it is red therefore", " "], [""]),
        (["yes"], ["yes"]),
        ([], [""]),
    ],
)
def test_a_streamed_text_is_what_it_answers(pieces: list[str], expected: list[str]) -> None:
    async def collect(where: str) -> list[str]:
        async def written() -> AsyncIterator[str]:
            for piece in pieces:
                yield piece

        knowledge = Injection.model_validate({"where": where})
        return [piece async for piece in answered_pieces(written(), knowledge)]

    assert asyncio.run(collect("output")) == expected
    assert asyncio.run(collect("input")) == pieces
