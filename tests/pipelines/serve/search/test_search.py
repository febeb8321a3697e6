"""POST /v1/search over a tiny contrastive model and the vectors that it gave of small tars."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from pipelines.embeddings.embed import EmbeddingJob, embed_dataset
from pipelines.serve.config import SearchServingConfig, ServeConfig
from pipelines.serve.http.app import create_app
from pipelines.serve.http.routes.search import SearchRequest
from pipelines.serve.inference.service import InferenceService
from pipelines.serve.search import UpdatableSearch
from tests.pipelines.data.tar_maker import photo
from tests.pipelines.embeddings.conftest import COPIES
from tests.pipelines.embeddings.test_embed import rows_of
from tests.pipelines.serve.conftest import FakeService
from tests.pipelines.serve.http_client import error_code, http, send
from vlmodel.inference import Predictor
from vlmodel.processor import Example

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def encoded(number: int) -> str:
    return base64.b64encode(photo(number)).decode()


@pytest.fixture
def config(job: EmbeddingJob) -> ServeConfig:
    search = SearchServingConfig(embeddings=job.out, refresh_s=1e-6)
    return ServeConfig(model_threads=1, max_question_chars=40, search=search)


@pytest.fixture
async def service(config: ServeConfig, contrastive: Path) -> Any:
    loaded = InferenceService(config)
    await loaded.load(contrastive, "tiny", "3")
    yield loaded
    loaded.close()


@pytest.fixture
async def client(service: InferenceService, config: ServeConfig) -> Any:
    async with http(create_app(service, config, search=UpdatableSearch(config.search))) as opened:
        yield opened


@pytest.fixture
def embedded(job: EmbeddingJob) -> list[dict[str, Any]]:
    embed_dataset(job, COPIES)
    return rows_of(job.out)


async def search(client: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    response = await client.post("/v1/search", json=body)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


async def test_an_image_of_the_data_is_found_by_itself(client: httpx.AsyncClient, embedded: list[Any]) -> None:
    found = await search(client, image=encoded(3), top_k=4)
    assert (found["among"], found["vectors"]) == ("image", 25)
    first, *others = found["hits"]
    assert (first["key"], first["text"]) == ("0003", None)
    assert first["similarity"] == pytest.approx(1, abs=1e-5)
    assert [hit["similarity"] for hit in others] == sorted((hit["similarity"] for hit in others), reverse=True)
    thumbnail = first["thumbnail"]
    assert thumbnail["media_type"] == "image/jpeg"
    assert Image.open(io.BytesIO(base64.b64decode(thumbnail["data"]))).size == (48, 40)
    assert found["model"] == {"name": "tiny", "version": "3"}


async def test_a_text_finds_images_and_texts(
    client: httpx.AsyncClient,
    embedded: list[dict[str, Any]],
    contrastive: Path,
) -> None:
    text = "what is the square ?"
    [(_, text_ND)] = Predictor.from_pretrained(contrastive).embed([Example({}, (text,))])
    for among in ("image", "text"):
        rows = [row for row in embedded if row["input"] == among]
        cosines = np.sort(np.array([row["vector"] for row in rows], np.float32) @ text_ND[0])[::-1]
        found = await search(client, text=text, among=among, top_k=5, thumbnails=False)
        assert np.allclose([hit["similarity"] for hit in found["hits"]], cosines[:5], atol=1e-5)
        assert all(hit["thumbnail"] is None for hit in found["hits"])
        assert all((hit["text"] is None) == (among == "image") for hit in found["hits"])


async def test_a_form_is_as_good_as_json(client: httpx.AsyncClient, embedded: list[Any]) -> None:
    response = await client.post("/v1/search", files={"image": ("p.jpg", photo(3)), "top_k": (None, "1")})
    assert [hit["key"] for hit in response.json()["hits"]] == ["0003"]
    response = await client.post("/v1/search", files={"text": (None, "a circle"), "thumbnails": (None, "false")})
    assert len(response.json()["hits"]) == 12


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({}, 422, "not_one_query"),
        ({"text": "a", "image": encoded(0)}, 422, "not_one_query"),
        ({"text": " "}, 422, "empty_text"),
        ({"text": "a" * 41}, 422, "text_too_long"),
        ({"text": "a", "among": "sound"}, 422, "not_embedded"),
        ({"text": "a", "top_k": 101}, 422, "invalid_request"),
        ({"inputs": {"sound": "AAAA"}}, 422, "unknown_input"),
        ({"image": base64.b64encode(b"none").decode()}, 422, "undecodable_image"),
    ],
)
async def test_a_bad_request_is_refused(
    client: httpx.AsyncClient, embedded: list[Any], body: dict[str, Any], status: int, code: str
) -> None:
    response = await client.post("/v1/search", json=body)
    assert (response.status_code, error_code(response)) == (status, code)


async def test_vectors_of_another_model_are_refused_until_there_are_its_own(
    client: httpx.AsyncClient,
    job: EmbeddingJob,
    config: ServeConfig,
) -> None:
    other = replace(job, described=job.described.model_copy(update={"version": "2", "digest": "0" * 64}))
    embed_dataset(other, COPIES)
    response = await client.post("/v1/search", json={"text": "a circle"})
    assert (response.status_code, error_code(response)) == (409, "vectors_of_another_model")
    message = response.json()["error"]["message"]
    assert "tiny version 2, and version 3 is in use" in message
    assert "the job embed" in message
    assert (await client.get("/v1/model")).json()["search"] == []
    embed_dataset(job, COPIES)
    assert len((await search(client, text="a circle"))["hits"]) == 12, "newer vectors are used at once"
    assert (await client.get("/v1/model")).json()["search"] == ["image", "text"]


async def test_vectors_that_are_not_there_are_told(client: httpx.AsyncClient, job: EmbeddingJob) -> None:
    response = await client.post("/v1/search", json={"text": "a circle"})
    assert (response.status_code, error_code(response)) == (503, "search_unavailable")
    assert job.out not in response.text, "places of files are not for callers"
    assert (await client.get("/v1/model")).json()["search"] == []


def test_without_vectors_there_is_no_search() -> None:
    app = create_app(FakeService(), ServeConfig())
    response = send(app, "POST", "/v1/search", json={"text": "a"})
    assert (response.status_code, error_code(response)) == (404, "no_search")
    assert send(app, "GET", "/v1/model").json()["search"] == []


async def test_the_route_is_documented(client: httpx.AsyncClient) -> None:
    post = (await client.get("/openapi.json")).json()["paths"]["/v1/search"]["post"]
    assert "409" in post["responses"]
    examples = post["requestBody"]["content"]["application/json"]["examples"].values()
    for example in examples:
        SearchRequest.model_validate(example["value"])


async def test_a_model_without_a_space_says_what_it_can_do(config: ServeConfig) -> None:
    service = FakeService()
    assert service.model is not None
    service.model = replace(service.model, tasks=("vqa",))
    async with http(create_app(service, config, search=UpdatableSearch(config.search))) as client:
        response = await client.post("/v1/search", json={"text": "a"})
    assert (response.status_code, error_code(response)) == (404, "no_such_task")
