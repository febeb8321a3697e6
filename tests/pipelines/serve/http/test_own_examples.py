"""Examples of the model's own data: offered, and in the OpenAPI description."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipelines.registry.own_examples import AnsweredText, ExampleInput, ModelExample
from pipelines.serve.config import ServeConfig
from pipelines.serve.http.app import create_app
from pipelines.serve.service import ServiceRequest, ServiceResult
from tests.pipelines.serve.conftest import FakeService
from tests.pipelines.serve.http_client import IMAGE, TEXT, send
from vlmodel.conversation import ConversationTurn, conversation_to_json
from vlmodel.operations.chat import ChatRequest

PICTURE = {"image": ExampleInput(media_type="image/png", data=TEXT)}
ASKED = (
    AnsweredText(text="what is it?", answer="a horse", probability=0.9),
    AnsweredText(text="is it brown?", answer="yes", probability=0.8),
    AnsweredText(text="where is it?", answer="here", probability=0.7),
)


@pytest.fixture
def service() -> FakeService:
    service = FakeService()
    service.examples = [
        ModelExample(task="vqa", inputs=PICTURE, texts=ASKED),
        ModelExample(task="match", inputs=PICTURE, texts=ASKED[:1]),
        ModelExample(
            task="caption", inputs=PICTURE,
            texts=(AnsweredText(text="", answer="a brown horse", probability=0.3),),
        ),
    ]  # fmt: skip
    return service


def test_they_are_offered_for_each_operation(service: FakeService) -> None:
    offered = send(create_app(service, ServeConfig()), "GET", "/v1/examples").json()["examples"]
    assert [(one["task"], one["texts"]) for one in offered] == [
        ("vqa", ["what is it?", "is it brown?", "where is it?"]),
        ("match", ["what is it?"]),
        ("caption", [""]),
    ]
    assert offered[0]["inputs"] == {"image": {"media_type": "image/png", "data": TEXT}}


def test_the_documentation_asks_in_the_words_of_the_model(service: FakeService) -> None:
    app = create_app(service, ServeConfig())
    spec = send(app, "GET", "/openapi.json").json()

    def requests(name: str) -> list[object]:
        content = spec["paths"][f"/v1/{name}"]["post"]["requestBody"]["content"]
        examples = [one["value"] for one in content["application/json"]["examples"].values()]
        for example in examples:
            answer = send(app, "POST", f"/v1/{name}", json=example)
            assert answer.status_code == 200, answer.text
        form: object = content["multipart/form-data"]["example"]
        return [*examples, form]

    assert requests("vqa") == [
        {"image": TEXT, "question": "what is it?"},
        {"image": TEXT, "questions": ["what is it?", "is it brown?"], "top_k": 3, "attention": True},
        {"image": "@picture.jpg", "question": "what is it?"},
    ]
    assert requests("match")[:2] == [
        {"image": TEXT, "text": "what is it?"}, {"image": TEXT, "texts": ["what is it?"]}
    ]  # fmt: skip
    [shown] = spec["components"]["schemas"]["VQAResponse"]["examples"]
    assert shown["answers"][0]["question"] == "what is it?"
    assert shown["answers"][0]["answers"] == [{"answer": "a horse", "probability": 0.9}]
    assert shown["model"] == {"name": "fake", "version": "7"}
    [captions] = spec["components"]["schemas"]["CaptionResponse"]["examples"]
    assert captions["captions"][0]["caption"] == "a brown horse"


def test_a_conversation_is_documented_as_messages(service: FakeService) -> None:
    turns = (
        ConversationTurn("user", (None, "what is it?")),
        ConversationTurn("assistant", ("a horse",)),
        ConversationTurn("user", ("is it brown?",)),
    )
    asked = AnsweredText(text=conversation_to_json(turns), answer="yes", probability=0.9)
    service.examples = [ModelExample(task=name, inputs=PICTURE, texts=(asked,)) for name in ("vqa", "chat")]
    app = create_app(service, ServeConfig())
    spec = send(app, "GET", "/openapi.json").json()
    content = spec["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]
    assert content.keys() == {"application/json"}
    [example] = content["application/json"]["examples"].values()
    request = ChatRequest.model_validate(example["value"])
    assert request.conversation_and_image() == (turns, IMAGE)
    # Elsewhere it is asked by what is said last.
    questions = spec["paths"]["/v1/vqa"]["post"]["requestBody"]["content"]["application/json"]["examples"]
    assert questions["example 1"]["value"] == {"image": TEXT, "question": "is it brown?"}
    offered = send(app, "GET", "/v1/examples").json()["examples"]
    assert [one["texts"] for one in offered] == [["is it brown?"], ["is it brown?"]]


def test_further_inputs_are_documented_by_their_names(service: FakeService) -> None:
    inputs = {
        name: ExampleInput(media_type=kind, data=TEXT) for name, kind in (("audio", "audio/flac"), ("imu", "text/csv"))
    }
    service.examples = [
        ModelExample(task="classify", inputs=inputs, texts=(AnsweredText(text="", answer="seven", probability=0.9),))
    ]
    spec = send(create_app(service, ServeConfig()), "GET", "/openapi.json").json()
    content = spec["paths"]["/v1/classify"]["post"]["requestBody"]["content"]
    first, second, _ = (one["value"] for one in content["application/json"]["examples"].values())
    assert first == {"inputs": {"audio": TEXT, "imu": TEXT}, "top_k": 3}
    assert second == {"inputs": {"audio": TEXT, "imu": TEXT}, "attention": True}
    assert content["multipart/form-data"]["example"] == {"audio": "@audio.flac", "imu": "@imu.csv", "top_k": 3}
    [shown] = spec["components"]["schemas"]["ClassifyResponse"]["examples"]
    assert shown["classes"] == [{"label": "seven", "probability": 0.9}]


@pytest.mark.parametrize(
    ("settings", "shown"),
    [
        ({}, True),
        ({"examples": "off"}, False),
        ({"expose": True, "host": "0.0.0.0"}, False),
        ({"expose": True, "host": "0.0.0.0", "examples": "on"}, True),
    ],
)
def test_other_machines_see_none_unless_that_is_wanted(
    service: FakeService, settings: dict[str, object], shown: bool
) -> None:
    app = create_app(service, ServeConfig.model_validate(settings))
    assert bool(send(app, "GET", "/v1/examples").json()["examples"]) is shown
    assert ("a horse" in send(app, "GET", "/openapi.json").text) is shown


def test_the_description_changes_with_the_model(service: FakeService) -> None:
    app, examples = create_app(service, ServeConfig()), service.examples
    service.examples = []
    before = send(app, "GET", "/openapi.json").text
    assert "a horse" not in before
    service.examples = examples
    assert "a horse" in send(app, "GET", "/openapi.json").text
    service.examples = []
    assert send(app, "GET", "/openapi.json").text == before


def test_unknown_words_are_told_beside_the_answer() -> None:
    class Puzzled(FakeService):
        async def run(self, request: ServiceRequest) -> ServiceResult:
            return replace(await super().run(request), unknown_words=("colour",))

    body = {"image": TEXT, "question": "what colour is it?"}
    answer = send(create_app(Puzzled(), ServeConfig()), "POST", "/v1/vqa", json=body)
    assert answer.json()["unknown_words"] == ["colour"]
