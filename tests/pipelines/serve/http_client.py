"""Requests to an ASGI application, without a server."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import httpx

from tests.pipelines.serve.conftest import picture

IMAGE = picture()
TEXT = base64.b64encode(IMAGE).decode()


def http(app: Any, client: tuple[str, int] = ("127.0.0.1", 9), base: str = "http://127.0.0.1") -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app, client=client, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url=base)


def send(app: Any, method: str, path: str, **options: Any) -> httpx.Response:
    async def go() -> httpx.Response:
        async with http(app) as client:
            return await client.request(method, path, **options)

    return asyncio.run(go())


def json_scope(path: str) -> dict[str, Any]:
    """A POST of JSON, for tests that are the server themselves: httpx's transport gathers a whole answer first."""
    return {
        "type": "http", "method": "POST", "path": path, "query_string": b"", "root_path": "", "scheme": "http",
        "http_version": "1.1", "client": None, "headers": [(b"content-type", b"application/json")],
    }  # fmt: skip


def error_code(response: httpx.Response) -> str:
    """Its code, having checked that the answer has the shape of every error."""
    body = response.json()
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"code", "message"}
    assert body["error"]["message"]
    return str(body["error"]["code"])


def events(response: httpx.Response) -> list[tuple[str, str]]:
    """Name and data of each server-sent event."""
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.text.endswith("\n\n")
    frames = [frame.split("\n") for frame in response.text.removesuffix("\n\n").split("\n\n")]
    return [(name.removeprefix("event: "), data.removeprefix("data: ")) for name, data in frames]
