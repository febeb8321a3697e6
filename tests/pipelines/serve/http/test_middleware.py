"""The layers around the application."""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
import threading
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from pipelines.serve.config import FeedbackConfig, ServeConfig
from pipelines.serve.http import app as http_app
from pipelines.serve.http.app import create_app
from tests.pipelines.serve.conftest import FakeService
from tests.pipelines.serve.http_client import IMAGE, TEXT, error_code, http, send
from tests.pipelines.serve.server import served
from vlmodel.config import dump_config, load_config, parse_config

HASH = hashlib.sha256(b"key").hexdigest()


def head_of(body: bytes) -> bytes:
    """The head of a request with this body."""
    lines = [
        "POST /v1/vqa HTTP/1.1",
        "host: 127.0.0.1",
        "content-type: application/json",
        f"content-length: {len(body)}",
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def open_connection(address: str, sent: bytes) -> socket.socket:
    """A connection on which so much was sent."""
    host, _, port = address.partition(":")
    connection = socket.create_connection((host, int(port)), timeout=30)
    connection.sendall(sent)
    return connection


def answer_on(connection: socket.socket) -> tuple[int, str]:
    """Status and code of the error, or "ok"."""
    with connection:
        response = HTTPResponse(connection)
        response.begin()
        content = json.loads(response.read())
    return response.status, content["error"]["code"] if "error" in content else "ok"


def test_bodies_that_do_not_end_keep_nobody_out_and_get_408(service: FakeService) -> None:
    body = json.dumps({"image": TEXT, "question": "A?"}).encode()
    app = create_app(service, ServeConfig(max_in_flight=2, request_timeout_s=2))
    with served(app) as address:
        slow = [open_connection(address, head_of(body)[:-20]) for _ in range(8)]
        assert answer_on(open_connection(address, head_of(body))) == (200, "ok")
        slow[0].sendall(head_of(body)[-20:])
        assert [answer_on(connection) for connection in slow] == [(200, "ok")] + [(408, "slow_request")] * 7
        assert answer_on(open_connection(address, head_of(body))) == (200, "ok")


class Held(FakeService):
    """Answers when it is let; knows how many wait."""

    def __init__(self) -> None:
        super().__init__()
        self.go, self.waiting = threading.Event(), threading.Semaphore(0)

    async def answer(self, *args: Any) -> Any:
        self.waiting.release()
        await asyncio.to_thread(self.go.wait, 30)
        return await super().answer(*args)


def test_places_are_taken_by_bodies_that_are_there() -> None:
    body = json.dumps({"image": TEXT, "question": "A?"}).encode()
    service = Held()
    with served(create_app(service, ServeConfig(max_in_flight=2))) as address:
        late = open_connection(address, head_of(body)[:-20])
        held = [open_connection(address, head_of(body)) for _ in range(2)]
        for _ in held:
            assert service.waiting.acquire(timeout=30)
        assert answer_on(open_connection(address, head_of(body)[:-20])) == (429, "overloaded"), (
            "refused before its body is read"
        )
        late.sendall(head_of(body)[-20:])
        assert answer_on(late) == (429, "overloaded")
        service.go.set()
        assert [answer_on(connection) for connection in held] == [(200, "ok")] * 2
        assert answer_on(open_connection(address, head_of(body))) == (200, "ok")


def test_longest_arriving_body_is_dropped_for_others(service: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_app, "MAX_HELD_BYTES", 130_000)
    body = json.dumps({"image": TEXT, "question": "A" * 50_000}).encode()
    config = ServeConfig(max_body_bytes=60_000, max_question_chars=60_000)
    with served(create_app(service, config)) as address:
        head = open_connection(address, head_of(body).removesuffix(body))
        slow = [open_connection(address, head_of(body)[:-20]) for _ in range(2)]
        assert [answer_on(open_connection(address, head_of(body))) for _ in range(5)] == [(200, "ok")] * 5
        more = open_connection(address, head_of(body)[:-20])
        assert [answer_on(open_connection(address, head_of(body))) for _ in range(5)] == [(200, "ok")] * 5
        more.sendall(head_of(body)[-20:])
        assert answer_on(more) == (200, "ok")
        assert [answer_on(connection) for connection in slow] == [(408, "slow_request")] * 2
        head.sendall(body)
        assert answer_on(head) == (200, "ok"), "what has sent nothing yet gives no room"


def test_bodies_that_are_held_for_the_model_are_bounded_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_app, "MAX_HELD_BYTES", 130_000)
    body = json.dumps({"image": TEXT, "question": "A" * 50_000}).encode()
    service = Held()
    config = ServeConfig(max_body_bytes=60_000, max_question_chars=60_000)
    with served(create_app(service, config)) as address:
        held = [open_connection(address, head_of(body)) for _ in range(2)]
        for _ in held:
            assert service.waiting.acquire(timeout=30)
        assert answer_on(open_connection(address, head_of(body))) == (429, "overloaded")
        service.go.set()
        assert [answer_on(connection) for connection in held] == [(200, "ok")] * 2
        assert [answer_on(open_connection(address, head_of(body))) for _ in range(3)] == [(200, "ok")] * 3


