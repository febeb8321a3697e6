"""OpenAI's embeddings over a tiny contrastive model, asked by OpenAI's own client."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

from pipelines.serve.config import ServeConfig
from pipelines.serve.http.app import create_app
from pipelines.serve.inference.service import InferenceService
from tests.pipelines.serve.conftest import FakeService
from tests.pipelines.serve.http_client import send
from tests.pipelines.serve.server import served


@pytest.fixture(scope="module")
def app(folder_of: Callable[[str], Path]) -> Iterator[Any]:
    service = InferenceService(ServeConfig())
    asyncio.run(service.load(folder_of("contrastive"), "tiny", "3"))
    yield create_app(service, ServeConfig(max_texts=4, max_question_chars=60))
    service.close()


@pytest.fixture(scope="module")
def client(app: Any) -> Iterator[openai.OpenAI]:
    with served(app) as address, openai.OpenAI(base_url=f"http://{address}/v1", api_key="none", max_retries=0) as made:
        yield made


TEXTS = ["what is the circle ?", "a square"]


def test_the_vectors_are_those_of_the_native_route(app: Any, client: openai.OpenAI) -> None:
    native = send(app, "POST", "/v1/embed", json={"texts": TEXTS}).json()["texts"]
    # The client asks for base64 unless it is told otherwise.
    for settings in ({}, {"encoding_format": "float"}, {"encoding_format": "base64"}, {"dimensions": 8}):
        found = client.embeddings.create(model="tiny", input=TEXTS, **settings)  # type: ignore[call-overload]
        assert (found.object, found.model, [one.index for one in found.data]) == ("list", "tiny", [0, 1])
        vectors = [
            np.frombuffer(base64.b64decode(one.embedding), "<f4") if isinstance(one.embedding, str)
            else np.array(one.embedding)
            for one in found.data
        ]  # fmt: skip
        np.testing.assert_allclose(vectors, native, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(native, axis=1), 1, atol=1e-5)


def test_one_text_and_the_tokens_read(client: openai.OpenAI) -> None:
    found = client.embeddings.create(model="tiny:3", input="a square", user="me")
    assert len(found.data) == 1
    assert found.usage.prompt_tokens == found.usage.total_tokens == 2
    # As many as the model reads.
    assert client.embeddings.create(model="tiny", input="a " * 20).usage.prompt_tokens == 12


@pytest.mark.parametrize(
    ("change", "message", "param"),
    [
        ({"input": []}, "input is empty", "input"),
        ({"input": " "}, "the text is empty", "input"),
        ({"input": ["a"] * 5}, "5 input in one request; send at most 4", None),
        ({"input": [1, 2]}, "numbers of tokens, which another tokenizer made; send the texts", "input"),
        ({"input": [[1, 2]]}, "numbers of tokens", "input"),
        ({"input": "a" * 61}, "has 61 characters; send at most 60", None),
        ({"dimensions": 3}, "the model's vectors have 8 numbers; leave it out", "dimensions"),
        ({"encoding_format": "int8"}, "encoding_format", "encoding_format"),
    ],
)
def test_requests_that_cannot_be(change: dict[str, Any], message: str, param: str | None, client: Any) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(**{"model": "tiny", "input": "a", **change})
    body: Any = caught.value.body
    assert body.keys() == {"message", "type", "param", "code"}
    assert (body["type"], body["param"]) == ("invalid_request_error", param)
    assert message in body["message"]


def test_another_model(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.embeddings.create(model="text-embedding-3-small", input="a")
    assert caught.value.code == "model_not_found"
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt-4'"):
        client.models.retrieve("gpt-4")


def test_a_model_that_does_not_embed() -> None:
    service = FakeService()
    assert service.model is not None
    service.model = service.model.__class__("fake", "7", ("vqa",), labels=3, image_size=32, resize="squash")
    response = send(create_app(service, ServeConfig()), "POST", "/v1/embeddings", json={"model": "fake", "input": "a"})
    assert (response.status_code, response.json()["error"]["code"]) == (404, "no_such_task")
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_what_is_refused_before_the_route_is_in_openais_form_too() -> None:
    def error_of(config: ServeConfig, keys: tuple[str, ...] = (), **options: Any) -> tuple[int, Any]:
        response = send(create_app(FakeService(), config, keys), "POST", "/v1/embeddings", **options)
        return response.status_code, response.json()["error"]

    status, error = error_of(ServeConfig(), ("ab" * 32,), json={})
    assert (status, error["type"], error["code"]) == (401, "authentication_error", "unauthorized")
    status, error = error_of(ServeConfig(max_body_bytes=1024), content=b"a" * 2000)
    assert (status, error["type"], error["param"]) == (413, "invalid_request_error", None)
    status, error = error_of(ServeConfig(), content=b"a", headers={"content-type": "text/plain"})
    assert (status, error["type"]) == (400, "invalid_request_error")
    # Our own routes keep their own form.
    own = send(create_app(FakeService(), ServeConfig(), ("ab" * 32,)), "POST", "/v1/embed", json={})
    assert own.json()["error"].keys() == {"code", "message"}
