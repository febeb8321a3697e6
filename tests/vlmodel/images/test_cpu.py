"""Pixels against Pillow's own: the same decoder's output, and the same filter but for rounding."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image
from timm.data.transforms_factory import create_transform

from vlmodel.images.decoders.cpu import decode_image
from vlmodel.images.resize import ImageResizing

LIMIT = 10_000_000


def photograph(width: int, height: int, mode: str = "RGB", **options: object) -> bytes:
    """Smooth structure at several scales, and grain."""
    rng = np.random.default_rng(0)
    image = np.zeros((height, width, 3), np.float32)
    for cells in (4, 12, 40):
        noise = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        image += np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC)) / 3
    file = io.BytesIO()
    grainy = (image + rng.normal(0, 4, image.shape)).clip(0, 255).astype(np.uint8)
    Image.fromarray(grainy).convert(mode).save(file, "JPEG", quality=90, **options)
    return file.getvalue()


def by_pillow(data: bytes, size: int) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB").resize((size, size), Image.Resampling.BILINEAR))


@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"subsampling": 2}, {"progressive": True}, {"mode": "L"}])
@pytest.mark.parametrize("size", [96, 224, 400])
def test_a_photograph_is_what_pillow_makes_of_it(size: int, options: dict[str, object]) -> None:
    data = photograph(333, 250, **options)  # type: ignore[arg-type]
    got = decode_image(data, ImageResizing((size, size)), LIMIT).astype(int)
    assert np.abs(got - by_pillow(data, size)).max() <= 2


@pytest.mark.parametrize("width", [250, 333])
def test_the_center_by_the_bicubic_filter(width: int) -> None:
    data = photograph(width, 250)
    got = decode_image(data, ImageResizing((96, 96), "crop", 0.8, "bicubic"), LIMIT).astype(int)
    left = (width - 200) // 2
    part = Image.open(io.BytesIO(data)).convert("RGB").crop((left, 25, left + 200, 225))
    assert np.abs(got - np.asarray(part.resize((96, 96), Image.Resampling.BICUBIC))).max() <= 2


@pytest.mark.parametrize("mode", ["crop", "squash"])
def test_prepared_as_timm_does(mode: str) -> None:
    """timm resizes before it cuts, and cuts whole pixels: the same but for a part of a pixel."""
    cut = "squash" if mode == "squash" else "center"
    transform = create_transform((3, 112, 112), interpolation="bicubic", crop_pct=0.875, crop_mode=cut, normalize=False)
    coarse = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8))
    for size in ((333, 250), (250, 400)):
        smooth = coarse.resize(size, Image.Resampling.BICUBIC)
        file = io.BytesIO()
        smooth.save(file, "PNG")
        got = decode_image(file.getvalue(), ImageResizing((112, 112), mode, 0.875, "bicubic"), LIMIT).astype(int)  # type: ignore[arg-type]
        theirs = transform(smooth).permute(1, 2, 0).numpy().astype(int)
        assert np.abs(got - theirs).mean() < 4
        assert np.corrcoef(got.ravel(), theirs.ravel())[0, 1] > 0.995


def test_what_the_fast_decoder_refuses_is_pillows_to_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    data = photograph(333, 250)
    expected = decode_image(data, ImageResizing((96, 96)), LIMIT)

    def refuses(_: bytes) -> np.ndarray:
        raise ValueError("Corrupt JPEG data: 3 extraneous bytes before marker 0xd9")

    monkeypatch.setattr(simplejpeg, "decode_jpeg", refuses)
    np.testing.assert_array_equal(decode_image(data, ImageResizing((96, 96)), LIMIT), expected)


@pytest.mark.parametrize(("width", "height", "scaled"), [(333, 250, False), (800, 600, True), (3000, 2000, True)])
def test_only_what_stays_twice_the_target_is_decoded_smaller(
    monkeypatch: pytest.MonkeyPatch, width: int, height: int, scaled: bool
) -> None:
    data = photograph(width, height)
    whole: list[bytes] = []

    def decode_jpeg(jpeg: bytes) -> np.ndarray:
        whole.append(jpeg)
        return np.zeros((height, width, 3), np.uint8)

    monkeypatch.setattr(simplejpeg, "decode_jpeg", decode_jpeg)
    got = decode_image(data, ImageResizing((128, 128)), LIMIT)
    assert bool(whole) is not scaled
    if scaled:
        error = (got.astype(float) - by_pillow(data, 128)) ** 2
        assert 10 * np.log10(255**2 / error.mean()) > 38


def test_real_photographs() -> None:
    tar = Path(__file__).resolve().parents[4] / "shared" / "data" / "flickr8k-subset" / "flickr8k_images.tar"
    if not tar.is_file():
        pytest.skip("needs the photographs of ../shared/data/flickr8k-subset")
    import itertools

    import webdataset

    for sample in itertools.islice(webdataset.WebDataset(str(tar), shardshuffle=False), 20):
        got = decode_image(sample["jpg"], ImageResizing((96, 96)), LIMIT).astype(int)
        assert np.abs(got - by_pillow(sample["jpg"], 96)).max() <= 2