def answer_to(app: Any, headers: list[tuple[str, str]], path: str = "/v1/vqa") -> tuple[int, str]:
    """Status and code of the answer to a form that was sent with these headers, as a browser would."""

    async def go() -> httpx.Response:
        async with http(app, base="http://127.0.0.1:8000") as client:
            request = client.build_request(
                "POST",
                path,
                files={"image": ("p.png", IMAGE)},
                data={"question": "A?", "answer": "poison"} if "feedback" in path else {"question": "A?"},
            )
            names = {name.lower() for name, _ in headers}
            other_headers = [(name, value) for name, value in request.headers.raw if name.decode().lower() not in names]
            request.headers = httpx.Headers([*other_headers, *((n.encode(), v.encode()) for n, v in headers if v)])
            return await client.send(request)

    response = asyncio.run(go())
    return response.status_code, "ok" if response.status_code == 200 else error_code(response)


FOREIGN = (403, "foreign_origin")


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([], (200, "ok")),  # curl and the client
        ([("origin", "https://evil.example")], FOREIGN),
        ([("origin", "https://evil.example"), ("sec-fetch-site", "cross-site")], FOREIGN),
        ([("sec-fetch-site", "cross-site")], FOREIGN),
        ([("sec-fetch-site", "same-site")], FOREIGN),
        ([("origin", "null")], FOREIGN),
        ([("origin", "http://127.0.0.1:9000")], FOREIGN),
        ([("origin", "http://localhost:8000")], FOREIGN),
        ([("origin", "http://127.0.0.1:8000")], (200, "ok")),
        ([("origin", "http://127.0.0.1:8000"), ("sec-fetch-site", "same-origin")], (200, "ok")),
        ([("sec-fetch-site", "none")], (200, "ok")),
        # Before it a proxy encrypts, which keeps the name or does not.
        ([("host", "localhost"), ("origin", "https://localhost")], (200, "ok")),
        ([("host", "localhost:443"), ("origin", "https://localhost")], (200, "ok")),
        ([("origin", "https://vlm.example.org"), ("sec-fetch-site", "same-origin")], (200, "ok")),
        ([("origin", "https://vlm.example.org")], FOREIGN),
        ([("origin", "file://127.0.0.1:8000")], FOREIGN),
    ],
)
@pytest.mark.parametrize("path", ["/v1/vqa", "/v1/feedback"])
def test_pages_of_other_sites_send_nothing_here(
    service: FakeService, tmp_path: Path, path: str, headers: list[tuple[str, str]], expected: tuple[int, str]
) -> None:
    app = create_app(service, ServeConfig(feedback=FeedbackConfig(folder=str(tmp_path))))
    assert answer_to(app, headers, path) == expected
    if expected != (200, "ok"):
        assert service.seen == []
        assert list(tmp_path.iterdir()) == []


