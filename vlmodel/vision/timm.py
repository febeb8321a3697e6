"""Vision encoders from timm (huggingface.co/timm): over a thousand CNNs and vision transformers, with their weights."""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from vlmodel import lora
from vlmodel.config import ConfigError
from vlmodel.images.preprocessing import ImagePreprocessing
from vlmodel.images.resize import Interpolation
from vlmodel.locations import Location
from vlmodel.vision import _weights
from vlmodel.vision._tower import BackboneOutputs, TowerConfig, VisionTower, infer_token_grid
from vlmodel.weights import WeightsError

PRETRAINED = "pretrained"
_HUB = "hf-hub:"
_MOST_PREFIX_TOKENS = 4


class Config(TowerConfig):
    """Settings of a backbone of timm, chosen by its name."""

    kind: Literal["timm"] = "timm"
    name: str
    """timm's name of the architecture, with or without a tag of weights: "resnet50", "vit_base_patch16_clip_224.openai"
    (timm.list_models(), timm.list_pretrained())."""
    weights: Location = PRETRAINED
    """"pretrained" (timm's weights of this name), "hf-hub:OWNER/NAME", a folder in timm's format (config.json,
    model.safetensors), the file of a state dict, or "" to train from scratch."""
    stages: int | None = Field(None, ge=1)
    """Stages (layers of a transformer) to keep; null keeps all, and what timm computes behind the last."""

    @model_validator(mode="after")
    def _check_settings(self) -> Config:
        _check_timm_name(self.name)
        measured = self.output_shapes()
        if self.frozen_stages and self.frozen_stages >= len(measured.stages):
            raise ValueError(
                f"frozen_stages={self.frozen_stages}, and {self.name} has {max(0, len(measured.stages) - 1)} that can "
                "be told apart; choose fewer, or frozen=true"
            )
        return self

    def image_height_and_width(self) -> tuple[int, int]:
        return self.image_size or _preprocessing_from_record(_timm_weights_record(self.name)).size

    def create_backbone(self) -> nn.Module:
        kept = self._stages_with_tokens()
        backbone = _create_timm_model(self, num_classes=0)
        if kept is not None:
            backbone.prune_intermediate_layers(kept, prune_norm=True, prune_head=True)
        elif self.pooling == "mean" and self.output == "grid":
            backbone.reset_classifier(0, "")
        return backbone

    def run_backbone(self, backbone: Any, x_BCHW: Tensor) -> BackboneOutputs:
        if (kept := self._stages_with_tokens()) is not None:
            maps = backbone.forward_intermediates(x_BCHW, indices=kept, output_fmt="NCHW", intermediates_only=True)
            return BackboneOutputs([x.permute(0, 2, 3, 1) for x in maps], None, False)
        x = backbone.forward_features(x_BCHW)
        pooled_BF = backbone.forward_head(x, pre_logits=True) if self.pooling == "own" else None
        grids, is_sequence = [], False
        if isinstance(x, Tensor) and x.ndim == 4:
            channels_last = str(getattr(backbone, "output_fmt", "NCHW")).endswith("NHWC")
            grids = [x if channels_last else x.permute(0, 2, 3, 1)]
        elif isinstance(x, Tensor) and (cells := self._infer_grid(backbone, x.shape[1], x_BCHW.shape[-2:])) is not None:
            is_sequence = True
            grids = [x[:, x.shape[1] - cells[0] * cells[1] :].unflatten(1, cells)]
        return BackboneOutputs(grids, pooled_BF, is_sequence)

    def parameter_names_by_stage(self, backbone: Any) -> Sequence[Collection[str]]:
        from timm.models import group_parameters

        if not hasattr(backbone, "group_matcher"):
            return []
        groups = group_parameters(backbone, backbone.group_matcher(coarse=True))
        return [groups[ordinal] for ordinal in sorted(groups)]

    def preprocessing_of_weights(self) -> ImagePreprocessing:
        """The preprocessing with which the weights were trained, as timm records it.

        Raises:
            WeightsError: the weights name a folder, or a repository of the hub, that cannot be read.
        """
        if self.weights.startswith(_HUB):
            from timm.models import load_model_config_from_hf

            with _convert_errors_to_weights_errors(self, "could not be fetched"):
                return _preprocessing_from_record(load_model_config_from_hf(self.weights.removeprefix(_HUB))[0])
        if (file := Path(self.weights) / "config.json").is_file():
            return _preprocessing_from_record(_weights_record_in_folder(self, file))
        return _preprocessing_from_record(_timm_weights_record(self.name), stated=self.weights == PRETRAINED)

    def preprocessing_needs_files(self) -> bool:
        return self.weights.startswith(_HUB) or Path(self.weights).is_dir()

    def build(self) -> TimmTower:
        return TimmTower(self)

    def _stages_with_tokens(self) -> list[int] | None:
        """The numbers of the stages whose outputs become tokens; None to use the output of timm's whole backbone."""
        if self.stages is None and self.output != "multiscale":
            return None
        available = _count_stages(self)
        stages = self.stages or available
        if stages > available:
            raise ConfigError(f"stages={stages}, and {self.name} has {available}; choose 1 to {available}")
        scales = self.scales if self.output == "multiscale" else 1
        if scales > stages:
            raise ConfigError(f"scales={scales} is more than the {stages} stages kept; choose 1 to {stages}")
        return list(range(stages - scales, stages))

    def _infer_grid(self, backbone: Any, tokens: int, size: Sequence[int]) -> tuple[int, int] | None:
        prefix = getattr(backbone, "num_prefix_tokens", None)
        extra = range(_MOST_PREFIX_TOKENS + 1) if prefix is None else (prefix,)
        info = getattr(backbone.feature_info, "info", backbone.feature_info)
        return infer_token_grid(tokens, (size[0], size[1]), [info[-1]["reduction"]], extra)


