"""Encodes sounds by an audio tower of transformers: Whisper's encoder, AST (Gong et al. 2021, arXiv:2104.01778),
wav2vec 2.0 and similar ones (HuBERT, WavLM).
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from vlmodel.config import ConfigError
from vlmodel.encoder_parts import ModalityPart
from vlmodel.locations import Location
from vlmodel.lora import LoraSettings
from vlmodel.media.audio import decode_audio, to_mono
from vlmodel.media.base import CheckLimits
from vlmodel.weights import (
    config_from_dict,
    config_to_dict,
    from_pretrained_arguments,
    open_any_transformers_config,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vlmodel.modality._hf import AudioTower

PRETRAINED = "pretrained"
SETTING = "inputs.NAME.name"

AST, WHISPER = "audio-spectrogram-transformer", "whisper"
WAVEFORM_MODELS = ("wav2vec2", "hubert", "wavlm", "unispeech", "unispeech-sat")
"""Architectures that read waveforms, by transformers' names."""
ARCHITECTURES = (AST, WHISPER, *WAVEFORM_MODELS)
FBANK_WINDOW, FBANK_HOP = 400, 160
"""Samples of a window and a step of the spectrograms of AST and Whisper, which transformers has no settings for."""
_EXTRACTORS = ("ASTFeatureExtractor", "WhisperFeatureExtractor", "Wav2Vec2FeatureExtractor")


class Config(ModalityPart):
    """Settings of an audio tower of transformers, which reads sounds by the feature extractor of its checkpoint."""

    medium: ClassVar[str] = "audio"
    non_backbone_settings: ClassVar[frozenset[str]] = frozenset({"name", "projection", "weights", "frozen", "lora"})

    kind: Literal["hf"] = "hf"
    name: str = ""
    """Folder or hub name of a model: an audio tower, or one with a head or a decoder, of which the tower is taken; ""
    makes one from scratch by ``architecture`` and ``settings``."""
    architecture: str = ""
    """Without a name: transformers' name of the architecture ("model_type"), such as whisper or wav2vec2."""
    settings: dict[str, Any] = {}
    """Without a name: settings of the architecture, by transformers' names."""
    weights: Location = PRETRAINED
    """"pretrained": those of ``name`` (safetensors); or "" to train from scratch."""
    max_seconds: float = Field(30.0, gt=0, le=3600)
    """Longer sounds are cut to their first so many seconds, or to fewer where the tower takes no more."""
    projection: int | None = Field(None, ge=1)
    """Width of a linear projection of the tokens; null for none."""
    frozen: bool = False
    """Do not train the tower (the projection is always trained); it then runs without gradient."""
    lora: LoraSettings | None = None
    """Low-rank adapters in the tower, which is frozen but for them; null for none."""
    resolved: dict[str, Any] | None = None
    """transformers' configuration of the tower; filled in when the model is created, and stored with it."""
    extractor: dict[str, Any] | None = None
    """That of its feature extractor, likewise."""

    @model_validator(mode="after")
    def _check_settings(self) -> Config:
        if bool(self.name) == bool(self.architecture):
            raise ValueError(
                "set either name, a hub name or folder, or architecture, to train from scratch, and not "
                f"{'both' if self.name else 'neither'}"
            )
        if self.architecture and self.architecture not in ARCHITECTURES:
            raise ValueError(f"architecture={self.architecture!r} is none of {', '.join(ARCHITECTURES)}")
        if self.settings and self.name:
            raise ValueError(f"settings={self.settings} make a tower from scratch; name={self.name!r} has its own")
        if self.lora is not None and self.frozen:
            raise ValueError("lora trains adapters in a tower that is frozen but for them; leave frozen out")
        if self.weights not in ("", PRETRAINED):
            raise ValueError(f'weights={self.weights!r}: give "pretrained", those of name, or "" for none')
        return self

    def is_frozen(self) -> bool:
        return self.frozen

    def resolve_settings(self) -> Config:
        """See ``ModalityPart``.

        Raises:
            ConfigError: it is no audio tower that is known here, or transformers cannot make it with these settings.
            WeightsError: the source cannot be opened.
        """
        if self.resolved is not None:
            return self
        resolved, extractor = _open_or_create_configs(
            self.name, self.architecture, json.dumps(self.settings, sort_keys=True)
        )
        return self.model_copy(update={"resolved": resolved, "extractor": extractor})

    @property
    def audio_tower_config(self) -> dict[str, Any]:
        """transformers' configuration of the audio tower."""
        tower = self.resolve_settings().resolved
        assert tower is not None
        return tower

    @property
    def reads_waveforms(self) -> bool:
        return self.audio_tower_config["model_type"] in WAVEFORM_MODELS

    def decode(self, data: bytes) -> dict[str, NDArray[Any]]:
        """Apply transformers' feature extractor to the mean of the channels: ``x_T`` for towers that read waveforms,
        ``x_TM`` for AST and ``x_MT`` for Whisper, the latter two padded to the fixed length that they take; and
        ``length`` int64, the number of real samples.
        """
        resolved = self.resolve_settings()
        extractor = _feature_extractor_from_json(json.dumps(resolved.extractor, sort_keys=True))
        sound = decode_audio(data, CheckLimits(), self.max_seconds)
        x_T = to_mono(sound, extractor.sampling_rate)[: math.ceil(self.max_seconds * extractor.sampling_rate)]
        shortest = samples_for_one_token(resolved.audio_tower_config) if resolved.reads_waveforms else FBANK_WINDOW
        x_T = np.pad(x_T, (0, max(0, shortest - len(x_T))))
        given = extractor(x_T, sampling_rate=extractor.sampling_rate, return_tensors="np")
        values = next(given[name] for name in ("input_values", "input_features") if name in given)[0]
        name = "x_T" if resolved.reads_waveforms else _spectrogram_name_and_shape(resolved.audio_tower_config)[0]
        return {name: values.astype(np.float32, copy=False), "length": np.array(len(x_T), np.int64)}

    def collate(self, decoded: Sequence[Mapping[str, NDArray[Any]]]) -> dict[str, NDArray[np.generic]]:
        """Stack sounds to ``x_BT`` float32, padded with zeros to the longest, or ``x_BTM`` or ``x_BMT``; and
        ``length_B`` int64.
        """
        length_B = np.array([sound["length"] for sound in decoded], np.int64)
        if self.reads_waveforms:
            x_BT = np.zeros(
                (len(decoded), length_B.max(initial=samples_for_one_token(self.audio_tower_config))), np.float32
            )
            for sound, x_T in zip(decoded, x_BT, strict=True):
                x_T[: len(sound["x_T"])] = sound["x_T"]
            return {"x_BT": x_BT, "length_B": length_B}
        name, shape = _spectrogram_name_and_shape(self.audio_tower_config)
        x_B = np.stack([sound[name] for sound in decoded]) if decoded else np.zeros((0, *shape), np.float32)
        return {f"x_B{name[2:]}": x_B, "length_B": length_B}

    def build(self) -> AudioTower:
        from vlmodel.modality._hf import AudioTower

        return AudioTower(self.resolve_settings())


