"""The module of the encoder ``hf``."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vlmodel import lora, parts
from vlmodel.layers import masked_mean
from vlmodel.modality.hf import AST, FBANK_HOP, FBANK_WINDOW, PRETRAINED, SETTING, WHISPER, deterministic_tower_config
from vlmodel.tokens import Tokens
from vlmodel.weights import config_from_dict, open_transformers_model, refuse_missing_weights

if TYPE_CHECKING:
    from vlmodel.modality.hf import Config

# Learned for masks in pretraining, and used by nothing here.
_UNUSED = "masked_spec_embed"
# Linear layers by architecture whose weights are read without calling them: WavLM gives them to torch's attention.
_NEVER_CALLED = {"wavlm": ("q_proj", "k_proj", "v_proj", "out_proj")}


class AudioTower(parts.ModalityEncoder):
    """Encodes sounds by the last hidden states of an audio tower and a projection. The pooled vector is the mean of the
    real tokens, for AST the mean of its two class tokens.

    What is real of a sound alone decides its tokens: a tower that reads waveforms and normalises its first convolution
    over time (``feat_extract_norm="group"``) gets sounds of each length apart.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        from transformers import AutoModel

        self.config = config
        settings = copy.deepcopy(deterministic_tower_config(json.dumps(config.audio_tower_config, sort_keys=True)))
        self.is_ast, self.is_whisper = settings.model_type == AST, settings.model_type == WHISPER
        self.backbone: Any = _encoder_of_model(AutoModel.from_config(settings, trust_remote_code=False))
        self.feature_width = settings.hidden_size
        self.width = config.projection or self.feature_width
        self.projection = nn.Linear(self.feature_width, self.width) if config.projection else nn.Identity()
        if config.frozen:
            self.freeze_submodules("backbone")
        elif config.lora is not None:
            names = _NEVER_CALLED.get(settings.model_type, ())
            paths = [path for path, _ in self.backbone.named_modules() if path.rpartition(".")[2] in names]
            self.add_adapters("backbone", config.lora, paths)
        for name, parameter in self.backbone.named_parameters():
            if name.rpartition(".")[2] == _UNUSED:
                parameter.requires_grad_(False)

    def forward(self, **arrays: Tensor) -> Tokens:
        """Return the tokens, given the arrays of ``Config.collate``."""
        return self.tokens_from_features(*self.compute_features(**arrays))

    def compute_features(self, length_B: Tensor, **arrays: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        (x,) = arrays.values()
        x = x.to(next(self.backbone.parameters()).dtype)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.frozen):
            if self.is_ast:
                x_BTF = self.backbone(input_values=x).last_hidden_state
                return x_BTF, self._ast_mask(x_BTF.shape[1], length_B)
            if self.is_whisper:
                x_BTF = self.backbone(x).last_hidden_state
                return x_BTF, _mask_first_tokens(x_BTF.shape[1], self._whisper_tokens(length_B))
            return self._encode_waveforms(x, length_B)

    def tokens_from_features(self, features_BTF: Tensor, mask_BT: Tensor) -> Tokens:
        weight = next(self.parameters())
        x_BTD = self.projection(features_BTF.to(weight.dtype))
        pooled_BD = x_BTD[:, :2].mean(1) if self.is_ast else masked_mean(x_BTD, mask_BT)
        return Tokens(x_BTD, mask_BT, pooled_BD)

    def weights_to_grid(self, weights_NT: Tensor) -> Tensor | None:
        """Return None: time has one dimension, and is no grid."""
        return None

    def weights_over_time(self, weights_NT: Tensor) -> Tensor | None:
        """Sum, for AST, the weights of the patches of the same time."""
        if not self.is_ast:
            return weights_NT
        bands, _ = self._count_patches()
        return weights_NT[:, 2:].unflatten(1, (bands, -1)).sum(1)

    def load_pretrained(self) -> None:
        config = self.config
        if not config.name or config.weights != PRETRAINED:
            return
        from transformers import AutoModel

        whole, missing = open_transformers_model(
            AutoModel, SETTING, config.name, config_from_dict(config.audio_tower_config)
        )
        state = _encoder_of_model(whole).state_dict()
        names = lora.names_without_adapters(self.backbone)
        lacking = {plain for plain in names.values() if plain not in state or {plain, f"encoder.{plain}"} & missing}
        refuse_missing_weights(SETTING, config.name, (name for name in lacking if name.rpartition(".")[2] != _UNUSED))
        known = {name: state[plain] for name, plain in names.items() if plain in state}
        self.backbone.load_state_dict(known, strict=False)

    def pretrained_parameters(self) -> Iterator[nn.Parameter]:
        if self.config.name and self.config.weights and self.config.lora is None:
            yield from (parameter for parameter in self.backbone.parameters() if parameter.requires_grad)

    def _encode_waveforms(self, x_BT: Tensor, length_B: Tensor) -> tuple[Tensor, Tensor]:
        tokens_B = self.backbone._get_feat_extract_output_lengths(length_B).long()
        longest = int(tokens_B.max()) if len(tokens_B) else 1
        mask_BT = _mask_first_tokens(longest, tokens_B)
        if self.backbone.config.feat_extract_norm == "layer" and len(x_BT):
            real_BT = _mask_first_tokens(x_BT.shape[1], length_B)
            x_BTF = self.backbone(x_BT, attention_mask=real_BT.long()).last_hidden_state[:, :longest]
            return x_BTF * mask_BT.unsqueeze(-1), mask_BT
        x_BTF = x_BT.new_zeros(*mask_BT.shape, self.feature_width)
        for length in length_B.unique().tolist():
            (row_P,) = torch.where(length_B == length)
            states_PTF = self.backbone(x_BT[row_P, :length]).last_hidden_state
            x_BTF = x_BTF.index_put((row_P,), nn.functional.pad(states_PTF, (0, 0, 0, longest - states_PTF.shape[1])))
        return x_BTF, mask_BT

    def _whisper_tokens(self, length_B: Tensor) -> Tensor:
        """Count Whisper's tokens: it makes a window every 160 samples, and a token of two windows."""
        return (length_B / (2 * FBANK_HOP)).ceil().long().clamp_min(1)

    def _ast_mask(self, tokens: int, length_B: Tensor) -> Tensor:
        """Mask AST's two class tokens, and the patches that begin within the real windows."""
        config = self.backbone.config
        bands, times = self._count_patches()
        windows_B = ((length_B - FBANK_WINDOW) // FBANK_HOP + 1).clamp_min(1)
        real_BT = torch.arange(times, device=length_B.device) * config.time_stride < windows_B.unsqueeze(1)
        return torch.cat([real_BT.new_ones(len(length_B), 2), real_BT.repeat(1, bands)], 1)[:, :tokens]

    def _count_patches(self) -> tuple[int, int]:
        """Count AST's patches along the bands, and along time."""
        config = self.backbone.config
        bands = (config.num_mel_bins - config.patch_size) // config.frequency_stride + 1
        return bands, (config.max_length - config.patch_size) // config.time_stride + 1


def _encoder_of_model(model: Any) -> Any:
    return model.get_encoder() if model.config.model_type == WHISPER else model


def _mask_first_tokens(longest: int, counts_B: Tensor) -> Tensor:
    """Build a mask (B, tokens of the longest row) that is True for the first ``counts_B[b]`` tokens of row b."""
    return torch.arange(longest, device=counts_B.device) < counts_B.unsqueeze(1)
