"""Parses conversations that other programs write: LLaVA's JSON, ShareGPT, ms-swift, the messages of TRL and of OpenAI's
API.

A record has its turns under ``messages`` or ``conversations``, each with a role (``role`` or ``from``) and a text
(``content`` or ``value``); or under ``prompt`` and ``completion``; or as ``query``, ``response``, ``history`` and
``system``. Pictures are under ``image`` or ``images``, or within the parts of a turn; ``<image>`` in a text, or a part
of type "image", is the place of one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from pipelines.data.importers._delimited import require_valid_text
from pipelines.data.tars.errors import FaultReason, SampleError
from vlmodel.conversation import Conversation, ConversationTurn, find_turn_fault
from vlmodel.images.base64 import decode_base64

Picture = str | bytes
"""The path of a picture, or its bytes."""

_LISTS = ("messages", "conversations", "conversation")
_ROLES = {
    "system": "system", "developer": "system", "human": "user", "user": "user", "gpt": "assistant",
    "assistant": "assistant", "chatgpt": "assistant", "model": "assistant", "bot": "assistant",
}  # fmt: skip
_MARK = re.compile(r"\n?<image>\n?")
_PICTURES = ("images", "image")


class BrokenTurn(NamedTuple):
    """A turn that cannot be read; it and all turns after it are left out.

    Attributes:
        number: of the turn, from 1.
        error: what is wrong.
    """

    number: int
    error: SampleError


class ParsedConversation(NamedTuple):
    """The valid part of a conversation that was imported.

    Attributes:
        turns: the turns up to the last reply of the assistant before the first broken turn.
        pictures: those of these turns, in order.
        broken: the first broken turn.
    """

    turns: Conversation
    pictures: tuple[Picture, ...]
    broken: BrokenTurn | None


def parse_conversation(record: Mapping[str, Any], column: str = "") -> ParsedConversation:
    """Parse the conversation in a record of the source.

    Args:
        column: where the turns are; "" for the usual names.

    Raises:
        SampleError: nothing of it can be used. The reason is that of its first broken turn, UNANSWERED_TURN where the
            assistant says nothing, UNMATCHED_INPUT where places and pictures differ in number, or BAD_SCHEMA.
    """
    pictures: list[Picture] = []
    turns = [_parse_turn(role, content, pictures) for role, content in _find_messages(record, column)]
    require_valid_text(*(turn.text for turn in turns))
    turns, pictures = _insert_image_places(turns, pictures or _images_beside_turns(record))
    fault = find_turn_fault(turns)
    kept = list(turns if fault is None else turns[: fault.turn])
    while kept and kept[-1].role != "assistant":
        kept.pop()
    broken = None
    if fault is not None:
        error = SampleError(FaultReason(fault.reason), f"turn {fault.turn + 1} {fault.detail}")
        broken = BrokenTurn(fault.turn + 1, error)
    elif len(kept) < len(turns):
        detail = f"turn {len(kept) + 1} has no reply of the assistant; leave it out, or add one"
        broken = BrokenTurn(len(kept) + 1, SampleError(FaultReason.UNANSWERED_TURN, detail))
    if not kept:
        raise broken.error if broken else SampleError(FaultReason.UNANSWERED_TURN, "the conversation has no turn")
    places = sum(turn.parts.count(None) for turn in kept)
    return ParsedConversation(tuple(kept), tuple(pictures[:places]), broken)


def _find_messages(record: Mapping[str, Any], column: str) -> Iterator[tuple[Any, Any]]:
    """Return the role and the content of each turn, unparsed."""
    names = (column,) if column else _LISTS
    listed = next((record[name] for name in names if record.get(name) is not None), None)
    if listed is None and not column and record.get("prompt") is not None:
        listed = [*_as_messages(record["prompt"], "user"), *_as_messages(record.get("completion"), "assistant")]
    if listed is None and not column and record.get("query") is not None:
        listed = _query_messages(record)
    if not isinstance(listed, list):
        fields = ", ".join(map(str, record))
        found = f"there are {fields:.80}" if listed is None else f"{listed!r:.80} is no list"
        raise SampleError(FaultReason.BAD_SCHEMA, f"no turns under {', '.join(names)}: {found} (source.messages)")
    if (system := record.get("system")) and not (listed and _role_and_content(listed[0])[0] == "system"):
        yield "system", system
    yield from map(_role_and_content, listed)


def _as_messages(value: Any, role: str) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [{"role": role, "content": value}]


def _query_messages(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Convert ms-swift's form to messages: pairs of earlier turns, then a question and its answer."""
    pairs = [*(record.get("history") or []), (record["query"], record.get("response"))]
    messages = []
    for pair in pairs:
        if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
            raise SampleError(FaultReason.BAD_SCHEMA, f"history has {pair!r:.80}, which is no pair of texts")
        said = zip(("user", "assistant"), pair, strict=True)
        messages += [{"role": role, "content": text} for role, text in said if text is not None]
    return messages