def samples_for_one_token(tower: Mapping[str, Any]) -> int:
    """Calculate how many samples the convolutions need for one token."""
    samples = 1
    for kernel, stride in zip(reversed(tower["conv_kernel"]), reversed(tower["conv_stride"]), strict=True):
        samples = (samples - 1) * stride + kernel
    return samples


def _spectrogram_name_and_shape(tower: Mapping[str, Any]) -> tuple[str, tuple[int, int]]:
    """Return the name and the shape of the array that a sound is decoded to."""
    if tower["model_type"] == AST:
        return "x_TM", (tower["max_length"], tower["num_mel_bins"])
    return "x_MT", (tower["num_mel_bins"], 2 * tower["max_source_positions"])


@functools.lru_cache(maxsize=8)
def _open_or_create_configs(name: str, architecture: str, settings: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read or create the configurations of the audio tower and of its feature extractor."""
    config = _open_audio_tower_config(name) if name else _new_transformers_config(architecture, json.loads(settings))
    extractor = _open_feature_extractor(name, config) if name else _default_feature_extractor(config)
    return config_to_dict(config), json.loads(extractor.to_json_string())


def _open_audio_tower_config(name: str) -> Any:
    config = open_any_transformers_config(SETTING, name)
    if config.model_type not in ARCHITECTURES:
        raise ConfigError(
            f"{SETTING}={name!r}: its architecture {config.model_type!r} is none of {', '.join(ARCHITECTURES)}"
        )
    return config


def _new_transformers_config(architecture: str, settings: dict[str, Any]) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.for_model(architecture, **settings)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"transformers cannot make {architecture!r} with settings={settings}: {error}") from error


def _open_feature_extractor(name: str, config: Any) -> Any:
    """Read transformers' feature extractor beside the weights, or create the architecture's default one if there is
    none.
    """
    from transformers import AutoFeatureExtractor

    try:
        extractor = AutoFeatureExtractor.from_pretrained(
            name, trust_remote_code=False, **from_pretrained_arguments(name)[1]
        )
    except (OSError, ValueError):
        return _default_feature_extractor(config)
    if type(extractor).__name__ not in _EXTRACTORS:
        raise ConfigError(
            f"{SETTING}={name!r}: its feature extractor {type(extractor).__name__} is none of {', '.join(_EXTRACTORS)}"
        )
    return extractor


def _default_feature_extractor(config: Any) -> Any:
    from transformers import ASTFeatureExtractor, Wav2Vec2FeatureExtractor, WhisperFeatureExtractor

    if config.model_type == AST:
        return ASTFeatureExtractor(num_mel_bins=config.num_mel_bins, max_length=config.max_length)
    if config.model_type == WHISPER:
        rate, hop = 16_000, 160
        seconds = 2 * config.max_source_positions * hop / rate
        if seconds != int(seconds):
            raise ConfigError(
                f"max_source_positions={config.max_source_positions} of whisper are {seconds:g} seconds; make it a "
                "multiple of 50, whole seconds"
            )
        return WhisperFeatureExtractor(config.num_mel_bins, rate, hop, chunk_length=int(seconds))
    return Wav2Vec2FeatureExtractor(return_attention_mask=config.feat_extract_norm == "layer")


@functools.lru_cache(maxsize=8)
def _feature_extractor_from_json(values: str) -> Any:
    import transformers

    settings = json.loads(values)
    kind = settings.pop("feature_extractor_type")
    if kind not in _EXTRACTORS:
        raise ConfigError(f"feature_extractor_type={kind!r} is none of {', '.join(_EXTRACTORS)}")
    return getattr(transformers, kind)(**settings)


@functools.lru_cache(maxsize=8)
def deterministic_tower_config(values: str) -> Any:
    """Build transformers' configuration of an audio tower without its randomness in training other than dropout: masks
    would differ after a restart, and skipped layers get no gradient, for which data-parallel training waits.
    """
    config = config_from_dict(json.loads(values))
    for name, value in (("apply_spec_augment", False), ("layerdrop", 0.0), ("encoder_layerdrop", 0.0)):
        if hasattr(config, name):
            setattr(config, name, value)
    return config
