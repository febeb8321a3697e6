"""Vision encoders of the transformers library, loaded by its AutoModel: CLIP, SigLIP, DINOv2, ViT, Swin, ConvNeXt."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Collection, Sequence
from typing import Any, ClassVar, Literal

from pydantic import model_validator
from torch import Tensor, nn

from vlmodel import lora
from vlmodel.config import ConfigError, dump_config, parse_config
from vlmodel.images.preprocessing import ImagePreprocessing
from vlmodel.layers import parameter_names_by_stage
from vlmodel.locations import Location
from vlmodel.vision import _weights
from vlmodel.vision._tower import BackboneOutputs, TowerConfig, VisionTower, infer_token_grid
from vlmodel.weights import (
    WeightsError,
    config_from_dict,
    config_to_dict,
    from_pretrained_arguments,
    open_any_transformers_config,
    open_transformers_model,
    refuse_missing_weights,
)

PRETRAINED = "pretrained"
_SETTING = "vision.name"
_UNSUPPORTED = {
    "vit_mae": "hides most patches, in an order of their own; use 'vit'",
    "siglip2_vision_model": "takes images cut into patches; use 'siglip_vision_model', or timm",
}
_STRIDES = (32, 16, 64, 8, 4)
_BICUBIC = 3
"""Pillow's number of the filter, by which transformers names it."""


class Config(TowerConfig):
    """Settings of a vision tower of the transformers library."""

    non_backbone_settings: ClassVar[frozenset[str]] = TowerConfig.non_backbone_settings | {"name"}

    kind: Literal["hf"] = "hf"
    name: str = ""
    """Folder or hub name of a model: a vision tower, or one of images and texts (CLIP, SigLIP), of which the tower is
    taken; "" makes one from scratch by ``architecture`` and ``settings``."""
    architecture: str = ""
    """Without a name: transformers' name of the architecture ("model_type"), such as dinov2 or clip_vision_model."""
    weights: Location = PRETRAINED
    """"pretrained": those of ``name`` (safetensors); the file of a state dict; or "" to train from scratch."""
    output: Literal["grid", "pooled"] = "grid"
    """A token for each patch or cell of the last map, or the pooled vector as the only token."""
    layer: int | None = None
    """Of a transformer, whose hidden states the tokens are: -1 is behind the last layer, -2 before it, as in LLaVA,
    without the norm that follows the last one; null is the tower's output."""
    resolved: dict[str, Any] | None = None
    """transformers' configuration of the tower; filled in when the model is created, and stored with it."""

    @model_validator(mode="after")
    def _check_settings(self) -> Config:
        if bool(self.name) == bool(self.architecture):
            raise ValueError(
                "set either name, a hub name or folder, or architecture, to train from scratch, and not "
                f"{'both' if self.name else 'neither'}"
            )
        if self.architecture and self.resolved is None:
            _check_architecture(self.architecture)
        if self.can_build_without_files():
            self._check_layer()
            measured = self.output_shapes()
            if self.frozen_stages and self.frozen_stages >= len(measured.stages):
                raise ValueError(
                    f"frozen_stages={self.frozen_stages}, and the tower has {len(measured.stages) - 1}; choose fewer, "
                    "or frozen=true"
                )
        return self

    def _check_layer(self) -> None:
        count = getattr(self.transformers_config(), "num_hidden_layers", None)
        if self.layer is not None and not (isinstance(count, int) and -count - 1 <= self.layer <= count):
            raise ValueError(
                f"layer={self.layer}, and the tower has {count or 'no'} layers with hidden states; choose one of "
                "these, counted from the end (-2) or from the embeddings (0), or leave layer out"
            )

    def resolve_settings(self, image_size: tuple[int, int]) -> Config:
        resolved = self._resolve_architecture()
        return super(Config, resolved).resolve_settings(image_size)

    def _resolve_architecture(self) -> Config:
        if self.resolved is not None:
            return self
        whole = (
            _open_vision_tower_config(self.name)
            if self.name
            else _new_transformers_config(self.architecture, self.settings)
        )
        resolved = self.model_copy(update={"resolved": config_to_dict(whole)})
        return parse_config(type(self), dump_config(resolved))

    def can_build_without_files(self) -> bool:
        return self.resolved is not None or bool(self.architecture)

    def image_height_and_width(self) -> tuple[int, int]:
        return self.image_size or _image_size_in_config(self.transformers_config())

    def transformers_config(self) -> Any:
        """transformers' configuration of the tower."""
        return (
            config_from_dict(self.resolved)
            if self.resolved
            else _new_transformers_config(self.architecture, self.settings)
        )

    def create_backbone(self) -> nn.Module:
        from transformers import AutoModel

        backbone: Any = AutoModel.from_config(self.transformers_config(), trust_remote_code=False)
        if self.pooling == "mean" and "pooler" in dict(backbone.named_children()):
            backbone.pooler = None
        return backbone

    def run_backbone(self, backbone: Any, x_BCHW: Tensor) -> BackboneOutputs:
        size = (x_BCHW.shape[2], x_BCHW.shape[3])
        options: dict[str, Any] = {}
        if size != _image_size_in_config(backbone.config) and _can_interpolate_positions(backbone):
            options = {"interpolate_pos_encoding": True}
        given = backbone(pixel_values=x_BCHW, output_hidden_states=self.layer is not None, **options)
        x, pooled = given.last_hidden_state, getattr(given, "pooler_output", None)
        if self.layer is not None:
            x = given.hidden_states[self.layer]
        pooled_BF = pooled.flatten(1) if pooled is not None and self.pooling == "own" else None
        if x.ndim == 4:
            return BackboneOutputs([x.permute(0, 2, 3, 1)], pooled_BF, False)
        extra = (0, 1, 2, 1 + getattr(backbone.config, "num_register_tokens", 0))
        cells = infer_token_grid(x.shape[1], size, (*_pixels_per_token(backbone.config), *_STRIDES), extra)
        if cells is None:
            return BackboneOutputs([], pooled_BF, True)
        return BackboneOutputs([x[:, x.shape[1] - cells[0] * cells[1] :].unflatten(1, cells)], pooled_BF, True)

    def parameter_names_by_stage(self, backbone: nn.Module) -> Sequence[Collection[str]]:
        """Group the names of the backbone's parameters by stage. The stages are the members of the first list of
        modules; what the tower has before it is the stem.
        """
        lists = (path for path, module in backbone.named_modules() if isinstance(module, nn.ModuleList))
        path = next(lists, None)
        return (
            [[name for name, _ in backbone.named_parameters()]]
            if path is None
            else parameter_names_by_stage(backbone, path)
        )

    def preprocessing_of_weights(self) -> ImagePreprocessing:
        if not self.name:
            return ImagePreprocessing(self.image_height_and_width())
        return _read_preprocessing(self.name, _image_size_in_config(self._resolve_architecture().transformers_config()))

    def preprocessing_needs_files(self) -> bool:
        return bool(self.name)

    def build(self) -> HFTower:
        return HFTower(self._resolve_architecture())


