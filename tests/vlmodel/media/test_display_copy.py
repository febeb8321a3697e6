"""Copies for people: they hold what the file holds, and not what it says beside that."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import soundfile
from PIL import Image

from tests.vlmodel.media_files import saved_video
from vlmodel.media.audio import decode_audio
from vlmodel.media.base import CheckLimits
from vlmodel.media.registry import all_media, medium_of_extension
from vlmodel.media.row import decode_json_row
from vlmodel.media.series import decode_series
from vlmodel.media.video import decode_video, read_video_timeline

LIMITS = CheckLimits()
SECRET = b"Anna's telephone"


def copy_of(medium: str, data: bytes) -> bytes:
    copy = all_media()[medium].display_copy(data)
    assert copy is not None
    kind = {"jpeg": "jpg"}.get(copy.media_type.rpartition("/")[2], copy.media_type.rpartition("/")[2])
    assert medium_of_extension(kind) is not None
    assert SECRET not in copy.data
    assert all_media()[medium].check_file(copy.data, LIMITS)
    return copy.data


def test_an_image_is_small_and_has_no_metadata() -> None:
    exif = Image.Exif()
    exif[0x010F] = SECRET.decode()
    file = io.BytesIO()
    Image.radial_gradient("L").resize((900, 600)).convert("RGB").save(file, "JPEG", exif=exif)
    assert SECRET in file.getvalue()
    with Image.open(io.BytesIO(copy_of("image", file.getvalue()))) as copy:
        assert (copy.size, dict(copy.getexif())) == ((512, 341), {})


@pytest.mark.parametrize("channels", [1, 2])
def test_a_sound_is_cut_after_20_seconds(channels: int) -> None:
    x_TC = np.random.default_rng(0).normal(0, 0.1, (21 * 1000, channels)).clip(-1, 1)
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", 1000, channels, format="WAV") as sound:
        sound.title = SECRET.decode()
        sound.write(x_TC)
    assert SECRET in file.getvalue()
    copy = decode_audio(copy_of("audio", file.getvalue()), LIMITS)
    assert (copy.x_TC.shape, copy.rate) == ((20_000, channels), 1000)
    np.testing.assert_allclose(copy.x_TC, x_TC[:20_000], atol=1e-4)


def test_a_video_has_the_same_frames() -> None:
    frames_THWC = np.random.default_rng(0).integers(0, 255, (8, 16, 16, 3)).astype(np.uint8)
    data = saved_video(frames_THWC.repeat(2, 1).repeat(2, 2))
    copy = copy_of("video", data)

    def decoded(video: bytes) -> list[tuple[float, np.ndarray]]:
        return list(decode_video(video, LIMITS, lambda timeline: np.arange(len(timeline))))

    assert len(read_video_timeline(copy, LIMITS)) == 8
    for (one, frame), (other, copied) in zip(decoded(data), decoded(copy), strict=True):
        assert one == pytest.approx(other, abs=1e-3)
        np.testing.assert_array_equal(frame, copied)
    assert all_media()["video"].display_copy(b"\0" * (4 << 20) + data) is None, "it is too large"


@pytest.mark.parametrize("text", ["name;x;y\nAnna's telephone;1,5;2\nAnna's telephone;3;4\n", "1.5,2\n3,4\n"])
def test_a_series_has_its_numbers_and_their_names(text: str) -> None:
    copy = copy_of("series", text.encode())
    assert decode_series(copy, LIMITS.max_values).tolist() == [[1.5, 2], [3, 4]]
    if "x" in text:
        assert decode_series(copy, LIMITS.max_values, ["y", "x"]).tolist() == [[2, 1.5], [4, 3]]
    assert all_media()["series"].display_copy(b"1\n" * 200_001) is None


def test_a_row_is_the_same() -> None:
    row = {"age": 41, "colour": "blau für dich", "known": None}
    assert decode_json_row(copy_of("row", json.dumps(row).encode()), 10) == row
