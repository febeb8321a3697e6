"""Whom a request goes to, and that nobody waits for the challenger; by services without a model."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.records.comparisons import Comparison, ComparisonWriter, read_comparisons, text_hash
from pipelines.serve.challenger import calls, recorder
from pipelines.serve.challenger.router import ChallengerRouter
from pipelines.serve.config import ChallengerConfig, ServeConfig
from pipelines.serve.errors import ApiError
from pipelines.serve.http.app import create_app
from pipelines.serve.service import ChallengerMetrics, ServiceMetrics, ServiceRequest, ServiceResult
from tests.pipelines.serve.conftest import FakeService, ask
from tests.pipelines.serve.http_client import TEXT, events, send
from vlmodel.inference import Prediction
from vlmodel.operations.embed import Embeddings

IMAGE = b"an image"
BLUE = Prediction([("no", 0.5), ("yes", 0.25)])


class Counts(ChallengerMetrics):
    """Metrics that a test can read."""

    def __init__(self) -> None:
        self.requests, self.fallbacks, self.drops = Counter[str](), Counter[str](), Counter[str]()
        self.agreements: list[float] = []

    def count_challenger_call(self, task: str, outcome: str, version: str) -> None:
        self.requests[f"{outcome} of {version}"] += 1

    def count_comparison(self, task: str, agreement: float, version: str) -> None:
        self.agreements.append(agreement)

    def count_fallback_to_champion(self, task: str, reason: str) -> None:
        self.fallbacks[reason] += 1

    def count_dropped_comparison(self, reason: str) -> None:
        self.drops[reason] += 1


class FakeChallenger:
    """A challenger, version 8, that says "no" to all questions, once ``ready`` is set, or raises ``error``."""

    version = "8"

    def __init__(self) -> None:
        self.service = FakeService()
        assert self.service.model is not None
        self.service.model = replace(self.service.model, version="8")
        self.ready = asyncio.Event()
        self.ready.set()
        self.error: Exception | None = None
        self.seen: list[ServiceRequest] = []

    async def run(self, request: ServiceRequest) -> ServiceResult:
        self.seen.append(request)
        await self.ready.wait()
        if self.error is not None:
            raise self.error
        if request.task == "vqa":
            return self.service.answered([BLUE for _ in request.texts])
        if request.task == "embed":
            unit = np.array([[0.8, 0.6]], np.float32)
            return self.service.answered(Embeddings(unit[0], unit.repeat(len(request.texts), 0)))
        return await self.service.run(request)


class Scene:
    """A champion (version 7), a challenger beside it, and what was counted and kept."""

    def __init__(self, folder: Path, mode: str, share: float = 1.0, **settings: Any) -> None:
        self.champion, self.challenger, self.counts, self.now = FakeService(), FakeChallenger(), Counts(), 0.0
        self.folder = str(folder)
        config = ServeConfig(challenger=ChallengerConfig(mode=mode, share=share, **settings))
        writer = ComparisonWriter(self.folder, 1 << 20)
        self.service = ChallengerRouter(self.champion, self.challenger, config, writer, self.counts, lambda: self.now)

    async def ask(self, image: bytes = IMAGE, questions: Sequence[str] = ("?",)) -> ServiceResult:
        return await ask(self.service, image, questions)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                await asyncio.sleep(0.001)

    async def until_asked_or_dropped(self, number: int) -> None:
        await self.until(lambda: self.counts.requests.total() + self.counts.drops.total() == number)

    async def until_compared(self, number: int) -> None:
        await self.until(lambda: len(self.counts.agreements) == number)

    async def until_written(self, number: int) -> None:
        await self.until(lambda: len(list(read_comparisons(self.folder))) == number)

    async def records(self) -> list[Comparison]:
        await self.service.close()
        records = list(read_comparisons(self.folder))
        assert all(isinstance(record, Comparison) for record in records)
        return [record for record in records if isinstance(record, Comparison)]


def test_the_share_is_kept_and_an_image_stays_on_its_side(tmp_path: Path) -> None:
    requests = [ServiceRequest("vqa", {"image": n.to_bytes(4)}, (f"question {n % 7}",)) for n in range(20_000)]
    chosen = {}
    for share in (0.0, 0.25, 0.6, 1.0):
        service = Scene(tmp_path, "canary", share).service
        chosen[share] = {n for n, request in enumerate(requests) if service.is_sent_to_challenger(request)}
        # Four standard deviations of a fair draw.
        assert abs(len(chosen[share]) - share * len(requests)) <= 4 * np.sqrt(share * (1 - share) * len(requests))
        other = [replace(request, texts=("another question",), top_k=3) for request in requests]
        assert {n for n, request in enumerate(other) if service.is_sent_to_challenger(request)} == chosen[share]
    assert chosen[0.0] < chosen[0.25] < chosen[0.6] < chosen[1.0], "a greater share keeps whom it had"
    another = Scene(tmp_path, "canary", 0.25)
    another.challenger.version = "9"
    picked = {n for n, request in enumerate(requests) if another.service.is_sent_to_challenger(request)}
    assert len(picked & chosen[0.25]) < 0.3 * len(picked), "each challenger has a share of its own"
    texts = [ServiceRequest("embed", {}, (f"text {n}",)) for n in range(2000)]
    assert 400 < sum(map(Scene(tmp_path, "shadow", 0.25).service.is_sent_to_challenger, texts)) < 600


def test_shadow_is_not_awaited_and_its_answers_are_recorded(tmp_path: Path) -> None:
    async def go() -> None:
        scene = Scene(tmp_path, "shadow")
        scene.challenger.ready.clear()
        answered = await scene.ask(questions=("What is it?", "Is it?"))
        assert answered.alias == "champion"
        assert answered.model.version == "7"
        assert scene.counts.agreements == []
        scene.challenger.ready.set()
        await scene.until(lambda: bool(scene.counts.agreements))
        assert [request.texts for request in scene.challenger.seen] == [("What is it?", "Is it?")]
        [record] = await scene.records()
        assert (record.mode, record.model) == ("shadow", "fake")
        assert (record.champion.version, record.challenger.version) == ("7", "8")
        assert (record.champion.confidence, record.challenger.confidence) == (0.75, 0.5)
        assert record.champion.seconds == record.challenger.seconds == 0.001
        assert record.agreement == 0.0
        assert record.image == hashlib.sha256(IMAGE).hexdigest()
        assert [text.asked for text in record.texts] == [text_hash("what is it?"), text_hash("is it?")]
        assert {(text.champion, text.challenger) for text in record.texts} == {(text_hash("yes"), text_hash("no"))}
        assert abs(record.time_ns - time.time_ns()) < 600 * 10**9
        written = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
        for word in (b"What", b"yes", b"an image"):
            assert word not in written

    asyncio.run(go())


def test_shadow_copies_are_bounded_and_drops_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "MAX_WAITING", 3)

    async def go() -> None:
        scene = Scene(tmp_path, "shadow")
        scene.challenger.ready.clear()
        for _ in range(10):
            assert (await scene.ask()).model.version == "7"
        await scene.until(lambda: len(scene.challenger.seen) == 3)
        assert scene.counts.drops == {"busy": 7}
        scene.challenger.ready.set()
        await scene.until(lambda: len(scene.counts.agreements) == 3)
        async with asyncio.timeout(20):
            while len(scene.challenger.seen) == 3:  # until what was compared has made room
                await scene.ask()
                await asyncio.sleep(0.001)
        assert len(await scene.records()) == 4

    asyncio.run(go())


def test_a_canary_answers_and_is_compared(tmp_path: Path) -> None:
    async def go() -> None:
        scene = Scene(tmp_path, "canary")
        answered = await scene.ask()
        assert (answered.alias, answered.model.version, answered.result) == ("challenger", "8", [BLUE])
        await scene.until(lambda: scene.counts.agreements == [0.0])
        [record] = await scene.records()
        assert (record.mode, record.fallback) == ("canary", False)
        assert scene.counts.requests == {"ok of 8": 1}

    asyncio.run(go())


def test_embeddings_and_streamed_captions_are_the_champions_and_are_compared(tmp_path: Path) -> None:
    async def go() -> None:
        scene = Scene(tmp_path, "canary")
        assert (await scene.service.run(ServiceRequest("embed", {"image": IMAGE}, ("a", "b")))).model.version == "7"
        pieces = [
            piece async for piece in await scene.service.stream(ServiceRequest("caption", {"image": IMAGE}, ("",)))
        ]
        assert pieces[:2] == ["a ", "circle"]
        assert isinstance(pieces[2], ServiceResult)
        assert pieces[2].alias == "champion"
        await scene.until(lambda: len(scene.counts.agreements) == 2)
        assert sorted(scene.counts.agreements) == pytest.approx([0.96, 1.0])
        assert {record.task for record in await scene.records()} == {"embed", "caption"}

    asyncio.run(go())


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("the actor died"), "RuntimeError"),
        (ApiError(503, "not_ready", "still loading"), "not_ready"),
        (ApiError(422, "undecodable_image", "by its libraries alone"), "undecodable_image"),
        (None, "late"),
    ],
)
def test_where_the_canary_fails_or_is_late_the_champion_answers(
    tmp_path: Path, error: Exception | None, reason: str
) -> None:
    async def go() -> None:
        scene = Scene(tmp_path, "canary", timeout_s=0.05)
        scene.challenger.error = error
        if error is None:
            scene.challenger.ready.clear()
        answered = await scene.ask()
        assert (answered.alias, answered.model.version) == ("champion", "7")
        assert len(scene.champion.seen) == 1, "it was asked at once, and not again"
        assert scene.counts.fallbacks == {reason: 1}
        [record] = await scene.records()
        assert (record.fallback, record.challenger.error, record.challenger.version) == (True, reason, "8")
        assert record.champion.error == ""
        assert record.agreement is None
        assert record.texts == ()

    asyncio.run(go())


@pytest.mark.parametrize("mode", ["shadow", "canary"])
def test_a_broken_challenger_is_left_alone_for_a_while(tmp_path: Path, mode: str) -> None:
    async def go() -> None:
        scene = Scene(tmp_path, mode)
        scene.challenger.error = RuntimeError("broken")
        for number in range(6):
            assert (await scene.ask()).model.version == "7"
            await scene.until_asked_or_dropped(number + 1)
        assert scene.counts.requests.total() == 3
        assert scene.counts.drops == {"paused": 3}
        scene.now = 6.0
        await scene.ask()
        await scene.until(lambda: scene.counts.requests.total() == 4)
        await scene.ask()
        assert scene.counts.requests.total() == 4, "one more failure makes the next pause"
        scene.now, scene.challenger.error = 12.0, None
        for number in range(3):
            await scene.ask()
            await scene.until_compared(number + 1)
        await scene.service.close()

    asyncio.run(go())


@pytest.mark.parametrize("mode", ["shadow", "canary"])
def test_what_is_the_callers_fault_is_no_ones_failure(tmp_path: Path, mode: str) -> None:
    class Choosy(FakeService):
        async def answer(self, *_: object) -> Any:
            raise ApiError(422, "undecodable_image", "send another")

    async def go() -> None:
        scene = Scene(tmp_path, mode)
        scene.service = ChallengerRouter(
            Choosy(), scene.challenger, ServeConfig(challenger=ChallengerConfig(mode=mode, share=1.0)),
            ComparisonWriter(str(tmp_path), 1 << 20), scene.counts,
        )  # fmt: skip
        scene.challenger.error = ApiError(422, "undecodable_image", "send another")
        for _ in range(5):
            with pytest.raises(ApiError, match="undecodable_image"):
                await scene.ask()
        assert scene.counts.fallbacks == {}
        assert scene.counts.drops == {}
        assert await scene.records() == []

    asyncio.run(go())


def test_a_champion_that_fails_is_recorded_and_the_canary_still_answers(tmp_path: Path) -> None:
    class Broken(FakeService):
        async def answer(self, *_: object) -> Any:
            raise RuntimeError("out of memory")

    async def go() -> None:
        scene = Scene(tmp_path, "canary")
        scene.service = ChallengerRouter(
            Broken(), scene.challenger, ServeConfig(challenger=ChallengerConfig(mode="canary", share=1.0)),
            ComparisonWriter(str(tmp_path), 1 << 20), scene.counts,
        )  # fmt: skip
        assert (await scene.ask()).alias == "challenger"
        [record] = await scene.records()
        assert (record.champion.error, record.challenger.error) == ("RuntimeError", "")
        scene.challenger.error = RuntimeError("broken too")
        with pytest.raises(RuntimeError, match="out of memory"):
            await scene.ask()

    asyncio.run(go())


def test_disconnect_cancels_both_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "MAX_WAITING", 1)
    ended: list[str] = []

    class Slow(FakeService):
        async def answer(self, *_: object) -> Any:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                ended.append("champion")
                raise

    async def go() -> None:
        scene = Scene(tmp_path, "canary")
        scene.challenger.ready.clear()
        service = ChallengerRouter(
            Slow(), scene.challenger, ServeConfig(challenger=ChallengerConfig(mode="canary", share=1.0)),
            None, scene.counts,
        )  # fmt: skip
        for _ in range(3):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.02):
                    await ask(service, IMAGE, ("?",))
            await asyncio.sleep(0.01)
        assert ended == ["champion"] * 3
        assert scene.counts.drops == {}, "each made room for the next"

    asyncio.run(go())


def test_failing_disk_loses_records_but_no_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "FLUSH_S", 0.01)

    async def go() -> None:
        scene = Scene(tmp_path / "file", "shadow")
        (tmp_path / "file").write_text("no folder")
        for _ in range(2):
            assert (await scene.ask()).model.version == "7"
        await scene.until(lambda: scene.counts.drops["record"] > 0)
        await scene.service.close()

    asyncio.run(go())


def test_comparisons_are_written_after_the_flush_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "FLUSH_S", 0.01)

    async def go() -> None:
        scene = Scene(tmp_path, "shadow")
        for number in range(1, 4):
            await scene.ask()
            await scene.until_written(number)

    asyncio.run(go())


def test_http_answers_name_the_alias(tmp_path: Path) -> None:
    versions: list[str] = []

    class Requests(ServiceMetrics):
        def count_request(self, route: str, status: int, code: str, version: str, seconds: float) -> None:
            versions.append(version)

        def count_batch(self, task: str, size: int, seconds: float, version: str) -> None:
            raise AssertionError("there is no model here")

    scene = Scene(tmp_path, "canary")
    app = create_app(scene.service, ServeConfig(), metrics=Requests())
    response = send(app, "POST", "/v1/vqa", json={"image": TEXT, "question": "?"})
    assert response.json()["model"] == {"name": "fake", "version": "8"}
    assert response.json()["answers"][0]["answers"][0]["answer"] == "no"
    assert response.headers["x-model-alias"] == "challenger"
    embedded = send(app, "POST", "/v1/embed", json={"image": TEXT})
    assert embedded.headers["x-model-alias"] == "champion"
    streamed = send(app, "POST", "/v1/caption", json={"image": TEXT, "stream": True})
    assert events(streamed)[-1][0] == "done"
    assert send(app, "GET", "/v1/model").json()["version"] == "7"
    assert versions == ["8", "7", "7", "7"]
