"""Settings of a large language model as the head of a task: any causal one of transformers, pretrained or new.

It reads the sample's inputs as tokens among those of the prompt (LLaVA, Liu et al. 2023, arXiv:2304.08485), where the
conversation has them. There is no token that stands for a picture: its place in the prompt is a slot, which takes as
many tokens as the bridge makes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from pydantic import Field, model_validator

from vlmodel.config import part_field
from vlmodel.conversation import Conversation, ConversationError
from vlmodel.decoder import _llm
from vlmodel.heads._prompts import PromptTemplate, get_prompt_template
from vlmodel.lora import LoraSettings
from vlmodel.text_head import BridgePart, TextHeadPart

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

    from vlmodel.decoder.llm import LanguageModel
    from vlmodel.part_configs import Vocabulary
    from vlmodel.processor import VLProcessor


class Config(TextHeadPart):
    """Settings of a causal language model that generates the answers, and of the bridges into it."""

    kind: Literal["llm"] = "llm"
    pretrained: str = ""
    """Folder, hub name or .gguf file of a pretrained model, whose tokenizer vocabulary.tokenizer must name; "" builds
    one by the settings below."""
    training: Literal["full", "lora", "frozen"] = "full"
    """Train all of it, low-rank adapters beside frozen weights, or nothing of it (only bridges and encoders)."""
    lora: LoraSettings = LoraSettings()
    """The adapters of ``training="lora"``."""
    reads: Literal["streams", "joint"] = "streams"
    """Each encoder's stream through a bridge of its own, with the text as the language model's own tokens; or the joint
    stream of topology and fusion, in which the text is too."""
    bridge: part_field("vlmodel.bridge", "mlp") = Field({}, validate_default=True)  # type: ignore[valid-type]
    """What brings a stream into the language model."""
    template: Literal["chat", "plain"] | None = None
    """The tokenizer's chat template; or "plain": the texts alone, each answer between the tokens that begin and end a
    text. null is "chat" for a pretrained model and "plain" from scratch."""
    system: str = ""
    """What the model is told before each conversation that does not say it itself; "" for nothing."""
    behind_input: str = ""
    """What stands in a prompt behind each input, such as a line break in LLaVA-1.5."""
    gradient_checkpointing: bool = False
    """Compute the layers again in the backward pass instead of keeping what they computed: slower, in less memory."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of the target spread evenly over all tokens (Szegedy et al. 2016)."""
    architecture: str = "llama"
    """From scratch: transformers' name of the architecture ("model_type"), such as llama, qwen3 or gpt2."""
    width: int = Field(256, ge=1)
    """From scratch: width of the layers."""
    depth: int = Field(4, ge=1)
    """From scratch: number of layers."""
    heads: int = Field(4, ge=1)
    """From scratch: attention heads."""
    expansion: int = Field(4, ge=1)
    """From scratch: width of the feed-forward layers, in multiples of ``width``."""
    positions: int = Field(1024, ge=3)
    """From scratch: greatest number of tokens of prompt, inputs and text together."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """From scratch: dropout, of architectures that have it."""
    sizes: dict[str, Any] = {}
    """From scratch: further settings of the architecture, by transformers' names."""
    resolved: dict[str, Any] | None = None
    """transformers' configuration of the model; filled in when the model is created, and stored with it."""

    @model_validator(mode="after")
    def _check_settings(self) -> Config:
        if not self.pretrained and self.resolved is None:
            if reason := _llm.unsupported_architecture_reason(self.architecture):
                raise ValueError(f"architecture={self.architecture!r} {reason}")
            if self.training != "full":
                raise ValueError(
                    f"training={self.training!r} leaves weights as they are, and without pretrained they are random; "
                    "name a pretrained model, or set training='full'"
                )
            if self.width % self.heads:
                raise ValueError(f"width={self.width} cannot be shared by heads={self.heads}; make it a multiple")
        return self

    def resolve_settings(self, vocabulary: Vocabulary) -> Config:
        if self.resolved is not None:
            return self
        made = (
            _llm.open_pretrained_llm_config(self.pretrained, vocabulary)
            if self.pretrained
            else _llm.new_llm_config(self, vocabulary)
        )
        return self.model_copy(update={"resolved": made})

    def reads_joint_stream(self) -> bool:
        return self.reads == "joint"

    def encodes_text(self) -> bool:
        return self.reads == "joint"

    def needs_begin_and_end_tokens(self) -> bool:
        return self.template_kind() == "plain"

    def accepts_conversations(self) -> bool:
        return True

    def template_kind(self) -> Literal["chat", "plain"]:
        """Which prompt template is used: "chat" or "plain"."""
        return self.template or ("chat" if self.pretrained else "plain")

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        get_prompt_template(tokenizer, self.template_kind())
        if self.pretrained and self.resolved is None:
            _llm.compare_with_own_tokenizer(self.pretrained, tokenizer)

    def context_length(self) -> int | None:
        """The greatest number of tokens of prompt, inputs and answer together; None if there is no limit, or it is not
        known yet.
        """
        if self.resolved is not None:
            return _llm.context_length(self.resolved)
        return None if self.pretrained else self.positions

    def max_generated_tokens(self) -> int | None:
        return self.context_length()

    def build(self, widths: Mapping[str, int], vocabulary: Vocabulary) -> LanguageModel:
        from vlmodel.decoder.llm import LanguageModel

        streams = {name: width for name, width in widths.items() if (name == "joint") == self.reads_joint_stream()}
        streams.pop("language", None)
        return LanguageModel(self.resolve_settings(vocabulary), streams)

    def bridge_config(self) -> BridgePart:
        """The settings of the bridge of each stream."""
        return cast(BridgePart, self.bridge)

    def collate_prompts(
        self, conversations: Sequence[Conversation], limits: Sequence[int | None], processor: VLProcessor
    ) -> dict[str, NDArray[np.generic]]:
        """Tokenize N conversations to ``prompt_ids_NT`` and ``prompt_mask_NT``, padded on the left.

        Raises:
            ConversationError: one cannot be answered, or has more slots than the model takes inputs.
        """
        template = self._prompt_template(processor)
        pairs = zip(conversations, limits, strict=True)
        rows = [template.tokenize_conversation(turns, self.system, limit, self.behind_input) for turns, limit in pairs]
        most = len(processor.input_names)
        for row in rows:
            if (slots := sum(i < 0 for i in row)) > max(1, most):
                raise ConversationError(
                    f"the conversation has places for {slots} inputs, and the model takes {most}: "
                    f"{', '.join(processor.input_names) or 'texts alone'}; leave out what is too much"
                )
        ids_NT, mask_NT = _pad_left(rows, template.end)
        return {"prompt_ids_NT": ids_NT, "prompt_mask_NT": mask_NT}

    def collate_targets(self, targets: Sequence[str | None], processor: VLProcessor) -> dict[str, NDArray[np.generic]]:
        """Tokenize N right answers to ``target_ids_NT`` and ``target_mask_NT``, padded on the left, each with the end
        token; an unknown answer is all padding.
        """
        template, limit = self._prompt_template(processor), processor.config.max_target_tokens
        rows = [[] if target is None else template.tokenize_answer(target, limit) for target in targets]
        ids_NT, mask_NT = _pad_left(rows, template.end)
        return {"target_ids_NT": ids_NT, "target_mask_NT": mask_NT}

    def _prompt_template(self, processor: VLProcessor) -> PromptTemplate:
        return get_prompt_template(processor.tokenizer, self.template_kind())


def _pad_left(rows: Sequence[Sequence[int]], padding: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    length = max(map(len, rows), default=0) or 1
    ids_NT = np.full((len(rows), length), padding, np.int64)
    mask_NT = np.zeros((len(rows), length), np.bool_)
    for n, row in enumerate(rows):
        if row:
            ids_NT[n, -len(row) :], mask_NT[n, -len(row) :] = row, True
    return ids_NT, mask_NT
