"""POST /v1/caption, over a service without a model and over a tiny one."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from pipelines.serve.config import ServeConfig
from pipelines.serve.errors import ApiError
from pipelines.serve.http.app import create_app
from pipelines.serve.service import AnswerStream, ServiceMetrics, ServiceRequest
from tests.pipelines.serve.conftest import FakeService
from tests.pipelines.serve.http_client import IMAGE, TEXT, error_code, events, json_scope, send
from vlmodel.operations.describe import CaptionResponse


@pytest.fixture
def app(service: FakeService) -> Any:
    return create_app(service, ServeConfig())


def test_captions_come_ranked_with_their_probabilities(app: Any, service: FakeService) -> None:
    response = send(app, "POST", "/v1/caption", json={"image": TEXT, "top_k": 2, "attention": True})
    assert response.status_code == 200
    assert service.seen == [(IMAGE, 2, True)]
    answer = CaptionResponse.model_validate_json(response.content)
    assert [(c.caption, c.probability) for c in answer.captions] == [("a circle", 0.5), ("a square", 0.25)]
    assert answer.attention is not None
    assert (answer.attention.rows, answer.attention.columns) == (2, 3)
    assert (answer.model.name, answer.model.version) == ("fake", "7")
    assert response.headers["server-timing"].startswith("model;dur=1.00, total;dur=")


def test_a_form_is_read_like_json(app: Any, service: FakeService) -> None:
    files = {"image": ("p.png", IMAGE)}
    assert send(app, "POST", "/v1/caption", data={"top_k": "2"}, files=files).status_code == 200
    assert send(app, "POST", "/v1/caption", data={"stream": "true"}, files=files).status_code == 200
    assert service.seen == [(IMAGE, 2, False), (IMAGE, "streamed", False)]


@pytest.mark.parametrize(
    ("body", "code", "hint"),
    [
        ({"image": TEXT, "top_k": 11}, "invalid_request", "given 11"),
        ({"image": TEXT, "stream": True, "top_k": 2}, "one_streamed", "top_k=2"),
        ({"image": TEXT, "question": "A?"}, "invalid_request", "'question' is unknown"),
        ({}, "invalid_request", "'image' is required"),
    ],
)
def test_a_bad_field_is_refused(app: Any, service: FakeService, body: Any, code: str, hint: str) -> None:
    response = send(app, "POST", "/v1/caption", json=body)
    assert (response.status_code, error_code(response)) == (422, code)
    assert hint in response.json()["error"]["message"]
    assert service.seen == []


def test_a_stream_sends_the_pieces_and_then_the_whole(app: Any) -> None:
    response = send(app, "POST", "/v1/caption", json={"image": TEXT, "stream": True, "attention": True})
    assert response.headers["cache-control"] == "no-store"
    *pieces, (name, data) = events(response)
    assert [(name, json.loads(data)) for name, data in pieces] == [
        ("piece", {"text": "a "}),
        ("piece", {"text": "circle"}),
    ]
    assert name == "done"
    whole = CaptionResponse.model_validate_json(data)
    assert whole.captions[0].caption == "a circle"
    assert whole.attention is not None
    assert whole.model.version == "7"


class Failing(FakeService):
    """Fails before the first piece, or after it."""

    def __init__(self, error: BaseException, late: bool) -> None:
        super().__init__()
        self.error, self.late, self.closed = error, late, False

    async def stream(self, request: ServiceRequest) -> AnswerStream:
        if not self.late:
            raise self.error
        return self.pieces(request.attention)

    async def pieces(self, attention: bool) -> AnswerStream:
        try:
            yield "a "
            raise self.error
        finally:
            self.closed = True


class Counted(ServiceMetrics):
    def __init__(self) -> None:
        self.requests: list[tuple[str, int, str]] = []

    def count_request(self, route: str, status: int, code: str, version: str, seconds: float) -> None:
        self.requests.append((route, status, code))

    def count_batch(self, task: str, size: int, seconds: float, version: str) -> None:
        raise AssertionError("no pass was made")


def test_errors_before_a_stream_are_plain_error_responses() -> None:
    app = create_app(Failing(ApiError(422, "truncated_image", "cut off"), late=False), ServeConfig())
    response = send(app, "POST", "/v1/caption", json={"image": TEXT, "stream": True})
    assert (response.status_code, error_code(response)) == (422, "truncated_image")


@pytest.mark.parametrize(
    ("error", "code"), [(ApiError(503, "not_ready", "later"), "not_ready"), (RuntimeError("secret /etc"), "internal")]
)
def test_error_in_a_stream_is_its_last_event_and_counted(error: Exception, code: str) -> None:
    service, counted = Failing(error, late=True), Counted()
    app = create_app(service, ServeConfig(), metrics=counted)
    response = send(app, "POST", "/v1/caption", json={"image": TEXT, "stream": True})
    assert [name for name, _ in events(response)] == ["piece", "error"]
    assert json.loads(events(response)[-1][1])["error"]["code"] == code
    assert "secret" not in response.text
    assert service.closed
    assert counted.requests == [("/v1/caption", 200, code)]


def test_a_stream_that_takes_too_long_ends_with_an_error() -> None:
    class Endless(FakeService):
        closed = False

        async def pieces(self, attention: bool) -> AnswerStream:
            try:
                yield "a "
                await asyncio.Event().wait()
            finally:
                self.closed = True

    service = Endless()
    app = create_app(service, ServeConfig(request_timeout_s=0.1))
    response = send(app, "POST", "/v1/caption", json={"image": TEXT, "stream": True})
    assert [name for name, _ in events(response)] == ["piece", "error"]
    assert json.loads(events(response)[-1][1])["error"]["code"] == "timeout"
    assert service.closed


def test_a_client_that_leaves_ends_the_stream() -> None:
    class Waiting(FakeService):
        def __init__(self) -> None:
            super().__init__()
            self.closed = asyncio.Event()

        async def pieces(self, attention: bool) -> AnswerStream:
            try:
                while True:
                    yield "a "
                    await asyncio.sleep(0.001)
            finally:
                self.closed.set()

    async def go() -> None:
        service, left = Waiting(), asyncio.Event()
        app = create_app(service, ServeConfig())
        body = json.dumps({"image": TEXT, "stream": True}).encode()
        incoming = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> dict[str, Any]:
            if incoming:
                return incoming.pop()
            await left.wait()
            return {"type": "http.disconnect"}

        async def take(message: Any) -> None:
            if message.get("body"):
                left.set()

        await asyncio.wait_for(app(json_scope("/v1/caption"), receive, take), 10)
        await asyncio.wait_for(service.closed.wait(), 10)

    asyncio.run(go())


def test_pieces_are_sent_when_they_are_written_and_not_at_the_end() -> None:
    class Stepwise(FakeService):
        def __init__(self) -> None:
            super().__init__()
            self.read = asyncio.Event()

        async def pieces(self, attention: bool) -> AnswerStream:
            yield "a "
            await self.read.wait()
            yield self.answered((await super().caption(IMAGE, 1, False)).result)

    async def go() -> list[str]:
        service, seen = Stepwise(), []
        app = create_app(service, ServeConfig())
        body = json.dumps({"image": TEXT, "stream": True}).encode()

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def take(message: Any) -> None:
            if message.get("body"):
                seen.append(message["body"].decode().partition("\n")[0])
                service.read.set()

        # By this version a client that left is noticed when something is sent, and not waited for.
        scope = {**json_scope("/v1/caption"), "asgi": {"spec_version": "2.4"}}
        await asyncio.wait_for(app(scope, receive, take), 10)
        return seen

    assert asyncio.run(go()) == ["event: piece", "event: done"]


def test_openapi_names_both_kinds_of_answer(app: Any) -> None:
    answers = send(app, "GET", "/openapi.json").json()["paths"]["/v1/caption"]["post"]["responses"]["200"]
    assert answers["content"].keys() == {"application/json", "text/event-stream"}
    assert answers["content"]["application/json"]["schema"]["$ref"].endswith("/CaptionResponse")
