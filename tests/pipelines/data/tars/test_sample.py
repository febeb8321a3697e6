from __future__ import annotations

import json
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.data.tars.errors import FaultReason, SampleError
from pipelines.data.tars.sample import TextLimits, dump_texts, parse_metadata, parse_texts
from vlmodel.conversation import ConversationTurn
from vlmodel.sample import Question, SampleTexts

_text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda text: not text.isspace())
_question = st.builds(
    Question, _text, st.none() | _text, st.lists(_text, max_size=3).map(tuple), st.none() | st.integers(0).map(str)
)
_content = st.tuples(_text) | st.tuples(st.none(), _text) | st.tuples(_text, st.none(), _text)
_said = st.lists(st.tuples(_content, _text), min_size=1, max_size=2).map(
    lambda pairs: tuple(
        turn
        for content, reply in pairs
        for turn in (ConversationTurn("user", content), ConversationTurn("assistant", (reply,)))
    )
)
_texts = st.builds(
    SampleTexts,
    st.lists(_text, max_size=3).map(tuple),
    st.lists(_question, max_size=3).map(tuple),
    st.none() | _text,
    st.lists(_said, max_size=2).map(tuple),
).filter(lambda texts: bool(texts.present_kinds))


@settings(max_examples=150, deadline=None)
@given(_texts)
def test_texts_survive_the_json(texts: SampleTexts) -> None:
    assert parse_texts(dump_texts(texts), None) == texts


def test_json_is_canonical() -> None:
    texts = SampleTexts(("Ein Häuschen",), (Question("why?", None, ("a", "b"), "7"), Question("who?", "she")))
    assert dump_texts(texts, {"a": 1}).decode() == (
        '{"a":1,"captions":["Ein Häuschen"],"questions":[{"answer":null,"answers":["a","b"],"id":"7",'
        '"question":"why?"},{"answer":"she","question":"who?"}]}'
    )


def test_conversations() -> None:
    turns = (
        ConversationTurn("system", ("brief",)),
        ConversationTurn("user", ("what is ", None, "?")),
        ConversationTurn("assistant", ("a dog",)),
    )
    assert dump_texts(SampleTexts(conversations=(turns,))).decode() == (
        '{"captions":[],"conversations":[[{"content":"brief","role":"system"},{"content":["what is ",null,"?"],'
        '"role":"user"},{"content":"a dog","role":"assistant"}]],"questions":[]}'
    )
    asked = b'{"conversations": [[{"role": "user", "content": [null]}]]}'
    assert parse_texts(asked, None) == SampleTexts(conversations=((ConversationTurn("user", (None,)),),))
    assert parse_texts(asked, None).present_kinds == ("conversations",)


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([], FaultReason.BAD_SCHEMA),
        ([{"role": "user"}], FaultReason.BAD_SCHEMA),
        ([{"from": "human", "value": "a"}], FaultReason.BAD_SCHEMA),
        ([{"role": "robot", "content": "a"}], FaultReason.UNKNOWN_ROLE),
        ([{"role": "assistant", "content": "a"}], FaultReason.TURN_OUT_OF_ORDER),
        ([{"role": "user", "content": " "}], FaultReason.EMPTY_TURN),
        ([{"role": "system", "content": [None]}], FaultReason.MISPLACED_INPUT),
        ([{"role": "user", "content": "a" * 11}], FaultReason.TEXT_TOO_LONG),
        ([{"role": r, "content": "a"} for r in ("user", "assistant") * 4], FaultReason.TOO_MANY_TEXTS),
    ],
)
def test_conversations_that_cannot_be(turns: list[object], reason: FaultReason) -> None:
    with pytest.raises(SampleError) as caught:
        parse_texts(json.dumps({"conversations": [turns]}).encode(), None, TextLimits(letters=10, texts=3))
    assert caught.value.reason == reason


def test_numbers_may_be_ids() -> None:
    texts = parse_texts(b'{"questions": [{"question": "q?", "answer": "a", "id": 12}]}', None)
    assert texts.questions == (Question("q?", "a", (), "12"),)


