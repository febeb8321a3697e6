"""The medium ``video``: exact frames with their times, whatever the container, and how each broken file is refused.

Claims: frames and time stamps are those of other decoders (shared/data/video-clips); a frame that is sought equals the
one that is met on the way; turned, cut, empty and lying files are told apart before they cost memory.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.vlmodel.media_files import saved_sound, saved_video
from vlmodel.media.base import CheckLimits, MediumError
from vlmodel.media.video import MEDIUM, decode_video, read_video_timeline

CLIPS = Path(__file__).resolve().parents[4] / "shared" / "data" / "video-clips"
LIMITS, HEADER = CheckLimits(), CheckLimits(verify="header")


def film(count: int = 12, height: int = 32, width: int = 48) -> np.ndarray:
    """A white bar that goes to the right by 4 pixels a frame, and a red square at the top left."""
    frames_THWC = np.zeros((count, height, width, 3), np.uint8)
    frames_THWC[:, :8, :8] = [255, 0, 0]
    for number, frame_HWC in enumerate(frames_THWC):
        frame_HWC[16:24, 4 * number % width : 4 * number % width + 4] = 255
    return frames_THWC


FILM = film()
MP4, MKV = saved_video(FILM), saved_video(film(60), container="matroska")


def frames_of(data: bytes, numbers: list[int]) -> list[tuple[float, np.ndarray]]:
    return list(decode_video(data, LIMITS, lambda timeline: np.array(numbers)))


def patched(data: bytes, box: bytes, offset: int, content: bytes) -> bytes:
    """With other bytes so many after the name of an MP4's box."""
    at = data.index(box) + 4 + offset
    return data[:at] + content + data[at + len(content) :]


@pytest.mark.parametrize(("container", "codec"), [("mp4", "libx264"), ("matroska", "libx264"), ("webm", "libvpx-vp9")])
def test_frames_of_every_container(container: str, codec: str) -> None:
    data = saved_video(FILM, container=container, codec=codec)
    for limits in (LIMITS, HEADER):
        facts = MEDIUM.check_file(data, limits)
        assert list(facts) == list(MEDIUM.columns)
        assert (facts["length"], facts["width"], facts["height"], facts["rotation"]) == (12, 48, 32, 0)
        assert facts["seconds"] == pytest.approx(1.2, abs=1e-3)
        assert not facts["variable_rate"]
    for number, (seconds, rgb_HWC) in zip((0, 5, 11), frames_of(data, [0, 5, 11]), strict=True):
        assert seconds == pytest.approx(number / 10, abs=1e-3)
        assert np.abs(rgb_HWC.astype(int) - FILM[number]).mean() < 6


@pytest.mark.parametrize("key_every", [1, 4, 100])
def test_what_is_sought_is_what_is_met_on_the_way(key_every: int) -> None:
    data = saved_video(FILM, key_every=key_every)
    met = [rgb_HWC for _, rgb_HWC in frames_of(data, list(range(12)))]
    for number in range(12):
        np.testing.assert_array_equal(frames_of(data, [number])[0][1], met[number])
    for (_, rgb_HWC), number in zip(frames_of(data, [2, 3, 9]), (2, 3, 9), strict=True):
        np.testing.assert_array_equal(rgb_HWC, met[number])


def test_frames_are_chosen_by_time() -> None:
    even = read_video_timeline(MP4, LIMITS)
    assert even.evenly_spaced_frames(4).tolist() == [1, 4, 7, 10]
    assert even.evenly_spaced_frames(1).tolist() == [6]
    assert even.evenly_spaced_frames(100).tolist() == list(range(12))
    assert even.frames_shown_at([-1, 0, 0.1, 0.19, 0.2, 9]).tolist() == [0, 0, 1, 1, 2, 11]
    # Two frames in the first second, then one that is shown for two seconds.
    uneven = saved_video(FILM[:3], times=[0, 5, 10])
    assert MEDIUM.check_file(saved_video(FILM[:4], times=[0, 1, 2, 9]), HEADER)["variable_rate"]
    assert read_video_timeline(uneven, LIMITS).frames_shown_at([0.4, 0.6, 1.0]).tolist() == [0, 1, 2]


def test_a_turned_film_is_shown_upright() -> None:
    # As telephones write it: the picture lies on its side, and the header says to turn it by 90 degrees clockwise.
    turned = patched(MP4, b"tkhd", 40, struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 32 * 65536, 0, 1 << 30))
    facts = MEDIUM.check_file(turned, LIMITS)
    assert (facts["width"], facts["height"], facts["rotation"]) == (32, 48, -90)
    ((_, upright_HWC),), ((_, lying_HWC),) = frames_of(turned, [3]), frames_of(MP4, [3])
    np.testing.assert_array_equal(upright_HWC, np.rot90(lying_HWC, -1))
    assert upright_HWC[:8, -8:].mean((0, 1))[0] > 200  # the red square is at the top right now


@pytest.mark.parametrize(
    ("data", "reason", "in_header"),
    [
        (b"", "empty", True),
        (b"no film at all" * 50, "undecodable", True),
        (saved_sound(np.zeros(800)), "no_track", True),
        (MP4[: len(MP4) // 2], "truncated", True),
        (MKV[: len(MKV) // 2], "truncated", True),
        (patched(MP4, b"stco", 8, struct.pack(">I", 1 << 31)), "undecodable", True),
        (patched(MP4, b"stsz", 0, b"\xff" * 56), "undecodable", True),
        (patched(MP4, b"mdat", 196, bytes(700)), "undecodable", False),
    ],
)
def test_what_is_refused(data: bytes, reason: str, in_header: bool) -> None:
    for limits in (LIMITS, HEADER) if in_header else (LIMITS,):
        with pytest.raises(MediumError) as caught:
            MEDIUM.check_file(data, limits)
        assert caught.value.reason == reason
    with pytest.raises(MediumError) as caught:
        frames_of(data, list(range(12)))
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_seconds": 1}, r"1\.2 seconds; max_seconds allows 1"),
        ({"max_pixels": 100}, "48 x 32 = 1536 pixels; max_pixels allows 100"),
        ({"max_frames": 5}, "12 frames; max_frames allows 5"),
    ],
)
def test_limits_hold_before_anything_is_decoded(limits: dict[str, int], message: str) -> None:
    with pytest.raises(MediumError, match=message) as caught:
        MEDIUM.check_file(MP4, CheckLimits(verify="header", **limits))
    assert caught.value.reason == "too_large"


@pytest.mark.skipif(not CLIPS.is_dir(), reason=f"{CLIPS} is not there")
def test_real_clips_are_those_of_other_decoders() -> None:
    data = (CLIPS / "nasa_13013.mp4").read_bytes()
    reference = json.loads((CLIPS / "nasa_13013.mp4.stream3.all_frames_info.json").read_text())
    timeline = read_video_timeline(data, LIMITS)
    expected_T = np.array([float(frame["pts_time"]) for frame in reference])
    np.testing.assert_allclose(timeline.seconds_T, expected_T, atol=1e-3)
    for number, (_, rgb_HWC) in zip((0, 9), frames_of(data, [0, 9]), strict=True):
        frame_HWC = torch.load(CLIPS / f"nasa_13013.mp4.stream3.frame{number:06d}.pt", weights_only=True)
        np.testing.assert_array_equal(rgb_HWC, frame_HWC.numpy())
    for name, count, codec in (("h265_video.mp4", 10, "hevc"), ("av1_video.mkv", 125, "libdav1d")):
        facts = MEDIUM.check_file((CLIPS / name).read_bytes(), LIMITS)
        assert (facts["length"], facts["codec"]) == (count, codec)
