"""A conversation: what a language model is prompted with.

It is a tuple of turns. Within a turn ``None`` stands for the sample's inputs (its picture, ...): where a language model
reads them, between texts. A row's text is plain text, so a conversation is written as JSON there (``dumps``).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

from vlmodel.errors import ExpectedError

ROLES = ("system", "user", "assistant")


class ConversationError(ExpectedError, ValueError):
    """A conversation that no model can answer. The message says which turn, and what to change."""


class Turn(NamedTuple):
    """What one side says.

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


Conversation: TypeAlias = tuple[Turn, ...]


def of_question(question: str) -> Conversation:
    """The sample's inputs, then a question about them; "" for none."""
    return (Turn("user", (None, question) if question else (None,)),)


def check_prompt(turns: Sequence[Turn]) -> None:
    """Refuse what cannot be answered.

    Raises:
        ConversationError: it is empty, does not begin with the user after an optional system turn, does not alternate,
            does not end with the user, or has inputs in a turn that is not the user's.
    """
    if not turns:
        raise ConversationError("the conversation has no turn; begin with one of the user")
    said = turns[1:] if turns[0].role == "system" else turns
    for n, (turn, expected) in enumerate(zip(said, _alternating(), strict=False), start=len(turns) - len(said) + 1):
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


def dumps(turns: Iterable[Turn]) -> str:
    """The conversation as JSON: [["user", [null, "What is it?"]], ...]."""
    return json.dumps([[turn.role, list(turn.parts)] for turn in turns], ensure_ascii=False)


def loads(text: str) -> Conversation:
    """The inverse of ``dumps``.

    Raises:
        ConversationError: it is something else.
    """
    try:
        turns: Any = json.loads(text)
        made = tuple(Turn(role, tuple(parts)) for role, parts in turns)
    except (ValueError, TypeError):
        raise ConversationError(f"{text[:80]!r} is no conversation; write it with vlmodel.conversation.dumps") from None
    for turn in made:
        if not isinstance(turn.role, str) or not all(part is None or isinstance(part, str) for part in turn.parts):
            raise ConversationError(f"{turn!r} is no turn; it has a role and a list of texts and nulls")
    return made


def transcript(turns: Iterable[Turn]) -> str:
    """The conversation as people read it, a line a turn; the inputs are left out."""
    return "\n".join(f"{turn.role}: {turn.text.strip()}" for turn in turns)


def _alternating() -> Iterable[str]:
    while True:
        yield "user"
        yield "assistant"
