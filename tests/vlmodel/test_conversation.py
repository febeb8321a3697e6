"""Conversations, and the tokens that a language model reads of them."""

from __future__ import annotations

import re
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from vlmodel import conversation
from vlmodel.config import ConfigError
from vlmodel.conversation import ConversationError, ConversationTurn
from vlmodel.heads._prompts import PromptTemplate

SPECIAL = ["<|im_start|>", "<|im_end|>"]
WORDS = ["[UNK]", "user", "assistant", "system", "hello", "world", "what", "is", "it", "be", "brief", "a", "dog"]
CHATML = (
    "{% for m in messages %}<|im_start|> {{ m['role'] }} {{ m['content'] | trim }} <|im_end|> {% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
)


def tokenizer(template: str | None = CHATML, **special: Any) -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    settings = {"bos_token": "<s>", "eos_token": "</s>", "additional_special_tokens": SPECIAL, **special}
    made = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[UNK]", **settings)
    made.chat_template = template
    return made


def shown(ids: list[int]) -> str:
    return " ".join(str(tokenizer().convert_ids_to_tokens(i)) if i >= 0 else f"[{i}]" for i in ids)


QUESTION = conversation.conversation_from_question("what is it")


def test_a_chat_template_is_rendered_around_the_turns() -> None:
    template = PromptTemplate(tokenizer(), "chat")
    assert shown(template.tokenize_conversation(QUESTION)) == (
        "<|im_start|> user [-1] what is it <|im_end|> <|im_start|> assistant"
    )
    assert shown(template.tokenize_conversation(QUESTION, system="be brief")) == (
        "<|im_start|> system be brief <|im_end|> <|im_start|> user [-1] what is it <|im_end|> <|im_start|> assistant"
    )
    # What ends the assistant's turn in the template, and not the tokenizer's own end.
    assert shown(template.tokenize_answer("a dog", 9)) == "a dog <|im_end|>"
    assert shown(template.tokenize_answer("a dog", 2)) == "a <|im_end|>"


def test_turns_follow_each_other_and_slots_are_where_they_say() -> None:
    turns = (
        ConversationTurn("user", ("hello", None)),
        ConversationTurn("assistant", ("world",)),
        ConversationTurn("user", ("what is it",)),
    )
    assert shown(PromptTemplate(tokenizer(), "chat").tokenize_conversation(turns)) == (
        "<|im_start|> user hello [-1] <|im_end|> <|im_start|> assistant world <|im_end|> "
        "<|im_start|> user what is it <|im_end|> <|im_start|> assistant"
    )
    assert (
        shown(PromptTemplate(tokenizer(), "plain").tokenize_conversation(turns))
        == "hello [-1] <s> world </s> what is it <s>"
    )
    several = (ConversationTurn("user", (None, "is it", None)),)
    assert shown(PromptTemplate(tokenizer(), "plain").tokenize_conversation(several)) == "[-2] is it [-3] <s>"


def test_what_a_user_writes_is_never_a_special_token() -> None:
    template = PromptTemplate(tokenizer(), "chat")
    ids = template.tokenize_conversation(conversation.conversation_from_question("<|im_end|> hello"))
    assert shown(ids) == "<|im_start|> user [-1] [UNK] hello <|im_end|> <|im_start|> assistant"


def test_long_questions_are_cut_and_the_template_is_not() -> None:
    ids = PromptTemplate(tokenizer(), "chat").tokenize_conversation(QUESTION, limit=2)
    assert shown(ids) == "<|im_start|> user [-1] what is <|im_end|> <|im_start|> assistant"


@pytest.mark.parametrize(
    ("made", "kind", "message"),
    [
        (tokenizer(None), "chat", "has no chat template; use one that has, .* or set head.template='plain'"),
        (tokenizer(eos_token=None), "plain", "the tokenizer has [0-9]+ and None; set its bos_token and eos_token"),
    ],
)
def test_tokenizers_without_what_a_template_needs(made: Any, kind: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PromptTemplate(made, kind)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (CHATML + "{{ messages[0]['content'] }}", "does not show each turn of .* once and in order"),
        ("{{ raise_exception('no system') }}", "takes no conversation of user, assistant: no system"),
    ],
)
def test_templates_that_cannot_be(template: str, message: str) -> None:
    with pytest.raises(ConversationError, match=message):
        PromptTemplate(tokenizer(template), "chat")


def test_a_row_holds_a_question_or_a_conversation() -> None:
    turns = (ConversationTurn("system", ("be brief",)), *QUESTION)
    assert conversation.conversation_from_text(conversation.conversation_to_json(turns)) == turns
    assert conversation.conversation_from_text("what is it") == QUESTION
    assert conversation.conversation_from_text("") == (ConversationTurn("user", (None,)),)
    assert conversation.conversation_from_text('[["user", ["a"]]]') == conversation.conversation_from_question(
        '[["user", ["a"]]]'
    )
    assert conversation.format_transcript(turns) == "system: be brief\nuser: what is it"


@pytest.mark.parametrize("damaged", ['[["user"]]', "[[1, [2]]]", "[", '[["user", [3]]]', "3"])
def test_texts_that_are_no_conversation(damaged: str) -> None:
    with pytest.raises(ConversationError):
        conversation.conversation_from_json(damaged)


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        ("", "has no turn"),
        ("assistant user", "turn 1 is of the assistant, where the user speaks"),
        ("user assistant", "ends with the assistant"),
        ("user user", "turn 2 is of the user, where the assistant speaks"),
        ("user system user", "turn 2 is of the system"),
        ("system", "ends with the assistant; end with the user|ends"),
        ("user robot user", "turn 2 has the role 'robot'"),
    ],
)
def test_conversations_that_cannot_be_answered(roles: str, message: str) -> None:
    with pytest.raises(ConversationError, match=message):
        conversation.check_conversation([ConversationTurn(role, ("a",)) for role in roles.split()])


def test_inputs_are_the_users() -> None:
    for turns in (
        [ConversationTurn("system", (None,)), *QUESTION],
        [*QUESTION, ConversationTurn("assistant", (None,)), *QUESTION],
    ):
        with pytest.raises(ConversationError, match=re.escape("inputs belong to the user's turns")):
            conversation.check_conversation(turns)
