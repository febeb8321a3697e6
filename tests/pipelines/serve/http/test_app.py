"""The HTTP application over a service without a model and without Ray."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import gzip
import hashlib
import json
import re
from collections.abc import AsyncIterator, MutableMapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import BaseModel

from pipelines.serve.config import ServeConfig
from pipelines.serve.errors import ApiError
from pipelines.serve.http import app as app_module
from pipelines.serve.http.app import create_app
from pipelines.serve.service import ServiceMetrics
from tests.pipelines.serve.conftest import FakeService
from tests.pipelines.serve.http_client import IMAGE, TEXT, error_code, http, json_scope, send
from vlmodel.operations.ask import VQARequest, VQAResponse
from vlmodel.operations.describe import CaptionRequest, CaptionResponse
from vlmodel.operations.embed import EmbedRequest, EmbedResponse
from vlmodel.operations.match import MatchRequest, MatchResponse

KEY = "correct horse battery staple"
HASH = hashlib.sha256(KEY.encode()).hexdigest()

PAGE = Path(app_module.__file__).parent / "page"


def post(app: Any, body: Any, **options: Any) -> httpx.Response:
    content, headers = json.dumps(body), {"content-type": "application/json", **options.pop("headers", {})}
    return send(app, "POST", "/v1/vqa", content=content, headers=headers, **options)


@pytest.fixture
def app(service: FakeService) -> Any:
    return create_app(service, ServeConfig(max_texts=3, max_question_chars=40, max_body_bytes=20_000))


def test_json_reaches_the_service_and_the_answer_has_the_documented_shape(app: Any, service: FakeService) -> None:
    response = post(app, {"image": TEXT, "questions": ["A?", "B?"], "top_k": 1, "attention": True})
    assert response.status_code == 200
    assert service.seen == [(IMAGE, ("A?", "B?"), 1, True)]
    answer = VQAResponse.model_validate_json(response.content)
    assert [a.question for a in answer.answers] == ["A?", "B?"]
    assert [(r.answer, r.probability) for r in answer.answers[0].answers] == [("yes", 0.75)]
    assert (answer.model.name, answer.model.version) == ("fake", "7")
    attention = answer.answers[0].attention
    assert attention is not None
    assert (attention.rows, attention.columns) == (2, 3)
    assert sum(map(sum, attention.weights)) == pytest.approx(1, abs=1e-4)
    assert answer.latency_ms > 0
    assert re.match(r"model;dur=1\.00, total;dur=", response.headers["server-timing"])


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"question": "A?"}, (("A?",), 5, False)),
        ({"question": ["A?", "B?"], "top_k": "2", "attention": "true"}, (("A?", "B?"), 2, True)),
        ({"questions": ["A?"]}, (("A?",), 5, False)),
    ],
)
def test_a_form_is_read_like_json(app: Any, service: FakeService, fields: dict[str, Any], expected: Any) -> None:
    response = send(app, "POST", "/v1/vqa", data=fields, files={"image": ("p.png", IMAGE, "image/png")})
    assert response.status_code == 200, response.text
    assert service.seen == [(IMAGE, *expected)]
    assert response.json()["answers"][0]["attention"] is None or expected[2]


@pytest.mark.parametrize(
    ("body", "code", "hint"),
    [
        ({"image": "not base64!", "question": "A?"}, "bad_base64", "base64"),
        ({"image": "data:image/png," + TEXT, "question": "A?"}, "bad_base64", "';base64,'"),
        ({"image": None, "question": "A?"}, "invalid_request", "image"),
        ({"image": TEXT, "question": None}, "no_question", "either"),
        ({"image": TEXT, "questions": ["A?", None]}, "invalid_request", "questions.1"),
        ({"image": TEXT, "question": float("nan")}, "invalid_request", "question"),
        ({"image": "", "question": "A?"}, "empty_image", "image"),
        ({"image": TEXT, "question": " \n"}, "empty_question", "question"),
        ({"image": TEXT, "questions": []}, "empty_question", "at least one"),
        ({"image": TEXT, "questions": ["A?", ""]}, "empty_question", "questions.1"),
        ({"image": TEXT}, "no_question", "either"),
        ({"image": TEXT, "question": "A?", "questions": ["B?"]}, "no_question", "not both"),
        ({"image": TEXT, "questions": ["A?"] * 4}, "too_many_questions", "at most 3"),
        ({"image": TEXT, "question": "A" * 41}, "question_too_long", "at most 40"),
        ({"question": "A?"}, "invalid_request", "'image' is required"),
        ({"image": TEXT, "question": "A?", "topk": 3}, "invalid_request", "top_k"),
        ({"image": TEXT, "question": "A?", "top_k": 0}, "invalid_request", "given 0"),
        ({"image": TEXT, "question": "A?", "top_k": 21}, "invalid_request", "given 21"),
        ({"image": TEXT, "question": "A?", "top_k": "3"}, "invalid_request", "top_k"),
        ({"image": TEXT, "question": 5}, "invalid_request", "question"),
        ({"image": 5, "question": "A?"}, "invalid_request", "image"),
        ([], "invalid_request", "not an object"),
        (None, "invalid_request", "not an object"),
    ],
)
def test_a_bad_field_is_refused_with_its_name_and_a_remedy(
    app: Any, service: FakeService, body: Any, code: str, hint: str
) -> None:
    response = (
        post(app, body)
        if body is not None
        else send(app, "POST", "/v1/vqa", content=b"null", headers={"content-type": "application/json"})
    )
    assert (response.status_code, error_code(response)) == (422, code)
    assert hint in response.json()["error"]["message"]
    assert service.seen == []


@pytest.mark.parametrize(
    "text",
    [
        base64.encodebytes(IMAGE).decode(),
        TEXT + "\n",
        base64.urlsafe_b64encode(IMAGE).decode().rstrip("="),
        "data:image/png;base64," + TEXT,
    ],
)
@pytest.mark.parametrize("as_form", [False, True])
def test_an_image_is_read_as_programs_write_base64(app: Any, service: FakeService, text: str, as_form: bool) -> None:
    body = {"image": text, "question": "A?"}
    if as_form:
        parts = [(name, (None, value)) for name, value in body.items()]
        assert send(app, "POST", "/v1/vqa", files=parts).status_code == 200
    else:
        assert post(app, body).status_code == 200
    assert service.seen == [(IMAGE, ("A?",), 5, False)]


@pytest.mark.parametrize("content", [b"", b"{", b'{"image": "\xff"}', b"[" * 5000])
def test_a_body_that_is_not_json_gets_400(app: Any, content: bytes) -> None:
    response = send(app, "POST", "/v1/vqa", content=content, headers={"content-type": "application/json"})
    assert (response.status_code, error_code(response)) == (400, "bad_json")


@pytest.mark.parametrize("content_type", ["text/plain", "", "application/x-www-form-urlencoded", "image/png"])
def test_another_content_type_gets_415(app: Any, content_type: str) -> None:
    response = send(app, "POST", "/v1/vqa", content=IMAGE, headers={"content-type": content_type})
    assert (response.status_code, error_code(response)) == (415, "unsupported_media_type")


@pytest.mark.parametrize("boundary", ["", "; boundary=x"])
def test_a_broken_form_gets_400(app: Any, boundary: str) -> None:
    headers = {"content-type": "multipart/form-data" + boundary}
    response = send(app, "POST", "/v1/vqa", content=b"--y\r\nrubbish", headers=headers)
    assert (response.status_code, error_code(response)) == (400, "bad_request")


def form(*fields: tuple[str, bytes], charset: str = "") -> dict[str, Any]:
    """A form as bytes, for what httpx does not write."""
    parts = [
        b'--x\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (name.encode(), value)
        for name, value in fields
    ]
    content_type = "multipart/form-data; boundary=x" + (f"; charset={charset}" if charset else "")
    return {"content": b"".join(parts) + b"--x--\r\n", "headers": {"content-type": content_type}}


@pytest.mark.parametrize("charset", ["utf-7", "punycode", "utf-16", "undefined", "nowhere", "latin-1"])
def test_a_form_in_another_charset_is_refused(app: Any, service: FakeService, charset: str) -> None:
    body = form(("image", TEXT.encode()), ("question", b"+2AA-"), charset=charset)
    response = send(app, "POST", "/v1/vqa", **body)
    assert (response.status_code, error_code(response)) == (400, "unsupported_charset")
    assert charset in response.json()["error"]["message"]
    assert service.seen == []


@pytest.mark.parametrize("charset", ["", "utf-8", "UTF-8", '"utf-8"', "us-ascii"])
def test_a_form_is_read_in_utf_8(app: Any, service: FakeService, charset: str) -> None:
    question = "où est le chat ? 猫 🐈"
    body = form(("image", TEXT.encode()), ("question", question.encode()), charset=charset)
    assert send(app, "POST", "/v1/vqa", **body).status_code == 200
    assert service.seen == [(IMAGE, (question,), 5, False)]


@pytest.mark.parametrize("bad", [b"\xff", b"\xed\xa0\x80", "é".encode("latin-1")])
@pytest.mark.parametrize("in_name", [False, True])
def test_a_form_that_is_not_utf_8_is_refused(app: Any, service: FakeService, bad: bytes, in_name: bool) -> None:
    body = form(("image", TEXT.encode()), ("question", b"what" if in_name else bad))
    if in_name:
        body["content"] = body["content"].replace(b'"question"', b'"question%s"' % bad)
    response = send(app, "POST", "/v1/vqa", **body)
    assert (response.status_code, error_code(response)) == (400, "bad_request")
    assert "UTF-8" in response.json()["error"]["message"]
    assert service.seen == []


def test_a_form_has_a_bounded_number_of_fields_and_of_files(app: Any, service: FakeService) -> None:
    image = ("image", TEXT.encode())
    many = send(app, "POST", "/v1/vqa", **form(image, *[("question", b"a")] * 4))
    assert (many.status_code, error_code(many)) == (422, "too_many_questions")
    more = send(app, "POST", "/v1/vqa", **form(image, *[("question", b"a")] * 200))
    assert (more.status_code, error_code(more)) == (400, "bad_request")
    assert "Too many fields" in more.json()["error"]["message"]
    files = send(app, "POST", "/v1/vqa", files=[("image", IMAGE), ("image", IMAGE)], data={"question": "a"})
    assert (files.status_code, error_code(files)) == (422, "invalid_request")
    files = send(app, "POST", "/v1/vqa", files=[(f"imu{n}", b"1") for n in range(17)], data={"question": "a"})
    assert (files.status_code, error_code(files)) == (400, "bad_request")
    assert service.seen == []


@pytest.mark.parametrize(
    ("content", "code", "hint"),
    [
        (b'{"image": "aa==", "questions": [' + b'"",' * 10_000 + b'""]}', "bad_json", "10003 commas"),
        (b'{"image": "aa==", "other": [' + b"[]," * 10_000 + b"[]]}", "bad_json", "at most"),
        (b'{"image": "aa==", "questions": [' + b'"",' * 1000 + b'""]}', "too_many_questions", "1001 questions"),
        (b"{" + b", ".join(b'"%d": 0' % n for n in range(100)) + b"}", "too_many_fields", "100 fields"),
        (b'{"image": "aa==", "question": "a", "other": ' + b"[" * 300 + b"]" * 300 + b"}", "bad_json", "recursion"),
        (b'{"image": "aa==", "question": "a", "top_k": ' + b"9" * 10_000 + b"}", "bad_json", "out of range"),
    ],
)
def test_json_is_bounded_in_number_and_depth(
    app: Any, service: FakeService, content: bytes, code: str, hint: str
) -> None:
    app = create_app(service, ServeConfig(max_question_chars=40, max_body_bytes=100_000))
    response = send(app, "POST", "/v1/vqa", content=content, headers={"content-type": "application/json"})
    assert (response.status_code, error_code(response)) == (400 if code == "bad_json" else 422, code)
    assert hint in response.json()["error"]["message"]
    assert service.seen == []


def test_texts_full_of_commas_are_taken(service: FakeService) -> None:
    app = create_app(service, ServeConfig(max_texts=3, max_question_chars=40))
    assert post(app, {"image": TEXT, "questions": ["," * 40] * 3}).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", "/page/../app.py", 404, "not_found"),
        ("GET", "/page/%2e%2e%2fapp.py", 404, "not_found"),
        ("GET", "/v1/vqa", 405, "method_not_allowed"),
        ("DELETE", "/healthz", 405, "method_not_allowed"),
    ],
)
def test_unknown_routes_and_methods(app: Any, method: str, path: str, status: int, code: str) -> None:
    response = send(app, method, path)
    assert (response.status_code, error_code(response)) == (status, code)
    assert status != 405 or response.headers["allow"]


def test_an_announced_long_body_is_refused_unread(app: Any) -> None:
    async def go() -> tuple[httpx.Response, bool]:
        touched = False

        async def body() -> AsyncIterator[bytes]:
            nonlocal touched
            touched = True
            yield b"x"

        headers = {"content-length": "20001", "content-type": "application/json"}
        async with http(app) as client:
            return await client.post("/v1/vqa", content=body(), headers=headers), touched

    response, touched = asyncio.run(go())
    assert (response.status_code, error_code(response)) == (413, "body_too_large")
    assert not touched
    assert "20000" in response.json()["error"]["message"]


@pytest.mark.parametrize("content_type", ["application/json", "multipart/form-data; boundary=x"])
def test_an_endless_body_without_a_length_is_cut_off_at_the_limit(app: Any, content_type: str) -> None:
    received = 0

    async def receive() -> dict[str, Any]:
        nonlocal received
        received += 1000
        start = (
            b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n' if received == 1000 else b""
        )
        return {"type": "http.request", "body": start + b"x" * 1000, "more_body": True}

    sent: list[MutableMapping[str, Any]] = []

    async def send_message(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": "POST", "path": "/v1/vqa", "raw_path": b"/v1/vqa", "query_string": b"",
        "root_path": "", "scheme": "http", "http_version": "1.1", "client": ("127.0.0.1", 9),
        "headers": [(b"content-type", content_type.encode()), (b"host", b"localhost")],
    }  # fmt: skip
    asyncio.run(app(scope, receive, send_message))
    assert sent[0]["status"] == 413
    assert json.loads(sent[1]["body"])["error"]["code"] == "body_too_large"
    assert received <= 22_000


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "GZIP"])
def test_a_body_in_gzip_is_read(app: Any, service: FakeService, encoding: str) -> None:
    body = gzip.compress(json.dumps({"image": TEXT, "question": "A?"}).encode())
    headers = {"content-type": "application/json", "content-encoding": encoding}
    assert send(app, "POST", "/v1/vqa", content=body, headers=headers).status_code == 200
    sent = form(("image", TEXT.encode()), ("question", b"A?"))
    headers = sent["headers"] | {"content-encoding": encoding}
    assert send(app, "POST", "/v1/vqa", content=gzip.compress(sent["content"]), headers=headers).status_code == 200
    assert service.seen == [(IMAGE, ("A?",), 5, False)] * 2


@pytest.mark.parametrize("encoding", ["br", "deflate", "zstd", "gzip, gzip", "compress"])
def test_a_body_in_another_encoding_gets_415_with_what_is_taken(app: Any, encoding: str) -> None:
    headers = {"content-type": "application/json", "content-encoding": encoding}
    response = send(app, "POST", "/v1/vqa", content=b"{}", headers=headers)
    assert (response.status_code, error_code(response)) == (415, "unsupported_encoding")
    assert encoding in response.json()["error"]["message"]
    assert response.headers["accept-encoding"] == "gzip"


_ZIPPED = gzip.compress(json.dumps({"image": TEXT, "question": "A?"}).encode())


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (_ZIPPED[:-9], 400, "bad_encoding"),
        (b"", 400, "bad_encoding"),
        (b"{}", 400, "bad_encoding"),
        (_ZIPPED + _ZIPPED, 400, "bad_encoding"),
        (gzip.compress(b" " * 20_001), 413, "body_too_large"),
        (gzip.compress(b" " * 20_000_000), 413, "body_too_large"),
    ],
    ids=["cut", "empty", "plain", "two members", "too long", "a bomb"],  # not by content: gzip writes the time into it
)
def test_a_gzip_body_that_is_broken_or_too_long_is_refused(
    app: Any, service: FakeService, content: bytes, status: int, code: str
) -> None:
    assert len(content) < 20_000
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    response = send(app, "POST", "/v1/vqa", content=content, headers=headers)
    assert (response.status_code, error_code(response)) == (status, code)
    assert service.seen == []


class Slow(FakeService):
    """Answers when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.go = asyncio.Event()
        self.waiting = 0

    async def answer(self, *args: Any) -> Any:
        self.waiting += 1
        await self.go.wait()
        return await super().answer(*args)


