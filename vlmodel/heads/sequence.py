"""Settings of a small causal language model with cross-attention to the joint stream: BERT, GPT-2, BART, ELECTRA."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from vlmodel.config import ConfigError
from vlmodel.decoder import _causal
from vlmodel.text_head import TextHeadPart

if TYPE_CHECKING:
    from vlmodel.decoder.sequence import SequenceDecoder
    from vlmodel.part_configs import Vocabulary


class Config(TextHeadPart):
    """A causal language model of transformers with cross-attention."""

    kind: Literal["sequence"] = "sequence"
    pretrained: str = ""
    """Folder or hub name of a pretrained decoder or encoder to start from; "" builds one by the settings below."""
    architecture: str = "bert"
    """From scratch: transformers' name of the architecture ("model_type"): bart, bert, electra or gpt2."""
    width: int = Field(256, ge=1)
    """From scratch: width of the layers and of the word embeddings, to which the output is tied."""
    depth: int = Field(2, ge=1)
    """From scratch: number of layers."""
    heads: int = Field(4, ge=1)
    """From scratch: attention heads."""
    expansion: int = Field(4, ge=1)
    """From scratch: width of the feed-forward layers, in multiples of ``width``."""
    positions: int = Field(128, ge=3)
    """From scratch: greatest number of tokens in a text, including those that begin and end it."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """From scratch: dropout of embeddings and layers; attention has none, for which fast kernels exist."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of the target spread evenly over all tokens (Szegedy et al. 2016)."""
    resolved: dict[str, Any] | None = None
    """transformers' configuration of the decoder; filled in when the model is created, and stored with it."""

    @model_validator(mode="after")
    def _check_settings(self) -> Config:
        if not self.pretrained and self.resolved is None:
            if reason := _causal.unsupported_architecture_reason(self.architecture):
                raise ValueError(f"architecture={self.architecture!r} {reason}")
            if self.width % self.heads:
                raise ValueError(f"width={self.width} cannot be shared by heads={self.heads}; make it a multiple")
        return self

    def resolve_settings(self, vocabulary: Vocabulary) -> Config:
        if vocabulary.begin < 0 or vocabulary.end < 0:
            raise ConfigError(
                f"head.kind={self.kind!r} writes texts between a token that begins and one that ends them, and the "
                f"tokenizer has {vocabulary.begin} and {vocabulary.end} (-1 is none); set its bos_token and eos_token"
            )
        if self.resolved is not None:
            return self
        if self.pretrained:
            resolved = _causal.open_pretrained_decoder_config(self.pretrained, vocabulary)
        else:
            resolved = _causal.new_decoder_config(self, vocabulary)
        return self.model_copy(update={"resolved": resolved})

    def max_generated_tokens(self) -> int | None:
        if self.resolved is not None:
            return _causal.max_generated_tokens(self.resolved)
        return None if self.pretrained else self.positions

    def build(self, widths: Mapping[str, int], vocabulary: Vocabulary) -> SequenceDecoder:
        from vlmodel.decoder.sequence import SequenceDecoder

        return SequenceDecoder(self.resolve_settings(vocabulary), widths["joint"])
