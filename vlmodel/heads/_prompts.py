"""Tokenizes conversations for a language model, by the tokenizer's chat template or a plain one.

A template is rendered once for each sequence of roles, with marks in place of the turns' texts; the text between the
marks and the texts of the turns are tokenized separately. So a text of a user is never read as one of the template's
special tokens, and the tokens of an answer do not depend on the text around it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary

from vlmodel.config import ConfigError
from vlmodel.conversation import Conversation, ConversationError, ConversationTurn, check_conversation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ALL_STREAMS = -1
"""The slot of all streams. That of the k-th alone is -2 - k."""

TemplateKind = Literal["chat", "plain"]

# Characters for private use, which no template and hardly a text has.
_MARK = "\ue000{}\ue001"
_MARKS = re.compile("\ue000([0-9]+)\ue001")


def get_prompt_template(tokenizer: PreTrainedTokenizerBase, kind: TemplateKind) -> PromptTemplate:
    """Return the prompt template of a tokenizer; it is created at the first call and cached.

    Raises:
        ConfigError: as ``PromptTemplate``.
    """
    made = _templates.setdefault(tokenizer, {})
    if kind not in made:
        made[kind] = PromptTemplate(tokenizer, kind)
    return made[kind]


class PromptTemplate:
    """Tokenizes conversations by the tokenizer's chat template, or by the plain template, which joins the texts of the
    turns and puts each answer between the tokens that begin and end a text.

    Attributes:
        end: id of the token that ends an answer of the assistant.

    Raises:
        ConfigError: the tokenizer has no chat template, or no tokens that begin and end texts.
    """

    end: int

    def __init__(self, tokenizer: PreTrainedTokenizerBase, kind: TemplateKind) -> None:
        self._tokenizer, self._kind = tokenizer, kind
        self._rendered: dict[tuple[str, ...], list[list[int]]] = {}
        if kind == "plain":
            begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.cls_token_id
            end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
            if begin is None or end is None:
                raise ConfigError(
                    "head.template='plain' writes answers between a token that begins and one that ends a text, and "
                    f"the tokenizer has {begin} and {end}; set its bos_token and eos_token"
                )
            self._begin, self.end = int(begin), int(end)
            return
        if not tokenizer.chat_template:
            raise ConfigError(
                f"head.template='chat', and the tokenizer {type(tokenizer).__name__} has no chat template; use one "
                "that has, put chat_template.jinja into its folder, or set head.template='plain'"
            )
        after = self._render_template_pieces(("user", "assistant"), answered=True)[-1]
        special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
        end = after[0] if after and after[0] in special else tokenizer.eos_token_id
        if end is None:
            raise ConfigError(
                "head.template='chat': neither the chat template nor the tokenizer has a token that ends an answer; "
                "set its eos_token"
            )
        self.end = int(end)

    def tokenize_conversation(
        self, turns: Conversation, system: str = "", limit: int | None = None, behind_input: str = ""
    ) -> list[int]:
        """Tokenize a conversation up to the place where the answer begins; negative ids are placeholders for inputs.

        Args:
            system: a first turn of the system, if the conversation has none.
            limit: longer texts are cut to so many tokens.
            behind_input: what stands behind each input.

        Raises:
            ConversationError: the template cannot render it.
        """
        check_conversation(turns)
        if system and turns[0].role != "system":
            turns = (ConversationTurn("system", (system,)), *turns)
        turns = _insert_input_slots(turns)
        slots = sum(part is None for turn in turns for part in turn.parts)
        numbers = iter([ALL_STREAMS] if slots == 1 else [-2 - k for k in range(slots)])
        behind = self.tokenize_plain_text(behind_input)
        texts = [
            [
                i
                for part in turn.parts
                for i in ([next(numbers), *behind] if part is None else self.tokenize_plain_text(part)[:limit])
            ]
            for turn in turns
        ]
        around = self._tokens_between_turns(turns)
        # After the last text there is one piece more.
        return [i for pair in zip(around, [*texts, []], strict=True) for piece in pair for i in piece]

    def tokenize_answer(self, text: str, limit: int) -> list[int]:
        """Tokenize an answer to at most ``limit`` tokens, including the end token."""
        return [*self.tokenize_plain_text(text)[: limit - 1], self.end]

    def tokenize_plain_text(self, text: str) -> list[int]:
        """Tokenize a text without special tokens; special tokens that the text spells out become plain text."""
        if not text:
            return []
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return ids

    def _tokens_between_turns(self, turns: Sequence[ConversationTurn]) -> list[list[int]]:
        """Return the template's token ids before the text of each turn, and those after the last text."""
        roles = tuple(turn.role for turn in turns)
        if self._kind == "chat":
            return self._render_template_pieces(roles)
        pieces: list[list[int]] = [[]]
        for role in roles:
            if role == "assistant":
                pieces[-1].append(self._begin)
                pieces.append([self.end])
            else:
                pieces.append([])
        pieces[-1].append(self._begin)
        return pieces

    def _render_template_pieces(self, roles: tuple[str, ...], answered: bool = False) -> list[list[int]]:
        if (known := self._rendered.get((*roles, str(answered)))) is not None:
            return known
        try:
            pieces = self._render(roles, answered, as_parts=False)
        except ConversationError as error:
            # LLaVA's templates show the parts of a turn, and no plain text.
            try:
                pieces = self._render(roles, answered, as_parts=True)
            except ConversationError:
                raise error from None
        ids = [list(self._tokenizer(piece, add_special_tokens=False)["input_ids"]) if piece else [] for piece in pieces]
        self._rendered[(*roles, str(answered))] = ids
        return ids

    def _render(self, roles: tuple[str, ...], answered: bool, as_parts: bool) -> list[str]:
        """Return the text that the template puts before the text of each turn, and after the last one."""
        marks = [_MARK.format(n) for n in range(len(roles))]
        contents: list[Any] = [[{"type": "text", "text": mark}] for mark in marks] if as_parts else list(marks)
        turns = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
        try:
            text = self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=not answered)
        except Exception as error:  # templates are programs, and raise anything
            raise ConversationError(
                f"the chat template of the tokenizer takes no conversation of {', '.join(roles)}: {error}"
            ) from None
        pieces = _MARKS.split(str(text))
        if pieces[1::2] != [str(n) for n in range(len(roles))]:
            raise ConversationError(
                f"the chat template of the tokenizer does not show each turn of {', '.join(roles)} once and in order; "
                "set head.template='plain', or use another template"
            )
        return pieces[::2]


def _insert_input_slots(turns: Conversation) -> Conversation:
    """Insert a placeholder for the sample's inputs before the user's first text, unless the conversation already has
    one.
    """
    if any(None in turn.parts for turn in turns):
        return turns
    first = next(n for n, turn in enumerate(turns) if turn.role == "user")
    return (*turns[:first], ConversationTurn("user", (None, *turns[first].parts)), *turns[first + 1 :])


_templates: WeakKeyDictionary[PreTrainedTokenizerBase, dict[str, PromptTemplate]] = WeakKeyDictionary()