def test_more_than_it_holds_is_refused_at_once_with_retry_after() -> None:
    async def go() -> None:
        service = Slow()
        app = create_app(service, ServeConfig(max_in_flight=2))
        async with http(app) as client:
            held = [asyncio.create_task(client.post("/v1/vqa", json={"image": TEXT, "question": "A?"})) for _ in "ab"]
            while service.waiting < 2:
                await asyncio.sleep(0.001)
            refused = await client.post("/v1/vqa", json={"image": TEXT, "question": "A?"})
            health = await client.get("/healthz")
            service.go.set()
            answered = await asyncio.gather(*held)
            after = await client.post("/v1/vqa", json={"image": TEXT, "question": "A?"})
        assert (refused.status_code, error_code(refused)) == (429, "overloaded")
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert health.status_code == 200
        assert [response.status_code for response in [*answered, after]] == [200, 200, 200]

    asyncio.run(go())


def test_rate_limit_is_per_key(service: FakeService) -> None:
    other = "another key"
    config = ServeConfig(requests_per_minute=6, replicas=2)
    app = create_app(service, config, [HASH, hashlib.sha256(other.encode()).hexdigest()])

    def ask(key: str) -> httpx.Response:
        return post(app, {"image": TEXT, "question": "A?"}, headers={"x-api-key": key})

    assert [ask("wrong").status_code for _ in range(5)] == [401] * 5
    assert [ask(KEY).status_code for _ in range(2)] == [200, 200], "half of the share of one replica, rounded up"
    refused = ask(KEY)
    assert (refused.status_code, error_code(refused)) == (429, "rate_limited")
    assert refused.headers["retry-after"] == "20", "half of 6 in a minute"
    assert send(app, "GET", "/v1/model", headers={"x-api-key": KEY}).status_code == 200
    assert ask(other).status_code == 200
    assert len(service.seen) == 3