class TimmTower(VisionTower):
    """A vision encoder whose backbone is from timm."""

    config: Config

    def load_pretrained(self) -> None:
        if not self.config.weights:
            return
        with torch.device("meta"):
            known = _create_timm_model(self.config).state_dict()
        state, pairs = _read_weights(self.config, known)
        self.load_backbone_weights(
            state, {n: n for n in lora.names_without_adapters(self.backbone).values()}, frozenset(known), pairs
        )

    def restore_buffers(self) -> None:
        for module in self.backbone.modules():
            restore: Any = getattr(module, "init_non_persistent_buffers", None)  # timm's own name of it
            if restore is not None:
                restore()


def _read_weights(config: Config, known: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], _weights.Pairs]:
    """Read the state dict that ``config.weights`` names, under timm's names; also return the pairs of names that were
    matched by order.
    """
    weights, path = config.weights, Path(config.weights)
    if weights == PRETRAINED:
        with _convert_errors_to_weights_errors(config, "could not be fetched"):
            return _create_timm_model(config, pretrained=True).state_dict(), ()
    if weights.startswith(_HUB) or path.is_dir():
        with _convert_errors_to_weights_errors(config, "cannot be loaded"):
            source = weights if weights.startswith(_HUB) else f"local-dir:{weights}"
            loaded = _create_timm_model(config, source, pretrained=True)
        architecture = loaded.pretrained_cfg.get("architecture")
        if architecture != config.name.partition(".")[0]:
            raise WeightsError(
                f"vision.weights={weights!r} are of {architecture}, and vision.name={config.name!r}; set "
                f"vision.name={architecture}"
            )
        return loaded.state_dict(), ()
    state = _weights.read_state_dict(config.name, weights)
    if config.match == "order":
        classifier = frozenset(key for key in known if key.startswith(_classifier_prefixes(config)))
        return _weights.match_weights_by_order(state, known, classifier, weights)
    if all(key in state and state[key].shape == known[key].shape for key in known if key in state) and set(
        state
    ) <= set(known):
        return state, ()
    return _convert_timm_state(config, state, known), ()


