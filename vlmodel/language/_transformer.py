"""The module of ``transformer``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from vlmodel import lora, parts
from vlmodel.config import ConfigError
from vlmodel.language import _architectures
from vlmodel.language._architectures import ARCHITECTURES
from vlmodel.language._encoder import TextEncoder
from vlmodel.language._settings import SETTING
from vlmodel.layers import (
    ACTIVATIONS,
    indices_by_rank,
    masked_mean,
    masked_softmax,
    parameter_names_by_stage,
    to_transformers_mask,
)
from vlmodel.tokens import Tokens
from vlmodel.weights import (
    config_from_dict,
    open_transformers_model,
    refuse_missing_weights,
)

if TYPE_CHECKING:
    from vlmodel.language.transformer import Config


_XLNET_CLS_SEGMENT = 2


class TransformerEncoder(TextEncoder):
    """A text encoder of transformers without its pooler, and an optional projection.

    In the result the classification token comes first, then the other tokens in their order, then the padding, wherever
    the tokenizer puts them.
    """

    config: Config

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
        self.freeze_encoder_or_add_adapters()
        if config.frozen_layers and not config.frozen:
            first = _architectures.first_layer_paths(self._name, self.encoder, config.frozen_layers)
            self.freeze_submodules(*(f"encoder.{path}" for path in first))

    def compute_features(
        self, input_ids_NT: Tensor, mask_NT: Tensor, layout: parts.TokenLayout | None = None
    ) -> tuple[Tensor, Tensor]:
        """See ``LanguageEncoder``.

        Raises:
            ConfigError: the tokens have a layout, which this architecture cannot have.
        """
        order_NT = _cls_first_indices(mask_NT, self._architecture.cls)
        # Not ``take_along_dim``, which torch.export can trace for one length only.
        ordered_NT = mask_NT.gather(1, order_NT)
        if layout is not None:
            return self._encode_with_layout(input_ids_NT.gather(1, order_NT), ordered_NT, layout, order_NT)
        if self._architecture.cls == "first":
            return self._encode_tokens(input_ids_NT.gather(1, order_NT), ordered_NT), ordered_NT
        x_NTD = self._encode_tokens(input_ids_NT, mask_NT)
        return x_NTD.gather(1, order_NT.unsqueeze(-1).expand_as(x_NTD)), ordered_NT

    def pool_features(self, features_NTF: Tensor, mask_NT: Tensor) -> tuple[Tensor, Tensor]:
        assert self.config.can_pool_features()
        if self.config.pooling == "cls":
            return features_NTF[:, :1], mask_NT[:, :1]
        return masked_mean(features_NTF, mask_NT).unsqueeze(1), mask_NT.any(1, keepdim=True)

    def project_tokens(self, features_NTF: Tensor, mask_NT: Tensor) -> Tokens:
        x_NTD = self.activation(self.projection(features_NTF))
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
        whole, missing = open_transformers_model(AutoModel, SETTING, source, config_from_dict(self.config.resolved))
        refuse_missing_weights(SETTING, source, missing & set(lora.names_without_adapters(self.encoder).values()))
        self.load_encoder_weights(whole.state_dict())

    def parameter_names_by_stage(self) -> Sequence[Sequence[str]]:
        path = self._architecture.layers
        if not path:
            return [[name for name, _ in self.encoder.named_parameters()]]
        return parameter_names_by_stage(self.encoder, path)


def _cls_first_indices(mask_NT: Tensor, cls: Literal["first", "last"]) -> Tensor:
    """Return indices (N, T) that sort tokens: first the classification token, then the other real tokens, then
    padding.
    """
    rank_NT = mask_NT.int()
    if cls == "last":
        rank_NT = rank_NT + _last_token_mask(mask_NT)
    return indices_by_rank(rank_NT)


def _last_token_mask(mask_NT: Tensor) -> Tensor:
    """Mask the last real token of each row (N, T)."""
    return mask_NT & (mask_NT.flip(1).cumsum(1).flip(1) == 1)
