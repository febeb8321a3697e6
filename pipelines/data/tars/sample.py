"""Parses and writes the texts of a sample in its ``.json``, ``.txt`` and ``.cls`` members, and the metadata in its
JSON.

Members of one sample are adjacent in a tar and share the part of their name before the first dot of the base name
(WebDataset's rule): ``KEY.jpg`` + ``KEY.json``, ``KEY.txt`` (a caption) and ``KEY.cls`` (the class).

The class of a sample is ``"class"`` in its JSON, which importers write, or the text of its ``.cls``, as data sets of
WebDataset have it. A number is a class by its digits.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, NoReturn

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError

from pipelines.data.tars.errors import FaultReason, SampleError
from vlmodel.conversation import Conversation, ConversationTurn, find_turn_fault
from vlmodel.sample import Question, SampleTexts

GROUP = "group"
"""Key of a sample's JSON, see ``parse_group``."""

CLASS = "class"
"""Key of a sample's class in its JSON."""

_TEXT_KEYS = frozenset({"captions", "questions", "conversations"})
# Signs that a JSON text has a number that Python accepts and JSON does not, or one that overflows.
_NO_NUMBERS = ("NaN", "Infinity")
_LARGE_NUMBER = re.compile(r"[0-9](?:[eE]\+?[0-9]{3}|[0-9]{299})")
# The fewest bytes that a text takes in JSON: its quotes, a letter and a comma.
_MIN_TEXT_BYTES = 4


@dataclass(frozen=True)
class TextLimits:
    """Limits of a sample's texts: their number and their length.

    Attributes:
        letters: of a caption, a question, an answer or a turn of a conversation.
        texts: captions, questions and turns of the assistant of a sample; also answers to a question.
    """

    letters: int = 10_000
    texts: int = 1_000


