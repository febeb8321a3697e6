"""Conversations: the turns of system, user and assistant that a language model is prompted with.

It is a tuple of turns. Within a turn ``None`` stands for the sample's inputs (its picture, ...): where a language model
reads them, between texts. A row's text is plain text, so a conversation
is written as JSON there (``conversation_to_json``).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

from vlmodel.errors import ExpectedError

ROLES = ("system", "user", "assistant")


class ConversationError(ExpectedError, ValueError):
    """A conversation that no model can answer. The message says which turn, and what to change."""


class ConversationTurn(NamedTuple):
    """One turn of a conversation.

    Attributes:
        role: one of ``ROLES``.
        parts: texts, and None where the sample's inputs are.
    """

    role: str
    parts: tuple[str | None, ...]

    @property
    def text(self) -> str:
        """Its texts alone."""
        return "".join(part for part in self.parts if part is not None)


Conversation: TypeAlias = tuple[ConversationTurn, ...]


_MARK = "\ue002"
"""A character for private use. A row's text that begins with it is a conversation, and no question."""


def conversation_from_text(text: str) -> Conversation:
    """The conversation that a row's text stands for: the one that ``conversation_to_json`` wrote, or a question.

    Raises:
        ConversationError: it begins as the former, and is none.
    """
    return conversation_from_json(text) if text.startswith(_MARK) else conversation_from_question(text)


def is_conversation_text(text: str) -> bool:
    """Whether a row's text is a conversation."""
    return text.startswith(_MARK)


def conversation_from_question(question: str) -> Conversation:
    """A conversation of one turn: the sample's inputs, then a question about them ("" for none)."""
    return (ConversationTurn("user", (None, question) if question else (None,)),)


def insert_facts(turns: Conversation, facts: Sequence[str]) -> Conversation:
    """Insert facts into the last turn of a conversation, a line each: after its inputs, before its text."""
    if not facts or not turns:
        return turns
    *before, last = turns
    place = next((n for n, part in enumerate(last.parts) if part is not None), len(last.parts))
    lines = "".join(f"{fact}\n" for fact in facts)
    return (*before, ConversationTurn(last.role, (*last.parts[:place], lines, *last.parts[place:])))


def check_conversation(turns: Sequence[ConversationTurn]) -> None:
    """Refuse a conversation that cannot be answered.

    Raises:
        ConversationError: it is empty, does not begin with the user after an optional system turn, does not alternate,
            does not end with the user, or has inputs in a turn that is not the user's.
    """
    if not turns:
        raise ConversationError("the conversation has no turn; begin with one of the user")
    said = turns[1:] if turns[0].role == "system" else turns
    if not all(turn.text.strip() or None in turn.parts for turn in said):
        raise ConversationError("a turn says nothing; leave it out, or give it a text")
    for n, (turn, expected) in enumerate(zip(said, _alternate_roles(), strict=False), start=len(turns) - len(said) + 1):
        if turn.role not in ROLES:
            raise ConversationError(f"turn {n} has the role {turn.role!r}; it is one of {', '.join(ROLES)}")
        if turn.role != expected:
            raise ConversationError(
                f"turn {n} is of the {turn.role}, where the {expected} speaks; user and assistant take turns, the user "
                "begins, and a system turn comes first of all"
            )
        if turn.role == "assistant" and None in turn.parts:
            raise ConversationError(f"turn {n} is of the assistant and has an input; inputs belong to the user's turns")
    if not said or said[-1].role != "user":
        raise ConversationError("the conversation ends with the assistant; end with the user, whom it answers")
    if turns[0].role == "system" and None in turns[0].parts:
        raise ConversationError("turn 1 is of the system and has an input; inputs belong to the user's turns")


def conversation_to_json(turns: Iterable[ConversationTurn]) -> str:
    """The conversation as the text of a row: JSON, such as [["user", [null, "What is it?"]], ...], after a mark."""
    return _MARK + json.dumps([[turn.role, list(turn.parts)] for turn in turns], ensure_ascii=False)


def conversation_from_json(text: str) -> Conversation:
    """The inverse of ``conversation_to_json``.

    Raises:
        ConversationError: it is something else.
    """
    try:
        turns: Any = json.loads(text.removeprefix(_MARK))
        made = tuple(ConversationTurn(role, tuple(parts)) for role, parts in turns)
    except (ValueError, TypeError):
        raise ConversationError(
            f"{text[:80]!r} is no conversation; write it with vlmodel.conversation.conversation_to_json"
        ) from None
    for turn in made:
        if not isinstance(turn.role, str) or not all(part is None or isinstance(part, str) for part in turn.parts):
            raise ConversationError(f"{turn!r} is no turn; it has a role and a list of texts and nulls")
    return made


def format_transcript(turns: Iterable[ConversationTurn]) -> str:
    """Format a conversation for people, one line for each turn; the inputs are left out."""
    return "\n".join(f"{turn.role}: {turn.text.strip()}" for turn in turns)


def _alternate_roles() -> Iterable[str]:
    while True:
        yield "user"
        yield "assistant"