def test_the_class_is_in_the_json_or_in_a_member_of_its_own() -> None:
    assert parse_texts(b'{"class": "dog", "url": "u"}', None) == SampleTexts(label="dog")
    assert parse_texts(b'{"captions": ["one"], "class": 7}', None) == SampleTexts(("one",), label="7")
    assert parse_texts(None, None, cls_bytes=b"7\n") == SampleTexts(label="7")
    assert parse_texts(b'{"class": 7}', None, cls_bytes=b"7") == SampleTexts(label="7")
    assert parse_texts(b'{"class": null}', None, cls_bytes=b" ") == SampleTexts()
    assert parse_metadata(b'{"class": "dog", "url": "u"}') == {"url": "u"}
    for json_bytes, cls_bytes in (
        (b'{"class": "dog"}', b"cat"),
        (b'{"class": ["dog"]}', None),
        (b'{"class": " "}', None),
    ):
        with pytest.raises(SampleError) as caught:
            parse_texts(json_bytes, None, cls_bytes=cls_bytes)
        assert caught.value.reason == FaultReason.BAD_SCHEMA


def test_foreign_tars_are_read_as_they_are() -> None:
    metadata = json.dumps({"caption": "a cat", "url": "u", "width": 3, "exif": None}).encode()
    assert parse_texts(metadata, b"a cat\n") == SampleTexts(("a cat",), ())
    assert parse_texts(metadata, None) == SampleTexts(("a cat",), ())
    assert parse_texts(metadata, b"  \n") == SampleTexts(("a cat",), ())
    assert parse_texts(None, b"\xef\xbb\xbfa dog") == SampleTexts(("a dog",), ())
    assert parse_texts(b'{"captions": ["one"], "caption": "other"}', b"two") == SampleTexts(("one", "two"), ())
    assert parse_texts(b'{"captions": ["one"]}', b"one\n") == SampleTexts(("one",), ())


@pytest.mark.parametrize(
    ("json_bytes", "txt_bytes"),
    [(None, None), (b"{}", b" \n"), (b'{"captions": [], "questions": []}', None), (b'{"caption": null}', None)],
)
def test_a_sample_may_have_no_texts(json_bytes: bytes | None, txt_bytes: bytes | None) -> None:
    assert parse_texts(json_bytes, txt_bytes) == SampleTexts()


@pytest.mark.parametrize(
    ("json_bytes", "txt_bytes", "reason", "detail"),
    [
        (b'{"captions": ["\xff"]}', None, FaultReason.BAD_UTF8, "byte 15"),
        (None, b"caf\xe9", FaultReason.BAD_UTF8, ".txt: byte 3"),
        (b'{"captions": ["a"', None, FaultReason.BAD_JSON, "EOF"),
        (b"", None, FaultReason.BAD_JSON, "EOF"),
        (b'{"captions": ["\\ud800"]}', None, FaultReason.BAD_JSON, "hex escape"),
        (b"[" * 100_000, None, FaultReason.BAD_JSON, "recursion"),
        (b'{"caption": "a", "similarity": NaN}', None, FaultReason.BAD_JSON, "NaN is no number of JSON"),
        (b'{"captions": ["a"], "score": -Infinity}', None, FaultReason.BAD_JSON, "-Infinity is no number of JSON"),
        (b'{"captions": ["a"], "score": 1e999}', None, FaultReason.BAD_JSON, "the number '1e999' is too large"),
        (b'{"captions": ["a"], "n": ' + b"9" * 5000 + b"}", None, FaultReason.BAD_JSON, "digits"),
        (b'{"captions": ["' + b"a" * 10_001 + b'"]}', None, FaultReason.TEXT_TOO_LONG, "10001 letters"),
        (None, b"a" * 10_001, FaultReason.TEXT_TOO_LONG, "data.index.max_letters allows 10000"),
        (
            b'{"questions": [{"question": "q?", "answers": ["x", "' + b"y" * 10_001 + b'"]}]}',
            None,
            FaultReason.TEXT_TOO_LONG,
            "10001 letters, 'yyy",
        ),
        (
            b'{"captions": [' + b'"a",' * 1000 + b'"b"]}',
            None,
            FaultReason.TOO_MANY_TEXTS,
            "1001 captions, questions and replies",
        ),
        (
            b'{"questions": [{"question": "q?", "answers": [' + b'"x",' * 1000 + b'"y"]}]}',
            None,
            FaultReason.TOO_MANY_TEXTS,
            "1001 answers to a question",
        ),
        (b"[]", None, FaultReason.BAD_SCHEMA, "the document"),
        (b'{"captions": "one"}', None, FaultReason.BAD_SCHEMA, "captions = 'one'"),
        (b'{"captions": ["a", " "]}', None, FaultReason.BAD_SCHEMA, "captions.1"),
        (b'{"questions": [{"answer": "a"}]}', None, FaultReason.BAD_SCHEMA, "questions.0.question"),
        (b'{"questions": [{"question": "q?", "answer": 3}]}', None, FaultReason.BAD_SCHEMA, "questions.0.answer = 3"),
        (b'{"questions": [{"question": "q?", "id": true}]}', None, FaultReason.BAD_SCHEMA, "questions.0.id"),
    ],
)
def test_bad_texts_name_reason_and_place(
    json_bytes: bytes | None, txt_bytes: bytes | None, reason: FaultReason, detail: str
) -> None:
    with pytest.raises(SampleError) as caught:
        parse_texts(json_bytes, txt_bytes)
    assert caught.value.reason is reason
    assert detail in caught.value.detail


