"""The module of ``tower``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vlmodel.language._encoder import TextEncoder
from vlmodel.language._settings import SETTING
from vlmodel.language.tower import SEES_ONLY_BEFORE
from vlmodel.layers import indices_by_rank, parameter_names_by_stage
from vlmodel.tokens import Tokens
from vlmodel.weights import (
    config_from_dict,
    open_any_transformers_config,
    open_transformers_model,
    refuse_missing_weights,
)

if TYPE_CHECKING:
    from vlmodel.language.tower import Config

_TOWER = "text_model"


class TextTower(TextEncoder):
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
        self._sees_only_before = SEES_ONLY_BEFORE[inner.model_type]
        self.encoder: Any = _text_tower_class(inner.model_type)._from_config(inner)
        self.projection: nn.Module = (
            nn.Linear(inner.hidden_size, config.projection) if config.projection else nn.Identity()
        )
        self.width = config.projection or inner.hidden_size
        self.freeze_encoder_or_add_adapters()

    def compute_features(self, input_ids_NT: Tensor, mask_NT: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the features of N texts: first the vector of the whole text, then its tokens (N, 1 + T, F); and a
        mask of which are real (N, 1 + T).
        """
        order_NT = indices_by_rank(mask_NT)
        # Not ``take_along_dim``, which torch.export can trace for one length only.
        mask_NT = mask_NT.gather(1, order_NT)
        ids_NT = input_ids_NT.gather(1, order_NT).masked_fill(~mask_NT, self.padding)
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

    def project_tokens(self, features_NTF: Tensor, mask_NT: Tensor) -> Tokens:
        x_NTD = self.projection(features_NTF)
        pooled_ND = x_NTD[:, 0] * mask_NT[:, :1]  # zero for a text without any token
        if self.config.output == "pooled":
            return Tokens(pooled_ND.unsqueeze(1), mask_NT[:, :1], pooled_ND)
        return Tokens(x_NTD, mask_NT, pooled_ND)

    def load_pretrained(self) -> None:
        source = self.config.pretrained
        if not source:
            return
        from transformers import AutoModel

        config = open_any_transformers_config(SETTING, source)
        is_whole = hasattr(config, "text_config")
        whole, missing = open_transformers_model(
            AutoModel if is_whole else _text_tower_class(config.model_type), SETTING, source, config
        )
        state = getattr(whole, _TOWER, whole).state_dict()
        refuse_missing_weights(SETTING, source, {name.removeprefix(f"{_TOWER}.") for name in missing} & set(state))
        self.load_encoder_weights(state)

    def parameter_names_by_stage(self) -> Sequence[Sequence[str]]:
        return parameter_names_by_stage(self.encoder, "encoder.layers")


def _text_tower_class(architecture: str) -> Any:
    """Find transformers' class of the text tower alone; ``AutoModel`` would load the image tower too."""
    from transformers import CLIPTextModel, SiglipTextModel

    return {"clip_text_model": CLIPTextModel, "siglip_text_model": SiglipTextModel}[architecture]