def test_without_keys_all_callers_share_a_rate_and_by_default_there_is_none(service: FakeService) -> None:
    body = {"image": TEXT, "question": "A?"}
    limited = create_app(service, ServeConfig(requests_per_minute=1))
    assert [post(limited, body).status_code for _ in range(2)] == [200, 429]
    assert send(limited, "POST", "/elsewhere").status_code == 404
    free = create_app(service, ServeConfig())
    assert {post(free, body).status_code for _ in range(40)} == {200}


def test_an_answer_that_takes_too_long_gets_504_and_no_header_changes_that() -> None:
    app = create_app(Slow(), ServeConfig(request_timeout_s=0.05))
    response = post(app, {"image": TEXT, "question": "A?"}, headers={"x-request-timeout-seconds": "0"})
    assert (response.status_code, error_code(response)) == (504, "timeout")


def test_a_body_that_trickles_gets_408(service: FakeService) -> None:
    async def go() -> httpx.Response:
        async def body() -> AsyncIterator[bytes]:
            yield b"{"
            await asyncio.sleep(5)

        # httpx's own transport collects the body first; here it must reach the application as it comes.
        app = create_app(service, ServeConfig(request_timeout_s=0.05))
        chunks = body()
        sent: list[MutableMapping[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": await anext(chunks), "more_body": True}

        async def send_message(message: MutableMapping[str, Any]) -> None:
            sent.append(message)

        await app(json_scope("/v1/vqa"), receive, send_message)
        return httpx.Response(sent[0]["status"], content=sent[1]["body"])

    response = asyncio.run(go())
    assert (response.status_code, error_code(response)) == (408, "slow_request")


def test_no_model_yet_gets_503_and_the_process_is_alive(app: Any, service: FakeService) -> None:
    assert send(app, "GET", "/readyz").status_code == 200
    service.model = None
    assert send(app, "GET", "/healthz").json() == {"status": "ok"}
    for path in ("/readyz", "/v1/model"):
        response = send(app, "GET", path)
        assert (response.status_code, error_code(response)) == (503, "not_ready")


def test_service_errors_keep_their_status_and_faults_hide_details(service: FakeService) -> None:
    class Broken(FakeService):
        def __init__(self, error: Exception) -> None:
            super().__init__()
            self.error = error

        async def answer(self, *args: Any) -> Any:
            raise self.error

    body = {"image": TEXT, "question": "A?"}
    response = post(create_app(Broken(ApiError(422, "truncated_image", "cut off")), ServeConfig()), body)
    assert (response.status_code, error_code(response)) == (422, "truncated_image")
    response = post(create_app(Broken(RuntimeError("secret path /etc")), ServeConfig()), body)
    assert (response.status_code, error_code(response)) == (500, "internal")
    assert "secret" not in response.text


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"authorization": "Bearer wrong"}, 401),
        ({"authorization": f"Basic {KEY}"}, 401),
        ({"authorization": f"Bearer {HASH}"}, 401),
        ({"authorization": f"Bearer {KEY}"}, 200),
        ({"x-api-key": KEY}, 200),
    ],
)
def test_with_keys_every_call_under_v1_needs_one(service: FakeService, headers: dict[str, str], status: int) -> None:
    app = create_app(service, ServeConfig(), [hashlib.sha256(b"another").hexdigest(), HASH])
    response = post(app, {"image": TEXT, "question": "A?"}, headers=headers)
    assert response.status_code == status
    assert send(app, "GET", "/v1/model", headers=headers).status_code == status
    assert send(app, "GET", "/healthz").status_code == 200
    if status == 401:
        assert error_code(response) == "unauthorized"
        assert response.headers["www-authenticate"] == "Bearer"
        assert service.seen == []


