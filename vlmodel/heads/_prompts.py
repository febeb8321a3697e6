"""From a conversation to the tokens that a language model reads, by its chat template or a plain one.

A template is rendered once for each sequence of roles, with marks where the turns' texts go; the text between the marks
and the texts of the turns are tokenized apart from each other. So what a user writes is never read as one of the
template's special tokens, and what the model has to say is its own tokens, from the first to the one that ends it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal
from weakref import WeakKeyDictionary

from vlmodel.config import ConfigError
from vlmodel.conversation import Conversation, ConversationError, Turn, check_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ALL_STREAMS = -1
"""The slot of all streams. That of the k-th alone is -2 - k."""

TemplateKind = Literal["chat", "plain"]

# Characters for private use, which no template and hardly a text has.
_MARK = "\ue000{}\ue001"
_MARKS = re.compile("\ue000([0-9]+)\ue001")


def template_of(tokenizer: PreTrainedTokenizerBase, kind: TemplateKind) -> PromptTemplate:
    """The template of a tokenizer, made once.

    Raises:
        ConfigError: as ``PromptTemplate``.
    """
    made = _templates.setdefault(tokenizer, {})
    if kind not in made:
        made[kind] = PromptTemplate(tokenizer, kind)
    return made[kind]


class PromptTemplate:
    """A tokenizer's chat template, or the plain one: the texts of the turns, and before each answer the token that
    begins a text, after it the one that ends it.

    Attributes:
        end: token that ends what the assistant says.

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
        after = self._pieces(("user", "assistant"), answered=True)[-1]
        special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
        end = after[0] if after and after[0] in special else tokenizer.eos_token_id
        if end is None:
            raise ConfigError(
                "head.template='chat': neither the chat template nor the tokenizer has a token that ends an answer; "
                "set its eos_token"
            )
        self.end = int(end)

    def prompt(self, turns: Conversation, system: str = "", limit: int | None = None) -> list[int]:
        """The tokens of a conversation, up to where the assistant speaks; a slot is below zero.

        Args:
            system: a first turn of the system, if the conversation has none.
            limit: longer texts are cut to so many tokens.

        Raises:
            ConversationError: the template cannot render it.
        """
        check_prompt(turns)
        if system and turns[0].role != "system":
            turns = (Turn("system", (system,)), *turns)
        turns = _insert_input_slots(turns)
        slots = sum(part is None for turn in turns for part in turn.parts)
        numbers = iter([ALL_STREAMS] if slots == 1 else [-2 - k for k in range(slots)])
        texts = [
            [i for part in turn.parts for i in ([next(numbers)] if part is None else self.text(part)[:limit])]
            for turn in turns
        ]
        around = self._around(turns)
        # After the last text there is one piece more.
        return [i for pair in zip(around, [*texts, []], strict=True) for piece in pair for i in piece]

    def target(self, text: str, limit: int) -> list[int]:
        """The tokens of what the assistant says, at most ``limit`` with the one that ends it."""
        return [*self.text(text)[: limit - 1], self.end]

    def text(self, text: str) -> list[int]:
        """The tokens of a text, none of which is special."""
        if not text:
            return []
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return ids

    def _around(self, turns: Sequence[Turn]) -> list[list[int]]:
        """The tokens before each turn's text, and after the last."""
        roles = tuple(turn.role for turn in turns)
        if self._kind == "chat":
            return self._pieces(roles)
        pieces: list[list[int]] = [[]]
        for role in roles:
            if role == "assistant":
                pieces[-1].append(self._begin)
                pieces.append([self.end])
            else:
                pieces.append([])
        pieces[-1].append(self._begin)
        return pieces

    def _pieces(self, roles: tuple[str, ...], answered: bool = False) -> list[list[int]]:
        if (known := self._rendered.get((*roles, str(answered)))) is not None:
            return known
        marked = [{"role": role, "content": _MARK.format(n)} for n, role in enumerate(roles)]
        try:
            text = self._tokenizer.apply_chat_template(marked, tokenize=False, add_generation_prompt=not answered)
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
        ids = [
            list(self._tokenizer(piece, add_special_tokens=False)["input_ids"]) if piece else []
            for piece in pieces[::2]
        ]
        self._rendered[(*roles, str(answered))] = ids
        return ids


def _insert_input_slots(turns: Conversation) -> Conversation:
    """The conversation with its inputs before the user's first text, unless it says where they are."""
    if any(None in turn.parts for turn in turns):
        return turns
    first = next(n for n, turn in enumerate(turns) if turn.role == "user")
    return (*turns[:first], Turn("user", (None, *turns[first].parts)), *turns[first + 1 :])


_templates: WeakKeyDictionary[PreTrainedTokenizerBase, dict[str, PromptTemplate]] = WeakKeyDictionary()
