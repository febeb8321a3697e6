"""Text encoders of the transformers library: BERT, RoBERTa, XLNet, DistilBERT, ..., pretrained or new."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from vlmodel import lora, parts
from vlmodel.config import ConfigError
from vlmodel.language import _architectures
from vlmodel.language._architectures import ARCHITECTURES
from vlmodel.layers import (
    ACTIVATIONS,
    check_activation_has_projection,
    check_heads_divide_width,
    masked_mean,
    masked_softmax,
    parameter_names_by_stage,
    to_transformers_mask,
)
from vlmodel.lora import LoraSettings
from vlmodel.tokens import Tokens
from vlmodel.weights import (
    config_from_dict,
    config_to_dict,
    open_transformers_config,
    open_transformers_model,
    refuse_missing_weights,
)

_SETTING = "language.pretrained"
_FEED_FORWARD = ("intermediate_size", "hidden_dim", "d_inner", "d_ff")
_HIDDEN_DROPOUT = ("hidden_dropout_prob", "hidden_dropout", "dropout", "embedding_dropout", "mlp_dropout")
_ATTENTION_DROPOUT = ("attention_probs_dropout_prob", "attention_dropout")
_XLNET_CLS_SEGMENT = 2


class Config(parts.LanguagePart):
    """Settings of a text encoder of the transformers library."""

    non_backbone_settings: ClassVar[frozenset[str]] = frozenset(
        {"pretrained", "projection", "activation", "output", "frozen", "dropout", "lora"}
    )

    kind: Literal["transformer"] = "transformer"
    pretrained: str = ""
    """Folder or hub name of a pretrained encoder (safetensors); "" builds one from scratch by the settings below."""
    architecture: str = "bert"
    """From scratch: transformers' name of the architecture ("model_type"), such as bert, roberta or xlnet."""
    width: int = Field(256, ge=1)
    """From scratch: width of the tokens."""
    depth: int = Field(2, ge=0)
    """From scratch: number of layers; with 0 the tokens are the embeddings."""
    heads: int = Field(4, ge=1)
    """From scratch: attention heads."""
    expansion: int = Field(4, ge=1)
    """From scratch: width of the feed-forward layers, in multiples of ``width``."""
    positions: int = Field(128, ge=1)
    """From scratch: greatest number of tokens in a text; XLNet, which knows distances only, has no limit."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """From scratch: dropout of embeddings and layers; attention has none, for which fast kernels exist."""
    layers: int | None = Field(None, ge=0)
    """Keep only the first layers, 0 for the embeddings alone; null keeps all."""
    pooling: Literal["cls", "mean", "attention"] = "cls"
    """The pooled vector: the classification token, or the mean of the real tokens, even or with learned weights."""
    output: Literal["tokens", "pooled"] = "tokens"
    """All tokens of the text, or its pooled vector as the only token, which makes the fusion cheaper."""
    projection: int | None = Field(None, ge=1)
    """Width of a linear projection of the tokens; null for none."""
    activation: Literal["none", "gelu", "relu", "tanh"] = "none"
    """Activation after the projection."""
    frozen: bool = False
    """Do not train the encoder (its projection is always trained)."""
    frozen_layers: int = Field(0, ge=0)
    """Do not train the embeddings and this many of the first layers; 0 trains the embeddings too."""
    lora: LoraSettings | None = None
    """Low-rank adapters in the encoder, which is frozen but for them; null for none."""
    resolved: dict[str, Any] | None = None
    """transformers' configuration of the encoder; filled in when the model is created, and stored with it."""

    @model_validator(mode="after")
    def _check_settings(self) -> Config:
        check_activation_has_projection(self.activation, self.projection is not None)
        if self.lora is not None and (self.frozen or self.frozen_layers):
            partly = "frozen" if self.frozen else "frozen_layers"
            raise ValueError(f"lora trains adapters in an encoder that is frozen but for them; leave {partly} out")
        if not self.pretrained and self.resolved is None:
            if reason := _architectures.unsupported_architecture_reason(self.architecture):
                raise ValueError(f"architecture={self.architecture!r} {reason}")
            if 0 in (self.depth, self.layers) and not ARCHITECTURES[self.architecture].works_without_layers:
                raise ValueError(f"architecture={self.architecture!r} cannot be built without layers; keep one or more")
            check_heads_divide_width(self.width, self.heads)
            # The layers do not depend on the tokenizer, which is not known yet.
            self._drop_last_layers(self._new_transformers_config(parts.Vocabulary(size=100_000, padding=0, labels=0)))
        return self

    def resolve_settings(self, vocabulary: parts.Vocabulary) -> Config:
        """See ``LanguagePart``.

        Raises:
            ConfigError: the encoder does not fit the tokenizer, or has too few layers.
            WeightsError: the pretrained encoder cannot be opened.
        """
        if self.resolved is not None:
            return self
        whole = (
            self._open_pretrained_config(vocabulary) if self.pretrained else self._new_transformers_config(vocabulary)
        )
        config = self.model_copy(update={"resolved": config_to_dict(whole)})
        config.transformers_config()
        return config

    def build(self, vocabulary: parts.Vocabulary) -> TransformerEncoder:
        return TransformerEncoder(self.resolve_settings(vocabulary))

    def is_frozen(self) -> bool:
        return self.frozen and self.layers != 0

    def can_pool_features(self) -> bool:
        # A linear projection of the mean is the mean of the projections; that is not true of an activation.
        return self.pooling == "cls" or (self.pooling == "mean" and self.activation == "none")

    def outputs_tokens(self) -> bool:
        return self.output == "tokens"

    def max_text_tokens(self) -> int | None:
        if self.resolved is not None:
            return _architectures.max_text_tokens(self.resolved)
        return self.positions if not self.pretrained and ARCHITECTURES[self.architecture].limited else None

    def accepts_token_layout(self) -> bool:
        name = self.resolved["model_type"] if self.resolved is not None else self.architecture
        # The architecture of a pretrained encoder is known only when it is resolved; ``TransformerEncoder`` refuses.
        return (bool(self.pretrained) and self.resolved is None) or name in _architectures.ARRANGING

    def embeddings_only(self) -> Config:
        from_scratch = not self.pretrained and self.resolved is None
        if from_scratch and not ARCHITECTURES[self.architecture].works_without_layers:
            raise ConfigError(
                f"language.architecture={self.architecture!r} cannot be built without layers; use another encoder such "
                "as bert, or topology.kind='dual' or 'interactive'"
            )
        frozen = self.frozen or self.frozen_layers > 0
        return self.model_copy(update={"layers": 0, "frozen": frozen, "frozen_layers": 0})

    def transformers_config(self) -> Any:
        """transformers' configuration of the encoder that is built, with only the layers that are kept.

        Raises:
            ConfigError: there are fewer layers than ``layers`` or ``frozen_layers``, or one layer is repeated.
        """
        assert self.resolved is not None
        return self._drop_last_layers(config_from_dict(self.resolved))

    def _drop_last_layers(self, config: Any) -> Any:
        if self.layers is not None:
            _architectures.keep_first_layers(config, self.layers)
        if self.frozen_layers > config.num_hidden_layers:
            raise ConfigError(
                f"language.frozen_layers={self.frozen_layers} is more than the {config.num_hidden_layers} layers kept"
            )
        if self.frozen_layers and not ARCHITECTURES[config.model_type].layers:
            raise ConfigError(
                f"language.frozen_layers={self.frozen_layers}: in {config.model_type} one layer stands for all; use "
                "language.frozen, or 0"
            )
        return config

    def _new_transformers_config(self, vocabulary: parts.Vocabulary) -> Any:
        from transformers import AutoConfig

        names = _architectures.list_setting_names(self.architecture)
        first = _architectures.first_position_number(self.architecture, vocabulary.padding)
        optional: dict[str, Any] = {
            "max_position_embeddings": first + self.positions,
            "embedding_size": self.width,  # ELECTRA's, ALBERT's
            "d_head": self.width // self.heads,  # XLNet's
            **dict.fromkeys(_FEED_FORWARD, self.expansion * self.width),
            **dict.fromkeys(_HIDDEN_DROPOUT, self.dropout),
            **dict.fromkeys(_ATTENTION_DROPOUT, 0.0),
        }
        return AutoConfig.for_model(
            self.architecture,
            vocab_size=vocabulary.size,
            pad_token_id=vocabulary.padding,
            hidden_size=self.width,
            num_hidden_layers=self.depth,
            num_attention_heads=self.heads,
            **{name: value for name, value in optional.items() if name in names},
        )

    def _open_pretrained_config(self, vocabulary: parts.Vocabulary) -> Any:
        config = open_transformers_config(
            _SETTING, self.pretrained, vocabulary.size, _architectures.unsupported_architecture_reason
        )
        if config.pad_token_id != vocabulary.padding:
            raise ConfigError(
                f"{_SETTING}={self.pretrained!r} pads texts with token {config.pad_token_id} and the tokenizer with "
                f"{vocabulary.padding}; use the tokenizer that belongs to it"
            )
        return config


