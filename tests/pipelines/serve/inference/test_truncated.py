"""A text that is longer than the model takes is answered, and the answer says so."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.serve.config import ServeConfig
from pipelines.serve.http.app import create_app
from pipelines.serve.inference.service import InferenceService
from pipelines.serve.service import ServiceRequest, ServiceResult
from tests.pipelines.serve.conftest import FakeService, ask, picture
from tests.pipelines.serve.http_client import TEXT, send

TEXTS = ("red circle", " ".join(["red"] * 13))
"""The models of these tests take 12 tokens."""


@pytest.fixture
def service() -> Iterator[InferenceService]:
    service = InferenceService(ServeConfig(max_batch_size=4, model_threads=1))
    yield service
    service.close()


def test_the_service_knows_which_texts_are_cut(service: InferenceService, folder_of: Callable[[str], Path]) -> None:
    async def go() -> list[ServiceResult]:
        await service.load(folder_of("all"), "m", "1")
        image = picture()
        return [
            await ask(service, image, TEXTS, 1, False),
            await service.run(ServiceRequest("match", {"image": image}, TEXTS)),
            await service.run(ServiceRequest("embed", {}, TEXTS)),
            await service.run(ServiceRequest("embed", {"image": image})),
        ]

    assert [answered.truncated for answered in asyncio.run(go())] == [*[(False, True)] * 3, ()]


class Cutting(FakeService):
    """Cuts the last text of each request."""

    def answered(self, result: Any) -> ServiceResult:
        return replace(super().answered(result), truncated=(False, True))


@pytest.mark.parametrize(
    ("route", "field", "answers"), [("vqa", "questions", "answers"), ("match", "texts", "matches")]
)
def test_each_answer_over_http_says_it(route: str, field: str, answers: str) -> None:
    body = {"image": TEXT, field: list(TEXTS)}
    for service, expected in ((Cutting(), [False, True]), (FakeService(), [False, False])):
        response = send(create_app(service, ServeConfig()), "POST", f"/v1/{route}", json=body)
        assert [answer["truncated"] for answer in response.json()[answers]] == expected


def test_embeddings_say_it_too() -> None:
    response = send(create_app(Cutting(), ServeConfig()), "POST", "/v1/embed", json={"texts": list(TEXTS)})
    assert response.json()["truncated"] == [False, True]
