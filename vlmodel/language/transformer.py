"""Text encoders of the transformers library: BERT, RoBERTa, XLNet, DistilBERT, ..., pretrained or new."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from vlmodel.config import ConfigError
from vlmodel.language import _architectures
from vlmodel.language._architectures import ARCHITECTURES
from vlmodel.language._settings import SETTING, EncoderConfig
from vlmodel.layer_settings import check_activation_has_projection
from vlmodel.part_configs import Vocabulary
from vlmodel.weights import (
    config_from_dict,
    config_to_dict,
    open_transformers_config,
)

if TYPE_CHECKING:
    from vlmodel.language._transformer import TransformerEncoder


_FEED_FORWARD = ("intermediate_size", "hidden_dim", "d_inner", "d_ff")
_HIDDEN_DROPOUT = ("hidden_dropout_prob", "hidden_dropout", "dropout", "embedding_dropout", "mlp_dropout")
_ATTENTION_DROPOUT = ("attention_probs_dropout_prob", "attention_dropout")


class Config(EncoderConfig):
    """Settings of a text encoder of the transformers library."""

    non_backbone_settings: ClassVar[frozenset[str]] = EncoderConfig.non_backbone_settings | {"activation", "dropout"}

    kind: Literal["transformer"] = "transformer"
    architecture: str = "bert"
    """From scratch: transformers' name of the architecture ("model_type"), such as bert, roberta or xlnet."""
    depth: int = Field(2, ge=0)
    """From scratch: number of layers; with 0 the tokens are the embeddings."""
    positions: int = Field(128, ge=1)
    """From scratch: greatest number of tokens in a text; XLNet, which knows distances only, has no limit."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """From scratch: dropout of embeddings and layers; attention has none, for which fast kernels exist."""
    layers: int | None = Field(None, ge=0)
    """Keep only the first layers, 0 for the embeddings alone; null keeps all."""
    pooling: Literal["cls", "mean", "attention"] = "cls"
    """The pooled vector: the classification token, or the mean of the real tokens, even or with learned weights."""
    activation: Literal["none", "gelu", "relu", "tanh"] = "none"
    """Activation after the projection."""
    frozen_layers: int = Field(0, ge=0)
    """Do not train the embeddings and this many of the first layers; 0 trains the embeddings too."""

    @model_validator(mode="after")
    def _check_settings(self) -> Config:
        check_activation_has_projection(self.activation, self.projection is not None)
        if not self.pretrained and self.resolved is None:
            if reason := _architectures.unsupported_architecture_reason(self.architecture):
                raise ValueError(f"architecture={self.architecture!r} {reason}")
            if 0 in (self.depth, self.layers) and not ARCHITECTURES[self.architecture].works_without_layers:
                raise ValueError(f"architecture={self.architecture!r} cannot be built without layers; keep one or more")
            if self.layers is not None or self.frozen_layers:
                # The layers do not depend on the tokenizer, which is not known yet.
                unknown = Vocabulary(size=100_000, padding=0, labels=0)
                self._drop_last_layers(self._new_transformers_config(unknown))
        return self

    def resolve_settings(self, vocabulary: Vocabulary) -> Config:
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

    def build(self, vocabulary: Vocabulary) -> TransformerEncoder:
        from vlmodel.language._transformer import TransformerEncoder

        return TransformerEncoder(self.resolve_settings(vocabulary))

    def is_frozen(self) -> bool:
        return self.frozen and self.layers != 0

    def can_pool_features(self) -> bool:
        # A linear projection of the mean is the mean of the projections; that is not true of an activation.
        return self.pooling == "cls" or (self.pooling == "mean" and self.activation == "none")

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

    def _new_transformers_config(self, vocabulary: Vocabulary) -> Any:
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

    def _open_pretrained_config(self, vocabulary: Vocabulary) -> Any:
        config = open_transformers_config(
            SETTING, self.pretrained, vocabulary.size, _architectures.unsupported_architecture_reason
        )
        if config.pad_token_id != vocabulary.padding:
            raise ConfigError(
                f"{SETTING}={self.pretrained!r} pads texts with token {config.pad_token_id} and the tokenizer with "
                f"{vocabulary.padding}; use the tokenizer that belongs to it"
            )
        return config
