"""Requests with further inputs, over HTTP to a model that reads a series beside the image.

Claims: JSON and forms carry inputs by name; the answers are those of the model in this process, with both inputs, with
one of them, and in batches of requests that differ in this; what the model does not take, or cannot be decoded, is
refused with its name; a request without any input is refused as before.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from pipelines.serve.config import ServeConfig
from pipelines.serve.http.app import create_app
from pipelines.serve.inference.service import InferenceService
from tests.vlmodel.conftest import examples, processor, tokenizer  # noqa: F401 - fixtures
from tests.vlmodel.tiny import IMU, for_tasks, tiny_tree
from vlmodel.inference import Predictor
from vlmodel.model import VLModel
from vlmodel.processor import Example, VLProcessor

QUESTION = "what color is the shape?"


@pytest.fixture(scope="module")
def folder(processor: VLProcessor, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    torch.manual_seed(0)
    tree = tiny_tree(inputs={"imu": IMU})
    made, folder = for_tasks(processor, tree.task.tasks_by_name(), tree), tmp_path_factory.mktemp("model")
    model = VLModel.create_from_config(tree, made)
    model.save_pretrained(folder)
    made.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def http(folder: Path, runner: asyncio.Runner) -> Iterator[httpx.AsyncClient]:
    config = ServeConfig()
    service = InferenceService(config)
    runner.run(service.load(folder, "tiny", "1"))
    transport = httpx.ASGITransport(create_app(service, config))
    yield httpx.AsyncClient(transport=transport, base_url="http://localhost")
    service.close()


def post(runner: asyncio.Runner, *requests: Coroutine[Any, Any, httpx.Response]) -> list[httpx.Response]:
    async def together() -> list[httpx.Response]:
        return list(await asyncio.gather(*requests))

    return runner.run(together())


def in_json(inputs: dict[str, bytes]) -> dict[str, Any]:
    coded = {name: base64.b64encode(data).decode() for name, data in inputs.items()}
    image = {"image": coded.pop("image")} if "image" in coded else {}
    return {"question": QUESTION, "top_k": 4, **image, **({"inputs": coded} if coded else {})}


def test_answers_are_the_models(
    http: httpx.AsyncClient,
    runner: asyncio.Runner,
    folder: Path,
    examples: list[Example],  # noqa: F811
) -> None:
    both, others = ({name: example.inputs[name] for name in ("image", "imu")} for example in examples)
    cases = [both, {"image": both["image"]}, {"imu": both["imu"]}, others]
    predictor = Predictor.from_pretrained(folder)
    expected = [predictor.predict([Example(case, (QUESTION,))], 4)[0][0].answers for case in cases]
    assert expected[0] != expected[1] != expected[2]
    sent = post(runner, *(http.post("/v1/vqa", json=in_json(case)) for case in cases))
    forms = post(
        runner,
        *(
            http.post(
                "/v1/vqa",
                data={"question": QUESTION, "top_k": "4"},
                files={name: (name, data) for name, data in case.items()},
            )
            for case in cases
        ),
    )
    for responses in (sent, forms):
        for response, answers in zip(responses, expected, strict=True):
            assert response.status_code == 200, response.text
            (found,) = response.json()["answers"]
            assert [answer["answer"] for answer in found["answers"]] == [answer for answer, _ in answers]
            assert [answer["probability"] for answer in found["answers"]] == pytest.approx(
                [probability for _, probability in answers], abs=1e-5
            )


def test_the_model_says_what_it_takes(http: httpx.AsyncClient, runner: asyncio.Runner) -> None:
    (response,) = post(runner, http.get("/v1/model"))
    assert response.json()["inputs"] == ["image", "imu"]


@pytest.mark.parametrize(
    ("inputs", "code", "message"),
    [
        ({"imu": b"1,2,3", "left": b"x"}, "unknown_input", "takes no input 'left'; it takes image, imu"),
        ({"imu": b"1,2"}, "wrong_shape_input", "input 'imu': a series of 2 channels; the model takes channels=3"),
        ({"imu": b"1,2,nan"}, "not_finite_input", "time step 0, channel 2"),
        ({"imu": b"\x93NUMPY"}, "undecodable_input", "input 'imu'"),
        ({}, "invalid_request", "field 'image' is required"),
    ],
)
def test_refused(
    http: httpx.AsyncClient, runner: asyncio.Runner, inputs: dict[str, bytes], code: str, message: str
) -> None:
    (response,) = post(runner, http.post("/v1/vqa", json=in_json(inputs)))
    assert response.status_code == 422
    error = response.json()["error"]
    assert (error["code"], message in error["message"]) == (code, True), error
