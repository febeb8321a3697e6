"""Text towers of models that compare images and texts: CLIP (Radford et al. 2021) and SigLIP (Zhai et al. 2023)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from vlmodel import lora, parts
from vlmodel.config import ConfigError
from vlmodel.layers import parameter_names_by_stage
from vlmodel.lora import LoraSettings
from vlmodel.tokens import Tokens
from vlmodel.weights import (
    config_from_dict,
    config_to_dict,
    open_any_transformers_config,
    open_transformers_model,
    refuse_missing_weights,
)

_SETTING = "language.pretrained"
_TOWER = "text_model"
_PREFIXED = {"clip_text_model": True, "siglip_text_model": False}
"""Whether a token sees only those before it: what follows a text then changes nothing."""


class Config(parts.LanguagePart):
    """Settings of the text encoder of a CLIP or SigLIP, whose pooled vector was trained to be compared with images."""

    non_backbone_settings: ClassVar[frozenset[str]] = frozenset(
        {"pretrained", "projection", "output", "frozen", "lora"}
    )

    kind: Literal["tower"] = "tower"
    pretrained: str = ""
    """Folder or hub name of a CLIP or SigLIP (safetensors), or of its text tower; "" makes one from scratch."""
    architecture: str = "clip_text_model"
    """From scratch: transformers' name of the architecture ("model_type"), clip_text_model or siglip_text_model."""
    width: int = Field(256, ge=1)
    """From scratch: width of the tokens."""
    depth: int = Field(2, ge=1)
    """From scratch: number of layers."""
    heads: int = Field(4, ge=1)
    """From scratch: attention heads."""
    expansion: int = Field(4, ge=1)
    """From scratch: width of the feed-forward layers, in multiples of ``width``."""
    positions: int = Field(77, ge=1)
    """From scratch: greatest number of tokens in a text."""
    output: Literal["tokens", "pooled"] = "tokens"
    """All tokens of the text, behind its vector as the first, or the vector alone, which makes the fusion cheaper."""
    projection: int | None = Field(None, ge=1)
    """Width of a linear projection of the tokens; null for none."""
    frozen: bool = False
    """Do not train the tower (its projection is always trained)."""
    lora: LoraSettings | None = None
    """Low-rank adapters in the tower, which is frozen but for them; null for none."""
    resolved: dict[str, Any] | None = None
    """transformers' configuration of the tower; filled in when the model is created, and stored with it."""

    @model_validator(mode="after")
    def _check_settings(self) -> Config:
        if self.lora is not None and self.frozen:
            raise ValueError("lora trains adapters in a tower that is frozen but for them; leave frozen out")
        if not self.pretrained and self.resolved is None:
            if reason := _unsupported_architecture_reason(self.architecture):
                raise ValueError(f"architecture={self.architecture!r} {reason}")
            if self.width % self.heads:
                raise ValueError(f"width={self.width} cannot be shared by heads={self.heads}; make it a multiple")
        return self

    def resolve_settings(self, vocabulary: parts.Vocabulary) -> Config:
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
                f"{_SETTING}={self.pretrained!r} knows {whole.vocab_size} tokens and the tokenizer makes "
                f"{vocabulary.size}; use the tokenizer that belongs to it (vocabulary.tokenizer)"
            )
        return self.model_copy(update={"resolved": config_to_dict(whole)})

    def build(self, vocabulary: parts.Vocabulary) -> TextTower:
        return TextTower(self.resolve_settings(vocabulary), vocabulary.padding)

    def is_frozen(self) -> bool:
        return self.frozen

    def can_pool_features(self) -> bool:
        return True

    def outputs_tokens(self) -> bool:
        return self.output == "tokens"

    def max_text_tokens(self) -> int | None:
        if self.resolved is not None:
            return int(self.resolved["max_position_embeddings"])
        return None if self.pretrained else self.positions

    def _new_transformers_config(self, vocabulary: parts.Vocabulary) -> Any:
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