def _role_and_content(message: Any) -> tuple[Any, Any]:
    if not isinstance(message, Mapping):
        raise SampleError(FaultReason.BAD_SCHEMA, f"{message!r:.80} is no turn; it has a role and a content")
    role = message.get("role", message.get("from"))
    content = next((message[name] for name in ("content", "value", "text") if message.get(name) is not None), None)
    return _ROLES.get(role, role) if isinstance(role, str) else role, content


def _parse_turn(role: Any, content: Any, pictures: list[Picture]) -> ConversationTurn:
    """Parse a turn; the pictures among its parts are appended to ``pictures``."""
    parts: list[str | None] = []
    for part in content if isinstance(content, list) else [content]:
        if part is None:
            continue
        if isinstance(part, Mapping):
            kind = part.get("type")
            if kind in ("image", "image_url"):
                parts.append(None)
                if (picture := _image_in_content_part(part)) is not None:
                    pictures.append(picture)
                continue
            part = part.get("text")
        if not isinstance(part, str):
            raise SampleError(FaultReason.BAD_SCHEMA, f"a turn has {part!r:.80}, which is neither text nor picture")
        for n, text in enumerate(_MARK.split(part)):
            parts += [None] if n else []
            parts += [text] if text else []
    return ConversationTurn(str(role), tuple(parts))


def _image_in_content_part(part: Mapping[str, Any]) -> Picture | None:
    """Return the picture that a content part holds or names; None for a part that only marks the place of a picture."""
    for name in ("image", "image_url", "url", "path"):
        value = part.get(name)
        if isinstance(value, Mapping) and name == "image_url":
            value = value.get("url")
        if value is not None:
            return _to_picture(value)
    return None


def _images_beside_turns(record: Mapping[str, Any]) -> list[Picture]:
    """Return the pictures that a record holds beside its turns."""
    value = next((record[name] for name in _PICTURES if record.get(name) is not None), None)
    return [_to_picture(one) for one in (value if isinstance(value, list) else [] if value is None else [value])]


def _to_picture(value: Any) -> Picture:
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str) and value.startswith("data:"):
        try:
            value = decode_base64(value)
        except ValueError as error:
            raise SampleError(FaultReason.BAD_SCHEMA, f"a picture is no base64: {error}") from None
    if not isinstance(value, str | bytes) or not value:
        raise SampleError(FaultReason.BAD_SCHEMA, f"the picture {value!r:.80} is neither a path nor bytes")
    return value


def _insert_image_places(
    turns: list[ConversationTurn], pictures: list[Picture]
) -> tuple[list[ConversationTurn], list[Picture]]:
    """Insert a place for each picture into the turns; before the user's first text if they have no places.

    Raises:
        SampleError: UNMATCHED_INPUT.
    """
    places = sum(turn.parts.count(None) for turn in turns)
    first = next((n for n, turn in enumerate(turns) if turn.role == "user"), None)
    if not places and pictures and first is not None:
        turns = list(turns)
        turns[first] = ConversationTurn("user", (*(None,) * len(pictures), *turns[first].parts))
    elif places != len(pictures):
        detail = f"the turns have places for {places} pictures (<image>), and there are {len(pictures)}"
        raise SampleError(FaultReason.UNMATCHED_INPUT, detail)
    return turns, pictures
