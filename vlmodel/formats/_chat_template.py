"""Writes this project's prompt format as a chat template of transformers' processors, in which the token <image> stands
for a picture.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from vlmodel.heads.llm import Config

IMAGE_TOKEN = "<image>"


def build_chat_template(config: Config, tokenizer: PreTrainedTokenizerBase) -> str:
    """Build the chat template (Jinja) with which a model was trained, for messages whose content is a text or a list of
    parts ``{"type": "image"}`` and ``{"type": "text", "text": ...}``.
    """
    if config.template_kind() == "chat":
        return _join_content_parts(config) + str(tokenizer.chat_template)
    begin = tokenizer.bos_token or tokenizer.cls_token
    end = tokenizer.eos_token or tokenizer.sep_token
    return (
        _join_content_parts(config)
        + "{% for m in messages %}{% if m['role'] == 'assistant' %}"
        + f"{{{{ {_quote_jinja_string(begin)} + m['content'] + {_quote_jinja_string(end)} }}}}"
        + "{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
        + f"{{% if add_generation_prompt %}}{{{{ {_quote_jinja_string(begin)} }}}}{{% endif %}}"
    )


def _join_content_parts(config: Config) -> str:
    """Build the Jinja code that joins the content parts of each message to a text, and adds the default system
    message.
    """
    system = f"[{{'role': 'system', 'content': {_quote_jinja_string(config.system)}}}]" if config.system else "[]"
    return (
        f"{{% set all = namespace(turns={system} if messages[0]['role'] != 'system' else []) %}}"
        "{% for m in messages %}{% set said = namespace(text='') %}"
        "{% for part in ([{'type': 'text', 'text': m['content']}] if m['content'] is string else m['content']) %}"
        "{% set said.text = said.text + (part['text'] if part['type'] == 'text' else "
        f"{_quote_jinja_string(IMAGE_TOKEN + config.behind_input)}) %}}"
        "{% endfor %}{% set all.turns = all.turns + [{'role': m['role'], 'content': said.text}] %}{% endfor %}"
        "{% set messages = all.turns %}"
    )


def _quote_jinja_string(text: str | None) -> str:
    """Quote a string for Jinja, which knows the escapes of JSON."""
    return json.dumps(text or "")