class TransformerEncoder(parts.LanguageEncoder):
    """A text encoder of transformers without its pooler, and an optional projection.

    In the result the classification token comes first, then the other tokens in their order, then the padding, wherever
    the tokenizer puts them.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        from transformers import AutoModel

        self.config = config
        inner = config.transformers_config()
        self.encoder = AutoModel.from_config(inner, trust_remote_code=False)
        _architectures.remove_or_freeze_unused_weights(self.encoder)
        self.projection: nn.Module = nn.Identity()
        if config.projection is not None:
            self.projection = nn.Linear(inner.hidden_size, config.projection)
        self.activation = ACTIVATIONS[config.activation]()
        self.width = config.projection or inner.hidden_size
        self.mix = nn.Linear(self.width, 1, bias=False) if config.pooling == "attention" else None
        self._name = inner.model_type
        self._architecture = ARCHITECTURES[inner.model_type]
        if config.frozen:
            self.freeze_submodules("encoder")
        elif config.frozen_layers:
            first = _architectures.first_layer_paths(self._name, self.encoder, config.frozen_layers)
            self.freeze_submodules(*(f"encoder.{path}" for path in first))
        elif config.lora is not None:
            self.add_adapters("encoder", config.lora)

    def forward(self, input_ids_NT: Tensor, mask_NT: Tensor, layout: parts.TokenLayout | None = None) -> Tokens:
        if not len(input_ids_NT):
            # transformers cannot reshape an empty batch. A row of padding is encoded in its place, so that every
            # parameter still has a gradient.
            one = self(input_ids_NT.new_zeros(1, input_ids_NT.shape[1]), mask_NT.new_zeros(1, mask_NT.shape[1]))
            return Tokens(one.x_BTD[:0], one.mask_BT[:0], one.pooled_BD[:0])
        return self._project_tokens(*self.compute_features(input_ids_NT, mask_NT, layout))

    def compute_features(
        self, input_ids_NT: Tensor, mask_NT: Tensor, layout: parts.TokenLayout | None = None
    ) -> tuple[Tensor, Tensor]:
        """See ``LanguageEncoder``.

        Raises:
            ConfigError: the tokens have a layout, which this architecture cannot have.
        """
        order_NT = _cls_first_indices(mask_NT, self._architecture.cls)
        ordered_NT = mask_NT.take_along_dim(order_NT, 1)
        if layout is not None:
            return self._encode_with_layout(input_ids_NT.take_along_dim(order_NT, 1), ordered_NT, layout, order_NT)
        if self._architecture.cls == "first":
            return self._encode_tokens(input_ids_NT.take_along_dim(order_NT, 1), ordered_NT), ordered_NT
        return self._encode_tokens(input_ids_NT, mask_NT).take_along_dim(order_NT.unsqueeze(-1), 1), ordered_NT

    def pool_features(self, features_NTF: Tensor, mask_NT: Tensor) -> tuple[Tensor, Tensor]:
        assert self.config.can_pool_features()
        if self.config.pooling == "cls":
            return features_NTF[:, :1], mask_NT[:, :1]
        return masked_mean(features_NTF, mask_NT).unsqueeze(1), mask_NT.any(1, keepdim=True)

    def tokens_from_features(self, features_NTF: Tensor, mask_NT: Tensor) -> Tokens:
        # Cached features may have less precision than the weights.
        return self._project_tokens(features_NTF.to(self.encoder.dtype), mask_NT)

    def _project_tokens(self, x_NTD: Tensor, mask_NT: Tensor) -> Tokens:
        x_NTD = self.activation(self.projection(x_NTD))
        pooled_ND = self._pool_tokens(x_NTD, mask_NT)
        if self.config.output == "pooled":
            return Tokens(pooled_ND.unsqueeze(1), mask_NT[:, :1], pooled_ND)
        if self.mix is not None:
            # Not every fusion reads the pooled vector, and data-parallel training waits for every gradient.
            x_NTD = x_NTD + 0 * self.mix.weight
        return Tokens(x_NTD, mask_NT, pooled_ND)

    def _encode_tokens(self, input_ids_NT: Tensor, mask_NT: Tensor) -> Tensor:
        options: dict[str, Any] = {}
        if self._name == "xlnet":
            segments_NT = _XLNET_CLS_SEGMENT * _last_token_mask(mask_NT).to(input_ids_NT.dtype)
            options = {"token_type_ids": segments_NT, "use_mems": False}
        # Attention over nothing is NaN: a text without tokens attends to its padding, and is masked afterwards.
        attended_NT = mask_NT | ~mask_NT.any(1, keepdim=True)
        x_NTD: Tensor = self.encoder(
            input_ids=input_ids_NT, attention_mask=self._attention_mask(attended_NT), **options
        ).last_hidden_state
        return x_NTD

    def _encode_with_layout(
        self, input_ids_NT: Tensor, mask_NT: Tensor, layout: parts.TokenLayout, order_NT: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Encode tokens with the positions and the attention mask of a ``TokenLayout``, in which they are in the
        tokenizer's order.
        """
        if self._name not in _architectures.ARRANGING:
            raise ConfigError(
                f"model.knowledge.layout='tree' arranges tokens, and {self._name!r} knows their order only; use one "
                f"of {', '.join(sorted(_architectures.ARRANGING))}, or layout='flat'"
            )
        positions_NT = layout.positions_NT.take_along_dim(order_NT, 1)
        visible_NTT = layout.visible_NTT.take_along_dim(order_NT.unsqueeze(2), 1)
        visible_NTT = visible_NTT.take_along_dim(order_NT.unsqueeze(1), 2) & mask_NT.unsqueeze(1)
        # Padding attends to itself: attention over nothing is NaN.
        visible_NTT = visible_NTT | torch.eye(mask_NT.shape[1], dtype=torch.bool, device=mask_NT.device)
        first = _architectures.first_position_number(self._name, self.encoder.config.pad_token_id)
        x_NTD: Tensor = self.encoder(
            input_ids=input_ids_NT,
            attention_mask=to_transformers_mask(self.encoder, visible_NTT.unsqueeze(1)),
            position_ids=positions_NT + first,
        ).last_hidden_state
        return x_NTD, mask_NT

    def _attention_mask(self, mask_NT: Tensor) -> Any:
        if self._architecture.mask == "rows":
            return mask_NT.long()
        mask_N1QT = mask_NT[:, None, None, :]
        if self._architecture.mask == "keys":
            return to_transformers_mask(self.encoder, mask_N1QT)
        place_T = torch.arange(mask_NT.shape[1], device=mask_NT.device)
        near_QT = (place_T[:, None] - place_T).abs() <= self.encoder.config.sliding_window
        return {
            "full_attention": to_transformers_mask(self.encoder, mask_N1QT),
            "sliding_attention": to_transformers_mask(self.encoder, mask_N1QT & near_QT),
        }

    def _pool_tokens(self, x_NTD: Tensor, mask_NT: Tensor) -> Tensor:
        if self.config.pooling == "mean":
            return masked_mean(x_NTD, mask_NT)
        if self.mix is None:
            return x_NTD[:, 0] * mask_NT[:, :1]  # zero for a text without any token
        weights_NT1 = masked_softmax(self.mix(x_NTD), mask_NT.unsqueeze(-1), dim=1)
        return (weights_NT1 * x_NTD).sum(1)

    def load_pretrained(self) -> None:
        source = self.config.pretrained
        if not source:
            return
        from transformers import AutoModel

        assert self.config.resolved is not None
        whole, missing = open_transformers_model(AutoModel, _SETTING, source, config_from_dict(self.config.resolved))
        names, state = lora.names_without_adapters(self.encoder), whole.state_dict()
        refuse_missing_weights(_SETTING, source, missing & set(names.values()))
        self.encoder.load_state_dict({name: state[plain] for name, plain in names.items()}, strict=False)

    def pretrained_parameters(self) -> Iterator[nn.Parameter]:
        yield from itertools.chain.from_iterable(self.pretrained_layers())

    def pretrained_layers(self) -> list[list[nn.Parameter]]:
        if not self.config.pretrained or self.config.lora is not None:
            return []
        own, path = dict(self.encoder.named_parameters()), self._architecture.layers
        stages: list[list[str]] = parameter_names_by_stage(self.encoder, path) if path else [list(own)]
        return [[own[name] for name in names if own[name].requires_grad] for names in stages]


def _cls_first_indices(mask_NT: Tensor, cls: Literal["first", "last"]) -> Tensor:
    """Return indices (N, T) that sort tokens: first the classification token, then the other real tokens, then
    padding.
    """
    rank_NT = mask_NT.int()
    if cls == "last":
        rank_NT = rank_NT + _last_token_mask(mask_NT)
    return rank_NT.argsort(dim=1, descending=True, stable=True)


def _last_token_mask(mask_NT: Tensor) -> Tensor:
    """Mask the last real token of each row (N, T)."""
    return mask_NT & (mask_NT.flip(1).cumsum(1).flip(1) == 1)