def _convert_timm_state(config: Config, state: dict[str, Tensor], known: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert weights by timm, which resamples positions to other image sizes and renames the weights of original
    publications. If timm fails, they are returned unchanged, and ``load_backbone_weights`` says what does not fit.
    """
    classifiers = _classifier_prefixes(config)
    body = {key: value for key, value in state.items() if not key.startswith(classifiers)}
    with torch.device("meta"):
        heads = {key for key in known if key.startswith(classifiers)}
    new = {key: torch.zeros(known[key].shape) for key in heads}
    try:
        converted: dict[str, Tensor] = _create_timm_model(
            config, pretrained=True, pretrained_cfg_overlay={"state_dict": {**body, **new}, "custom_load": False}
        ).state_dict()
    except (RuntimeError, KeyError, ValueError, AttributeError, IndexError, TypeError):
        return state
    return converted


def _create_timm_model(config: Config, name: str = "", **arguments: Any) -> Any:
    """Create a model of timm, by default with its classifier.

    Raises:
        ConfigError: timm cannot make it with these settings.
    """
    import timm

    cfg = _timm_weights_record(config.name)
    if cfg.get("fixed_input_size") and config.image_size not in (None, tuple(cfg["input_size"][1:])):
        arguments["img_size"] = config.image_size
    if arguments.get("pretrained"):
        return timm.create_model(name or config.name, **{**config.settings, **arguments})
    try:
        return timm.create_model(name or config.name, **{**config.settings, **arguments})
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        chosen = {**config.settings, **({"img_size": config.image_size} if "img_size" in arguments else {})}
        raise ConfigError(f"timm cannot make {config.name!r} with {json.dumps(chosen)}: {error}") from error


def _count_stages(config: Config) -> int:
    with torch.device("meta"):
        backbone = _create_timm_model(config, num_classes=0)
    if not hasattr(backbone, "forward_intermediates"):
        raise ConfigError(f"{config.name} gives no features of its stages; set output='grid' and leave stages out")
    return len(getattr(backbone.feature_info, "info", backbone.feature_info))


def _timm_weights_record(name: str) -> dict[str, Any]:
    """Return timm's record of the weights of this name."""
    import timm

    cfg = timm.get_pretrained_cfg(name) or timm.get_pretrained_cfg(name.partition(".")[0])
    return cfg.to_dict() if cfg is not None else {}


def _weights_record_in_folder(config: Config, file: Path) -> dict[str, Any]:
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"vision.weights={config.weights!r}: {file.name} cannot be read: {error}") from error
    return (
        {**_timm_weights_record(config.name), **(stored.get("pretrained_cfg") or {})}
        if isinstance(stored, dict)
        else {}
    )


def _preprocessing_from_record(cfg: Mapping[str, Any], stated: bool = True) -> ImagePreprocessing:
    default = ImagePreprocessing((224, 224))
    crop = float(cfg.get("crop_pct") or 1.0)
    interpolation: Interpolation = "bicubic" if cfg.get("interpolation") == "bicubic" else "bilinear"
    return ImagePreprocessing(
        tuple(cfg.get("input_size", (3, 224, 224))[1:]),
        tuple(cfg.get("mean") or default.mean),
        tuple(cfg.get("std") or default.std),
        interpolation,
        "squash" if cfg.get("crop_mode") == "squash" else "crop",
        min(1.0, crop),
        stated,
    )


def _classifier_prefixes(config: Config) -> tuple[str, ...]:
    names = _timm_weights_record(config.name).get("classifier") or ()
    return tuple(f"{name}." for name in ((names,) if isinstance(names, str) else names))


def _check_timm_name(name: str) -> None:
    """Raise ValueError if timm has no such architecture, or no such tag of weights."""
    import timm

    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        close = difflib.get_close_matches(architecture.lower(), timm.list_models(), n=5, cutoff=0.4)
        raise ValueError(
            f"timm has no architecture {architecture!r}; close names: {', '.join(close) or 'resnet50'}. "
            "Look for others with timm.list_models('*part*')"
        )
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise ValueError(f"timm has no weights {tag!r} of {architecture}; there are {', '.join(tags) or 'none'}")


@contextmanager
def _convert_errors_to_weights_errors(config: Config, what: str) -> Iterator[None]:
    """Convert any error within the block to a WeightsError: broken files and missing networks can raise anything."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        reason = str(error).strip() or type(error).__name__
        raise WeightsError(
            f"vision.weights={config.weights!r} of {config.name} {what} ({reason}); "
            f"fetch them where there is a network (`hf download timm/{config.name} --local-dir FOLDER`), and set "
            "vision.weights to the folder"
        ) from error