def _convert_id_to_text(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


_Text = Annotated[str, StringConstraints(pattern=r"\S")]


class _QuestionRecord(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)

    question: _Text
    answer: _Text | None = None
    answers: tuple[str, ...] = ()
    id: Annotated[str | None, BeforeValidator(_convert_id_to_text)] = None


class _TurnRecord(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)

    role: str
    content: str | tuple[str | None, ...]

    def to_turn(self) -> ConversationTurn:
        return ConversationTurn(self.role, (self.content,) if isinstance(self.content, str) else self.content)


class _TextsRecord(BaseModel):
    """The texts in a sample's JSON. Other keys are the source's metadata, which are ignored here."""

    model_config = ConfigDict(strict=True, frozen=True)

    captions: tuple[_Text, ...] = ()
    questions: tuple[_QuestionRecord, ...] = ()
    conversations: tuple[Annotated[tuple[_TurnRecord, ...], Field(min_length=1)], ...] = ()
    label: Annotated[_Text | None, BeforeValidator(_convert_id_to_text)] = Field(None, alias=CLASS)
    caption: Annotated[Any, Field(description="img2dataset's caption, in JSON of another schema")] = None


def parse_texts(
    json_bytes: bytes | None,
    txt_bytes: bytes | None,
    limits: TextLimits | None = TextLimits(),
    cls_bytes: bytes | None = None,
) -> SampleTexts:
    """Parse the texts of a sample from its ``.json``, ``.txt`` and ``.cls`` members (None if the sample lacks one);
    returns ``SampleTexts()`` if they hold no caption, question, conversation or class.

    JSON with a list of ``captions``, ``questions`` or ``conversations`` is of this project's schema; other JSON is free
    metadata, of which only the ``class`` is read, and a ``caption`` string where there is no ``.txt`` (img2dataset
    writes both alike). A conversation is a list of turns ``{"role": "user", "content": ["What is ", null, "?"]}``, in
    which null is the place of the sample's inputs, and the content may be one string.

    Args:
        limits: None for bytes that were validated before: numbers are not checked either.

    Raises:
        SampleError: BAD_UTF8, BAD_JSON, BAD_SCHEMA, TEXT_TOO_LONG or TOO_MANY_TEXTS; or a turn of a conversation is
            UNKNOWN_ROLE, TURN_OUT_OF_ORDER, EMPTY_TURN or MISPLACED_INPUT.
    """
    captions: tuple[str, ...] = ()
    questions: tuple[Question, ...] = ()
    conversations: tuple[Conversation, ...] = ()
    metadata_caption: str | None = None
    label = _decode_utf8(cls_bytes, ".cls").strip() or None if cls_bytes is not None else None
    if json_bytes is not None:
        record = _parse_json(json_bytes, strict=limits is not None)
        captions = record.captions
        questions = tuple(Question(q.question, q.answer, q.answers, q.id) for q in record.questions)
        conversations = tuple(_valid_conversation(n, turns) for n, turns in enumerate(record.conversations))
        is_metadata = record.model_fields_set.isdisjoint(_TEXT_KEYS)
        if is_metadata and isinstance(record.caption, str):
            metadata_caption = record.caption.strip()
        if label is not None and record.label not in (None, label):
            detail = f"the class is {_shorten_repr(record.label)} in .json and {_shorten_repr(label)} in .cls"
            raise SampleError(FaultReason.BAD_SCHEMA, detail)
        label = label or record.label
    caption = (_decode_utf8(txt_bytes, ".txt").strip() if txt_bytes is not None else "") or metadata_caption
    if caption and caption not in captions:
        captions = (*captions, caption)
    size = len(json_bytes or b"") + len(txt_bytes or b"") + len(cls_bytes or b"")
    texts = SampleTexts(captions, questions, label, conversations)
    if limits is not None and size > min(limits.letters, _MIN_TEXT_BYTES * limits.texts):
        _require_within_limits(texts, limits)
    return texts


def hash_texts(*members: bytes | None) -> bytes:
    """Hash the text members of a sample, in the order of ``TEXT_EXTENSIONS``, to 16 bytes."""
    return hashlib.sha256(b"".join(member or b"" for member in members)).digest()[:16]


def parse_metadata(json_bytes: bytes | None) -> dict[str, Any]:
    """Return the keys of a valid sample's ``.json`` that are not texts of this project's schema."""
    tree: dict[str, Any] = _load_json(_decode_utf8(json_bytes, ".json")) if json_bytes is not None else {}
    return {name: value for name, value in tree.items() if name not in _TEXT_KEYS and name != CLASS}


def parse_group(json_bytes: bytes | None) -> str | None:
    """Return the group that the ``.json`` of a valid sample may name (``GROUP``); None if it names none.

    Samples of one group, such as the pictures of one scene, are in the same split where a hash decides.
    """
    if json_bytes is None or f'"{GROUP}"'.encode() not in json_bytes:
        return None
    group = parse_metadata(json_bytes).get(GROUP)
    return str(group) if isinstance(group, str | int) and not isinstance(group, bool) else None


def dump_texts(texts: SampleTexts, extra: Mapping[str, Any] | None = None) -> bytes:
    """Write ``texts`` as canonical JSON (sorted keys, no spaces, UTF-8); ``parse_texts(dump_texts(t), None) == t``.

    Args:
        extra: further top-level keys of plain JSON values, kept beside the texts; may not be one of theirs.

    Raises:
        SampleError: BAD_UTF8 for text with lone surrogates, BAD_SCHEMA for ``extra`` that is not plain JSON.
    """
    tree: dict[str, Any] = dict(extra or {})
    if clash := (_TEXT_KEYS | {CLASS}) & tree.keys():
        raise SampleError(FaultReason.BAD_SCHEMA, f"extra keys {sorted(clash)} are reserved for the texts")
    tree["captions"] = list(texts.captions)
    tree["questions"] = [_question_tree(question) for question in texts.questions]
    if texts.conversations:
        tree["conversations"] = [[_turn_tree(turn) for turn in turns] for turns in texts.conversations]
    if texts.label is not None:
        tree[CLASS] = texts.label
    try:
        return json.dumps(tree, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except UnicodeEncodeError as error:
        raise SampleError(FaultReason.BAD_UTF8, f"text cannot be written as UTF-8: {error}") from None
    except (TypeError, ValueError) as error:
        raise SampleError(FaultReason.BAD_SCHEMA, f"extra is not plain JSON: {error}") from None


def _require_within_limits(given: SampleTexts, limits: TextLimits) -> None:
    captions, questions = given.captions, given.questions
    answers = max((len(question.answers) for question in questions), default=0)
    replies = sum(turn.role == "assistant" for turns in given.conversations for turn in turns)
    every = len(captions) + len(questions) + replies
    for count, what in ((every, "captions, questions and replies"), (answers, "answers to a question")):
        if count > limits.texts:
            raise SampleError(FaultReason.TOO_MANY_TEXTS, f"{count} {what}; data.index.max_texts allows {limits.texts}")
    of_questions = (text for q in questions for text in (q.question, q.answer or "", *q.answers))
    of_conversations = (turn.text for turns in given.conversations for turn in turns)
    texts = (given.label or "", *captions, *of_questions, *of_conversations)
    if longest := max((text for text in texts if len(text) > limits.letters), key=len, default=""):
        detail = f"a text of {len(longest)} letters, {_shorten_repr(longest, 40)}; data.index.max_letters allows"
        raise SampleError(FaultReason.TEXT_TOO_LONG, f"{detail} {limits.letters}")


def _valid_conversation(number: int, records: tuple[_TurnRecord, ...]) -> Conversation:
    turns = tuple(record.to_turn() for record in records)
    if (fault := find_turn_fault(turns)) is not None:
        detail = f".json: conversations.{number}.{fault.turn}: turn {fault.turn + 1} {fault.detail}"
        raise SampleError(FaultReason(fault.reason), detail)
    return turns


def _turn_tree(turn: ConversationTurn) -> dict[str, Any]:
    is_text = len(turn.parts) == 1 and turn.parts[0] is not None
    return {"role": turn.role, "content": turn.parts[0] if is_text else list(turn.parts)}


def _question_tree(question: Question) -> dict[str, Any]:
    tree: dict[str, Any] = {"question": question.question, "answer": question.answer}
    if question.answers:
        tree["answers"] = list(question.answers)
    if question.id is not None:
        tree["id"] = question.id
    return tree


def _parse_json(json_bytes: bytes, strict: bool) -> _TextsRecord:
    text = _decode_utf8(json_bytes, ".json")
    if strict and (any(word in text for word in _NO_NUMBERS) or _LARGE_NUMBER.search(text)):
        _load_json(text)
    try:
        return _TextsRecord.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        if first["type"] == "json_invalid":
            raise SampleError(FaultReason.BAD_JSON, f".json: {first['msg']}") from None
        where = ".".join(str(step) for step in first["loc"]) or "the document"
        detail = f".json: {where} = {_shorten_repr(first['input'])}: {first['msg']}"
        raise SampleError(FaultReason.BAD_SCHEMA, detail) from None


def _load_json(text: str) -> Any:
    """Load strict JSON; raises SampleError BAD_JSON for what ``dump_texts`` could not write again."""

    def refuse_json_constant(number: str) -> NoReturn:
        raise SampleError(FaultReason.BAD_JSON, f".json: {number} is no number of JSON; write null, or leave it out")

    def parse_finite_number(number: str) -> float:
        if math.isinf(value := float(number)):
            raise SampleError(FaultReason.BAD_JSON, f".json: the number {_shorten_repr(number)} is too large")
        return value

    try:
        return json.loads(text, parse_constant=refuse_json_constant, parse_float=parse_finite_number)
    except (ValueError, RecursionError) as error:  # ValueError also for integers with thousands of digits
        raise SampleError(FaultReason.BAD_JSON, f".json: {error}") from None


def _decode_utf8(data: bytes, member: str) -> str:
    if (zero := data.find(0)) >= 0:  # valid UTF-8, but lost blocks of a disk are zeros
        raise SampleError(FaultReason.BAD_UTF8, f"{member}: byte {zero} is zero, which no text has: lost data")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SampleError(FaultReason.BAD_UTF8, f"{member}: byte {error.start} is not UTF-8") from None


def _shorten_repr(value: Any, limit: int = 80) -> str:
    text = repr(value[: limit + 1] if isinstance(value, str) else value)
    return text if len(text) <= limit else f"{text[:limit]}..."