def test_limits_are_those_that_are_given() -> None:
    data = b'{"captions": ["abc", "de"], "title": "NaN and 1e999 in a text are letters"}'
    assert parse_texts(data, None, TextLimits(3, 2)).captions == ("abc", "de")
    for limits, reason in (
        (TextLimits(2, 2), FaultReason.TEXT_TOO_LONG),
        (TextLimits(3, 1), FaultReason.TOO_MANY_TEXTS),
    ):
        with pytest.raises(SampleError) as caught:
            parse_texts(data, None, limits)
        assert caught.value.reason is reason


def test_what_is_sound_can_be_written_again() -> None:
    """The index judges by one parser, metadata are read by another: no JSON is sound for one of them alone."""
    numbers = ("NaN", "Infinity", "-Infinity", "1e999", "-1E+400", "1e308", "1" * 310 + ".0", "9" * 5000, "9" * 400)
    sound = []
    for number in numbers:
        data = b'{"captions": ["a"], "n": [{"m": %b}]}' % number.encode()
        try:
            parse_texts(data, None)
        except SampleError:
            with pytest.raises(SampleError):
                parse_metadata(data)
        else:
            sound.append(number)
            dump_texts(SampleTexts(("a",)), parse_metadata(data))
    assert sound == ["1e308", "9" * 400]


@pytest.mark.parametrize(
    ("texts", "extra", "reason"),
    [
        (SampleTexts(("\ud800",), ()), None, FaultReason.BAD_UTF8),
        (SampleTexts(("a",), ()), {"captions": []}, FaultReason.BAD_SCHEMA),
        (SampleTexts(("a",), ()), {"score": float("nan")}, FaultReason.BAD_SCHEMA),
        (SampleTexts(("a",), ()), {"bytes": b""}, FaultReason.BAD_SCHEMA),
    ],
)
def test_unwritable_texts_are_refused(texts: SampleTexts, extra: dict[str, object] | None, reason: FaultReason) -> None:
    with pytest.raises(SampleError) as caught:
        dump_texts(texts, extra)
    assert caught.value.reason is reason


def test_sample_errors_cross_process_borders() -> None:
    error = pickle.loads(pickle.dumps(SampleError(FaultReason.BAD_JSON, "line 3")))  # noqa: S301
    assert (error.reason, error.detail, str(error)) == (FaultReason.BAD_JSON, "line 3", "bad_json: line 3")
