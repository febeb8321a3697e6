"""Text towers of models that compare images and texts: CLIP (Radford et al. 2021) and SigLIP (Zhai et al. 2023).

The module is in ``_tower.py``; torch is not imported here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from vlmodel.config import ConfigError
from vlmodel.language._settings import SETTING, EncoderConfig
from vlmodel.part_configs import Vocabulary
from vlmodel.weights import config_to_dict, open_any_transformers_config

if TYPE_CHECKING:
    from vlmodel.language._tower import TextTower

SEES_ONLY_BEFORE = {"clip_text_model": True, "siglip_text_model": False}
"""The architectures, and whether a token sees only those before it: what follows a text then changes nothing."""


class Config(EncoderConfig):
    """Settings of the text encoder of a CLIP or SigLIP, whose pooled vector was trained to be compared with images;
    ``pretrained`` names such a model, or its text tower alone. That vector is the first of its tokens.
    """

    kind: Literal["tower"] = "tower"
    architecture: str = "clip_text_model"
    """From scratch: transformers' name of the architecture ("model_type"), clip_text_model or siglip_text_model."""
    positions: int = Field(77, ge=1)
    """From scratch: greatest number of tokens in a text."""

    @model_validator(mode="after")
    def _check_settings(self) -> Config:
        reason = _unsupported_architecture_reason(self.architecture)
        if not self.pretrained and self.resolved is None and reason:
            raise ValueError(f"architecture={self.architecture!r} {reason}")
        return self

    def resolve_settings(self, vocabulary: Vocabulary) -> Config:
        """See ``LanguagePart``.

        Raises:
            ConfigError: the tower does not fit the tokenizer.
            WeightsError: it cannot be opened.
        """
        if self.resolved is not None:
            return self
        whole = (
            _open_text_tower_config(self.pretrained) if self.pretrained else self._new_transformers_config(vocabulary)
        )
        if whole.vocab_size < vocabulary.size:
            raise ConfigError(
                f"{SETTING}={self.pretrained!r} knows {whole.vocab_size} tokens and the tokenizer makes "
                f"{vocabulary.size}; use the tokenizer that belongs to it (vocabulary.tokenizer)"
            )
        return self.model_copy(update={"resolved": config_to_dict(whole)})

    def build(self, vocabulary: Vocabulary) -> TextTower:
        from vlmodel.language._tower import TextTower

        return TextTower(self.resolve_settings(vocabulary), vocabulary.padding)

    def can_pool_features(self) -> bool:
        return True

    def max_text_tokens(self) -> int | None:
        if self.resolved is not None:
            return int(self.resolved["max_position_embeddings"])
        return None if self.pretrained else self.positions

    def _new_transformers_config(self, vocabulary: Vocabulary) -> Any:
        from transformers import AutoConfig

        return AutoConfig.for_model(
            self.architecture,
            vocab_size=vocabulary.size,
            hidden_size=self.width,
            projection_size=self.width,
            num_hidden_layers=self.depth,
            num_attention_heads=self.heads,
            intermediate_size=self.expansion * self.width,
            max_position_embeddings=self.positions,
            pad_token_id=vocabulary.padding,
            bos_token_id=max(0, vocabulary.begin),
            eos_token_id=max(0, vocabulary.end),
        )


def _unsupported_architecture_reason(architecture: str) -> str | None:
    if architecture in SEES_ONLY_BEFORE:
        return None
    known = ", ".join(SEES_ONLY_BEFORE)
    return f"is no text tower that can be used here; use one of {known}, or language.kind='transformer'"


def _open_text_tower_config(source: str) -> Any:
    """Read transformers' configuration of the text tower of a model in a folder or on the hub.

    Raises:
        WeightsError: it cannot be opened.
        ConfigError: it has no text tower that can be used.
    """
    whole = open_any_transformers_config(SETTING, source)
    config = getattr(whole, "text_config", whole)
    if reason := _unsupported_architecture_reason(config.model_type):
        raise ConfigError(f"{SETTING}={source!r}: its architecture {config.model_type!r} {reason}")
    if getattr(config, "projection_size", config.hidden_size) != config.hidden_size:
        raise ConfigError(
            f"{SETTING}={source!r}: the vector of its texts has {config.projection_size} numbers and their tokens "
            f"{config.hidden_size}, which must be equal here"
        )
    return config
