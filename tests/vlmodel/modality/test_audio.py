"""The encoder of sounds: its spectrogram worked out otherwise, and what may change nothing."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from vlmodel.config import ConfigError, parse_part_config
from vlmodel.media.base import MediumError
from vlmodel.modality._audio import LogMelSpectrogram
from vlmodel.modality.audio import Config

TINY = {"kind": "audio", "rate": 8000, "mels": 16, "channels": 4, "width": 16, "depth": 1, "heads": 2, "dropout": 0.0}


def configured(**settings: Any) -> Config:
    config = parse_part_config("vlmodel.modality", {**TINY, **settings})
    assert isinstance(config, Config)
    return config


def wav(x_T: np.ndarray, rate: int = 8000) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, x_T, rate, format="WAV", subtype="FLOAT")
    return file.getvalue()


NOISE_T = np.random.default_rng(0).normal(0, 0.1, 2000).astype(np.float32)


def test_the_spectrogram_is_that_of_transformers() -> None:
    config = configured(scaling="none")
    mel = LogMelSpectrogram(config)
    x_BTM, mask_BT = mel(torch.from_numpy(NOISE_T)[None], torch.tensor([2000]))
    assert mask_BT.all()
    filters = mel_filter_bank(257, 16, 20.0, 4000, 8000, norm="slaney", mel_scale="slaney")
    expected_MT = spectrogram(
        NOISE_T, window_function(200, "hann"), 200, 80, fft_length=512, power=2.0, center=False, mel_filters=filters,
        mel_floor=1e-10, log_mel="log",
    )  # fmt: skip
    windows = expected_MT.shape[1]
    np.testing.assert_allclose(x_BTM[0, :windows].numpy(), expected_MT.T, atol=1e-3)
    assert (windows, x_BTM.shape[1]) == (23, 25)  # the last ones reach beyond the end


def test_a_tone_is_in_its_band_however_loud() -> None:
    mel = LogMelSpectrogram(configured())
    t = np.arange(4000) / 8000
    for frequency in (300, 1000, 3000):
        quiet, loud = (
            mel(
                torch.from_numpy((volume * np.sin(2 * np.pi * frequency * t)).astype(np.float32))[None],
                torch.tensor([4000]),
            )
            for volume in (0.05, 0.8)
        )
        bands = mel_filter_bank(257, 16, 20.0, 4000, 8000, norm="slaney", mel_scale="slaney")
        assert quiet[0][0, 10].argmax() == bands[round(frequency / 8000 * 512)].argmax()
        torch.testing.assert_close(quiet[0][0, 5:-5], loud[0][0, 5:-5], atol=0.5, rtol=0)


def test_silence_and_a_single_sample_are_finite() -> None:
    config = configured()
    encoder = config.build().eval()
    decoded = [config.decode(wav(x_T)) for x_T in (np.zeros(900), NOISE_T[:1], NOISE_T)]
    arrays = {name: torch.from_numpy(array) for name, array in config.collate(decoded).items()}
    tokens = encoder(**arrays)
    assert tokens.x_BTD.isfinite().all()
    assert tokens.mask_BT.sum(1).tolist() == [3, 1, 7]  # of 80 samples x 4


@pytest.mark.parametrize("time_stride", [1, 2, 4, 8])
def test_neither_padding_nor_neighbours_change_anything(time_stride: int) -> None:
    config = configured(time_stride=time_stride)
    torch.manual_seed(0)
    encoder = config.build().eval()
    decoded = [config.decode(wav(NOISE_T[:length])) for length in (2000, 700, 1)]
    arrays = {name: torch.from_numpy(array) for name, array in config.collate(decoded).items()}
    with torch.no_grad():
        together = encoder(**arrays)
        behind = torch.nn.functional.pad(arrays["x_BT"], (0, 333), value=9.0)
        torch.testing.assert_close(encoder(x_BT=behind, length_B=arrays["length_B"]).pooled_BD, together.pooled_BD)
        for row, sound in enumerate(decoded):
            alone = {name: torch.from_numpy(array) for name, array in config.collate([sound]).items()}
            torch.testing.assert_close(encoder(**alone).pooled_BD[0], together.pooled_BD[row], rtol=1e-4, atol=1e-5)
    assert (together.x_BTD.shape[1], together.mask_BT[0].sum().item()) == (-(-25 // time_stride),) * 2


def test_long_sounds_are_cut_and_other_rates_are_resampled() -> None:
    config = configured(max_seconds=0.1)
    assert len(config.decode(wav(NOISE_T))["x_T"]) == 800
    assert len(config.decode(wav(np.tile(NOISE_T, 4), 44_100))["x_T"]) == 800
    assert len(config.decode(wav(NOISE_T[:500], 16_000))["x_T"]) == 250


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="must be below rate/2 = 4000 Hz"):
        configured(high=5000.0)
    with pytest.raises(ConfigError, match="make it a multiple"):
        configured(heads=3)
    with pytest.raises(MediumError):
        configured().decode(b"no sound")
