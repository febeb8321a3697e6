"""The medium ``audio``: what a valid file says, and how each broken one is refused before memory is taken.

Claims: WAV of integers and floats, FLAC and MP3 are the same sound; a header that announces more than there is, or more
than the limits, is refused; each defect has its reason; resampling keeps a tone and the length.
"""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
import soundfile

from vlmodel.media.audio import MEDIUM, Sound, decode_audio, to_mono
from vlmodel.media.base import CheckLimits, MediumError

RATE = 8000
TONE_T = (0.5 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)).astype(np.float32)
LIMITS = CheckLimits()
HEADER = CheckLimits(verify="header")


def saved(x: np.ndarray = TONE_T, format: str = "WAV", subtype: str | None = None, rate: int = RATE) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, x, rate, format=format, subtype=subtype)
    return file.getvalue()


def announcing(size: int) -> bytes:
    """A WAV file whose header says that the sound has so many bytes."""
    wav = saved()
    return wav[:40] + struct.pack("<I", size) + wav[44:]


@pytest.mark.parametrize(
    ("format", "subtype", "tolerance"),
    [("WAV", "PCM_16", 1e-4), ("WAV", "DOUBLE", 0), ("WAV", "FLOAT", 0), ("FLAC", "PCM_16", 1e-4), ("MP3", None, 0.1)],
)
def test_the_same_sound_of_every_format(format: str, subtype: str | None, tolerance: float) -> None:
    data = saved(format=format, subtype=subtype)
    sound = decode_audio(data, LIMITS)
    assert sound.x_TC.dtype == np.float32
    assert (sound.x_TC.shape, sound.rate) == ((RATE, 1), RATE)
    np.testing.assert_allclose(sound.x_TC[:, 0], TONE_T, atol=tolerance)
    for limits in (LIMITS, HEADER):
        facts = MEDIUM.check_file(data, limits)
        assert list(facts) == list(MEDIUM.columns)
        assert facts == {"format": format.lower(), "length": RATE, "channels": 1, "rate": RATE, "seconds": 1.0}


def test_the_first_seconds_alone() -> None:
    assert decode_audio(saved(), LIMITS, seconds=0.25).x_TC.shape == (2000, 1)
    assert decode_audio(saved(), LIMITS, seconds=9).x_TC.shape == (RATE, 1)
    # What is broken behind them is not read.
    assert decode_audio(saved(format="FLAC")[:-200], LIMITS, seconds=0.1).x_TC.shape == (800, 1)


def test_eight_channels_become_one() -> None:
    x_TC = np.stack([TONE_T * (channel == 3) for channel in range(8)], 1)
    assert MEDIUM.check_file(saved(x_TC), LIMITS)["channels"] == 8
    np.testing.assert_allclose(to_mono(decode_audio(saved(x_TC), LIMITS), RATE), TONE_T / 8, atol=1e-4)


FLAC = saved(format="FLAC")
LYING_FLAC = FLAC[:21] + bytes([FLAC[21] | 0x0F]) + b"\xff" * 4 + FLAC[26:]
"""Which announces 2^36 samples."""


@pytest.mark.parametrize(
    ("data", "reason", "in_header"),
    [
        (b"", "empty", True),
        (saved(TONE_T[:0]), "empty", True),
        (saved()[:5000], "truncated", True),
        (announcing(10**7), "truncated", True),
        (saved()[:20], "undecodable", True),
        (b"no sound at all" * 50, "undecodable", True),
        (saved()[:24] + bytes(4) + saved()[28:], "undecodable", True),
        (saved()[:22] + bytes(2) + saved()[24:], "undecodable", True),
        (LYING_FLAC, "too_large", True),
        (FLAC[:22] + bytes(4) + FLAC[26:], "undecodable", True),
        (FLAC[: len(FLAC) // 2], "truncated", False),
        (saved(format="MP3")[:1200], "truncated", False),
        (saved(np.where(np.arange(RATE) == 77, np.nan, TONE_T), subtype="FLOAT"), "not_finite", False),
    ],
)
def test_what_is_refused(data: bytes, reason: str, in_header: bool) -> None:
    for limits in (LIMITS, HEADER) if in_header else (LIMITS,):
        with pytest.raises(MediumError) as caught:
            MEDIUM.check_file(data, limits)
        assert caught.value.reason == reason
    with pytest.raises(MediumError) as caught:
        decode_audio(data, LIMITS)
    assert caught.value.reason == reason


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFFFFF])
def test_a_length_that_was_not_known_yet(size: int) -> None:
    np.testing.assert_allclose(decode_audio(announcing(size), LIMITS).x_TC[:, 0], TONE_T, atol=1e-4)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_seconds": 0.5}, r"1\.0 seconds; max_seconds allows 0\.5"),
        ({"max_channels": 1}, "2 channels; max_channels allows 1"),
        ({"max_values": 100}, "= 16000 numbers; max_values allows 100"),
        ({"max_bytes": 50}, "max_bytes allows 50"),
    ],
)
def test_limits_hold_before_anything_is_decoded(limits: dict[str, float], message: str) -> None:
    with pytest.raises(MediumError, match=message) as caught:
        MEDIUM.check_file(saved(np.stack([TONE_T, TONE_T], 1)), CheckLimits(verify="header", **limits))
    assert caught.value.reason == "too_large"


@pytest.mark.parametrize("rate", [4000, 16_000, 22_050, 11_024])
def test_resampling_keeps_a_tone_and_its_length(rate: int) -> None:
    x_T = to_mono(Sound(TONE_T[:, None], RATE), rate)
    assert x_T.dtype == np.float32
    assert len(x_T) == rate
    expected_T = 0.5 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)
    np.testing.assert_allclose(x_T[200:-200], expected_T[200:-200], atol=2e-3)
