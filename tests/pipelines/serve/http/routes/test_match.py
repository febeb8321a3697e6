"""POST /v1/match over a service without a model."""

from __future__ import annotations

from typing import Any

import pytest

from pipelines.serve.config import ServeConfig
from pipelines.serve.http.app import create_app
from pipelines.serve.service import ServiceRequest, ServiceResult
from tests.pipelines.serve.conftest import FakeService
from tests.pipelines.serve.http_client import IMAGE, TEXT, error_code, send
from vlmodel.facts import Fact, LinkedFact
from vlmodel.operations.match import MatchResponse, MatchResult


@pytest.fixture
def app(service: FakeService) -> Any:
    return create_app(service, ServeConfig(max_texts=3, max_question_chars=40))


def test_each_text_gets_its_probability(app: Any, service: FakeService) -> None:
    response = send(app, "POST", "/v1/match", json={"image": TEXT, "texts": ["a circle", "a square"]})
    assert response.status_code == 200
    assert service.seen == [(IMAGE, ("a circle", "a square"))]
    answer = MatchResponse.model_validate_json(response.content)
    assert (answer.method, answer.temperature) == ("matching", None)
    assert [(m.text, m.probability, m.similarity) for m in answer.matches] == [
        ("a circle", 1.0, None),
        ("a square", 1.0, None),
    ]
    assert answer.model.version == "7"
    assert "server-timing" in response.headers


def test_similarities_say_so_and_a_lone_text_has_no_probability() -> None:
    class Comparing(FakeService):
        async def run(self, request: ServiceRequest) -> ServiceResult:
            return self.answered(MatchResult("similarity", [None], [1.0000002], 0.05))

    response = send(
        create_app(Comparing(), ServeConfig()), "POST", "/v1/match", json={"image": TEXT, "text": "a circle"}
    )
    answer = MatchResponse.model_validate_json(response.content)
    assert (answer.method, answer.temperature) == ("similarity", 0.05)
    assert (answer.matches[0].probability, answer.matches[0].similarity) == (None, 1.0)


def test_a_text_names_the_facts_that_it_was_read_with() -> None:
    class Knowing(FakeService):
        async def run(self, request: ServiceRequest) -> ServiceResult:
            assert request.least_version == 4
            facts = [[LinkedFact(Fact("7", "circle", "Is", "red", "circle is red", "test"), 0.5)], []]
            return self.answered(MatchResult("matching", [0.9, 0.1], facts=facts, knowledge_version=5))

    asked = {"image": TEXT, "texts": ["a circle", "a square"], "min_knowledge_version": 4}
    answer = MatchResponse.model_validate_json(
        send(create_app(Knowing(), ServeConfig()), "POST", "/v1/match", json=asked).content
    )
    assert answer.knowledge_version == 5
    assert [[(fact.id, fact.tail, fact.weight) for fact in one.facts] for one in answer.matches] == [
        [("7", "red", 0.5)], []
    ]  # fmt: skip


@pytest.mark.parametrize("fields", [{"text": "one"}, {"text": ["one", "two"]}, {"texts": ["one", "two"]}])
def test_a_form_is_read_like_json(app: Any, service: FakeService, fields: dict[str, Any]) -> None:
    response = send(app, "POST", "/v1/match", data=fields, files={"image": ("p.png", IMAGE)})
    assert response.status_code == 200, response.text
    [given] = fields.values()
    assert service.seen == [(IMAGE, (given,) if isinstance(given, str) else tuple(given))]


def test_a_form_may_hold_as_many_texts_as_the_service_takes(service: FakeService) -> None:
    app = create_app(service, ServeConfig(max_texts=200))
    texts = [f"text {n}" for n in range(200)]
    response = send(app, "POST", "/v1/match", data={"text": texts}, files={"image": ("p.png", IMAGE)})
    assert response.status_code == 200, response.text
    assert service.seen == [(IMAGE, tuple(texts))]


@pytest.mark.parametrize(
    ("body", "code", "hint"),
    [
        ({"image": TEXT}, "no_text", "either 'text' or 'texts'"),
        ({"image": TEXT, "text": "a", "texts": ["b"]}, "no_text", "not both"),
        ({"image": TEXT, "texts": []}, "empty_text", "at least one"),
        ({"image": TEXT, "texts": ["a", " "]}, "empty_text", "texts.1"),
        ({"image": TEXT, "texts": ["a"] * 4}, "too_many_texts", "at most 3"),
        ({"image": TEXT, "text": "a" * 41}, "text_too_long", "at most 40"),
        ({"text": "a"}, "invalid_request", "'image' is required"),
    ],
)
def test_a_bad_field_is_refused(app: Any, service: FakeService, body: Any, code: str, hint: str) -> None:
    response = send(app, "POST", "/v1/match", json=body)
    assert (response.status_code, error_code(response)) == (422, code)
    assert hint in response.json()["error"]["message"]
    assert service.seen == []
