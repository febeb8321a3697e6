"""Conversations of other programs' files, and what is broken in them."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.data.importers._turns import parse_conversation
from pipelines.data.importers.conversations import Config
from pipelines.data.importing.run import import_data
from pipelines.data.tars.errors import SampleError
from pipelines.errors import DataError
from vlmodel.config import ConfigError, parse_config
from vlmodel.conversation import Conversation, ConversationTurn

ASKED = ConversationTurn("user", (None, "What is it?"))
REPLY = ConversationTurn("assistant", ("A dog.",))
LLAVA = {
    "id": "1",
    "image": "dog.png",
    "conversations": [
        {"from": "human", "value": "<image>\nWhat is it?"},
        {"from": "gpt", "value": "A dog."},
        {"from": "human", "value": "Is it old?"},
        {"from": "gpt", "value": "No."},
    ],
}
MORE = (ConversationTurn("user", ("Is it old?",)), ConversationTurn("assistant", ("No.",)))
MESSAGES = [{"role": "user", "content": "<image>What is it?"}, {"role": "assistant", "content": "A dog."}]


def said(*texts: str) -> list[dict[str, str]]:
    """Turns of user and assistant."""
    return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (LLAVA, (ASKED, REPLY, *MORE)),
        ({"image": ["dog.png"], "conversations": LLAVA["conversations"]}, (ASKED, REPLY, *MORE)),
        ({"messages": MESSAGES, "images": ["dog.png"]}, (ASKED, REPLY)),
        ({"messages": MESSAGES, "images": [{"bytes": b"b", "path": None}]}, (ASKED, REPLY)),
        ({"messages": said("What is it?", "A dog."), "image": "dog.png"}, (ASKED, REPLY)),
        (
            {
                "messages": [
                    {"role": "user", "content": [
                        {"type": "image", "text": None}, {"type": "text", "text": "What is it?"}
                    ]},
                    {"role": "assistant", "content": [{"type": "text", "text": "A dog."}]},
                ],
                "images": ["dog.png"],
            },
            (ASKED, REPLY),
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": [
                        {"type": "image_url", "image_url": {"url": "dog.png"}}, {"type": "text", "text": "What is it?"}
                    ]},
                    MESSAGES[1],
                ]
            },
            (ASKED, REPLY),
        ),
        ({"prompt": MESSAGES[:1], "completion": MESSAGES[1:], "images": ["dog.png"]}, (ASKED, REPLY)),
        ({"prompt": "<image>What is it?", "completion": "A dog.", "images": ["dog.png"]}, (ASKED, REPLY)),
        ({"query": "<image>What is it?", "response": "A dog.", "images": ["dog.png"]}, (ASKED, REPLY)),
        (
            {"query": "Is it old?", "response": "No.", "history": [["What is it?", "A dog."]], "images": ["dog.png"]},
            (ASKED, REPLY, *MORE),
        ),
        (
            {"system": "Be brief.", "messages": MESSAGES, "images": ["dog.png"]},
            (ConversationTurn("system", ("Be brief.",)), ASKED, REPLY),
        ),
    ],
)  # fmt: skip
def test_every_form(record: dict[str, Any], expected: Conversation) -> None:
    found = parse_conversation(record)
    assert (found.turns, found.broken) == (expected, None)
    assert found.pictures in (("dog.png",), (b"b",))


def test_two_pictures_have_their_places_in_order() -> None:
    record = {"messages": said("<image>A <image> B", "Yes."), "images": ["a.png", "b.png"]}
    found = parse_conversation(record)
    assert found.turns[0] == ConversationTurn("user", (None, "A ", None, " B"))
    assert found.pictures == ("a.png", "b.png")


@pytest.mark.parametrize(
    ("turns", "kept", "number", "reason"),
    [
        ([*said("a", "b", "c"), {"role": "tool", "content": "d"}], 2, 4, "unknown_role"),
        ([*said("a", "b"), {"role": "assistant", "content": "c"}], 2, 3, "turn_out_of_order"),
        (said("a", "b", " ", "d"), 2, 3, "empty_turn"),
        (said("a", "b", "c", "<image>d"), 2, 4, "misplaced_input"),
        (said("a", "b", "c"), 2, 3, "unanswered_turn"),
        ([*said("a", "b"), {"role": "system", "content": "c"}], 2, 3, "turn_out_of_order"),
        ([*said("a", "b"), {"role": "user", "content": None}], 2, 3, "empty_turn"),
    ],
)
def test_what_is_before_a_broken_turn_stays(turns: list[dict[str, Any]], kept: int, number: int, reason: str) -> None:
    pictures = {"images": ["a.png"]} if reason == "misplaced_input" else {}
    found = parse_conversation({"messages": turns, **pictures})
    assert [turn.text for turn in found.turns] == ["a", "b", "c", "d"][:kept]
    assert found.broken is not None
    assert (found.broken.number, found.broken.error.reason) == (number, reason)
    # A picture of turns that are left out is left out too.
    assert found.pictures == ()


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"messages": []}, "unanswered_turn"),
        ({"messages": said("a")}, "unanswered_turn"),
        ({"messages": said("a", "b")[1:]}, "turn_out_of_order"),
        ({"messages": said("<image>a", "b")}, "unmatched_input"),
        ({"messages": said("<image>a", "b"), "images": ["a.png", "b.png"]}, "unmatched_input"),
        ({"text": "a"}, "bad_schema"),
        ({"messages": "a"}, "bad_schema"),
        ({"messages": ["a", "b"]}, "bad_schema"),
        ({"messages": [{"role": "user", "content": 3}]}, "bad_schema"),
        ({"messages": said("a\0", "b")}, "bad_utf8"),
        ({"messages": said("a", "b"), "images": [3]}, "bad_schema"),
        ({"messages": said("a", "b"), "images": ["data:image/png;base64,#"]}, "bad_schema"),
        ({"query": "a", "history": ["b"]}, "bad_schema"),
    ],
)
def test_records_of_which_nothing_can_be_used(record: dict[str, Any], reason: str) -> None:
    with pytest.raises(SampleError) as caught:
        parse_conversation(record)
    assert caught.value.reason == reason


def test_llava(tmp_path: Path, picture, read_all) -> None:
    (tmp_path / "dog.png").write_bytes(picture(1))
    (tmp_path / "cat.png").write_bytes(picture(2))
    second = {"id": "2", "image": "./dog.png", "conversations": LLAVA["conversations"][:2]}
    broken = {"id": "3", "image": "cat.png", "conversations": LLAVA["conversations"][:3]}
    lost = {**LLAVA, "image": "lost.png"}
    (tmp_path / "data.json").write_text(json.dumps([LLAVA, second, broken, lost, 7], indent=1))
    config = Config(file=str(tmp_path / "data.json"))
    records, rejects = read_all(config)
    assert list(records) == ["dog", "cat"]
    # The records of one picture are one sample.
    assert records["dog"].texts.conversations == ((ASKED, REPLY, *MORE), (ASKED, REPLY))
    assert records["dog"].inputs == {"image": (picture(1), "png")}
    assert records["cat"].texts.conversations == ((ASKED, REPLY),)
    assert [(reject.key, reject.reason) for reject in rejects] == [
        ("data.json:2#3", "unanswered_turn"), ("data.json:3", "missing_image"), ("data.json:4", "bad_schema"),
    ]  # fmt: skip
    before = config.fingerprint()
    (tmp_path / "bird.png").write_bytes(picture(3))
    assert config.fingerprint() != before


def test_texts_alone_are_named_by_their_identifiers(tmp_path: Path, read_all) -> None:
    lines = [{"id": "x/1", "messages": said("a", "b")}, {"messages": said("c", "d"), "split": "validation"}]
    text = "\n".join(map(json.dumps, lines))
    (tmp_path / "data.jsonl").write_text(f'{text}\n{{"messages": \n')
    records, rejects = read_all(Config(file=str(tmp_path / "data.jsonl"), inputs=("text",)))
    assert {key: record.split for key, record in records.items()} == {"x/1": "train", "data-00000002": "val"}
    assert [(reject.key, reject.reason) for reject in rejects] == [("data.jsonl:3", "bad_json")]
    _, rejects = read_all(Config(file=str(tmp_path / "data.jsonl")))
    assert [reject.reason for reject in rejects] == ["missing_image", "missing_image", "bad_json"]


def test_parquet_with_pictures_in_it(tmp_path: Path, picture, read_all) -> None:
    rows = [
        {"messages": MESSAGES, "images": [{"bytes": picture(1), "path": None}]},
        {"messages": [*MESSAGES, *said("Is it old?", "No.")], "images": [{"bytes": picture(1), "path": None}]},
        {"messages": MESSAGES, "images": [{"bytes": picture(2), "path": "x.png"}]},
        {"messages": MESSAGES, "images": [{"bytes": b"none", "path": None}]},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data.parquet")
    records, rejects = read_all(Config(file=str(tmp_path / "data.parquet")))
    assert [record.inputs["image"] for record in records.values()] == [(picture(1), "png"), (picture(2), "png")]
    assert [len(record.texts.conversations) for record in records.values()] == [2, 1]
    assert [reject.reason for reject in rejects] == ["undecodable_image"]


def test_pictures_within_the_lines(tmp_path: Path, picture, read_all) -> None:
    url = f"data:image/png;base64,{base64.b64encode(picture(5)).decode()}"
    line = {"messages": MESSAGES, "images": [url]}
    (tmp_path / "data.jsonl").write_text(json.dumps(line))
    records, _ = read_all(Config(file=str(tmp_path / "data.jsonl")))
    assert [record.inputs["image"] for record in records.values()] == [(picture(5), "png")]


def test_more_pictures_than_inputs(tmp_path: Path, picture, read_all) -> None:
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(picture(ord(name)))
    line = {"messages": said("<image><image>Which?", "Both."), "images": ["a.png", "b.png"]}
    (tmp_path / "data.jsonl").write_text(json.dumps(line))
    _, [reject] = read_all(Config(file=str(tmp_path / "data.jsonl")))
    assert (reject.reason, "source.pictures" in reject.detail) == ("unmatched_input", True)
    several = Config(
        file=str(tmp_path / "data.jsonl"), pictures=["image", "second"], inputs=("image", "second?", "text")
    )
    records, _ = read_all(several)
    assert {name: data for name, (data, _) in records["a"].inputs.items()} == {
        "image": picture(ord("a")), "second": picture(ord("b"))
    }  # fmt: skip


def test_the_import(tmp_path: Path, picture) -> None:
    for number in range(4):
        (tmp_path / f"{number}.png").write_bytes(picture(number))
    lines = [{**LLAVA, "image": f"{number}.png"} for number in range(4)]
    (tmp_path / "data.json").write_text(json.dumps(lines))
    summary = import_data(
        Config(file=str(tmp_path / "data.json"), test_fraction=0.0), tmp_path / "tars", progress=False
    )
    assert (summary.splits["train"].samples, summary.splits["train"].conversations) == (4, 4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1}', "is no JSON list of records"),
        ('[{"a": 1} {"a": 2}]', "cannot be read from record 1 on .no comma"),
        ('[{"a": 1}, {"a": ', "cannot be read from record 1 on"),
        ("", "is no JSON list"),
    ],
)
def test_lists_that_break_off(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text(text)
    with pytest.raises(DataError, match=message):
        list(Config(file=str(tmp_path / "data.json"), inputs=("text",)).read().samples)


def test_a_long_list_is_parsed_as_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.data.importers import _records

    monkeypatch.setattr(_records, "_CHUNK", 7)
    records = [{"n": n, "text": "é" * n} for n in range(30)]
    (tmp_path / "data.json").write_text(json.dumps([*records, 12345678901, "x"], ensure_ascii=False, indent=2))
    found = list(_records.iterate_records(tmp_path / "data.json"))
    assert [value for _, value in found[:30]] == records
    assert [str(value) for _, value in found[30:]] == [
        "bad_schema: 12345678901 is not a JSON object", "bad_schema: 'x' is not a JSON object"
    ]  # fmt: skip


def test_wrong_settings_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"does not exist; set source.file"):
        Config(file=str(tmp_path / "none.json")).read()
    (tmp_path / "data.csv").write_text("a")
    with pytest.raises(DataError, match=r"extension '.csv', none of .json"):
        Config(file=str(tmp_path / "data.csv"), inputs=("text",)).read()
    for settings, message in (
        ({"inputs": ["image"]}, "has no text"),
        ({"inputs": ["imu", "text"]}, "names 'imu', which source.pictures does not"),
        ({"pictures": ["image", "image"]}, "names an input twice"),
    ):
        with pytest.raises(ConfigError, match=message):
            parse_config(Config, {"file": "x.json", **settings})
