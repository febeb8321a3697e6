"""POST /v1/embed over a service without a model."""

from __future__ import annotations

from typing import Any

import pytest

from pipelines.serve.config import ServeConfig
from pipelines.serve.http.app import create_app
from tests.pipelines.serve.conftest import FakeService
from tests.pipelines.serve.http_client import IMAGE, TEXT, error_code, send
from vlmodel.operations.embed import EmbedResponse


@pytest.fixture
def app(service: FakeService) -> Any:
    return create_app(service, ServeConfig(max_texts=3, max_question_chars=40))


@pytest.mark.parametrize(
    ("body", "seen"),
    [
        ({"image": TEXT, "texts": ["a", "b"]}, (IMAGE, ("a", "b"))),
        ({"image": TEXT}, (IMAGE, ())),
        ({"text": "a"}, (None, ("a",))),
    ],
)
def test_vectors_of_what_was_given(app: Any, service: FakeService, body: Any, seen: Any) -> None:
    response = send(app, "POST", "/v1/embed", json=body)
    assert response.status_code == 200
    assert service.seen == [seen]
    answer = EmbedResponse.model_validate_json(response.content)
    assert answer.width == 2
    assert (answer.image is None) == (seen[0] is None)
    assert [pytest.approx(text) for text in answer.texts] == [[0.6, 0.8]] * len(seen[1])
    assert answer.model.version == "7"


def test_a_form_may_hold_texts_alone(app: Any, service: FakeService) -> None:
    parts = [("text", (None, "a")), ("text", (None, "b"))]
    assert send(app, "POST", "/v1/embed", files=parts).status_code == 200
    assert send(app, "POST", "/v1/embed", files={"image": ("p.png", IMAGE)}).status_code == 200
    assert service.seen == [(None, ("a", "b")), (IMAGE, ())]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({}, "nothing_to_embed"),
        ({"text": "a", "texts": ["b"]}, "no_text"),
        ({"image": TEXT, "texts": []}, "empty_text"),
        ({"image": "", "text": "a"}, "empty_image"),
        ({"texts": ["a"] * 4}, "too_many_texts"),
    ],
)
def test_a_bad_field_is_refused(app: Any, service: FakeService, body: Any, code: str) -> None:
    response = send(app, "POST", "/v1/embed", json=body)
    assert (response.status_code, error_code(response)) == (422, code)
    assert service.seen == []