@pytest.mark.parametrize("headers", [{}, {"x-api-key": ""}, {"authorization": "Bearer  "}])
def test_no_hash_lets_in_who_sends_no_key(service: FakeService, headers: dict[str, str]) -> None:
    app = create_app(service, ServeConfig(), [hashlib.sha256(b"").hexdigest()])
    assert post(app, {"image": TEXT, "question": "A?"}, headers=headers).status_code == 401


@pytest.mark.parametrize(
    ("client", "base", "status"),
    [
        ("127.0.0.1", "http://localhost:8000", 200),
        ("::1", "http://[::1]:8000", 200),
        ("203.0.113.9", "http://127.0.0.1", 403),
        ("127.0.0.1", "http://rebound.example", 403),
    ],
)
def test_without_keys_only_this_machine_is_answered(service: FakeService, client: str, base: str, status: int) -> None:
    async def go() -> tuple[int, int]:
        async with http(create_app(service, ServeConfig()), (client, 9), base) as session:
            response = await session.post("/v1/vqa", json={"image": TEXT, "question": "A?"})
            return response.status_code, (await session.get("/")).status_code

    assert asyncio.run(go()) == (status, status)


def test_the_pages_need_nothing_from_outside(app: Any) -> None:
    for path in ("/", "/docs"):
        response = send(app, "GET", path)
        assert response.status_code == 200
        assert response.headers["content-type"] == "text/html; charset=utf-8"
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy
        links = re.findall(r'(?:src|href)="([^"]+)"', response.text)
        assert links
        assert not [link for link in links if link.startswith(("http", "//", "data:"))]
        assert not re.search(r"<script(?![^>]*src=)|<style|\son\w+=|\sstyle=", response.text)
        for link in links:
            asset = send(app, "GET", "/" + link.removeprefix("./"))
            assert asset.status_code == 200, link
    names = {file.name for file in PAGE.iterdir()}
    assert {"page.js", "docs.js", "page.css", "docs.css"} < names
    for name in names:
        assert not re.search(r"https?://(?!www\.w3\.org)", send(app, "GET", f"/page/{name}").text)


