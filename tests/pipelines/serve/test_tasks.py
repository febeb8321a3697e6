"""Every task over HTTP with a tiny model of each decoder: routes, batching and heads together."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from pipelines.serve.config import ServeConfig
from pipelines.serve.http.app import create_app
from pipelines.serve.inference.service import InferenceService
from tests.pipelines.serve.conftest import LABELS, picture
from tests.pipelines.serve.http_client import IMAGE, TEXT, error_code, events, http
from vlmodel.inference import Predictor
from vlmodel.processor import Example

ROUTES: dict[str, dict[str, Any]] = {
    "vqa": {"image": TEXT, "question": "what colour ?"},
    "caption": {"image": TEXT},
    "match": {"image": TEXT, "texts": ["a circle", "a square"]},
    "embed": {"image": TEXT, "text": "a circle"},
    "classify": {"image": TEXT, "top_k": 2},
}
CLASSES = {"classes": ["circle", "square"], "templates": ["a {}", "the {}"]}
"""For a contrastive model, which has no classes of its own."""


@asynccontextmanager
async def serving(folder: Path, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    config = ServeConfig(max_batch_size=4, model_threads=1, **settings)
    service = InferenceService(config)
    try:
        await service.load(folder, "tiny", "1")
        async with http(create_app(service, config)) as client:
            yield client
    finally:
        service.close()


@pytest.mark.parametrize(
    ("decoder", "tasks"),
    [
        ("vqa", ["vqa"]),
        ("answer", ["vqa"]),
        ("caption", ["caption"]),
        ("matching", ["match"]),
        ("contrastive", ["classify", "match", "embed"]),
        ("classify", ["classify"]),
        ("all", ["vqa", "caption", "classify", "match", "embed"]),
    ],
)
def test_a_model_does_its_tasks_and_names_them_where_it_is_asked_another(
    folder_of: Callable[[str], Path], decoder: str, tasks: list[str]
) -> None:
    async def go() -> None:
        async with serving(folder_of(decoder)) as client:
            assert (await client.get("/v1/model")).json()["tasks"] == tasks
            for task, body in ROUTES.items():
                own = CLASSES if task == "classify" and decoder in ("contrastive", "all") else {}
                response = await client.post(f"/v1/{task}", json={**body, **own})
                if task in tasks:
                    assert response.status_code == 200, response.text
                    assert response.json()["model"] == {"name": "tiny", "version": "1"}
                    stages = [stage.partition(";")[0] for stage in response.headers["server-timing"].split(", ")]
                    assert stages == ["decode", "queue", "model", "total"]
                else:
                    assert (response.status_code, error_code(response)) == (404, "no_such_task")
                    named = response.json()["error"]["message"].partition("answers at ")[2]
                    assert named == ", ".join(f"/v1/{task}" for task in tasks)

    asyncio.run(go())


def test_the_tasks_of_one_model_are_asked_side_by_side(folder_of: Callable[[str], Path]) -> None:
    async def go() -> None:
        async with serving(folder_of("all")) as client:
            tasks = (await client.get("/v1/model")).json()["tasks"]
            wanted = [task for task in tasks for _ in range(5)]
            bodies = {**ROUTES, "classify": {**ROUTES["classify"], **CLASSES}}
            alone = {task: (await client.post(f"/v1/{task}", json=bodies[task])).json() for task in tasks}
            together = await asyncio.gather(*(client.post(f"/v1/{task}", json=bodies[task]) for task in wanted))
            for task, response in zip(wanted, together, strict=True):
                numbers(response.json(), alone[task])

    def numbers(got: Any, want: Any) -> None:
        """The same but for the latency, up to what the size of a batch does to the last digits."""
        assert type(got) is type(want)
        if isinstance(want, dict):
            assert got.keys() == want.keys()
            for key in want.keys() - {"latency_ms"}:
                numbers(got[key], want[key])
        elif isinstance(want, list):
            assert len(got) == len(want)
            for pair in zip(got, want, strict=True):
                numbers(*pair)
        else:
            assert got == (pytest.approx(want, abs=1e-4) if isinstance(want, float) else want)

    asyncio.run(go())


def test_classes_come_with_their_probabilities_and_where_the_model_looked(folder_of: Callable[[str], Path]) -> None:
    async def go() -> None:
        async with serving(folder_of("classify")) as client:
            got = (await client.post("/v1/classify", json={"image": TEXT, "top_k": 100, "attention": True})).json()
            assert {entry["label"] for entry in got["classes"]} == set(LABELS)
            probabilities = [entry["probability"] for entry in got["classes"]]
            assert probabilities == sorted(probabilities, reverse=True)
            assert sum(probabilities) == pytest.approx(1, abs=1e-5)
            assert sum(map(sum, got["attention"]["weights"])) == pytest.approx(1, abs=1e-3)

    asyncio.run(go())


def test_captions_are_those_of_the_predictor_and_a_streamed_one_is_the_greedy_one(
    folder_of: Callable[[str], Path],
) -> None:
    folder = folder_of("caption")
    predictor = Predictor.from_pretrained(folder)

    async def go() -> None:
        async with serving(folder) as client:
            for top_k in (1, 3):
                got = (await client.post("/v1/caption", json={"image": TEXT, "top_k": top_k})).json()
                [[expected]] = predictor.predict([Example({"image": IMAGE}, ("",))], top_k)
                assert [entry["caption"] for entry in got["captions"]] == [text for text, _ in expected.answers]
                np.testing.assert_allclose(
                    [entry["probability"] for entry in got["captions"]], [p for _, p in expected.answers], rtol=1e-4
                )
            greedy = (await client.post("/v1/caption", json={"image": TEXT, "attention": True})).json()
            streamed = await client.post("/v1/caption", json={"image": TEXT, "attention": True, "stream": True})
            *pieces, (name, data) = events(streamed)
            assert {name for name, _ in pieces} == {"piece"}
            whole = json.loads(data)
            assert name == "done"
            assert len(pieces) > 1, "the caption came as a whole"
            assert "".join(json.loads(piece)["text"] for _, piece in pieces).strip() == whole["captions"][0]["caption"]
            assert whole["captions"] == greedy["captions"]
            assert whole["attention"] == greedy["attention"] is not None

    asyncio.run(go())


def test_failed_generation_ends_its_stream_only(
    folder_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def go() -> None:
        async with serving(folder_of("caption")) as client:
            with monkeypatch.context() as broken:

                def fail(self: Any, *args: Any, **settings: Any) -> Any:
                    settings["streamer"].put(np.zeros((1, 1)))
                    raise RuntimeError("out of memory")

                broken.setattr(Predictor, "predict", fail)
                streamed = await client.post("/v1/caption", json={"image": TEXT, "stream": True})
            assert [name for name, _ in events(streamed)] == ["error"]
            assert json.loads(events(streamed)[0][1])["error"]["code"] == "internal"
            again = await client.post("/v1/caption", json={"image": TEXT, "stream": True})
            assert events(again)[-1][0] == "done"

    asyncio.run(go())


def test_a_bad_image_is_refused_before_a_stream_begins(folder_of: Callable[[str], Path]) -> None:
    async def go() -> httpx.Response:
        async with serving(folder_of("caption")) as client:
            files = {"image": ("p", picture(0, (300, 300), "JPEG")[:4000])}
            return await client.post("/v1/caption", data={"stream": "true"}, files=files)

    response = asyncio.run(go())
    assert (response.status_code, error_code(response)) == (422, "truncated_image")
