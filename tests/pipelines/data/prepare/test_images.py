"""Images as they are stored: smaller, upright, and untouched where nothing is due."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from pipelines.data.prepare.config import PrepareConfig
from pipelines.data.prepare.hashing import perceptual_hash
from pipelines.data.prepare.images import (
    ImageFormatAndSize,
    encode_image,
    keep_image_as_stored,
    needs_decoding,
    target_format_and_size,
)
from pipelines.data.tars.errors import SampleError
from tests.pipelines.data.prepare.conftest import decoded, encoded, picture
from vlmodel.media.base import CheckLimits
from vlmodel.media.image import MEDIUM


def facts_of(data: bytes) -> ImageFormatAndSize:
    return ImageFormatAndSize(**MEDIUM.check_file(data, CheckLimits()))


@pytest.mark.parametrize(
    ("image", "settings", "expected"),
    [
        (("jpeg", 640, 480), {}, ("jpeg", 640, 480)),
        (("jpeg", 640, 480), {"longest_side": 320}, ("jpeg", 320, 240)),
        (("jpeg", 480, 640), {"longest_side": 320}, ("jpeg", 240, 320)),
        (("jpeg", 640, 480), {"shortest_side": 240}, ("jpeg", 320, 240)),
        (("jpeg", 640, 480), {"longest_side": 400, "shortest_side": 240}, ("jpeg", 320, 240)),
        (("jpeg", 640, 480), {"longest_side": 160, "shortest_side": 240}, ("jpeg", 160, 120)),
        (("jpeg", 640, 480), {"longest_side": 640}, ("jpeg", 640, 480)),
        (("jpeg", 64, 48), {"longest_side": 640, "shortest_side": 600}, ("jpeg", 64, 48)),
        (("jpeg", 2000, 2), {"longest_side": 100}, ("jpeg", 100, 1)),
        (("png", 640, 480), {"longest_side": 320}, ("png", 320, 240)),
        (("gif", 640, 480), {"longest_side": 320}, ("png", 320, 240)),
        (("gif", 64, 48), {"longest_side": 320}, ("gif", 64, 48)),
        (("png", 64, 48), {"format": "jpeg"}, ("jpeg", 64, 48)),
        (("jpeg", 640, 480), {"format": "webp", "longest_side": 320}, ("webp", 320, 240)),
    ],
)
def test_target(image: tuple[str, int, int], settings: dict[str, object], expected: tuple[str, int, int]) -> None:
    config = PrepareConfig(**settings)
    assert target_format_and_size(ImageFormatAndSize(*image), config) == expected
    assert needs_decoding(ImageFormatAndSize(*image), config) == (image != expected)


def test_what_need_not_change_keeps_its_bytes() -> None:
    data = encoded(picture(1), quality=95)
    image = facts_of(data)
    config = PrepareConfig(longest_side=120, format="jpeg", quality=10, near_duplicates=4)
    assert needs_decoding(image, config), "for its hash alone"
    stored = encode_image(data, image, config)
    assert (stored.data, stored.extension, stored.width, stored.height) == (None, "jpg", 120, 90)
    assert (stored.hash ^ perceptual_hash(picture(1))).bit_count() <= 2
    assert keep_image_as_stored(image)[:4] == stored[:4]


def test_shrunk_upright_and_without_metadata() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the upright image is 90 x 120
    upright = picture(3, (90, 120))
    data = encoded(upright.transpose(Image.Transpose.ROTATE_90), quality=98, exif=exif, icc_profile=b"profile")
    image = facts_of(data)
    assert (image.width, image.height) == (90, 120)
    stored = encode_image(data, image, PrepareConfig(longest_side=60))
    assert stored.data is not None
    small = decoded(stored.data)
    assert (small.format, small.size, stored.extension) == ("JPEG", (45, 60), "jpg")
    assert not small.getexif()
    assert "icc_profile" not in small.info
    expected = np.asarray(upright.resize((45, 60), Image.Resampling.LANCZOS), np.int16)
    assert np.abs(np.asarray(small, np.int16) - expected).mean() < 8


def test_what_is_transparent_is_on_white() -> None:
    data = encoded(Image.new("RGBA", (40, 20), (255, 0, 0, 0)), "PNG")
    stored = encode_image(data, facts_of(data), PrepareConfig(longest_side=20))
    assert stored.data is not None
    small = decoded(stored.data)
    assert (small.mode, small.size, stored.extension) == ("RGB", (20, 10), "png")
    assert np.unique(np.asarray(small)).tolist() == [255]


def test_formats_and_qualities_are_what_was_asked_for() -> None:
    data = encoded(picture(2), "PNG")
    image = facts_of(data)
    sizes = {}
    for form, name in (("jpeg", "JPEG"), ("webp", "WEBP")):
        for quality in (30, 90):
            stored = encode_image(data, image, PrepareConfig(format=form, quality=quality)).data
            assert stored is not None
            assert decoded(stored).format == name
            sizes[form, quality] = len(stored)
    assert sizes["jpeg", 30] < sizes["jpeg", 90] < len(data)
    assert sizes["webp", 30] < sizes["webp", 90] < len(data)


def test_an_image_that_cannot_be_decoded_is_a_typed_error() -> None:
    data = encoded(picture(1))
    with pytest.raises(SampleError, match="undecodable_image: jpeg: ") as error:
        encode_image(data[: len(data) // 2], facts_of(data), PrepareConfig(longest_side=60))
    assert error.value.reason == "undecodable_image"