def test_assets_are_revalidated(app: Any) -> None:
    first = send(app, "GET", "/page/page.css")
    again = send(app, "GET", "/page/page.css", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize(
    ("path", "request_type", "response_type"),
    [
        ("/v1/vqa", VQARequest, VQAResponse),
        ("/v1/caption", CaptionRequest, CaptionResponse),
        ("/v1/match", MatchRequest, MatchResponse),
        ("/v1/embed", EmbedRequest, EmbedResponse),
    ],
)
def test_openapi_documents_both_ways_to_ask_and_its_examples_are_valid(
    app: Any, path: str, request_type: type[BaseModel], response_type: type[BaseModel]
) -> None:
    spec = send(app, "GET", "/openapi.json").json()
    operation = spec["paths"][path]["post"]
    content = operation["requestBody"]["content"]
    assert content.keys() == {"application/json", "multipart/form-data"}
    assert {"404", "413", "415", "422", "429", "503", "504"} <= operation["responses"].keys()
    examples = [example["value"] for example in content["application/json"]["examples"].values()]
    assert examples
    for example in examples:
        request_type.model_validate_json(json.dumps(example), strict=True)
        assert send(app, "POST", path, json=example).status_code == 200
    form = content["multipart/form-data"]
    assert form["example"].keys() <= form["schema"]["properties"].keys()
    fields = {name: str(value) for name, value in form["example"].items() if name != "image"}
    assert send(app, "POST", path, data=fields, files={"image": ("p.png", IMAGE)}).status_code == 200
    for example in spec["components"]["schemas"][response_type.__name__]["examples"]:
        response_type.model_validate(example)


@pytest.mark.parametrize("path", ["/v1/vqa", "/v1/caption", "/v1/match", "/v1/embed"])
def test_every_task_has_the_same_layers_around_it(service: FakeService, path: str) -> None:
    own = {"/v1/vqa": {"question": "A?"}, "/v1/caption": {}}.get(path, {"text": "a"})
    body = {"image": TEXT, **own}
    small = create_app(service, ServeConfig(max_body_bytes=1024))
    assert error_code(send(small, "POST", path, json={"image": "A" * 2000})) == "body_too_large"
    locked = create_app(service, ServeConfig(), [HASH])
    assert error_code(send(locked, "POST", path, json=body)) == "unauthorized"
    assert send(locked, "POST", path, json=body, headers={"x-api-key": KEY}).status_code == 200
    plain = create_app(service, ServeConfig())
    assert error_code(send(plain, "POST", path, content=IMAGE, headers={"content-type": "image/png"}))
    assert service.model is not None
    service.model = dataclasses.replace(service.model, tasks=("chess",))
    refused = send(plain, "POST", path, json=body)
    assert (refused.status_code, error_code(refused)) == (404, "no_such_task")
    assert "/v1/chess" in refused.json()["error"]["message"]
    service.model = None
    waiting = send(plain, "POST", path, json=body)
    assert (waiting.status_code, error_code(waiting)) == (503, "not_ready")
    assert waiting.headers["retry-after"] == "1"


def test_every_answer_is_counted_by_route_status_reason_and_version(service: FakeService) -> None:
    class Seen(ServiceMetrics):
        def __init__(self) -> None:
            self.requests: list[tuple[str, int, str, str]] = []

        def count_request(self, route: str, status: int, code: str, version: str, seconds: float) -> None:
            assert seconds > 0
            self.requests.append((route, status, code, version))

        def count_batch(self, task: str, size: int, seconds: float, version: str) -> None:
            raise AssertionError("no pass was made")

    seen = Seen()
    limits = ServeConfig(max_body_bytes=20_000, requests_per_minute=6)
    app = create_app(service, limits, metrics=seen)
    post(app, {"image": TEXT, "question": "A?"})
    post(app, {"image": "!", "question": "A?"})
    post(app, {"image": "A" * 30_000, "question": "A?"})
    post(app, {"image": TEXT, "question": "A?"})
    send(app, "GET", "/some/path/of/the/client")
    assert seen.requests == [
        ("/v1/vqa", 200, "ok", "7"),
        ("/v1/vqa", 422, "bad_base64", "7"),
        ("none", 413, "body_too_large", "7"),
        ("none", 429, "rate_limited", "7"),
        ("none", 404, "not_found", "7"),
    ]
