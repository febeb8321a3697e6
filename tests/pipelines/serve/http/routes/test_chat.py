"""OpenAI's chat completions over a tiny language model, asked by OpenAI's own client."""

from __future__ import annotations

import asyncio
import base64
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from pipelines.serve.config import ServeConfig
from pipelines.serve.http.app import create_app
from pipelines.serve.inference.service import InferenceService
from pipelines.serve.service import AnswerStream, ModelInfo, ServiceRequest, ServiceResult
from tests.pipelines.serve.conftest import FakeService, picture
from tests.pipelines.serve.http_client import send
from tests.pipelines.serve.server import served
from vlmodel.facts import Fact, LinkedFact
from vlmodel.parts import WrittenText

URL = "data:image/png;base64," + base64.b64encode(picture()).decode()
IMAGE: dict[str, Any] = {"type": "image_url", "image_url": {"url": URL}}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def user(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


ASKED = [user(IMAGE, text("what colour is the circle ?"))]


@pytest.fixture(scope="module")
def app(talking_folder: Path) -> Iterator[Any]:
    service = InferenceService(ServeConfig())
    asyncio.run(service.load(talking_folder, "tiny", "3"))
    yield create_app(service, ServeConfig())
    service.close()


@pytest.fixture(scope="module")
def client(app: Any) -> Iterator[openai.OpenAI]:
    with served(app) as address, openai.OpenAI(base_url=f"http://{address}/v1", api_key="none", max_retries=0) as made:
        yield made


def say(client: openai.OpenAI, messages: Any = ASKED, **settings: Any) -> Any:
    return client.chat.completions.create(model="tiny", messages=messages, **settings)


def test_the_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]


def test_a_picture_is_talked_about(client: openai.OpenAI) -> None:
    answer = say(client, max_tokens=5)
    assert (answer.model, answer.system_fingerprint, answer.object) == ("tiny", "version 3", "chat.completion")
    [choice] = answer.choices
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.finish_reason == "length"
    assert answer.usage.completion_tokens == 5
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 5
    # The picture is read: it takes tokens.
    without = say(client, [user(text("what colour is the circle ?"))], max_tokens=5)
    assert answer.usage.prompt_tokens > without.usage.prompt_tokens
    assert say(client, max_tokens=5).choices == answer.choices
    assert say(client, max_completion_tokens=2).usage.completion_tokens == 2


def test_several_turns_and_a_system(client: openai.OpenAI) -> None:
    turns = [
        {"role": "system", "content": "what is there"},
        *ASKED,
        {"role": "assistant", "content": "a circle"},
        {"role": "user", "content": "is there a square ?"},
    ]
    longer, first = say(client, turns, max_tokens=3), say(client, max_tokens=3)
    assert longer.usage.prompt_tokens - first.usage.prompt_tokens == 3 + 1 + 2 + 1 + 5
    assert longer.choices[0].message.content


def test_a_stream_is_the_same_text(client: openai.OpenAI) -> None:
    whole = say(client, max_tokens=6)
    chunks = list(say(client, max_tokens=6, stream=True, stream_options={"include_usage": True}))
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    said = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert said.strip() == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert chunks[-1].usage == whole.usage
    assert chunks[-1].system_fingerprint == "version 3"


def test_a_stop_ends_the_text_before_it(client: openai.OpenAI) -> None:
    words = say(client, max_tokens=6).choices[0].message.content.split()
    stop = next(word for word in words[1:] if word != words[0])
    expected = " ".join(words[: words.index(stop)])
    stopped = say(client, max_tokens=6, stop=[stop])
    assert stopped.choices[0].message.content.strip() == expected
    assert stopped.choices[0].finish_reason == "stop"
    assert stopped.usage.completion_tokens < 6
    pieces = say(client, max_tokens=6, stop=stop, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in pieces).strip() == expected


def test_samples(client: openai.OpenAI) -> None:
    drawn = say(client, max_tokens=6, n=5, temperature=2, seed=1)
    texts = [choice.message.content for choice in drawn.choices]
    assert len(set(texts)) > 1
    assert [choice.index for choice in drawn.choices] == [0, 1, 2, 3, 4]
    assert [c.message.content for c in say(client, max_tokens=6, n=5, temperature=2, seed=1).choices] == texts
    assert [c.message.content for c in say(client, max_tokens=6, n=5, temperature=2, seed=2).choices] != texts
    assert len({choice.message.content for choice in say(client, max_tokens=6, n=3).choices}) == 1
    greedy = say(client, max_tokens=6).choices[0].message.content
    assert say(client, max_tokens=6, temperature=1, top_p=0.001).choices[0].message.content == greedy


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"messages": [user({"type": "image_url", "image_url": {"url": "https://a.b/c.png"}})]}, "fetches no images"),
        ({"messages": [user({"type": "image_url", "image_url": {"url": "data:image/png;base64,"}})]}, "has no bytes"),
        ({"messages": [user({"type": "image_url", "image_url": {"url": "file:///etc/passwd"}})]}, "no data: URL"),
        ({"messages": [user({"type": "image_url", "image_url": {"url": URL[:60]}})]}, "image"),
        ({"messages": [user({"type": "image_url"})]}, "image_url"),
        ({"messages": [user(IMAGE, IMAGE, text("a"))]}, "2 images in one conversation"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "turn 1 is of the assistant, where the user speaks"),
        ({"messages": [*ASKED, {"role": "assistant", "content": "a"}]}, "ends with the assistant"),
        ({"messages": [user(text(" "))]}, "says nothing"),
        ({"messages": []}, "messages"),
        ({"messages": [user(text("a ?" * 2000))]}, "the language model takes 1024"),
        ({"messages": [user(text("a" * 70_000))]}, "characters; send at most"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"n": 9}, "n: "),
        ({"n": 2, "stream": True}, "one text is streamed"),
        ({"stop": ["a"] * 5}, "at most four texts"),
        ({"tools": []}, "field 'tools' is unknown"),
    ],
)
def test_requests_that_cannot_be(change: dict[str, Any], message: str, client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**{"model": "tiny", "messages": ASKED, **change})
    body: Any = caught.value.body
    assert body.keys() == {"message", "type", "param", "code"}
    assert body["type"] == "invalid_request_error"
    assert message in body["message"]


