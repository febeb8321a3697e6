"""The encoder of videos: which frames it sees, and what may change nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.vlmodel.media_files import saved_video
from vlmodel.config import ConfigError, parse_part_config
from vlmodel.media.base import MediumError
from vlmodel.modality.video import Config

VISION = {"kind": "cnn", "name": "resnet18", "stages": 1}
TINY = {"kind": "video", "frames": 4, "image_size": 16, "width": 16, "depth": 1, "heads": 2, "vision": VISION}


def configured(**settings: Any) -> Config:
    config = parse_part_config("vlmodel.modality", {**TINY, **settings})
    assert isinstance(config, Config)
    return config


def film(count: int) -> bytes:
    """Frames of one grey each, lighter from frame to frame."""
    shades_T = np.linspace(20, 235, count).astype(np.uint8)
    return saved_video(np.broadcast_to(shades_T[:, None, None, None], (count, 32, 48, 3)))


def test_the_middle_frame_of_each_part() -> None:
    frames_THWC = configured().decode(film(16))["frames_THWC"]
    assert frames_THWC.shape == (4, 16, 16, 3)
    expected_T = np.linspace(20, 235, 16)[[2, 6, 10, 14]]
    np.testing.assert_allclose(frames_THWC.mean((1, 2, 3)), expected_T, atol=4)
    assert len(configured().decode(film(3))["frames_THWC"]) == 3


@pytest.mark.parametrize("tokens", ["pooled", "all"])
def test_neither_padding_nor_neighbours_change_anything_and_order_does(tokens: str) -> None:
    config = configured(tokens=tokens)
    torch.manual_seed(0)
    encoder = config.build().eval()
    decoded = [config.decode(film(count)) for count in (8, 2)]
    arrays = {name: torch.from_numpy(array) for name, array in config.collate(decoded).items()}
    with torch.no_grad():
        together = encoder(**arrays)
        each = together.x_BTD.shape[1] // 4
        assert together.mask_BT.sum(1).tolist() == [4 * each, 2 * each]
        arrays["frames_BTHWC"][1, 2:] = 99
        torch.testing.assert_close(encoder(**arrays).pooled_BD, together.pooled_BD)
        for row, video in enumerate(decoded):
            alone = {name: torch.from_numpy(array) for name, array in config.collate([video]).items()}
            torch.testing.assert_close(encoder(**alone).pooled_BD[0], together.pooled_BD[row], rtol=1e-4, atol=1e-5)
        backwards = {**arrays, "frames_BTHWC": arrays["frames_BTHWC"].flip(1)}
        assert not torch.allclose(encoder(**backwards).pooled_BD[0], together.pooled_BD[0], atol=1e-4)


def test_features_of_a_frozen_encoder_stand_for_the_frames() -> None:
    config = configured(vision={**VISION, "frozen": True}, projection=8).resolve_settings()
    assert config.is_frozen()
    assert not configured().is_frozen()
    encoder = config.build().eval()
    arrays = {name: torch.from_numpy(array) for name, array in config.collate([config.decode(film(6))] * 2).items()}
    features_BTF, mask_BT = encoder.compute_features(**arrays)
    assert features_BTF.shape == (2, 4, encoder.feature_width)
    torch.testing.assert_close(encoder.tokens_from_features(features_BTF, mask_BT).x_BTD, encoder(**arrays).x_BTD)
    trained = {name for name, p in encoder.named_parameters() if p.requires_grad}
    assert trained
    assert not [name for name in trained if name.startswith("vision.")]
    assert {name.split(".")[0] for name in encoder.frozen_tensor_names()} == {"vision"}


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="encodes no images"):
        configured(vision={"kind": "none"})
    with pytest.raises(MediumError):
        configured().decode(b"no film")
