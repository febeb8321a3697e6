"""The client, over real HTTP, against a service without a model."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.serve.client import Client, is_reachable, is_ready
from pipelines.serve.config import FeedbackConfig, ServeConfig
from pipelines.serve.errors import ServeError
from pipelines.serve.http.app import create_app
from tests.pipelines.serve.conftest import FakeService
from tests.pipelines.serve.http_client import IMAGE
from tests.pipelines.serve.server import served

KEY = "correct horse battery staple"


@pytest.fixture
def address(service: FakeService, tmp_path: Path) -> Iterator[str]:
    config = ServeConfig(feedback=FeedbackConfig(folder=str(tmp_path)), max_texts=3)
    with served(create_app(service, config, [hashlib.sha256(KEY.encode()).hexdigest()])) as at:
        yield f"http://{at}"


@pytest.fixture
def client(address: str) -> Iterator[Client]:
    with Client(address, api_key=KEY) as connected:
        yield connected


def test_every_task_is_asked_and_its_answer_is_typed(client: Client, service: FakeService) -> None:
    answers = client.ask(IMAGE, ["A?", "B?"], top_k=1, attention=True).answers
    assert [(a.question, [(r.answer, r.probability) for r in a.answers]) for a in answers] == [
        ("A?", [("yes", 0.75)]),
        ("B?", [("yes", 0.75)]),
    ]
    assert [c.caption for c in client.caption(IMAGE, top_k=2).captions] == ["a circle", "a square"]
    assert [m.text for m in client.match(IMAGE, ["a", "b"]).matches] == ["a", "b"]
    assert client.embed(texts=["a"]).image is None
    both = client.embed(IMAGE, ["a", "b"])
    assert both.image == pytest.approx([0.6, 0.8])
    assert len(both.texts) == 2
    assert client.embed(IMAGE).texts == []
    assert service.seen == [
        (IMAGE, ("A?", "B?"), 1, True),
        (IMAGE, 2, False),
        (IMAGE, ("a", "b")),
        (None, ("a",)),
        (IMAGE, ("a", "b")),
        (IMAGE, ()),
    ]


def test_corrections_are_kept(client: Client, tmp_path: Path) -> None:
    correction_ids = {
        client.correct_answer(IMAGE, "A?", "yes", version="7").id,
        client.correct_caption(IMAGE, "a circle").id,
    }
    assert {file.stem for file in tmp_path.glob("*/corrections/*.json")} == correction_ids
    assert len(correction_ids) == 2


def test_a_refusal_and_an_absent_service_are_told(address: str, client: Client, service: FakeService) -> None:
    with pytest.raises(ServeError, match=r"answered 422: too_many_texts: 4 texts .* at most 3"):
        client.match(IMAGE, ["a", "b", "c", "d"])
    with Client(address) as stranger, pytest.raises(ServeError, match="401: unauthorized"):
        stranger.caption(IMAGE)
    assert is_ready(address)
    service.model = None
    assert not is_ready(address)
    assert is_reachable(address), "it answers, if not as one would like"
    nowhere = "http://127.0.0.1:1"
    assert not is_reachable(nowhere)
    with Client(nowhere) as lost, pytest.raises(ServeError, match=f"no answer from {nowhere} .*is the service running"):
        lost.embed(texts=["a"])
