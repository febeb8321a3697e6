"""POST /v1/classify with classes that are given, over a tiny contrastive model and over a classifier."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from pipelines.serve.config import ServeConfig
from pipelines.serve.http.app import create_app
from pipelines.serve.inference.service import InferenceService
from tests.pipelines.serve.http_client import IMAGE, TEXT, error_code, http
from vlmodel.operations.classify import ClassifyResponse

Ask = Callable[..., httpx.Response]


@pytest.fixture
def ask(folder_of: Callable[[str], Path]) -> Ask:
    def send(decoder: str, **options: Any) -> httpx.Response:
        async def go() -> httpx.Response:
            config = ServeConfig(model_threads=1, max_texts=40, max_question_chars=40)
            service = InferenceService(config)
            try:
                await service.load(folder_of(decoder), "tiny", "1")
                async with http(create_app(service, config)) as client:
                    if "path" in options:
                        return await client.get(options["path"])
                    return await client.post("/v1/classify", **options)
            finally:
                service.close()

        return asyncio.run(go())

    return send


def test_a_contrastive_model_chooses_among_given_classes(ask: Ask) -> None:
    body: dict[str, Any] = {
        "image": TEXT,
        "classes": ["circle", "square", "there"],
        "templates": ["a {}", "the {} ?"],
        "top_k": 2,
    }
    response = ask("contrastive", json=body)
    assert response.status_code == 200, response.text
    answer = ClassifyResponse.model_validate_json(response.content)
    assert len(answer.classes) == 2
    assert {one.label for one in answer.classes} < {"circle", "square", "there"}
    assert answer.classes[0].probability >= answer.classes[1].probability
    parts: list[tuple[str, Any]] = [("image", ("p.png", IMAGE)), ("top_k", (None, "2"))]
    parts += [("classes", (None, name)) for name in body["classes"]]
    parts += [("templates", (None, template)) for template in body["templates"]]
    form = ClassifyResponse.model_validate_json(ask("contrastive", files=parts).content)
    assert [one.label for one in form.classes] == [one.label for one in answer.classes]
    expected = [one.probability for one in answer.classes]
    assert [one.probability for one in form.classes] == pytest.approx(expected, abs=1e-5)
    assert ask("contrastive", path="/v1/model").json()["needs_classes"] is True


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({}, "no_classes"),
        ({"templates": ["a {}"]}, "no_classes"),
        ({"classes": []}, "empty_classes"),
        ({"classes": ["a"], "templates": []}, "empty_classes"),
        ({"classes": ["a", "a"]}, "repeated_class"),
        ({"classes": ["a"], "templates": ["no place"]}, "bad_template"),
        ({"classes": [" "]}, "empty_text"),
        ({"classes": ["a" * 41]}, "text_too_long"),
        ({"classes": ["a"] * 41}, "too_many_classes"),
        ({"classes": [str(n) for n in range(40)], "templates": [f"{n} {{}}" for n in range(30)]}, "too_many_prompts"),
    ],
)
def test_classes_that_cannot_be_used_are_refused(ask: Ask, body: dict[str, Any], code: str) -> None:
    response = ask("contrastive", json={"image": TEXT, **body})
    assert (response.status_code, error_code(response)) == (422, code)


def test_a_classifier_keeps_to_the_classes_that_it_has_learned(ask: Ask) -> None:
    response = ask("classify", json={"image": TEXT, "classes": ["circle"]})
    assert (response.status_code, error_code(response)) == (422, "own_classes")
    assert ask("classify", json={"image": TEXT}).status_code == 200
    assert ask("classify", path="/v1/model").json()["needs_classes"] is False
