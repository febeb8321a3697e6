"""Audio towers of transformers: token for token what transformers itself gives, whatever a sound is batched with.

The checkpoints are tiny and random, made here and read back through ``name``, as one from the hub would be.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTModel,
    HubertConfig,
    HubertModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMModel,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperModel,
)

from tests.vlmodel.media_files import saved_sound
from vlmodel.config import ConfigError, parse_part_config
from vlmodel.modality._hf import AudioTower
from vlmodel.modality.hf import Config
from vlmodel.weights import WeightsError

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
WAVES = SMALL | {
    "conv_dim": (8, 8), "conv_kernel": (10, 8), "conv_stride": (5, 4), "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
}  # fmt: skip
NORMALISING = {"do_normalize": True, "return_attention_mask": True}
TOWERS: dict[str, tuple[Any, Any]] = {
    "wav2vec2": (lambda: Wav2Vec2Model(Wav2Vec2Config(**WAVES, feat_extract_norm="layer")),
                 Wav2Vec2FeatureExtractor(**NORMALISING)),
    "wav2vec2-group": (lambda: Wav2Vec2Model(Wav2Vec2Config(**WAVES, feat_extract_norm="group")),
                       Wav2Vec2FeatureExtractor(do_normalize=False)),
    "hubert": (lambda: HubertModel(HubertConfig(**WAVES, feat_extract_norm="group")), Wav2Vec2FeatureExtractor()),
    "wavlm": (lambda: WavLMModel(WavLMConfig(**WAVES, feat_extract_norm="layer")),
              Wav2Vec2FeatureExtractor(**NORMALISING)),
    "whisper": (lambda: WhisperModel(WhisperConfig(
                    d_model=16, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=32, decoder_layers=1,
                    decoder_attention_heads=2, decoder_ffn_dim=32, num_mel_bins=80, max_source_positions=50,
                    vocab_size=100, pad_token_id=0, bos_token_id=0, eos_token_id=0, decoder_start_token_id=0)),
                WhisperFeatureExtractor(chunk_length=1)),
    "ast": (lambda: ASTModel(ASTConfig(**SMALL, max_length=64, num_mel_bins=32)),
            ASTFeatureExtractor(max_length=64, num_mel_bins=32)),
}  # fmt: skip
"""Makers of tiny towers with random weights, and their feature extractors."""
RATE = 16_000
SOUNDS = [
    np.random.default_rng(n).normal(0, 0.1, length).astype(np.float32) for n, length in enumerate((9000, 4000, 9000))
]


@pytest.fixture(scope="module", params=TOWERS)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    make, extractor = TOWERS[request.param]
    folder: Path = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    make().save_pretrained(folder)
    extractor.save_pretrained(folder)
    return folder


def part_of(folder: Path | str, **settings: Any) -> Config:
    part = parse_part_config("vlmodel.modality", {"kind": "hf", "name": str(folder), **settings}).resolve_settings()  # type: ignore[attr-defined]
    assert isinstance(part, Config)
    return part


def encoder_of(part: Config) -> AudioTower:
    encoder = part.build()
    encoder.load_pretrained()
    return encoder.eval()


def arrays_of(part: Config, sounds: list[np.ndarray]) -> dict[str, torch.Tensor]:
    decoded = [part.decode(saved_sound(x_T, RATE, subtype="FLOAT")) for x_T in sounds]
    return {name: torch.from_numpy(array) for name, array in part.collate(decoded).items()}


def expected_tokens(folder: Path, x_T: np.ndarray) -> torch.Tensor:
    """What transformers gives for one sound alone, as its documentation says to use it."""
    from transformers import AutoFeatureExtractor, AutoModel

    model: Any = AutoModel.from_pretrained(folder).eval()
    model = model.get_encoder() if model.config.model_type == "whisper" else model
    given = AutoFeatureExtractor.from_pretrained(folder)(x_T, sampling_rate=RATE, return_tensors="pt")
    with torch.no_grad():
        tokens_TD: torch.Tensor = model(**given).last_hidden_state[0]
    return tokens_TD


def real_tokens(folder: Path, count: int, samples: int) -> int | None:
    """Of a sound of so many samples, worked out by hand; None for AST, whose tokens are a grid."""
    if "whisper" in folder.name:
        return -(-samples // 320)
    return None if "ast" in folder.name else count


def test_tokens_are_those_of_transformers_in_any_batch(checkpoint: Path) -> None:
    part = part_of(checkpoint)
    encoder = encoder_of(part)
    with torch.no_grad():
        together = encoder(**arrays_of(part, SOUNDS))
        for row, x_T in enumerate(SOUNDS):
            expected_TD = expected_tokens(checkpoint, x_T)
            found_TD = together.x_BTD[row, : len(expected_TD)]
            torch.testing.assert_close(found_TD, expected_TD, rtol=1e-4, atol=1e-5)
            alone = encoder(**arrays_of(part, [x_T]))
            torch.testing.assert_close(alone.pooled_BD[0], together.pooled_BD[row], rtol=1e-4, atol=1e-5)
            if (count := real_tokens(checkpoint, len(expected_TD), len(x_T))) is not None:
                assert together.mask_BT[row].sum() == count
                assert together.mask_BT[row, :count].all()


def test_the_patches_of_ast_are_real_where_the_sound_is(tmp_path: Path) -> None:
    make, extractor = TOWERS["ast"]
    make().save_pretrained(tmp_path)
    extractor.save_pretrained(tmp_path)
    part = part_of(tmp_path)
    encoder = encoder_of(part)
    tokens = encoder(**arrays_of(part, SOUNDS))
    # 64 windows of 160 samples, patches of 16 x 16 every 10: 2 along the bands and 5 along the time. 4000 samples are
    # 23 windows, in which patches begin at 0, 10 and 20.
    assert tokens.mask_BT.shape == (3, 2 + 2 * 5)
    assert tokens.mask_BT[1].tolist() == [True, True, *[True, True, True, False, False] * 2]
    assert tokens.mask_BT[0].all()
    weights_NT = torch.arange(12.0).unsqueeze(0)
    over_time = encoder.weights_over_time(weights_NT)
    assert over_time is not None
    assert over_time.tolist() == [[2 + 7, 3 + 8, 4 + 9, 5 + 10, 6 + 11]]
    expected = (
        ASTModel.from_pretrained(tmp_path).eval()(**extractor(SOUNDS[0], RATE, return_tensors="pt")).pooler_output
    )
    torch.testing.assert_close(tokens.pooled_BD[:1], expected, rtol=1e-4, atol=1e-5)


def test_frozen_or_trained(checkpoint: Path) -> None:
    frozen = encoder_of(part_of(checkpoint, frozen=True, projection=8))
    assert {name for name, p in frozen.named_parameters() if p.requires_grad} == {
        "projection.weight",
        "projection.bias",
    }
    assert set(frozen.frozen_tensor_names()) == {f"backbone.{name}" for name in frozen.backbone.state_dict()}
    arrays = arrays_of(frozen.config, SOUNDS)
    features_BTF, mask_BT = frozen.compute_features(**arrays)
    torch.testing.assert_close(frozen.tokens_from_features(features_BTF, mask_BT).x_BTD, frozen(**arrays).x_BTD)
    trained = encoder_of(part_of(checkpoint)).train()
    trained(**arrays).pooled_BD.sum().backward()
    gradients = {name: p.grad for name, p in trained.named_parameters() if p.requires_grad}
    assert [name for name, gradient in gradients.items() if gradient is None] == []
    assert {id(p) for p in trained.pretrained_parameters()} == {id(p) for p in trained.parameters() if p.requires_grad}


def test_adapters_are_all_that_is_trained_and_all_of_them_learn(checkpoint: Path) -> None:
    part = part_of(checkpoint, lora={"rank": 2}, projection=8)
    plain, adapted = encoder_of(part_of(checkpoint, frozen=True)), encoder_of(part)
    arrays = arrays_of(part, SOUNDS)
    torch.testing.assert_close(adapted.compute_features(**arrays)[0], plain.compute_features(**arrays)[0])
    trained = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
    assert {name for name in trained if ".lora_" not in name} == {"projection.weight", "projection.bias"}
    assert len(trained) > 2
    for name, parameter in trained.items():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter)
    adapted.train()(**arrays).pooled_BD.square().sum().backward()
    assert [name for name, p in trained.items() if p.grad is None or not p.grad.any()] == []
    assert list(adapted.pretrained_parameters()) == []


def test_adapters_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="leave frozen out"):
        part_of(tmp_path, lora={}, frozen=True)
    part = part_of("", architecture="wavlm", settings=WAVES, lora={"targets": ["q_proj"]})
    with pytest.raises(ConfigError, match="without calling it, so that an adapter in it would do nothing"):
        part.build()


def test_no_file_is_needed_once_it_is_resolved(checkpoint: Path, tmp_path: Path) -> None:
    part = part_of(checkpoint)
    stored = parse_part_config("vlmodel.modality", {**part.model_dump(mode="json"), "name": str(tmp_path / "gone")})
    assert isinstance(stored, Config)
    encoder = stored.build()
    encoder.load_state_dict(encoder_of(part).state_dict())
    arrays = arrays_of(part, SOUNDS)
    for name, array in arrays_of(stored, SOUNDS).items():
        torch.testing.assert_close(array, arrays[name])
    torch.testing.assert_close(encoder.eval()(**arrays).x_BTD, encoder_of(part)(**arrays).x_BTD)
    assert {name: array.shape[1:] for name, array in part.collate([]).items() if array.ndim > 2} == {
        name: tuple(array.shape[1:]) for name, array in arrays.items() if array.ndim > 2
    }


@pytest.mark.parametrize("samples", [1, 100, 16_000 * 3])
def test_a_sound_of_any_length(checkpoint: Path, samples: int) -> None:
    part = part_of(checkpoint, max_seconds=2)
    tokens = encoder_of(part)(**arrays_of(part, [np.full(samples, 0.1, np.float32)]))
    assert tokens.x_BTD.isfinite().all()
    assert tokens.mask_BT.any()
    if part.reads_waveforms:
        assert arrays_of(part, [np.zeros(samples, np.float32)])["x_BT"].shape[1] <= 2 * RATE


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"name": ""}, "set either name"),
        ({"name": "", "architecture": "bert"}, "architecture='bert' is none of audio-spectrogram-transformer, whisper"),
        ({"name": "x", "settings": {"hidden_size": 4}}, "make a tower from scratch"),
        ({"name": "x", "weights": "y"}, "weights='y'"),
    ],
)
def test_settings_that_make_no_tower(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parse_part_config("vlmodel.modality", {"kind": "hf", **settings})


def test_sources_that_are_no_audio_tower(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="cannot be opened"):
        part_of(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ConfigError, match="'bert' is none of"):
        part_of(tmp_path)
    whisper = {"kind": "hf", "architecture": "whisper", "settings": {"max_source_positions": 30}}
    with pytest.raises(ConfigError, match="make it a multiple of 50"):
        parse_part_config("vlmodel.modality", whisper).resolve_settings()  # type: ignore[attr-defined]


def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    make, extractor = TOWERS["wav2vec2"]
    make().save_pretrained(tmp_path)
    extractor.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state["encoder.layers.1.attention.q_proj.weight"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"lacks 1 weights .*layers\.1\.attention\.q_proj"):
        encoder_of(part_of(tmp_path))
