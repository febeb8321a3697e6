"""A load on the service over HTTP: at a steady rate, whatever comes back (open loop), or so many callers at a time."""

from __future__ import annotations

import asyncio
import base64
import io
import itertools
import json
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import numpy as np
from PIL import Image

# A request that has no answer by then hangs.
_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Answer:
    """What came of one request.

    Attributes:
        sent: when it was sent first, in seconds of the monotonic clock.
        seconds: from then to its last answer.
        status: of HTTP; 0 where the connection broke or nothing came in time.
        version: of the model that answered; "" where none did.
        retry_after: that header; "" where there is none.
        failed: how earlier attempts ended, as status and the beginning of the body.
        number: of the request, in the order of sending.
        text: the most probable answer to the first question; "" where there is none.
        facts: ids of those that the model got with the first question.
        knowledge: version of the store of facts; 0 without one.
    """

    sent: float
    seconds: float
    status: int
    version: str
    retry_after: str
    failed: tuple[str, ...]
    number: int = 0
    text: str = ""
    facts: tuple[str, ...] = ()
    knowledge: int = 0

    @property
    def ended(self) -> float:
        return self.sent + self.seconds


def question_about(image: bytes, question: str = "what colour is the shape?") -> bytes:
    """The JSON body of a request."""
    return json.dumps({"image": base64.b64encode(image).decode(), "question": question}).encode()


def heavy_picture(side: int) -> bytes:
    """A picture that is small to send, and takes the service's time to decode."""
    pixels = np.broadcast_to(np.arange(side, dtype=np.uint32) * 255 // side, (side, side)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(np.stack([pixels, pixels.T, pixels], axis=-1)).save(file, "PNG")
    return file.getvalue()


@contextmanager
def open_loop(
    address: str, requests_per_s: float, body: bytes | Sequence[bytes], retries: int = 0
) -> Iterator[list[Answer]]:
    """Send requests at this rate while the block runs; all have ended when it is left.

    Args:
        body: of each request; of several the request ``number`` has the one at ``number``, modulo how many there are.
        retries: how often a request that failed otherwise than by its own fault (4xx) is sent again.

    Yields:
        the answers, in the order in which they came.
    """
    answers: list[Answer] = []
    bodies = [body] if isinstance(body, bytes) else body
    enough = threading.Event()

    async def send() -> None:
        async with _client() as client, asyncio.TaskGroup() as group:
            started = time.monotonic()
            for number in itertools.count():
                await asyncio.sleep(started + number / requests_per_s - time.monotonic())
                if enough.is_set():
                    break
                group.create_task(_ask(client, address, bodies[number % len(bodies)], retries, answers, number))

    with ThreadPoolExecutor(1, "load") as aside:
        running = aside.submit(asyncio.run, send())
        try:
            yield answers
        finally:
            enough.set()
            running.result()


def closed_loop(address: str, callers: int, seconds: float, body: bytes) -> list[Answer]:
    """As many callers, each of whom asks again as soon as he has an answer."""
    answers: list[Answer] = []

    async def call(client: httpx.AsyncClient, end: float) -> None:
        while time.monotonic() < end:
            await _ask(client, address, body, 0, answers)

    async def send() -> None:
        end = time.monotonic() + seconds
        async with _client() as client:
            await asyncio.gather(*(call(client, end) for _ in range(callers)))

    asyncio.run(send())
    return answers


def percentile_ms(answers: Sequence[Answer], percent: float) -> float:
    return float(np.percentile([answer.seconds for answer in answers], percent)) * 1000


def _client() -> httpx.AsyncClient:
    # A connection for each request that is under way: none waits here for another.
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    return httpx.AsyncClient(timeout=_TIMEOUT_S, limits=limits, trust_env=False)


async def _ask(
    client: httpx.AsyncClient, address: str, body: bytes, retries: int, answers: list[Answer], number: int = 0
) -> None:
    sent = time.monotonic()
    failed: list[str] = []
    while True:
        status, version, retry_after, reason, text = 0, "", "", "", ""
        facts: tuple[str, ...] = ()
        knowledge = 0
        try:
            headers = {"content-type": "application/json"}
            response = await client.post(f"{address}/v1/vqa", content=body, headers=headers)
            status, reason = response.status_code, response.text[:200]
            retry_after = response.headers.get("retry-after", "")
            if status == 200:
                tree = response.json()
                version, text = tree["model"]["version"], tree["answers"][0]["answers"][0]["answer"]
                facts = tuple(fact["id"] for fact in tree["answers"][0]["facts"])
                knowledge = tree["knowledge_version"] or 0
        except httpx.HTTPError as error:
            reason = repr(error)
        if 200 <= status < 500 or len(failed) == retries:
            break
        failed.append(f"{status} {reason}")
    seconds = time.monotonic() - sent
    answers.append(Answer(sent, seconds, status, version, retry_after, tuple(failed), number, text, facts, knowledge))
