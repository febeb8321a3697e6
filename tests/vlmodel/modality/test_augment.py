"""Random changes of sounds, series, clips and rows: what each does, and that the generator alone decides."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest
import torch

from tests.vlmodel.media_files import saved_video
from tests.vlmodel.modality.test_audio import configured, wav
from vlmodel.config import parse_part_config
from vlmodel.encoder_parts import ModalityPart
from vlmodel.modality._audio import AudioEncoder, mask_with_mean

SECOND_T = np.sin(np.arange(8000) / 8).astype(np.float32)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def part_of(kind: str, **settings: Any) -> ModalityPart:
    part = parse_part_config("vlmodel.modality", {"kind": kind, **settings})
    assert isinstance(part, ModalityPart)
    return part


def npy(x_TC: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, x_TC)
    return file.getvalue()


RAMP_TC = np.arange(40, dtype=np.float32).reshape(20, 2)
EVERY = {
    "audio": (
        {"rate": 8000, "mels": 16, "augment": {"time_shift": 0.1, "speed": 0.1, "noise": 0.1, "frequency_masks": 1,
                                               "time_masks": 2}},
        wav(SECOND_T),
    ),
    "series": ({"channels": 2, "augment": {"jitter": 0.1, "scaling": 0.1, "time_shift": 3, "min_length": 0.5}},
               npy(RAMP_TC)),
    "row": ({"numbers": {name: {} for name in "abcdefgh"}, "augment": {"missing": 0.5}},
            json.dumps(dict.fromkeys("abcdefgh", 1)).encode()),
}  # fmt: skip


@pytest.mark.parametrize("kind", EVERY)
def test_the_generator_alone_decides(kind: str) -> None:
    settings, data = EVERY[kind]
    part = part_of(kind, **settings)
    assert part.has_augmentation()
    assert not part_of(kind, **{**settings, "augment": {}}).has_augmentation()
    one, same, other = (part.decode_augmented(data, rng(seed)) for seed in (0, 0, 1))
    for name, array in one.items():
        np.testing.assert_array_equal(array, same[name])
    assert any(a.shape != b.shape or (a != b).any() for a, b in zip(one.values(), other.values(), strict=True))
    plain = part.decode(data)
    assert all(one[name].dtype == plain[name].dtype for name in plain)


def test_a_sound_is_shifted_by_at_most_the_setting_and_keeps_what_follows() -> None:
    config = configured(augment={"time_shift": 0.1})
    lengths = set()
    for seed in range(20):
        x_T = config.decode_augmented(wav(SECOND_T), rng(seed))["x_T"]
        lengths.add(len(x_T) > 8000)
        assert abs(len(x_T) - 8000) <= 800
        kept = min(len(x_T), 8000)
        np.testing.assert_allclose(x_T[-kept:], SECOND_T[-kept:], atol=1e-6)
    assert lengths == {True, False}
    tiny = config.decode_augmented(wav(SECOND_T[:3]), rng(1))["x_T"]
    assert len(tiny) >= 1


def test_another_speed_moves_the_pitch() -> None:
    config = configured(augment={"speed": 0.2})
    x_T = config.decode_augmented(wav(SECOND_T), rng(3))["x_T"]
    factor = 8000 / len(x_T)
    assert factor != 1
    peaks = [np.abs(np.fft.rfft(wave)).argmax() / len(wave) for wave in (SECOND_T, x_T)]
    assert peaks[1] / peaks[0] == pytest.approx(factor, rel=0.01)


def test_masked_bands_and_spans_are_the_mean_of_the_spectrogram() -> None:
    x_BTM = torch.rand(2, 10, 4)
    mask_BT = torch.tensor([[True] * 10, [True] * 6 + [False] * 4])
    x_BTM = x_BTM * mask_BT.unsqueeze(-1)
    bands_BM = torch.tensor([[False, True, False, False], [False] * 4])
    spans_BK2 = torch.tensor([[[0, 0]], [[20, 40]]])  # with a hop of 10: none; windows 2 and 3
    found = mask_with_mean(x_BTM, mask_BT, bands_BM, spans_BK2, hop=10)
    assert torch.equal(found[0, :, [0, 2, 3]], x_BTM[0, :, [0, 2, 3]])
    torch.testing.assert_close(found[0, :, 1], x_BTM[0].mean().expand(10))
    torch.testing.assert_close(found[1, 2:4], x_BTM[1, :6].mean().expand(2, 4))
    unchanged = [0, 1, 4, 5, 6, 7, 8, 9]
    assert torch.equal(found[1, unchanged], x_BTM[1, unchanged]), "padding stays zero"


def test_masks_bound_what_is_hidden_and_reach_the_tokens() -> None:
    config = configured(
        augment={"frequency_masks": 2, "frequency_width": 3, "time_masks": 2, "time_width": 0.05}, mels=16
    )
    torch.manual_seed(0)
    encoder = config.build().eval()
    assert isinstance(encoder, AudioEncoder)
    changed = 0
    for seed in range(8):
        decoded = config.decode_augmented(wav(SECOND_T), rng(seed))
        assert decoded["bands_M"].sum() <= 6
        assert (decoded["spans_K2"][:, 1] - decoded["spans_K2"][:, 0] <= 400).all()
        assert decoded["spans_K2"].max() <= len(decoded["x_T"])
        arrays = {name: torch.from_numpy(array) for name, array in config.collate([decoded]).items()}
        plain = {name: arrays[name] for name in ("x_BT", "length_B")}
        changed += not torch.allclose(encoder(**arrays).pooled_BD, encoder(**plain).pooled_BD)
    assert changed >= 6
    assert set(config.collate([])) == {"x_BT", "length_B"}


def test_a_series_keeps_a_part_of_itself() -> None:
    part = part_of("series", channels=2, augment={"min_length": 0.5})
    lengths = set()
    for seed in range(20):
        x_TC = part.decode_augmented(npy(RAMP_TC), rng(seed))["x_TC"]
        first = int(x_TC[0, 0]) // 2
        np.testing.assert_array_equal(x_TC, RAMP_TC[first : first + len(x_TC)])
        lengths.add(len(x_TC))
    assert (min(lengths) >= 10, max(lengths) <= 20, len(lengths) > 3) == (True, True, True)
    shifted = part_of("series", channels=2, augment={"time_shift": 5})
    for seed in range(10):
        x_TC = shifted.decode_augmented(npy(RAMP_TC), rng(seed))["x_TC"]
        np.testing.assert_array_equal(x_TC[-10:], RAMP_TC[-10:])
        assert 15 <= len(x_TC) <= 25
    one = shifted.decode_augmented(npy(RAMP_TC[:1]), rng())["x_TC"]
    assert (one == RAMP_TC[0]).all()


def test_frames_are_drawn_from_their_own_parts() -> None:
    """Frame t of the clip is of brightness 10 t: each drawn one lies in its fifth of the clip."""
    data = saved_video(np.stack([np.full((32, 32, 3), 10 * t, np.uint8) for t in range(20)]))
    tiny = {"frames": 5, "image_size": 8, "vision": {"kind": "cnn", "stages": 1, "grid": 1}}
    part = part_of("video", **tiny, augment={"frame_jitter": 1.0})
    seen = set()
    for seed in range(10):
        frames_THWC = part.decode_augmented(data, rng(seed))["frames_THWC"]
        numbers = np.rint(frames_THWC.mean((1, 2, 3)) / 10).astype(int)
        assert [number // 4 for number in numbers] == [0, 1, 2, 3, 4]
        seen.add(tuple(numbers))
    assert len(seen) > 5
    middle = np.rint(part.decode(data)["frames_THWC"].mean((1, 2, 3)) / 10).astype(int)
    assert middle.tolist() == [2, 6, 10, 14, 18]


def test_values_of_a_row_go_missing() -> None:
    settings, data = EVERY["row"]
    part = part_of("row", **settings)
    given = np.stack([part.decode_augmented(data, rng(seed))["given_C"] for seed in range(50)])
    assert 0.35 < given.mean() < 0.65
    decoded = part.decode_augmented(data, rng())
    assert (decoded["numbers_C"][~decoded["given_C"]] == 0).all()