class HFTower(VisionTower):
    """A vision tower of transformers."""

    architecture = "vision.name, vision.architecture and vision.settings"
    config: Config

    def load_pretrained(self) -> None:
        config = self.config
        if not config.weights or (not config.name and config.weights == PRETRAINED):
            return
        plain = lora.names_without_adapters(self.backbone)
        own = {plain[name]: tensor for name, tensor in self.backbone.state_dict().items() if name in plain}
        if config.weights != PRETRAINED:
            pairs: _weights.Pairs = ()
            state = _weights.read_state_dict("", config.weights)
            if config.match == "order":
                state, pairs = _weights.match_weights_by_order(state, own, (), config.weights)
            self.load_backbone_weights(state, {key: key for key in own}, frozenset(), pairs)
            return
        from transformers import AutoModel

        whole, missing = open_transformers_model(
            AutoModel, _SETTING, config.name, config_from_dict(config.resolved or {})
        )
        if lacking := missing & set(own):
            if all(name.startswith("pooler.") for name in lacking):
                raise WeightsError(
                    f"{_SETTING}={config.name!r} has no weights of the tower's pooler, as it was trained for something "
                    "else; set vision.pooling='mean'"
                )
            refuse_missing_weights(_SETTING, config.name, lacking)
        self.load_backbone_weights(whole.state_dict(), {key: key for key in own}, frozenset(whole.state_dict()))


