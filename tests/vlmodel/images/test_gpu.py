"""What is left to the CPU, and that the rest are the CPU's pixels. Without a GPU the same code runs over libjpeg."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from tests.vlmodel.images.test_cpu import LIMIT, photograph
from vlmodel.images.decoders import gpu
from vlmodel.images.decoders.cpu import decode_image
from vlmodel.images.decoders.gpu import decode_jpegs_on_gpu
from vlmodel.images.resize import ImageResizing, Resize

CUDA = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"))


def places(count: int, size: int) -> list[np.ndarray]:
    return list(np.full((count, size, size, 3), 7, np.uint8))


def turned() -> bytes:
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30), "red").save(file, "JPEG", exif=exif)
    return file.getvalue()


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("resize", ["squash", "crop", "pad"])
@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_pixels(device: str, resize: Resize) -> None:
    files = [
        photograph(333, 250),
        photograph(250, 333),
        photograph(300, 300, "L"),
        photograph(333, 250, progressive=True),
    ]
    out = places(len(files), 96)
    assert decode_jpegs_on_gpu(files, ImageResizing((96, 96), resize), LIMIT, torch.device(device), out).all()
    for file, got in zip(files, out, strict=True):
        expected = decode_image(file, ImageResizing((96, 96), resize), LIMIT).astype(float)
        # nvJPEG interpolates colours between their samples in its own way.
        assert np.abs(got - expected).mean() < (0.5 if device == "cpu" else 1.5)


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_what_is_left_to_the_cpu(device: str) -> None:
    plain, cut = photograph(333, 250), photograph(333, 250)[:-400]
    files = [turned(), plain, cut, png(), b"", b"<html>", photograph(64, 64, "CMYK"), photograph(2000, 1600)]
    out = places(len(files), 48)
    done = decode_jpegs_on_gpu(files, ImageResizing((48, 48)), 1_000_000, torch.device(device), out)
    assert done.tolist() == [False, True] + 6 * [False]
    assert all((place == 7).all() for place, is_done in zip(out, done, strict=True) if not is_done)


def test_a_call_that_fails_leaves_all_to_the_cpu(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("Error while decoding JPEG images")

    monkeypatch.setattr(gpu, "decode_jpeg", fails)
    out = places(2, 48)
    assert not decode_jpegs_on_gpu(
        [photograph(99, 99)] * 2, ImageResizing((48, 48)), LIMIT, torch.device("cpu"), out
    ).any()
    assert all((place == 7).all() for place in out)
    assert "none of 2 images" in caplog.text
