"""Broken sounds, clips and series in requests, to a model of all three: each is refused by its name, and the service
answers on.

Files that only look odd (8 channels, float64, a turned clip, a byte order mark, semicolons) are answered.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from pipelines.serve.config import ServeConfig
from pipelines.serve.http.app import create_app
from pipelines.serve.inference.service import InferenceService
from tests.vlmodel.conftest import examples, make_model, processor, tokenizer  # noqa: F401 - fixtures
from tests.vlmodel.media.test_audio import TONE_T, announcing, saved
from tests.vlmodel.media.test_video import MP4, film, patched
from tests.vlmodel.media_files import saved_sound, saved_video
from tests.vlmodel.tiny import IMU, for_tasks, tiny_input, tiny_tree
from vlmodel.processor import VLProcessor

CSV = b"x,y,z\n1,2,3\n4,5,6\n"
TURNED = patched(MP4, b"tkhd", 40, struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 32 * 65536, 0, 1 << 30))


LONG = saved_video(film(2), times=(0, 10 * 3600 * 10))
"""Two frames, the second after ten hours."""

ODD = [
    {"sound": saved(np.stack([TONE_T] * 8, 1))},
    {"sound": saved(TONE_T.astype(np.float64), subtype="DOUBLE")},
    {"clip": TURNED},
    {"imu": b"\xef\xbb\xbf" + CSV},
    {"imu": CSV.replace(b",", b";").replace(b"1", b"1,5")},
    {"sound": saved(), "clip": MP4, "imu": CSV},
]
BROKEN = [
    ({"sound": announcing(10**7)}, 422, "truncated_input"),
    ({"sound": saved(TONE_T[:0])}, 422, "empty_input"),
    ({"sound": saved(np.zeros((10, 65)))}, 413, "too_large_input"),
    ({"sound": b"no sound"}, 422, "undecodable_input"),
    ({"clip": saved_sound(np.zeros(800))}, 422, "no_track_input"),
    ({"clip": LONG}, 413, "too_large_input"),
    ({"clip": MP4[: len(MP4) // 2]}, 422, "truncated_input"),
    ({"clip": patched(MP4, b"stco", 8, struct.pack(">I", 1 << 31))}, 422, "undecodable_input"),
    ({"imu": CSV.replace(b"5", b"five")}, 422, "wrong_column_input"),
    ({"imu": b"x,y,z\n"}, 422, "empty_input"),
    ({"imu": b"1,2\n"}, 422, "wrong_shape_input"),
    ({"imu": CSV, "left": CSV}, 422, "unknown_input"),
    ({}, 422, "invalid_request"),
]


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture
def http(
    make_model: Callable[..., Any],  # noqa: F811
    processor: VLProcessor,  # noqa: F811
    runner: asyncio.Runner,
    tmp_path: Path,
) -> Iterator[httpx.AsyncClient]:
    inputs = {"imu": IMU, **tiny_input("audio"), **tiny_input("video")}
    parts = {"task": {"kind": "classify"}, "vision": {"kind": "none"}, "inputs": inputs}
    tree = tiny_tree(**parts)
    make_model(**parts).save_pretrained(tmp_path)
    for_tasks(processor, tree.task.tasks_by_name(), tree).save_pretrained(tmp_path)
    config = ServeConfig(max_body_bytes=200_000)
    service = InferenceService(config)
    runner.run(service.load(tmp_path, "tiny", "1"))
    yield httpx.AsyncClient(transport=httpx.ASGITransport(create_app(service, config)), base_url="http://localhost")
    service.close()


def test_each_is_answered_or_refused_by_its_name(http: httpx.AsyncClient, runner: asyncio.Runner) -> None:
    async def send(inputs: dict[str, bytes]) -> httpx.Response:
        # A form without files is no form for httpx.
        parts = [("top_k", (None, "2")), *((name, (name, data)) for name, data in inputs.items())]
        return await http.post("/v1/classify", files=parts)

    async def together() -> list[httpx.Response]:
        return list(await asyncio.gather(*(send(inputs) for inputs in (*ODD, *(case[0] for case in BROKEN)))))

    responses = runner.run(together())
    for inputs, response in zip(ODD, responses, strict=False):
        assert response.status_code == 200, (list(inputs), response.text)
        assert len(response.json()["classes"]) == 2
    for (inputs, status, code), response in zip(BROKEN, responses[len(ODD) :], strict=True):
        assert response.status_code != 200, list(inputs)
        error = response.json()["error"]
        assert (response.status_code, error["code"]) == (status, code), (list(inputs), error)
        named = {"unknown_input": "left", "invalid_request": "image"}.get(code) or next(iter(inputs))
        assert repr(named) in error["message"]
    too_long = runner.run(send({"sound": saved_sound(np.zeros(200_000))}))
    assert (too_long.status_code, too_long.json()["error"]["code"]) == (413, "body_too_large")
