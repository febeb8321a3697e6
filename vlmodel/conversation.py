"""Conversations: lists of turns by system, user and assistant, which prompt a language model.

It is a tuple of turns. Within a turn ``None`` stands for the sample's inputs (its picture, ...): where a language model
reads them, between texts. A row's text is plain text, so a conversation
is written as JSON there (``conversation_to_json``).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

from vlmodel.errors import ExpectedError

ROLES = ("system", "user", "assistant")


class ConversationError(ExpectedError, ValueError):
    """A conversation that no model can answer. The message says which turn is wrong and how to change it."""


class TurnFault(NamedTuple):
    """Describes what is wrong with a turn of a conversation.

    Attributes:
        turn: its number, from 0.
        reason: "unknown_role", "turn_out_of_order", "empty_turn" or "misplaced_input".
        detail: for people, without the number.
    """

    turn: int
    reason: Literal["unknown_role", "turn_out_of_order", "empty_turn", "misplaced_input"]
    detail: str


class ConversationTurn(NamedTuple):
    """One turn of a conversation: who speaks, and texts with places for inputs among them.

    Attributes:
        role: one of ``ROLES``.
        parts: texts, and None where the sample's inputs are.
    """

    role: str
    parts: tuple[str | None, ...]

    @property
    def text(self) -> str:
        """The texts of the turn, joined, without its inputs."""
        return "".join(part for part in self.parts if part is not None)


Conversation: TypeAlias = tuple[ConversationTurn, ...]


_MARK = "\ue002"
"""A character for private use. A row's text that begins with it is a conversation, and no question."""


def conversation_from_text(text: str) -> Conversation:
    """Parse the text of a row as a conversation: the JSON that ``conversation_to_json`` wrote, or else a single
    question.

    Raises:
        ConversationError: it begins as the former, and is none.
    """
    return conversation_from_json(text) if text.startswith(_MARK) else conversation_from_question(text)


def is_conversation_text(text: str) -> bool:
    """Whether the text of a row is a stored conversation and not a single question."""
    return text.startswith(_MARK)


def conversation_from_question(question: str) -> Conversation:
    """Make a conversation of one user turn: first the sample's inputs, then a question about them ("" for none)."""
    return (ConversationTurn("user", (None, question) if question else (None,)),)


def extract_question(text: str) -> str:
    """Return the question in a row's text: the text itself, or the last turn if the text is a conversation."""
    if not is_conversation_text(text):
        return text
    turns = conversation_from_json(text)
    return turns[-1].text if turns else ""


def insert_facts(turns: Conversation, facts: Sequence[str]) -> Conversation:
    """Insert facts into the last turn of a conversation, one fact a line, after the turn's inputs and before
    its text.
    """
    if not facts or not turns:
        return turns
    *before, last = turns
    place = next((n for n, part in enumerate(last.parts) if part is not None), len(last.parts))
    lines = "".join(f"{fact}\n" for fact in facts)
    return (*before, ConversationTurn(last.role, (*last.parts[:place], lines, *last.parts[place:])))


def find_turn_fault(turns: Sequence[ConversationTurn]) -> TurnFault | None:
    """Find the first invalid turn of a conversation: one with an unknown role, out of order, without a text, or with an
    input where none is allowed. An optional system turn comes first; then user and assistant take turns, and the user
    begins.
    """
    is_first_system = bool(turns) and turns[0].role == "system"
    for n, turn in enumerate(turns):
        if turn.role not in ROLES:
            return TurnFault(n, "unknown_role", f"has the role {turn.role!r}; it is one of {', '.join(ROLES)}")
        expected = "system" if is_first_system and not n else ("user", "assistant")[(n - is_first_system) % 2]
        if turn.role != expected:
            return TurnFault(
                n,
                "turn_out_of_order",
                f"is of the {turn.role}, where the {expected} speaks; user and assistant take turns, the user begins, "
                "and a system turn comes first of all",
            )
        if turn.role != "user" and None in turn.parts:
            detail = f"is of the {turn.role} and has an input; inputs belong to the user's turns"
            return TurnFault(n, "misplaced_input", detail)
        if turn.role != "system" and not turn.text.strip() and None not in turn.parts:
            return TurnFault(n, "empty_turn", "says nothing; leave it out, or give it a text")
    return None


def check_conversation(turns: Sequence[ConversationTurn]) -> None:
    """Raise ConversationError if a conversation has an invalid turn.

    Raises:
        ConversationError: it is empty, has a turn that cannot be (``find_turn_fault``), or does not end with the user.
    """
    if not turns:
        raise ConversationError("the conversation has no turn; begin with one of the user")
    if (fault := find_turn_fault(turns)) is not None:
        raise ConversationError(f"turn {fault.turn + 1} {fault.detail}")
    if turns[-1].role != "user":
        raise ConversationError("the conversation ends with the assistant; end with the user, whom it answers")


def drop_oldest_turns(turns: Conversation, letters: int) -> Conversation:
    """Drop the oldest turns of a prompt, as pairs of user and assistant, until its texts have at most ``letters``
    letters; a system turn stays. The inputs of dropped turns move to the first turn that stays. The last turn always
    stays; if it is too long, only its last letters do.
    """
    system = turns[:1] if turns and turns[0].role == "system" else ()
    said, inputs = turns[len(system) :], 0
    while len(said) > 2 and sum(len(turn.text) for turn in said) > letters:
        inputs += said[0].parts.count(None)
        said = said[2:]
    if not said or (not inputs and sum(len(turn.text) for turn in said) <= letters):
        return (*system, *said)
    first, *others = said
    parts, room = [], letters - sum(len(turn.text) for turn in others)
    for part in reversed(first.parts):
        kept = part if part is None else part[max(0, len(part) - room) :]
        room -= len(kept or "")
        parts += [kept] if kept != "" else []
    return (*system, ConversationTurn(first.role, (*(None,) * inputs, *reversed(parts))), *others)


def conversation_to_json(turns: Iterable[ConversationTurn]) -> str:
    """Write a conversation as the text of a row: a marker, then JSON such as [["user", [null, "What is it?"]], ...]."""
    return _MARK + json.dumps([[turn.role, list(turn.parts)] for turn in turns], ensure_ascii=False)


def conversation_from_json(text: str) -> Conversation:
    """Parse a conversation that ``conversation_to_json`` wrote.

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
    """Format a conversation for people, one line for each turn, without its inputs."""
    return "\n".join(f"{turn.role}: {turn.text.strip()}" for turn in turns)