def test_what_clients_send_though_they_want_nothing_of_it(client: openai.OpenAI) -> None:
    neutral: dict[str, Any] = {
        "frequency_penalty": 0.0, "presence_penalty": 0, "logprobs": False, "response_format": {"type": "text"},
        "store": False, "user": "me",
    }  # fmt: skip
    assert say(client, max_tokens=3, **neutral).choices == say(client, max_tokens=3).choices
    for name, value in (("frequency_penalty", 0.5), ("logprobs", True), ("response_format", {"type": "json_object"})):
        with pytest.raises(openai.BadRequestError) as caught:
            say(client, **{name: value})
        assert caught.value.param == name


def test_what_was_said_goes_on(client: openai.OpenAI) -> None:
    first = say(client, max_tokens=3).choices[0].message
    answer = say(client, [*ASKED, first, {"role": "user", "content": "what is there ?"}], max_tokens=3)
    assert answer.choices[0].message.content


def test_another_model(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt-4'; this service has 'tiny', version 3"):
        client.chat.completions.create(model="gpt-4", messages=ASKED)
    assert client.chat.completions.create(model="tiny:3", messages=ASKED, max_tokens=1).model == "tiny"


def test_a_question_that_is_too_long_is_the_callers_fault_at_every_route(app: Any) -> None:
    image = base64.b64encode(picture()).decode()
    for question in ("\ue002[", "\ue002[]"):  # written as no keyboard writes, and no conversation
        response = send(app, "POST", "/v1/vqa", json={"image": image, "question": question})
        assert (response.status_code, response.json()["error"]["code"]) == (422, "invalid_conversation")


def test_a_model_that_does_not_converse() -> None:
    response = send(create_app(FakeService(), ServeConfig()), "POST", "/v1/chat/completions", json={})
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "no_such_task"


class Knowing(FakeService):
    """Answers with a fact, of version 4 or later."""

    def __init__(self) -> None:
        super().__init__()
        self.model = ModelInfo("fake", "7", ("chat",), labels=0, image_size=(32, 32), resize="squash")

    async def run(self, request: ServiceRequest) -> ServiceResult:
        assert request.least_version == 4
        facts = (LinkedFact(Fact("7", "circle", "Is", "red", "circle is red", "test"), 0.5),)
        return self.answered([WrittenText("red", 0.9, 3, 1, True, facts, 5)])

    async def pieces(self, attention: bool) -> AnswerStream:
        yield "red"
        yield await self.run(ServiceRequest("chat", {}, (), least_version=4))


@pytest.mark.parametrize("stream", [False, True])
def test_what_is_said_names_its_facts(stream: bool) -> None:
    asked = {"model": "fake", "messages": [user(text("what ?"))], "min_knowledge_version": 4, "stream": stream}
    response = send(create_app(Knowing(), ServeConfig()), "POST", "/v1/chat/completions", json=asked)
    assert response.status_code == 200, response.text
    bodies = [json.loads(line[6:]) for line in response.text.split("\n\n") if line.startswith("data: {")]
    answer = bodies[-1] if stream else response.json()
    assert answer["knowledge_version"] == 5
    assert [(fact["id"], fact["tail"]) for fact in answer["facts"]] == [("7", "red")]
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert not any("facts" in body for body in bodies[:-1])


@pytest.mark.parametrize("count", [150, pytest.param(1000, marks=pytest.mark.slow)])
def test_malformed_requests_are_the_callers_fault(count: int, app: Any) -> None:
    whole = json.dumps({"model": "tiny", "messages": ASKED, "max_tokens": 1})
    draw = random.Random(count)
    values: list[Any] = [
        None,
        True,
        -1,
        1e308,
        "",
        "\ud800",
        [],
        {},
        [[]],
        "x" * 99,
        {"role": "user"},
        [{"type": "text"}],
    ]
    for _ in range(count):
        tree = json.loads(whole)
        place, key = draw.choice(
            [(tree, "model"), (tree, "messages"), (tree, "stop"), (tree, "seed"), (tree["messages"][0], "content"),
             (tree["messages"][0], "role"), (tree["messages"][0]["content"][0], "image_url"),
             (tree["messages"][0]["content"][1], "text"), (tree["messages"][0]["content"], 0), (tree, "stream_options")]
        )  # fmt: skip
        place[key] = draw.choice(values)
        body = json.dumps(tree).encode()
        if draw.random() < 0.2:
            body = body[: draw.randrange(len(body))]
        status = send(
            app, "POST", "/v1/chat/completions", content=body, headers={"content-type": "application/json"}
        ).status_code
        assert status in (200, 400, 404, 413), tree