class TextTower(parts.LanguageEncoder):
    """The text encoder of a CLIP or SigLIP of transformers.

    CLIP's vector of a text is that of its last token. SigLIP was trained with texts padded to its greatest length,
    without a mask, and its vector is that of the last position; so each text is padded to that length here, however
    long the batch is.

    Args:
        padding: token id of the padding.
    """

    def __init__(self, config: Config, padding: int) -> None:
        super().__init__()
        assert config.resolved is not None
        self.config, self.padding = config, padding
        inner = config_from_dict(config.resolved)
        self._window = int(inner.max_position_embeddings)
        self._sees_only_before = _PREFIXED[inner.model_type]
        self.encoder: Any = _text_tower_class(inner.model_type)._from_config(inner)
        self.projection: nn.Module = (
            nn.Linear(inner.hidden_size, config.projection) if config.projection else nn.Identity()
        )
        self.width = config.projection or inner.hidden_size
        if config.frozen:
            self.freeze_submodules("encoder")
        elif config.lora is not None:
            self.add_adapters("encoder", config.lora)

    def forward(self, input_ids_NT: Tensor, mask_NT: Tensor) -> Tokens:
        if not len(input_ids_NT):
            # transformers cannot reshape an empty batch. A row of padding is encoded in its place, so that every
            # parameter still has a gradient.
            one = self(input_ids_NT.new_zeros(1, input_ids_NT.shape[1]), mask_NT.new_zeros(1, mask_NT.shape[1]))
            return Tokens(one.x_BTD[:0], one.mask_BT[:0], one.pooled_BD[:0])
        return self.tokens_from_features(*self.compute_features(input_ids_NT, mask_NT))

    def compute_features(self, input_ids_NT: Tensor, mask_NT: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the features of N texts: first the vector of the whole text, then its tokens (N, 1 + T, F); and a
        mask of which are real (N, 1 + T).
        """
        order_NT = mask_NT.int().argsort(dim=1, descending=True, stable=True)
        mask_NT = mask_NT.take_along_dim(order_NT, 1)
        ids_NT = input_ids_NT.take_along_dim(order_NT, 1).masked_fill(~mask_NT, self.padding)
        count = ids_NT.shape[1]
        if not self._sees_only_before:
            ids_NT = nn.functional.pad(ids_NT, (0, self._window - count), value=self.padding)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.frozen):
            given = self.encoder(input_ids=ids_NT)
        x_NTF, pooled_NF = given.last_hidden_state, given.pooler_output
        if self._sees_only_before:
            last_N = mask_NT.sum(1).sub(1).clamp_min(0)
            pooled_NF = x_NTF[torch.arange(len(x_NTF), device=x_NTF.device), last_N]
        features_NTF = torch.cat([pooled_NF.unsqueeze(1), x_NTF[:, :count]], 1)
        return features_NTF, torch.cat([mask_NT.any(1, keepdim=True), mask_NT], 1)

    def pool_features(self, features_NTF: Tensor, mask_NT: Tensor) -> tuple[Tensor, Tensor]:
        return features_NTF[:, :1], mask_NT[:, :1]

    def tokens_from_features(self, features_NTF: Tensor, mask_NT: Tensor) -> Tokens:
        # Cached features may have less precision than the weights.
        x_NTD = self.projection(features_NTF.to(self.encoder.dtype))
        pooled_ND = x_NTD[:, 0] * mask_NT[:, :1]  # zero for a text without any token
        if self.config.output == "pooled":
            return Tokens(pooled_ND.unsqueeze(1), mask_NT[:, :1], pooled_ND)
        return Tokens(x_NTD, mask_NT, pooled_ND)

    def load_pretrained(self) -> None:
        source = self.config.pretrained
        if not source:
            return
        from transformers import AutoModel

        config = open_any_transformers_config(_SETTING, source)
        is_whole = hasattr(config, "text_config")
        whole, missing = open_transformers_model(
            AutoModel if is_whole else _text_tower_class(config.model_type), _SETTING, source, config
        )
        state = getattr(whole, _TOWER, whole).state_dict()
        names = lora.names_without_adapters(self.encoder)
        refuse_missing_weights(_SETTING, source, {name.removeprefix(f"{_TOWER}.") for name in missing} & set(state))
        self.encoder.load_state_dict({name: state[plain] for name, plain in names.items()}, strict=False)

    def pretrained_parameters(self) -> Iterator[nn.Parameter]:
        yield from itertools.chain.from_iterable(self.pretrained_layers())

    def pretrained_layers(self) -> list[list[nn.Parameter]]:
        if not self.config.pretrained or self.config.lora is not None:
            return []
        own = dict(self.encoder.named_parameters())
        stages = parameter_names_by_stage(self.encoder, "encoder.layers")
        return [[own[name] for name in names if own[name].requires_grad] for names in stages]


def _unsupported_architecture_reason(architecture: str) -> str | None:
    if architecture in _PREFIXED:
        return None
    return f"is no text tower that can be used here; use one of {', '.join(_PREFIXED)}, or language.kind='transformer'"


def _text_tower_class(architecture: str) -> Any:
    """Find transformers' class of the text tower alone; ``AutoModel`` would load the image tower too."""
    from transformers import CLIPTextModel, SiglipTextModel

    return {"clip_text_model": CLIPTextModel, "siglip_text_model": SiglipTextModel}[architecture]


def _open_text_tower_config(source: str) -> Any:
    """Read transformers' configuration of the text tower of a model in a folder or on the hub.

    Raises:
        WeightsError: it cannot be opened.
        ConfigError: it has no text tower that can be used.
    """
    whole = open_any_transformers_config(_SETTING, source)
    config = getattr(whole, "text_config", whole)
    if reason := _unsupported_architecture_reason(config.model_type):
        raise ConfigError(f"{_SETTING}={source!r}: its architecture {config.model_type!r} {reason}")
    if getattr(config, "projection_size", config.hidden_size) != config.hidden_size:
        raise ConfigError(
            f"{_SETTING}={source!r}: the vector of its texts has {config.projection_size} numbers and their tokens "
            f"{config.hidden_size}, which must be equal here"
        )
    return config
