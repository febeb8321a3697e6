"""POST /v1/feedback over a service without a model, and its way into tars."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.data.importers.feedback import Config
from pipelines.data.importing.importer import SourceSample
from pipelines.serve.config import FeedbackConfig, ServeConfig
from pipelines.serve.errors import ApiError
from pipelines.serve.http.app import create_app
from tests.pipelines.serve.conftest import FakeService
from tests.pipelines.serve.http_client import IMAGE, TEXT, error_code, send

RIGHT = {"image": TEXT, "question": "What is it?", "answer": "a disc", "version": "6"}


def app_of(service: FakeService, spool: Path, hashes: tuple[str, ...] = (), **settings: Any) -> Any:
    config = ServeConfig(feedback=FeedbackConfig(folder=str(spool), **settings), max_question_chars=40)
    return create_app(service, config, hashes)


def kept(spool: Path) -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in sorted(spool.glob("*/corrections/*.json"))]


def test_a_correction_is_kept_with_who_sent_it_and_can_be_imported(service: FakeService, tmp_path: Path) -> None:
    key = "s3cret"
    app = app_of(service, tmp_path, (hashlib.sha256(key.encode()).hexdigest(),))
    headers = {"authorization": f"Bearer {key}"}
    response = send(app, "POST", "/v1/feedback", json=RIGHT, headers=headers)
    assert response.status_code == 200, response.text
    caption = {"caption": "a disc on white"}
    assert send(app, "POST", "/v1/feedback", files={"image": IMAGE}, data=caption, headers=headers).status_code == 200
    question, captioned = kept(tmp_path)
    assert (question["question"], question["answer"], question["model"], question["version"]) == (
        "What is it?", "a disc", "fake", "6",
    )  # fmt: skip
    assert captioned["caption"] == "a disc on white"
    assert question["sender"] == captioned["sender"] == "key:" + hashlib.sha256(key.encode()).hexdigest()[:12]
    assert not any(key.encode() in file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    [day] = (path for path in tmp_path.iterdir() if path.is_dir())
    assert (day / "corrections" / f"{response.json()['id']}.json").is_file()
    [record] = Config(folder=str(day)).read().samples
    assert isinstance(record, SourceSample)
    assert (record.inputs["image"][0], record.texts.captions) == (IMAGE, ("a disc on white",))
    assert [(q.question, q.answer) for q in record.texts.questions] == [("What is it?", "a disc")]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"answer": None}, "no_correction"),
        ({"caption": "a disc"}, "no_correction"),
        ({"question": " "}, "empty_question"),
        ({"answer": ""}, "empty_text"),
        ({"answer": "a" * 41}, "text_too_long"),
        ({"version": "v" * 65}, "invalid_request"),
        ({"image": "###"}, "bad_base64"),
        ({"sender": "key:me"}, "invalid_request"),
    ],
)
def test_what_is_no_correction(change: dict[str, Any], code: str, service: FakeService, tmp_path: Path) -> None:
    response = send(app_of(service, tmp_path), "POST", "/v1/feedback", json=RIGHT | change)
    assert (response.status_code, error_code(response)) == (422, code)
    assert kept(tmp_path) == []


def test_an_image_that_cannot_be_decoded_is_not_kept(tmp_path: Path) -> None:
    class Choosy(FakeService):
        async def check_image(self, image: bytes) -> Any:
            raise ApiError(422, "undecodable_image", "the image cannot be decoded; send another")

    response = send(app_of(Choosy(), tmp_path), "POST", "/v1/feedback", json=RIGHT)
    assert (response.status_code, error_code(response)) == (422, "undecodable_image")
    assert kept(tmp_path) == []


def test_a_sender_is_held_to_a_rate(service: FakeService, tmp_path: Path) -> None:
    app = app_of(service, tmp_path, per_minute=2)
    assert [send(app, "POST", "/v1/feedback", json=RIGHT).status_code for _ in range(2)] == [200, 200]
    response = send(app, "POST", "/v1/feedback", json=RIGHT)
    assert (response.status_code, error_code(response)) == (429, "too_much_feedback")
    assert 1 <= int(response.headers["retry-after"]) <= 60
    assert len(kept(tmp_path)) == 2


def test_a_full_spool_takes_no_more(service: FakeService, tmp_path: Path) -> None:
    app = app_of(service, tmp_path, max_gb=(len(IMAGE) + 500) / 1e9)
    assert send(app, "POST", "/v1/feedback", json=RIGHT).status_code == 200
    assert send(app, "POST", "/v1/feedback", json=RIGHT).status_code == 200, "the picture is there already"
    statuses = [send(app, "POST", "/v1/feedback", json=RIGHT).status_code for _ in range(3)]
    assert statuses[-1] == 503
    assert send(app, "POST", "/v1/vqa", json={"image": TEXT, "question": "?"}).status_code == 200


def test_without_a_spool_the_answer_names_the_setting(service: FakeService) -> None:
    app = create_app(service, ServeConfig())
    response = send(app, "POST", "/v1/feedback", json=RIGHT)
    assert (response.status_code, error_code(response)) == (404, "no_feedback")
    assert "serve.feedback.folder" in response.json()["error"]["message"]
    assert send(app, "GET", "/v1/model").json()["feedback"] is False
    assert "/v1/feedback" not in send(app, "GET", "/openapi.json").json()["paths"]