def test_pages_of_other_sites_may_where_they_are_listed(service: FakeService) -> None:
    app = create_app(service, ServeConfig(allowed_origins=["https://app.example.org"]), [HASH])
    key, listed = ("x-api-key", "key"), ("origin", "https://app.example.org")
    assert answer_to(app, [key, listed, ("sec-fetch-site", "cross-site")]) == (200, "ok")
    assert answer_to(app, [listed, ("sec-fetch-site", "cross-site")]) == (401, "unauthorized")
    assert answer_to(app, [key, ("origin", "https://evil.example"), ("sec-fetch-site", "cross-site")]) == FOREIGN
    preflight = {"access-control-request-method": "POST", "access-control-request-headers": "x-api-key"}
    allowed = send(app, "OPTIONS", "/v1/vqa", headers={**preflight, "origin": "https://app.example.org"})
    assert allowed.headers["access-control-allow-origin"] == "https://app.example.org"
    refused = send(app, "OPTIONS", "/v1/vqa", headers={**preflight, "origin": "https://evil.example"})
    assert "access-control-allow-origin" not in refused.headers
    plain = send(
        create_app(service, ServeConfig()), "OPTIONS", "/v1/vqa", headers={"origin": "https://app.example.org"}
    )
    assert "access-control-allow-origin" not in plain.headers


LOCAL = {"host": "127.0.0.1"}
OUTSIDE = {"host": "0.0.0.0", "expose": True}
NAMED = {"allowed_hosts": ["vlm.example.org"]}


@pytest.mark.parametrize(
    ("settings", "keys", "host", "taken"),
    [
        (LOCAL, False, "localhost:8000", True),
        (LOCAL, False, "LOCALHOST", True),
        (LOCAL, False, "[::1]:8000", True),
        (LOCAL, False, "127.1.2.3", True),
        (LOCAL, False, "", True),  # HTTP/1.0 without a name
        (LOCAL, False, "rebound.example", False),
        (LOCAL, False, "localhost.rebound.example", False),
        (LOCAL, False, "localhost:80@rebound.example", False),
        (LOCAL, False, "rebound.example:80@localhost", False),
        (LOCAL, False, "[::1].rebound.example", False),
        (LOCAL, False, "203.0.113.9", False),
        (LOCAL | NAMED, False, "vlm.example.org", True),
        (LOCAL | NAMED, False, "rebound.example", False),
        (LOCAL, True, "rebound.example", False),
        (LOCAL, True, "203.0.113.9", True),
        (LOCAL | NAMED, True, "VLM.example.org:443", True),
        (OUTSIDE, True, "any.example", True),
        (OUTSIDE | NAMED, True, "any.example", False),
        (OUTSIDE | NAMED, True, "vlm.example.org", True),
        (OUTSIDE | NAMED, True, "203.0.113.9:8000", True),
    ],
)
def test_the_service_answers_to_its_own_names(
    service: FakeService, settings: dict[str, Any], keys: bool, host: str, taken: bool
) -> None:
    app = create_app(service, ServeConfig(**settings), [HASH] if keys else [])
    expected = (200, "ok") if taken else (403, "foreign_host")
    assert answer_to(app, [("host", host), ("x-api-key", "key")]) == expected


def test_two_names_in_one_request_are_refused(service: FakeService) -> None:
    app = create_app(service, ServeConfig())
    assert answer_to(app, [("host", "rebound.example"), ("host", "localhost")]) == (403, "foreign_host")


@pytest.mark.parametrize("setting", ["allowed_hosts", "allowed_origins"])
@pytest.mark.parametrize("value", ["", "*", "https://*.example.org", "https://example.org/", "example.org:80/x"])
def test_a_name_or_origin_that_could_never_match_is_refused(setting: str, value: str) -> None:
    with pytest.raises(ValidationError, match=setting):
        ServeConfig(**{setting: [value]})


def test_allowed_hosts_and_origins_reach_the_replicas() -> None:
    config = load_config(
        ServeConfig, overrides=['allowed_hosts=["a.example"]', 'allowed_origins=["https://b.example"]']
    )
    assert (config.allowed_hosts, config.allowed_origins) == (["a.example"], ["https://b.example"])
    assert parse_config(ServeConfig, dump_config(config)) == config