def _open_vision_tower_config(name: str) -> Any:
    """Read transformers' configuration of the vision tower of a model in a folder or on the hub.

    Raises:
        WeightsError: it cannot be opened.
        ConfigError: it has no vision tower that can be used.
    """
    from transformers import MODEL_MAPPING

    config = open_any_transformers_config(_SETTING, name)
    config = getattr(config, "vision_config", config)
    if config.model_type in _UNSUPPORTED or not _takes_pixel_values(MODEL_MAPPING.get(type(config), None)):
        reason = _UNSUPPORTED.get(config.model_type, "is none that transformers' AutoModel gives alone")
        raise ConfigError(f"{_SETTING}={name!r}: its vision tower {config.model_type!r} {reason}")
    return config


def _new_transformers_config(architecture: str, settings: dict[str, Any]) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.for_model(architecture, **settings)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"transformers cannot make {architecture!r} with settings={settings}: {error}") from error


def _check_architecture(name: str) -> None:
    """Raise ValueError if transformers has no such vision tower."""
    from transformers import CONFIG_MAPPING, MODEL_MAPPING

    if name in _UNSUPPORTED:
        raise ValueError(f"architecture={name!r} {_UNSUPPORTED[name]}")
    if name not in CONFIG_MAPPING:
        close = difflib.get_close_matches(name, list(CONFIG_MAPPING.keys()), n=5, cutoff=0.4)
        raise ValueError(f"architecture={name!r} is unknown to transformers; close names: {', '.join(close) or 'vit'}")
    if not _takes_pixel_values(MODEL_MAPPING.get(CONFIG_MAPPING[name], None)):
        raise ValueError(
            f"architecture={name!r} is no vision tower; use one such as vit, dinov2, clip_vision_model or convnext"
        )


def _takes_pixel_values(model: Any) -> bool:
    return model is not None and "pixel_values" in inspect.signature(model.forward).parameters


def _can_interpolate_positions(backbone: nn.Module) -> bool:
    return "interpolate_pos_encoding" in inspect.signature(backbone.forward).parameters


def _image_size_in_config(config: Any) -> tuple[int, int]:
    size = getattr(config, "image_size", None) or 224
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _pixels_per_token(config: Any) -> list[int]:
    """The side, in pixels, of the square that each token of the last layer covers; [] if the configuration does not say
    it.
    """
    patch = getattr(config, "patch_size", None) or getattr(config, "patch_stride", None) or 0
    side = patch if isinstance(patch, int) else patch[0]
    depths = getattr(config, "depths", None)
    return [side << (len(depths) - 1 if depths else 0)] if isinstance(side, int) and side else []


def _read_preprocessing(name: str, own_size: tuple[int, int]) -> ImagePreprocessing:
    """Read the preprocessing stored beside the weights (preprocessor_config.json); ImageNet's if there is none."""
    from transformers import ImageProcessingMixin

    try:
        stored, _ = ImageProcessingMixin.get_image_processor_dict(name, **from_pretrained_arguments(name)[1])
    except OSError:
        return ImagePreprocessing(own_size)
    default = ImagePreprocessing(own_size)
    size, crop = stored.get("size"), stored.get("crop_size")
    shortest = size.get("shortest_edge") if isinstance(size, dict) else size if isinstance(size, int) else None
    is_cropped = bool(stored.get("do_center_crop")) and shortest is not None
    final = (crop if is_cropped else size) or own_size
    height, width = _height_and_width(final, own_size)
    share = stored.get("crop_pct") or (height / shortest if is_cropped and shortest else 1.0)
    return ImagePreprocessing(
        (height, width),
        tuple(stored.get("image_mean") or default.mean) if stored.get("do_normalize", True) else (0.0, 0.0, 0.0),
        tuple(stored.get("image_std") or default.std) if stored.get("do_normalize", True) else (1.0, 1.0, 1.0),
        "bicubic" if stored.get("resample", _BICUBIC) == _BICUBIC else "bilinear",
        "crop" if is_cropped or shortest is not None else "squash",
        min(1.0, float(share)),
        stated=True,
    )


def _height_and_width(size: Any, default: tuple[int, int]) -> tuple[int, int]:
    if isinstance(size, dict):
        side = size.get("shortest_edge")
        return (side, side) if side else (size.get("height", default[0]), size.get("width", default[1]))
    return (size, size) if isinstance(size, int) else (size[0], size[1])
